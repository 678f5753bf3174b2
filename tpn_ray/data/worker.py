"""Read, decode, augment. Runs on Ray Data workers, and anywhere: it takes plain values and returns arrays."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import augment, sampling
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.decode import open_video
from tpn_ray.clips.manifest import Manifest
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.data import reader, rows
from tpn_ray.data.plan import Int64Array, MicroBatch
from tpn_ray.data.views import Views
from tpn_ray.errors import BadVideo

READERS = 8
"""Videos fetched at the same time by one decoding process: storage latency is hidden, memory stays small."""

Clip = NDArray[np.uint8]
Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Everything needed to make clips of one split of a dataset."""

    manifest: Manifest
    clip: ClipConfig
    augment: AugmentConfig
    seed: int


def training_rows(source: ClipSource, micro_batch: MicroBatch) -> Rows:
    """Augmented clips of one micro-batch: `clip` has shape (n, t, h, w, c)."""

    def clip_of(data: bytes, sample: int) -> Clip:
        random = augment.generator(source.seed, micro_batch.epoch, sample, 0)
        with open_video(data) as video:
            indices = sampling.train_indices(source.clip, video.frame_count, random)
            return augment.train_view(video.frames(indices), source.augment, random)

    side = source.augment.crop_px
    shape = (source.clip.frames, side, side, 3)
    made = decode_rows(source.manifest, micro_batch.samples, clip_of, rows.CLIP, shape)
    return {rows.POSITION: micro_batch.positions, **made}


def evaluation_rows(source: ClipSource, samples: Int64Array) -> Rows:
    """The middle clip of each video in its centre crop: `clip` has shape (n, t, h, w, c)."""

    def clip_of(data: bytes, sample: int) -> Clip:
        with open_video(data) as video:
            indices = sampling.test_indices(source.clip, video.frame_count, 1)[0]
            return augment.test_view(video.frames(indices), source.augment)

    side = source.augment.crop_px
    shape = (source.clip.frames, side, side, 3)
    return {rows.POSITION: samples, **decode_rows(source.manifest, samples, clip_of, rows.CLIP, shape)}


def view_rows(source: ClipSource, views: Views, samples: Int64Array) -> Rows:
    """All views of each video from one opening of it: `views` has shape (n, v, t, h, w, c), clips before crops."""

    def views_of(data: bytes, sample: int) -> Clip:
        with open_video(data) as video:
            indices = sampling.test_indices(source.clip, video.frame_count, views.clips)
            frames = video.frames(indices.reshape(-1))
        clips = frames.reshape(*indices.shape, *frames.shape[1:])
        return np.stack([augment.test_view(clip, source.augment, crop) for clip in clips for crop in views.crops])

    side = views.side_px(source.augment)
    shape = (views.count, source.clip.frames, side, side, 3)
    return decode_rows(source.manifest, samples, views_of, rows.VIEWS, shape)


def decode_rows(
    manifest: Manifest,
    samples: Int64Array,
    make: Callable[[bytes, int], Clip],
    column: str,
    shape: tuple[int, ...],
) -> Rows:
    """Make pixels of `shape` for each sample; a bad video, or an empty place (-1), is black and says why."""
    pixels = np.zeros((len(samples), *shape), dtype=np.uint8)
    reasons, messages = [""] * len(samples), [""] * len(samples)
    with ThreadPoolExecutor(max_workers=min(READERS, len(samples))) as pool:
        fetched = [pool.submit(reader.fetch, manifest, s) if s >= 0 else None for s in samples.tolist()]
        for place, (sample, data) in enumerate(zip(samples.tolist(), fetched, strict=True)):
            if data is None:
                continue
            try:
                pixels[place] = make(data.result(), sample)
            except BadVideo as bad:
                reasons[place], messages[place] = bad.reason, str(bad)
            fetched[place] = None  # the bytes are not needed any more
    return {
        rows.SAMPLE: samples,
        column: pixels,
        rows.LABELS: manifest.labels[np.maximum(samples, 0)],
        rows.REASON: np.array(reasons, dtype=np.str_),
        rows.MESSAGE: np.array(messages, dtype=np.str_),
    }
