"""Scores of every video, or of every window of long ones, with Ray Data. Runs on the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import ray
import ray.data
import ray.exceptions

from tpn_ray.clips.manifest import Manifest
from tpn_ray.data import driver as data
from tpn_ray.data import rows
from tpn_ray.data.views import Views
from tpn_ray.data.worker import ClipSource, Rows
from tpn_ray.errors import ConfigError, ResourceError, TpnRayError
from tpn_ray.predict.predictor import Alpha
from tpn_ray.predict.worker import Scorer
from tpn_ray.train.recipe import Recipe

TRAINED: Alpha = ()
"""The alpha of the checkpoint itself."""


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """What scoring takes of the cluster."""

    workers: int = 1
    """Processes that hold the network; the scores are the same bits whatever their number."""

    cpus_per_worker: float = 1.0
    """CPUs that each of them holds, and its number of torch threads."""

    gpus_per_worker: float = 0.0
    """GPUs that each of them holds; 0 computes on CPUs."""

    decode: data.DecodeResources = field(default_factory=data.DecodeResources)
    """Of each decoding task."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus_per_worker < 0 or self.gpus_per_worker < 0 or self.decode.cpus <= 0:
            raise ConfigError(
                f"workers={self.workers} must be at least 1, cpus and gpus per worker not negative, decode.cpus above 0"
            )


def score(
    checkpoint_uri: str,
    recipe: Recipe,
    manifest: Manifest,
    views: Views,
    scorers: Scorers,
    *,
    alphas: Sequence[Alpha] = (TRAINED,),
    keep_views: bool = False,
) -> Iterator[Rows]:
    """Blocks of scored videos, each exactly once and in the manifest's order; columns of `worker.Scorer`."""
    clip, augment = recipe.clip, recipe.augment
    video_bytes = int(np.prod(views.shape(clip, augment)))
    decoded = data.video_views(_source(recipe, manifest), views, len(manifest), video_bytes, scorers.decode)
    next_sample = 0
    for block in _scored(decoded, checkpoint_uri, scorers, alphas, keep_views):
        expected = np.arange(next_sample, next_sample + len(block[rows.SAMPLE]))
        if not np.array_equal(block[rows.SAMPLE], expected):
            raise AssertionError(f"videos {block[rows.SAMPLE]} came where {expected} were due")
        next_sample += len(expected)
        yield block
    if next_sample != len(manifest):
        raise AssertionError(f"{next_sample} of {len(manifest)} videos were scored")


def score_windows(
    checkpoint_uri: str,
    recipe: Recipe,
    manifest: Manifest,
    views: Views,
    scorers: Scorers,
    *,
    window_seconds: float,
    hop_seconds: float,
) -> Iterator[Rows]:
    """Blocks of scored windows of long videos, in order."""
    source = _source(recipe, manifest)
    decoded = data.video_windows(source, views, window_seconds, hop_seconds, len(manifest), scorers.decode)
    yield from _scored(decoded, checkpoint_uri, scorers, (TRAINED,), False)


def _source(recipe: Recipe, manifest: Manifest) -> ray.ObjectRef[ClipSource]:
    return ray.put(ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=recipe.loop.seed))


def _scored(
    decoded: ray.data.Dataset, checkpoint_uri: str, scorers: Scorers, alphas: Sequence[Alpha], keep_views: bool
) -> Iterator[Rows]:
    scored = decoded.map_batches(
        Scorer,
        fn_constructor_args=(checkpoint_uri, max(1, int(scorers.cpus_per_worker)), tuple(alphas), keep_views),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=scorers.workers),
        num_cpus=scorers.cpus_per_worker,
        num_gpus=scorers.gpus_per_worker or None,
    )
    try:
        yield from scored.iter_batches(batch_size=None)
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise explain(error) from error


def explain(error: BaseException) -> Exception:
    """The project's own error inside what Ray raised, or a ResourceError with its last line."""
    causes: list[BaseException | None] = [error]
    for cause in causes:
        if isinstance(cause, TpnRayError):
            return cause
        inner = (getattr(cause, "cause", None), getattr(cause, "__cause__", None))
        causes += [one for one in inner if isinstance(one, BaseException) and one not in causes]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ResourceError(f"scoring failed: {lines[-1] if lines else type(error).__name__}")
