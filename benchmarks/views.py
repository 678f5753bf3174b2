"""Measures what all views of a video cost a decoding task, relative to decoding the frames that they show once.

Runs on one machine without Ray. Times are CPU time of one thread, including opening; ratios are taken within rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tpn_ray import storage
from tpn_ray.clips import augment, sampling, seen
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.clips.views import Views, parse_views, see
from tpn_ray.datasets.video_lists import SUFFIXES
from tpn_ray.errors import ConfigError
from tpn_ray.videos.decode import open_video

CLIPS = {"8x8": ClipConfig(frames=8, stride_frames=8), "32x2": ClipConfig(frames=32, stride_frames=2)}
CONFIG = AugmentConfig(crop_px=224, test_short_side_px=256)


@dataclass(frozen=True, kw_only=True)
class ViewsBench:
    """What to measure."""

    videos: str
    """Folder with videos, on disk or s3://."""

    views: tuple[str, ...] = ("1x1", "10x3", "ten_crop")
    """Views, as in jobs/evaluate.py."""

    most_videos: int = 8
    """Maximum number of videos to take from the folder."""

    rounds: int = 7
    """Number of times everything is measured."""

    def __post_init__(self) -> None:
        for field in ("most_videos", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")


def measure_views(bench: ViewsBench) -> str:
    """Measure every kind of views and clips, and return a line for each."""
    files = storage.list_files(storage.absolute(bench.videos), suffixes=SUFFIXES)[: bench.most_videos]
    if not files:
        raise ConfigError(f"{bench.videos} holds no videos; their names end in {' '.join(SUFFIXES)}")
    videos = [storage.read_bytes(file.uri) for file in files]
    lines = [f"{len(videos)} videos, {bench.rounds} rounds: CPU time of all views over that of their frames, once"]
    for text in bench.views:
        for name, clip in CLIPS.items():
            views, ratios = parse_views(text), list[float]()
            for number in range(bench.rounds):
                order = (_once, _all) if number % 2 else (_all, _once)
                seconds = {job: _seconds(job, videos, views, clip) for job in order}
                ratios.append(seconds[_all] / seconds[_once])
            low, high = min(ratios), max(ratios)
            lines.append(f"{text:12} clips of {name:5} {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


def _once(videos: list[bytes], views: Views, clip: ClipConfig) -> None:
    for data in videos:
        with open_video(data) as video:
            indices = np.unique(sampling.test_indices(views.clip(clip), video.frame_count, views.clips))
            video.frames(indices, lambda frame: augment.test_size(frame[None], CONFIG)[0])


def _all(videos: list[bytes], views: Views, clip: ClipConfig) -> None:
    for data in videos:
        with open_video(data) as video:
            one = see(video, data, views, clip, CONFIG)
        seen.columns([one], views, clip)


def _seconds(
    job: Callable[[list[bytes], Views, ClipConfig], None], videos: list[bytes], views: Views, clip: ClipConfig
) -> float:
    begun = time.thread_time()
    job(videos, views, clip)
    return time.thread_time() - begun
