"""Read, decode, augment. Runs on Ray Data workers, and anywhere: it takes plain values and returns arrays."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import augment, sampling
from tpn_ray.clips.augment import AugmentConfig, CropDraw
from tpn_ray.clips.decode import Box, Video, open_video
from tpn_ray.clips.manifest import Manifest
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.data import reader, rows
from tpn_ray.data.notes import NO_CLIP, PLANES, RGB, Note, to_array
from tpn_ray.data.plan import Int64Array, MicroBatch
from tpn_ray.data.views import Views
from tpn_ray.errors import BadVideo

READERS = 8
"""Videos fetched at the same time by one decoding process: storage latency is hidden, memory stays small."""

Clip = NDArray[np.uint8]
Rows = dict[str, NDArray[Any]]
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Everything needed to make clips of one split of a dataset."""

    manifest: Manifest
    clip: ClipConfig
    augment: AugmentConfig
    seed: int
    developed: bool = True
    """Whether training clips are augmented here. Else they are handed over as decoded, at half the bytes, for a GPU to
    convert, crop and colour (`tpn_ray.data.develop`), which takes the greater part of the work from the CPUs."""


def training_rows(source: ClipSource, micro_batch: MicroBatch) -> Rows:
    """The clips of one micro-batch: `clip` of shape (n, t, h, w, c), or `pixels` and `notes` if not `developed`."""
    made = _developed_rows(source, micro_batch) if source.developed else _undeveloped_rows(source, micro_batch)
    return {rows.POSITION: micro_batch.positions, **made}


def _developed_rows(source: ClipSource, micro_batch: MicroBatch) -> Rows:

    def clip_of(data: bytes, sample: int) -> Clip:
        random = augment.generator(source.seed, micro_batch.epoch, sample, 0)
        with open_video(data) as video:
            indices = sampling.train_indices(source.clip, video.frame_count, random)
            return augment.train_view(video.frames(indices), source.augment, random)

    side = source.augment.crop_px
    shape = (source.clip.frames, side, side, 3)
    return decode_rows(source.manifest, micro_batch.samples, clip_of, rows.CLIP, shape)


def _undeveloped_rows(source: ClipSource, micro_batch: MicroBatch) -> Rows:
    def clip_of(data: bytes, sample: int) -> tuple[list[Clip], Note]:
        random = augment.generator(source.seed, micro_batch.epoch, sample, 0)
        with open_video(data) as video:
            indices = sampling.train_indices(source.clip, video.frame_count, random)
            return undeveloped(video, indices, source.augment, random)

    made: list[tuple[list[Clip], Note] | None] = [None] * len(micro_batch.samples)
    columns = make_each(source.manifest, micro_batch.samples, clip_of, made.__setitem__)
    parts, notes, begin = list[Clip](), list[Note](), 0
    for one in made:
        planes, note = one or ([], NO_CLIP._replace(frames=source.clip.frames))
        notes.append(note._replace(begin=begin))
        parts += [plane.reshape(-1) for plane in planes]
        begin += sum(plane.size for plane in planes)
    row_bytes = max(1, -(-begin // len(made)))
    filling = np.zeros(row_bytes * len(made) - begin, dtype=np.uint8)
    pixels = np.concatenate([*parts, filling]).reshape(len(made), row_bytes)
    return {rows.PIXELS: pixels, rows.NOTES: to_array(notes), **columns}


def undeveloped(
    video: Video, indices: Int64Array, config: AugmentConfig, random: np.random.Generator
) -> tuple[list[Clip], Note]:
    """A training clip as decoded, cut to its crop and up to a pixel around it, and what is to be done to it.

    The draws are those of `augment.train_view`, in the same order.
    """
    crop: CropDraw | None = None

    def box_of(height: int, width: int) -> Box:
        nonlocal crop
        crop = augment.draw_crop(config, height, width, random)
        bottom, right = crop.top_px + crop.height_px, crop.left_px + crop.width_px
        return crop.top_px & ~1, crop.left_px & ~1, min(bottom + 1 & ~1, height), min(right + 1 & ~1, width)

    planes = video.planes(indices, box_of)
    if planes is not None and crop is not None:
        stored, kind = [planes.y, planes.u, planes.v], PLANES
        top, left = crop.top_px & 1, crop.left_px & 1
    else:
        frames = video.frames(indices)
        crop = crop or augment.draw_crop(config, frames.shape[1], frames.shape[2], random)
        across = slice(crop.left_px, crop.left_px + crop.width_px)
        stored, kind = [np.ascontiguousarray(frames[:, crop.top_px : crop.top_px + crop.height_px, across])], RGB
        top = left = 0
    jitter = augment.draw_jitter(config, random)
    return stored, Note(
        kind=kind,
        begin=0,
        frames=len(stored[0]),
        height=stored[0].shape[1],
        width=stored[0].shape[2],
        top=top,
        left=left,
        crop_height=crop.height_px,
        crop_width=crop.width_px,
        mirrored=crop.mirrored,
        matrix=planes.matrix if planes else 0,
        full=bool(planes and planes.full),
        jitter=jitter.matrix,
        grey_share=jitter.grey_share,
    )


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
    """All views of each video from one pass over it, in which each frame is decoded and resized once.

    `views` has shape (n, v, t, h, w, c), clips before crops.
    """

    def views_of(data: bytes, sample: int) -> Clip:
        with open_video(data) as video:
            indices = sampling.test_indices(source.clip, video.frame_count, views.clips)
            distinct, clips = np.unique(indices, return_inverse=True)
            frames = augment.test_size(video.frames(distinct), source.augment)
        cuts = [augment.cut_view(frames, source.augment, crop) for crop in views.crops]
        return np.stack([cut[clip] for clip in clips.reshape(indices.shape) for cut in cuts])

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
    return {column: pixels, **make_each(manifest, samples, make, pixels.__setitem__)}


def make_each(
    manifest: Manifest, samples: Int64Array, make: Callable[[bytes, int], Made], keep: Callable[[int, Made], None]
) -> Rows:
    """Make something of each sample and keep it in its place; a bad video, or an empty place (-1), has none.

    Gives the columns that go with them.
    """
    reasons, messages = [""] * len(samples), [""] * len(samples)
    with ThreadPoolExecutor(max_workers=min(READERS, len(samples))) as pool:
        fetched = [pool.submit(reader.fetch, manifest, s) if s >= 0 else None for s in samples.tolist()]
        for place, (sample, data) in enumerate(zip(samples.tolist(), fetched, strict=True)):
            if data is None:
                continue
            try:
                keep(place, make(data.result(), sample))
            except BadVideo as bad:
                reasons[place], messages[place] = bad.reason, str(bad)
            fetched[place] = None  # the bytes are not needed any more
    return {
        rows.SAMPLE: samples,
        rows.LABELS: manifest.labels[np.maximum(samples, 0)],
        rows.REASON: np.array(reasons, dtype=np.str_),
        rows.MESSAGE: np.array(messages, dtype=np.str_),
    }
