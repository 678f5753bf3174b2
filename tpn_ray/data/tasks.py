"""Reads, decodes, and augments. Runs on Ray Data workers, and anywhere: it takes plain values and returns arrays."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tpn_ray.clips import decoding, handover, rows, seen
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.decoding import decoder_of
from tpn_ray.clips.handover import Parts
from tpn_ray.clips.notes import Note
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.clips.views import ViewFrames, Views
from tpn_ray.data.plan import Int64Array, PlannedMicroBatch, StepShape
from tpn_ray.datasets import reader
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import BadVideo
from tpn_ray.sandbox.process import findings

READERS = 8
"""Number of videos that one decoding process fetches at the same time: this hides storage latency and needs little
memory."""

FETCHED_AHEAD = 16
"""Maximum number of videos whose bytes are held or being fetched while one is decoded."""

Made = TypeVar("Made")
Fetch = Callable[[Manifest, int], bytes]


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Everything needed to make clips of one split of a dataset."""

    manifest: Manifest
    clip: ClipConfig
    augment: AugmentConfig
    seed: int
    repeats: bool = False
    """Whether a video can occur several times in an epoch. Its random draws are then those of its place in the plan."""
    developed: bool = True
    """Whether clips are converted, cropped, and colored here. Otherwise they are handed over as decoded, at half the
    bytes, for a GPU to do that (`tpn_ray.clips.develop`), which relieves the CPUs of most of the work. Views are always
    developed."""

    def shaped(self, shape: StepShape | None) -> ClipSource:
        """Return the same source for clips of another shape, if one is given."""
        if shape is None:
            return self
        clip = dataclasses.replace(self.clip, frames=shape.frames, stride_frames=shape.stride_frames)
        return dataclasses.replace(self, clip=clip, augment=dataclasses.replace(self.augment, crop_px=shape.crop_px))


def training_rows(source: ClipSource, micro_batches: Sequence[PlannedMicroBatch], fetch: Fetch = reader.fetch) -> Rows:
    """Make the clips of some micro-batches of one shape, one after the other.

    The result has `clip` of shape (n, t, h, w, c), or `pixels` and `notes` if not `developed`. Clips of one video are
    adjacent and come from one pass over it.
    """
    source = source.shaped(micro_batches[0].shape)
    per_video = source.clip.clips_per_video
    samples = np.concatenate([micro_batch.samples for micro_batch in micro_batches])
    epochs = [micro_batch.epoch for micro_batch in micro_batches for _ in micro_batch.samples]
    positions = np.concatenate([micro_batch.positions for micro_batch in micro_batches])
    decode = decoder_of(source.manifest.placement is not None)

    def clips_of(data: bytes, place: int) -> list[Any]:
        draw = (source.seed, epochs[place], int(samples[place]), int(positions[place]) if source.repeats else 0)
        made: list[Any] = decode(decoding.training_clips, data, source.clip, source.augment, draw, source.developed)
        return made

    together = len(micro_batches[0].samples)
    return {rows.POSITION: positions, **_clip_rows(source, samples, clips_of, together, per_video, fetch)}


def evaluation_rows(source: ClipSource, samples: Int64Array, together: int = 0) -> Rows:
    """Make the middle clip of each video in its center crop: `clip`, or `pixels` and `notes`, as in `training_rows`.

    Each group of `together` neighbors can be taken out separately.
    """
    decode = decoder_of(source.manifest.placement is not None)

    def clips_of(data: bytes, _: int) -> list[Any]:
        return [decode(decoding.centre_clip, data, source.clip, source.augment, source.developed)]

    return {rows.POSITION: samples, **_clip_rows(source, samples, clips_of, together or len(samples))}


def _clip_rows(
    source: ClipSource,
    samples: Int64Array,
    clips_of: Callable[[bytes, int], list[Any]],
    together: int,
    per_video: int = 1,
    fetch: Fetch = reader.fetch,
) -> Rows:
    """Build the columns of clips and their metadata; each group of `together` neighbors can be taken out separately."""
    if source.developed:
        side = source.augment.crop_px
        shape = len(samples), source.clip.pictures, side, side, source.clip.colors
        pixels = np.zeros(shape, dtype=np.uint8)
        return {
            rows.CLIP: pixels,
            **make_each(source.manifest, samples, clips_of, pixels.__setitem__, per_video, fetch),
        }
    made: list[tuple[Parts, Note] | None] = [None] * len(samples)

    def keep(place: int, clip: tuple[Parts, Sequence[Any]]) -> None:
        made[place] = clip[0], Note(*clip[1])

    about = make_each(source.manifest, samples, clips_of, keep, per_video, fetch)
    return {**handover.columns(made, source.clip.pictures, together), **about}


