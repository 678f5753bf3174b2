"""Scores of every video, or of every window of long ones, with Ray Data. Runs on the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.data.exceptions
import ray.exceptions

from tpn_ray import checkpoint as checkpoints
from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.clips.views import Views
from tpn_ray.data import dataset as data
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ResourceError, TpnRayError
from tpn_ray.predict.labels import match_classes
from tpn_ray.predict.predictor import EXACT, Alpha, Arithmetic
from tpn_ray.predict.scorer import Scorer
from tpn_ray.predict.summary import summarise
from tpn_ray.predict.table import video_tables, write_scores
from tpn_ray.recipe import Recipe, from_plain
from tpn_ray.resources import Resources

__all__ = ["TRAINED", "score", "score_videos", "score_windows", "summarise", "write_scores"]

TRAINED: Alpha = ()
"""Stands for the checkpoint's own alpha."""


def score(
    checkpoint_uri: str,
    recipe: Recipe,
    manifest: Manifest,
    views: Views,
    resources: Resources,
    *,
    alphas: Sequence[Alpha] = (TRAINED,),
    keep_views: bool = False,
    arithmetic: Arithmetic = EXACT,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Rows]:
    """Yield blocks of scored videos, each exactly once, in the manifest's order, with the columns of
    `scorer.Scorer`. `on_progress` is called with (videos done, total videos)."""
    clip, augment = recipe.clip, recipe.augment
    video_bytes = views.most_bytes(clip, augment)
    decoded = data.video_views(_source(recipe, manifest), views, len(manifest), video_bytes, resources.decoding)
    next_sample = 0
    for block in _scored(decoded, checkpoint_uri, views, resources, alphas, keep_views, arithmetic):
        expected = np.arange(next_sample, next_sample + len(block[rows.SAMPLE]))
        if not np.array_equal(block[rows.SAMPLE], expected):
            raise AssertionError(f"videos {block[rows.SAMPLE]} came where {expected} were due")
        next_sample += len(expected)
        on_progress(next_sample, len(manifest))
        yield block
    if next_sample != len(manifest):
        raise AssertionError(f"{next_sample} of {len(manifest)} videos were scored")


def score_videos(
    checkpoint_uri: str,
    manifest: Manifest,
    views: Views,
    resources: Resources,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pa.Table:
    """Return `score` as a table of `predict.table.video_tables`. Raises CheckpointError if the checkpoint has other
    classes."""
    saved = checkpoints.load(checkpoint_uri, parts=())
    label_sets = {name: tuple(classes) for name, classes in saved.label_sets.items()}
    recipe = from_plain(saved.recipe)
    matched = match_classes(manifest, label_sets, checkpoint_uri, recipe.model.multi_label).manifest
    blocks = score(checkpoint_uri, recipe, matched, views, resources, on_progress=on_progress)
    (table,) = video_tables(matched, blocks)
    return table


def score_windows(
    checkpoint_uri: str,
    recipe: Recipe,
    manifest: Manifest,
    views: Views,
    resources: Resources,
    *,
    window_seconds: float,
    hop_seconds: float,
    arithmetic: Arithmetic = EXACT,
) -> Iterator[Rows]:
    """Yield blocks of scored windows of long videos, in order."""
    source = _source(recipe, manifest)
    decoded = data.video_windows(source, views, window_seconds, hop_seconds, len(manifest), resources.decoding)
    yield from _scored(decoded, checkpoint_uri, views, resources, (TRAINED,), False, arithmetic)


def _source(recipe: Recipe, manifest: Manifest) -> ray.ObjectRef[ClipSource]:
    shown = manifest.showing(recipe.clip.modality)
    return ray.put(ClipSource(manifest=shown, clip=recipe.clip, augment=recipe.augment, seed=recipe.loop.seed))


def _scored(
    decoded: ray.data.Dataset,
    checkpoint_uri: str,
    views: Views,
    resources: Resources,
    alphas: Sequence[Alpha],
    keep_views: bool,
    arithmetic: Arithmetic,
) -> Iterator[Rows]:
    # Given, not detected: a worker that holds no GPU may still see those of its node.
    each = resources.per_worker
    device = "cuda" if each.gpus else "cpu"
    scored = decoded.map_batches(
        Scorer,
        fn_constructor_args=(checkpoint_uri, views, each.threads, tuple(alphas), keep_views, device, arithmetic),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=resources.workers),
        num_cpus=each.cpus,
        num_gpus=each.gpus or None,
        resources=each.custom or None,
    )
    try:
        yield from scored.iter_batches(batch_size=None)
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError, RuntimeError) as error:
        raise explain(error) from error


def explain(error: BaseException) -> Exception:
    """Return the project's own error inside what Ray raised, or a ResourceError with the innermost one."""
    causes: list[BaseException | None] = [error]
    for cause in causes:
        if isinstance(cause, TpnRayError):
            return cause
        inner = (getattr(cause, "cause", None), getattr(cause, "__cause__", None))
        causes += [one for one in inner if isinstance(one, BaseException) and one not in causes]
    # Not the last line of what Ray raised, which is advice about Ray's settings.
    innermost = causes[-1] or error
    lines = [line.strip() for line in str(innermost).splitlines() if line.strip()]
    return ResourceError(f"scoring failed: {type(innermost).__name__}: {lines[0] if lines else 'no message'}")
