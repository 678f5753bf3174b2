"""Synthetic videos whose class is only their visual tempo: real H.264 files, learnable in a minute.

A shape pulses: it grows and brightens, shrinks and darkens, with one of eight periods. Its colors, position, form, and
phase, the background, and the noise are random with the same distribution for all classes, so that a single frame
reveals nothing. Runs on the driver.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.clips.augment import generator
from tpn_ray.errors import ConfigError

TOY_PERIODS_FRAMES = (10, 12, 15, 19, 25, 34, 49, 80)
"""Frames per pulse, for each class. The steps grow with the period: slow pulses are harder to tell apart, since a clip
of some 60 frames holds only one or two of them. The fastest still moves at a stride of 4 frames."""

TOY_CLASSES = tuple(f"period_{frames:02d}" for frames in TOY_PERIODS_FRAMES)
"""Class names, from fast to slow; sorting by name keeps this order."""

FRAMES_AT_ONCE = 4
WORTH_PROCESSES = 200
"""Number of videos from which a process for each core is worth its start."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Number and size of the videos."""

    train_per_class: int = 96
    """Number of training videos for each of the eight classes."""

    val_per_class: int = 24
    """Number of validation videos for each class."""

    frames: int = 104
    """Number of frames in a video. The slowest class needs 80 for one pulse."""

    size_px: int = 64
    """Height and width in pixels; must be even because of the video's color format."""

    frames_per_second: int = 25
    """Frame rate written to the file."""

    gop_frames: int = 16
    """Distance between keyframes, in frames."""

    seed: int = 0
    """Seed of the videos; another seed makes other videos of the same kind."""

    def __post_init__(self) -> None:
        for field in ("train_per_class", "val_per_class", "frames", "frames_per_second", "gop_frames"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.size_px < 16 or self.size_px % 2:
            raise ConfigError(f"size_px is {self.size_px}; it must be even and at least 16")


def write_toy(folder_uri: str, config: ToyConfig, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Write folder/{train,val}/<class>/<number>.mp4; the same bytes on every run.

    `progress` is called with (videos written, total videos).
    """
    per_class = config.train_per_class + config.val_per_class
    each = [(label, number) for label in range(len(TOY_CLASSES)) for number in range(per_class)]
    with contextlib.ExitStack() as stack:
        make = functools.partial(_make, config)
        videos: Iterator[bytes] = map(make, each)
        if len(each) >= WORTH_PROCESSES:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(os.cpu_count(), mp_context=spawn, initializer=_begin_process)
            stack.callback(pool.shutdown, cancel_futures=True)
            videos = pool.map(make, each, chunksize=8)
        for done, ((label, number), data) in enumerate(zip(each, videos, strict=True), 1):
            split = "train" if number < config.train_per_class else "val"
            storage.write_bytes(storage.join(folder_uri, split, TOY_CLASSES[label], f"{number:04d}.mp4"), data)
            if progress:
                progress(done, len(each))


def _make(config: ToyConfig, place: tuple[int, int]) -> bytes:
    label, number = place
    return encode_toy(draw_toy(config, label, number), config)


def _begin_process() -> None:
    """Leave Ctrl-C to the parent process, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def draw_toy(config: ToyConfig, label: int, number: int, *, power: float | None = None) -> NDArray[np.uint8]:
    """Draw the frames (t, h, w, 3) of one video. All but the period is drawn in the same way for every class.

    `power` is the exponent of the norm that sets the shape's form; by default it is drawn.
    """
    random = generator(config.seed, 0, label * 1_000_000 + number, 0)
    size = config.size_px
    period = TOY_PERIODS_FRAMES[label] * random.uniform(0.98, 1.02)
    phase = random.uniform(0, 2 * math.pi) + np.arange(config.frames) * (2 * math.pi / period)
    pulse = np.sin(phase) * random.choice([-1, 1])
    radius = size * random.uniform(0.22, 0.30) * (1 + random.uniform(0.35, 0.45) * pulse)
    glow = random.uniform(0.55, 0.65) * (1 + random.uniform(0.2, 0.4) * np.sin(phase + random.uniform(0, 2 * math.pi)))
    distance = _distance(size, random, power)
    inside = np.clip(radius[:, None, None] - distance[None] + 0.5, 0, 1)[..., None].astype(np.float32)
    shape = (random.uniform(120, 255, size=3) * glow[:, None])[:, None, None].astype(np.float32)
    background = _background(size, random)[None].astype(np.float32)
    noise = random.normal(0, 3, size=(4, size, size, 1)).astype(np.float32)
    of_frame = random.integers(4, size=config.frames)
    pixels = np.empty((config.frames, size, size, 3), dtype=np.uint8)
    for begin in range(0, config.frames, FRAMES_AT_ONCE):  # few enough to stay in the processor's cache
        now = slice(begin, begin + FRAMES_AT_ONCE)
        frames = background + inside[now] * (shape[now] - background) + noise[of_frame[now]]
        pixels[now] = np.clip(frames, 0, 255, out=frames)
    return pixels


def _distance(size: int, random: np.random.Generator, power: float | None) -> NDArray[np.float64]:
    """Return each pixel's distance (h, w) from the shape's center, in a norm that makes a disc, square, or diamond."""
    centre = size * random.uniform(0.4, 0.6, size=2)
    angle = random.uniform(0, math.pi / 2)
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    down, across = rows - centre[0], columns - centre[1]
    one = np.abs(math.cos(angle) * down + math.sin(angle) * across)
    two = np.abs(math.cos(angle) * across - math.sin(angle) * down)
    drawn = random.choice([1.0, 2.0, 6.0])
    power = drawn if power is None else power
    distance: NDArray[np.float64] = (one**power + two**power) ** (1 / power)
    return distance


def _background(size: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw a static texture (h, w, 3): two gratings in two colors."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    texture = np.zeros((size, size, 1))
    for _ in range(2):
        angle, waves, shift = random.uniform(0, math.pi), random.uniform(1, 6), random.uniform(0, 2 * math.pi)
        along = math.cos(angle) * rows + math.sin(angle) * columns
        texture[..., 0] += 0.25 * (1 + np.sin(2 * math.pi * waves * along + shift))
    dark, bright = random.uniform(0, 90, size=3), random.uniform(60, 180, size=3)
    return dark + texture * (bright - dark)


def encode_toy(frames: NDArray[np.uint8], config: ToyConfig) -> bytes:
    """Encode frames (t, h, w, 3) as an H.264 MP4; the same installed encoder gives the same bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream(
            "libx264", rate=config.frames_per_second, options={"preset": "ultrafast", "crf": "26", "threads": "1"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "yuv420p", config.gop_frames
        stream.thread_count = 1  # the number of threads changes x264's bytes
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()