def view_rows(source: ClipSource, views: Views, samples: Int64Array) -> Rows:
    """Decode what all views of each video show, in one pass over it, and return the columns of `seen.columns`."""
    found: list[ViewFrames | None] = [None] * len(samples)
    seconds = np.tile([0.0, np.nan], (len(samples), 1))
    decode = decoder_of(source.manifest.placement is not None)

    def see_all(data: bytes, place: int) -> list[ViewFrames]:
        *fields, seconds[place, 1] = decode(decoding.seen, data, views, source.clip, source.augment)
        return [ViewFrames(*fields)]

    about = make_each(source.manifest, samples, see_all, found.__setitem__)
    return {**seen.columns(found, views, source.clip), rows.SECONDS: seconds, **about}


def window_rows(
    source: ClipSource, views: Views, length_seconds: float, hop_seconds: float, sample: int
) -> Iterator[Rows]:
    """Yield all views of each window of one video, one row at a time: a long video's windows do not fit into memory.

    A video that cannot be used, from its beginning or from some point on, ends with a row that says why.
    """
    about = {rows.SAMPLE: np.array([sample]), rows.LABELS: source.manifest.labels[[sample]]}
    fine = {rows.REASON: np.array([""]), rows.MESSAGE: np.array([""])}
    prepared, start = source.manifest.placement is not None, 0.0
    try:
        data = reader.fetch(source.manifest, sample)
        settings = (views, source.clip, source.augment, length_seconds, hop_seconds)
        for one, window in decoding.each_window(prepared, data, *settings):
            start = window.start_seconds + hop_seconds
            times = np.array([[window.start_seconds, window.end_seconds]])
            yield {**seen.columns([one], views, source.clip), rows.SECONDS: times, **about, **fine}
    except BadVideo as bad:
        nothing = seen.columns([None], views, source.clip)
        why = {rows.REASON: np.array([bad.reason]), rows.MESSAGE: np.array([str(bad)])}
        yield {**nothing, rows.SECONDS: np.array([[start, np.nan]]), **about, **why}


def make_each(
    manifest: Manifest,
    samples: Int64Array,
    make: Callable[[bytes, int], list[Made]],
    keep: Callable[[int, Made], None],
    per_video: int = 1,
    fetch: Fetch = reader.fetch,
) -> Rows:
    """Make something for each place and keep it there; bad videos and empty places (-1) are skipped.

    `make` takes a video's bytes and its first place, and makes `per_video` adjacent items from it. Returns the
    accompanying columns.
    """
    reasons, messages = [""] * len(samples), [""] * len(samples)
    for number, data in enumerate(_fetched(manifest, samples[::per_video].tolist(), fetch)):
        if data is None:
            continue
        places = range(number * per_video, (number + 1) * per_video)
        try:
            video = data.result()
            with findings():
                for place, made in zip(places, make(video, places[0]), strict=True):
                    keep(place, made)
        except BadVideo as bad:
            for place in places:
                reasons[place], messages[place] = bad.reason, str(bad)
    return {
        rows.SAMPLE: samples,
        rows.LABELS: manifest.labels[np.maximum(samples, 0)],
        rows.REASON: np.array(reasons, dtype=np.str_),
        rows.MESSAGE: np.array(messages, dtype=np.str_),
    }


def _fetched(manifest: Manifest, samples: list[int], fetch: Fetch) -> Iterator[Future[bytes] | None]:
    """Yield the bytes of each sample, None for an empty place; the next ones are fetched while one is decoded."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[bytes] | None] = deque()
        for sample in samples:
            ahead.append(pool.submit(fetch, manifest, sample) if sample >= 0 else None)
            if len(ahead) > FETCHED_AHEAD:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
