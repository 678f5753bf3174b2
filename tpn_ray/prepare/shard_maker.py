"""Making of one shard: fetch, check, re-encode, store. Runs on Ray Data workers, and anywhere: it takes plain values.

A shard is written whole at its end, including the findings about its bad videos, and its bytes are a pure function of
the videos and the settings: a task that was killed is simply run again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tpn_ray import storage
from tpn_ray.clips import decoding
from tpn_ray.clips.decoding import decoder_of
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.datasets.shards import FLOW, FLOW_SHA256, SHARDS, VIDEO, Bad, shard_bytes
from tpn_ray.errors import BadVideo, ConfigError, NotFoundError
from tpn_ray.lease import Token
from tpn_ray.prepare.layout import ShardPlan, segment_of
from tpn_ray.prepare.scratch import scratch_folder
from tpn_ray.sandbox.process import Sandbox, SandboxLimits
from tpn_ray.videos.encode import EncodeConfig, Prepared, prepare_plain
from tpn_ray.videos.source_frames import Segment

FETCH_AHEAD = 4
"""Source files prefetched to the worker's disk beside the one being converted, to hide storage latency."""

MAX_SOURCE_BYTES = 64 * 1024**3
"""Maximum size of a file from which segments are taken; whole videos have the sandbox's limit."""

SAMPLE_SOURCE_BYTES = 256 * 1024**2


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """Everything needed to make shards."""

    manifest: Manifest
    shards: list[ShardPlan]
    encode: EncodeConfig
    limits: SandboxLimits
    folder: str
    settings_hash: str
    token: Token | None = None
    """Token of the lease under which the dataset is written."""


@dataclass(kw_only=True)
class Totals:
    """Totals so far."""

    videos: int = 0
    """Good videos."""
    frames: int = 0
    source_bytes: int = 0
    """Size of all files looked at. A file from which segments are taken counts once per segment."""
    video_bytes: int = 0
    bad: dict[int, Bad] = field(default_factory=dict)
    """Bad videos, by row of the manifest."""


@dataclass(kw_only=True)
class VideoFinding:
    """Finding about one video."""

    row: int
    frames: int = 0
    source_bytes: int = 0
    video_bytes: int = 0
    bad: Bad | None = None


class Meter:
    """Adds up the findings of all tasks. A task that ran twice counts once."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.totals = Totals()

    def add(self, finding: VideoFinding) -> None:
        if finding.row in self.rows:
            return
        self.rows.add(finding.row)
        self.totals.source_bytes += finding.source_bytes
        self.totals.frames += finding.frames
        self.totals.video_bytes += finding.video_bytes
        if finding.bad:
            self.totals.bad[finding.row] = finding.bad
        else:
            self.totals.videos += 1


def make_shard(job: PrepareJob, number: int, tell: Callable[[VideoFinding], None]) -> int:
    """Make shard `number` of the job, write it, and return its size in bytes. Bad videos are reported and recorded."""
    plan = job.shards[number]
    rows, bad = list[dict[str, Any]](), list[Bad]()
    for row, take in _sources(job, plan.rows):
        finding = VideoFinding(row=row, source_bytes=max(0, int(job.manifest.sizes_bytes[row])))
        try:
            made = prepare_confined(_sandbox(job.limits), take(), segment_of(job.manifest, row), job.encode)
            rows.append(_stored_row(job.manifest, row, made))
            finding.frames, finding.video_bytes = len(made.times_us), len(made.video) + len(made.flow)
        except BadVideo as error:
            finding.bad = (row, source_uri(job.manifest, row), error.reason, str(error))
            bad.append(finding.bad)
        tell(finding)
    data = shard_bytes(rows, bad, job=job.settings_hash, split=plan.split)
    if job.token:
        job.token.check()
    storage.write_bytes(storage.join(job.folder, SHARDS, plan.name), data)
    return len(data)


@functools.lru_cache(maxsize=1)
def _sandbox(limits: SandboxLimits) -> Sandbox:
    """Return the process's only sandbox. Its child reads a pipe from this process and ends with it."""
    return Sandbox(limits)


def source_uri(manifest: Manifest, row: int) -> str:
    """Return where a row comes from; a segment by its seconds, as in media fragments (W3C)."""
    segment = segment_of(manifest, row)
    return manifest.uris[row] + (f"#t={segment.start_seconds:g},{segment.end_seconds:g}" if segment else "")


