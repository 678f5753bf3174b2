"""Decodes one video for a purpose: functions of its bytes alone, which run in a sandbox or here. No Ray.

A video of unknown origin is read in a child process that can be killed (`tpn_ray.sandbox`). A prepared one, which this
project encoded and whose bytes were compared with their hash, is read here, which saves the round trip.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import augment, handover, sampling
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.clips.views import ViewFrames, Views, Window, duration_seconds, see, windows
from tpn_ray.sandbox.process import clip_sandbox, findings
from tpn_ray.videos.decode import open_video

Decode = Callable[..., Any]
"""Calls one of the functions below with a video's bytes and the other arguments."""

MEASURED_CLIPS = 4
"""Number of clips of a video that are decoded to measure the time of one."""


def decoder_of(prepared: bool) -> Decode:
    """Return what calls a function on a video: here for a prepared one, otherwise in a sandbox.

    Either way, whatever the function raises because of the video becomes a BadVideo.
    """
    return _here if prepared else clip_sandbox().call


def _here(function: Callable[..., Any], data: bytes, *arguments: Any) -> Any:
    with findings():
        return function(data, *arguments)


def rehearse() -> None:
    """Exercise what a sandbox will need, so that numpy and Pillow import what they load lazily."""
    frames, config = np.zeros((1, 8, 8, 3), np.uint8), AugmentConfig(crop_px=4, test_short_side_px=4)
    augment.train_view(frames, config, augment.generator(0, 0, 0, 0))
    augment.test_view(frames, config)


def training_clips(
    data: bytes, clip: ClipConfig, config: AugmentConfig, draw: tuple[int, int, int, int], developed: bool
) -> list[Any]:
    """Make the training clips of a video, `clip.clips_per_video` of them, in one pass over it.

    `draw` is (seed, epoch, sample, number of the first clip). A clip is uint8 (t, h, w, c), or one of
    `handover.training_clips` if it is not `developed`.
    """
    seed, epoch, sample, first = draw
    randoms = [augment.generator(seed, epoch, sample, first + number) for number in range(clip.clips_per_video)]
    with open_video(data, flow=clip.modality == "flow") as video:
        indices = [sampling.train_indices(clip, video.frame_count, random) for random in randoms]
        if not developed:
            return handover.training_clips(video, indices, config, randoms)
        return augment.train_views(partial(video.clip_frames, indices), config, randoms)


def centre_clip(data: bytes, clip: ClipConfig, config: AugmentConfig, developed: bool) -> Any:
    """Make the middle clip of a video in its center crop, in the form of `training_clips`."""
    with open_video(data, flow=clip.modality == "flow") as video:
        indices = sampling.test_indices(clip, video.frame_count, 1)[0]
        if not developed:
            return handover.centre_clip(video, indices, config)
        return video.frames(indices, lambda frame: augment.test_view(frame[None], config)[0])


def seen(data: bytes, views: Views, clip: ClipConfig, config: AugmentConfig) -> list[Any]:
    """Decode what all views of a video show: the fields of `ViewFrames`, and the video's length in seconds."""
    with open_video(data, flow=clip.modality == "flow") as video:
        return [*_fields(see(video, data, views, clip, config)), duration_seconds(video.seconds())]


def seen_windows(
    data: bytes, views: Views, clip: ClipConfig, config: AugmentConfig, length_seconds: float, hop_seconds: float
) -> Iterator[list[Any]]:
    """Decode what all views show of each window, and yield the fields of `ViewFrames` and those of its `Window`."""
    with open_video(data, flow=clip.modality == "flow") as video:
        for window in windows(video, length_seconds, hop_seconds):
            one = see(video, data, views, clip, config, window)
            yield [*_fields(one), [window.begin, window.end, window.start_seconds, window.end_seconds]]


def each_window(
    prepared: bool,
    data: bytes,
    views: Views,
    clip: ClipConfig,
    config: AugmentConfig,
    length_seconds: float,
    hop_seconds: float,
) -> Iterator[tuple[ViewFrames, Window]]:
    """Yield what the views show of each window of a video, one at a time: those of a long one do not fit into memory.

    Raises BadVideo if the video cannot be used, either at its beginning or from some point on.
    """
    arguments = (data, views, clip, config, length_seconds, hop_seconds)
    items = seen_windows(*arguments) if prepared else clip_sandbox().stream(seen_windows, *arguments)
    while True:
        with findings():
            item = next(items, None)
        if item is None:
            return
        *fields, window = item
        yield ViewFrames(*fields), Window(*window)


def spread_frames(data: bytes, clip: ClipConfig, config: AugmentConfig) -> NDArray[np.uint8]:
    """Decode frames spread over a video, in the size used for testing: uint8 (t, h, w, c)."""
    with open_video(data) as video:
        indices = sampling.test_indices(clip, video.frame_count, 1)[0]
        return video.frames(indices, lambda frame: augment.test_size(frame[None], config)[0])


def clip_seconds(data: bytes, clip: ClipConfig, developed: bool) -> float:
    """Measure the CPU seconds that a clip takes, including opening the video: the median of several clips."""
    spent = []
    for number in range(MEASURED_CLIPS):
        begin = time.thread_time()
        with open_video(data, flow=clip.modality == "flow") as video:
            indices = sampling.train_indices(clip, video.frame_count, augment.generator(0, 0, 0, number))
            if developed or video.planes(indices) is None:
                video.frames(indices)
        spent.append(time.thread_time() - begin)
    return statistics.median(spent)


def _fields(one: ViewFrames) -> list[Any]:
    return [one.frames, one.places, one.seed]
