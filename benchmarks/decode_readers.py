"""Decoders as functions of a file and frame indices: this package's and others, which are imported on demand."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tpn_ray.sandbox.process import clip_sandbox
from tpn_ray.videos.decode import open_video

Pixels = NDArray[np.uint8]
Reader = Callable[[bytes, NDArray[np.int64]], object]


def read_rgb(data: bytes, indices: NDArray[np.int64]) -> object:
    """Decode with this package to RGB."""
    with open_video(data) as video:
        return video.frames(indices)


def read_in_sandbox(data: bytes, indices: NDArray[np.int64]) -> object:
    """Decode with this package to RGB, in the sandbox used for videos that it has not prepared."""
    return clip_sandbox().call(read_rgb, data, indices)


def read_planes(data: bytes, indices: NDArray[np.int64]) -> object:
    """Decode with this package to planes, as workers hand clips over for a GPU."""
    with open_video(data) as video:
        planes = video.planes(indices)
    assert planes is not None
    return planes


def read_all(data: bytes, indices: NDArray[np.int64]) -> object:
    """Decode every frame and convert none."""
    with open_video(data) as video:
        return sum(1 for _ in video.all_frames())


def torchcodec_reader() -> Reader:
    """Return a reader using torchcodec with one thread: with two, torch's threads busy-wait for each other."""
    importlib.import_module("torch").set_num_threads(1)
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder

    def read(data: bytes, indices: NDArray[np.int64]) -> object:
        video = decoder(data, num_ffmpeg_threads=1, dimension_order="NHWC")
        return video.get_frames_at(indices.tolist()).data

    return read


def decord_reader() -> Reader:
    """Return a reader using decord with one thread."""
    decord = importlib.import_module("decord")

    def read(data: bytes, indices: NDArray[np.int64]) -> object:
        return decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(indices.tolist()).asnumpy()

    return read


def opencv_reader() -> Reader:
    """Return a reader using OpenCV with one thread, which seeks to the first frame and reads on from there.

    OpenCV reads only files, so one is written.
    """
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def read(data: bytes, indices: NDArray[np.int64]) -> object:
        wanted = {int(index): np.flatnonzero(indices == index) for index in indices}
        frames: dict[int, Pixels] = {}
        with memory_file(data) as path:
            video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            video.set(cv2.CAP_PROP_POS_FRAMES, min(wanted))
            for index in range(min(wanted), max(wanted) + 1):
                video.grab()
                if index in wanted:
                    frames[index] = cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
            video.release()
        return np.stack([frames[int(index)] for index in indices])

    return read


@contextlib.contextmanager
def memory_file(data: bytes) -> Iterator[str]:
    """Write bytes to a file in memory and yield its name."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, suffix=".mp4") as file:
        file.write(data)
        file.flush()
        yield file.name


READERS: dict[str, Callable[[], Reader]] = {
    "torchcodec": torchcodec_reader,
    "decord": decord_reader,
    "opencv": opencv_reader,
}


def installed(names: tuple[str, ...]) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """Return the readers by name, and the names of those that cannot be imported."""
    readers, missing = dict[str, Reader](), list[str]()
    for name in names:
        try:
            readers[name] = READERS[name]()
        except (ImportError, OSError, RuntimeError) as error:
            missing.append(f"{name} ({str(error).splitlines()[0][:100]})")
    return readers, tuple(missing)


MODULES = {"torchcodec": "torchcodec", "decord": "decord", "opencv": "cv2"}
