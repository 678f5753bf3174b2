"""Scoring what the analyses of tempo need, with Ray Data. Runs on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray import checkpoint as checkpoints
from tpn_ray import storage
from tpn_ray.clips.manifest import Manifest
from tpn_ray.data import rows
from tpn_ray.data.views import CENTRE, Views, parse_views
from tpn_ray.errors import ConfigError
from tpn_ray.predict import driver as predict
from tpn_ray.predict.driver import Scorers
from tpn_ray.predict.labels import LabelSets, match_classes
from tpn_ray.predict.summary import by_label_set
from tpn_ray.predict.table import video_tables
from tpn_ray.predict.worker import VIEW_SCORES
from tpn_ray.tempo.fwhm import Tempo, width
from tpn_ray.train.recipe import Recipe, from_plain, replace_fields

AS_TRAINED = 0
"""In place of a stride: the checkpoint's own clips, which may be segments."""


def read_checkpoint(uri: str) -> tuple[Recipe, LabelSets]:
    """What a checkpoint was trained with."""
    saved = checkpoints.load(storage.absolute(uri), parts=())
    return from_plain(saved.recipe), {name: tuple(classes) for name, classes in saved.label_sets.items()}


def check_frames(checkpoint: str) -> None:
    """Refuse what cannot tell anything of single frames. Raises ConfigError."""
    model = read_checkpoint(checkpoint)[0].model
    if model.neck != "none" or not model.backbone.startswith("tsn"):
        raise ConfigError(
            f"{checkpoint} is {model.backbone} with neck {model.neck}; single frames are for a tsn backbone without "
            "pyramid, such as the recipe toy_frames"
        )


def measure(checkpoint: str, manifest: Manifest, frames: int, scorers: Scorers) -> list[Tempo]:
    """The tempo of every video with a label, by `frames` single frames spread evenly over it.

    Of several label sets the first one counts.
    """
    check_frames(checkpoint)
    recipe, label_sets = read_checkpoint(checkpoint)
    if frames < 3:
        raise ConfigError(f"frames={frames} must be at least 3")
    single = replace_fields(recipe, {"clip.frames": 1, "clip.stride_frames": 1, "clip.sampling": "dense"})
    matched = match_classes(manifest, label_sets, checkpoint).manifest
    classes = next(iter(label_sets.values()))
    views, found, uri = Views(clips=frames, crops=CENTRE), list[Tempo](), storage.absolute(checkpoint)
    for block in predict.score(uri, single, matched, views, scorers, keep_views=True):
        for row, sample in enumerate(block[rows.SAMPLE].tolist()):
            label = int(matched.labels[sample, 0])
            if label < 0:
                continue
            curve = block[VIEW_SCORES][row, 0, :, label]
            # First and last sample are the first and the last frame: a duration apart, but for one frame.
            per_sample = float(block[rows.SECONDS][row, 1]) / (frames - 1)
            seconds = width(curve) * per_sample
            found.append(Tempo(matched.ids[sample], classes[label], seconds, float(curve.max())))
    return found


def hits(checkpoint: str, manifest: Manifest, views: str, scorers: Scorers) -> dict[str, bool]:
    """Whether each usable video with a label is put into its class (of several label sets, the first one)."""
    recipe, label_sets = read_checkpoint(checkpoint)
    matched = match_classes(manifest, label_sets, checkpoint).manifest
    scored = predict.score(storage.absolute(checkpoint), recipe, matched, parse_views(views), scorers)
    (table,) = video_tables(matched, scored)
    first = by_label_set(table, label_sets)[0]
    return {matched.ids[row]: bool(place == 0) for row, place in zip(first.rows, first.ranks, strict=True)}


def at_strides(
    checkpoint: str, manifest: Manifest, strides: Sequence[int], scorers: Scorers
) -> dict[int, dict[str, bool]]:
    """`hits` with clips of other strides than the trained one: the same videos, played faster or slower."""
    views = {stride: "1x1" if stride == AS_TRAINED else f"1x1 stride {stride}" for stride in strides}
    return {stride: hits(checkpoint, manifest, one, scorers) for stride, one in views.items()}