def _stored_row(manifest: Manifest, row: int, made: Prepared) -> dict[str, Any]:
    segment = segment_of(manifest, row)
    flow = {FLOW_SHA256: hashlib.sha256(made.flow).hexdigest(), FLOW: made.flow} if made.flow else {}
    return {
        "id": manifest.ids[row],
        "labels": manifest.labels[row].tolist(),
        "frame_count": len(made.times_us),
        "times_us": made.times_us,
        "frames_per_second": made.frames_per_second,
        "height": made.height,
        "width": made.width,
        "source_uri": manifest.uris[row],
        "start_seconds": segment and segment.start_seconds,
        "end_seconds": segment and segment.end_seconds,
        "content_sha256": hashlib.sha256(made.video).hexdigest(),
        VIDEO: made.video,
        **flow,
    }


# --- sources


def _sources(job: PrepareJob, rows: tuple[int, ...]) -> Iterator[tuple[int, Callable[[], Path]]]:
    """Yield (row, what returns its file on this machine's disk), prefetched. Adjacent rows of one file share it."""
    manifest = job.manifest
    names: list[list[int]] = []
    for row in rows:
        if names and manifest.uris[names[-1][0]] == manifest.uris[row]:
            names[-1].append(row)
        else:
            names.append([row])
    with scratch_folder() as scratch, ThreadPoolExecutor(FETCH_AHEAD) as pool:

        def start(place: int) -> Future[Path]:
            row = names[place][0]
            most = MAX_SOURCE_BYTES if segment_of(manifest, row) else job.limits.decode.max_bytes
            return pool.submit(fetch_file, manifest, row, scratch / str(place), most)

        ahead = {place: start(place) for place in range(min(FETCH_AHEAD, len(names)))}
        for place, sharing in enumerate(names):
            file = ahead.pop(place)
            for row in sharing:
                yield row, file.result
            (scratch / str(place)).unlink(missing_ok=True)
            if place + FETCH_AHEAD < len(names):
                ahead[place + FETCH_AHEAD] = start(place + FETCH_AHEAD)


def fetch_file(manifest: Manifest, row: int, target: Path, max_bytes: int) -> Path:
    """Return the row's file on this machine's disk: the original, or a copy at `target`. Raises BadVideo for a missing
    file.

    A lasting storage failure is no fault of the video, and ends the job.
    """
    uri, size = manifest.uris[row], int(manifest.sizes_bytes[row])
    if size < 0:
        raise BadVideo("missing", "the annotations name it, but it is not in storage")
    if size > max_bytes:
        raise BadVideo("too_large", f"the file has {size} bytes, the limit is {max_bytes}")
    try:
        if not storage.is_s3(uri):
            storage.check_readable(uri)
            return Path(uri)
        storage.download(uri, target, max_bytes=max_bytes)
    except NotFoundError as error:
        raise BadVideo("missing", "it was taken away while the dataset was being prepared") from error
    return target


# --- what it saves


def clip_seconds(pairs: list[tuple[bytes, bytes]]) -> tuple[float, float]:
    """Return the median CPU seconds per clip of 8 frames at stride 8 over the sample: (from sources, from prepared
    videos).

    Both are measured alternately, as a data worker decodes: opening, seeking, decoding, and conversion to RGB.
    """
    config, decode = ClipConfig(), decoder_of(prepared=False)
    seconds = np.array([[decode(decoding.clip_seconds, data, config, True) for data in pair] for pair in pairs])
    before, after = np.median(seconds, axis=0)
    return float(before), float(after)


def prepare_confined(sandbox: Sandbox, path: Path, segment: Segment | None, config: EncodeConfig) -> Prepared:
    """Prepare a local file in a sandbox. Raises BadVideo, also if the child process dies of the file."""
    limits = sandbox.limits
    if segment is None and path.stat().st_size > limits.decode.max_bytes:
        raise BadVideo("too_large", f"the file has {path.stat().st_size} bytes, more than {limits.max_file_gb:g} GB")
    prepare = flow_preparer() if config.flow else prepare_plain
    return Prepared(**sandbox.call(prepare, path, segment, config, limits.decode))


def flow_preparer() -> Callable[..., dict[str, Any]]:
    """Return what prepares a video with its flow. Raises ConfigError where there is no OpenCV."""
    try:
        from tpn_ray.videos.flow import prepare_with_flow  # imported here: only flow needs OpenCV
    except ImportError as error:
        raise ConfigError(f"--flow needs OpenCV on every node: pip install 'tpn_ray[flow]' ({error})") from error
    return prepare_with_flow
