"""Budgets that video offers for free: what trials get less of at the lower rungs. Pure; runs anywhere.

    clip.frames=4,8,16           a field of the recipe, one value for each rung; the last is the recipe's own
    augment.crop_px=96,160,224   likewise: the resolution; clip.clips_per_video=1,1,2: views of a video
    videos=0.25,0.5,1            the share of the training videos of each class; a larger one holds the smaller

No weight's shape depends on them, so a promoted trial resumes where it paused, with the next values, and still no epoch
is trained twice.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such
from tpn_ray.recipe import Recipe, flat
from tpn_ray.tuning import distributions

VIDEOS = "videos"
BUDGETS = ("clip.", "augment.")
"""Prefixes of fields that decide what a clip costs and change no weight's shape."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What each rung gets."""

    epochs: tuple[int, ...] = ()
    """Epochs of the rungs."""
    fields: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Flat field name, or `VIDEOS`, -> its value at each rung; empty: all rungs are alike."""

    def rung(self, epoch: int) -> int:
        """Return the rung that trains up to this epoch; 0 if all are alike."""
        return self.epochs.index(epoch) if self.fields else 0

    def changes(self, rung: int) -> dict[str, Any]:
        """Return the recipe fields that change at a rung, and their values."""
        return {name: values[rung] for name, values in self.fields.items() if name != VIDEOS}

    def videos(self, manifest: Manifest, rung: int) -> Manifest:
        """Return the dataset for a rung."""
        return some_of_each_class(manifest, self.fields[VIDEOS][rung]) if VIDEOS in self.fields else manifest

    @property
    def written(self) -> dict[str, str]:
        """The fields as the journal stores them."""
        return {name: ",".join(map(str, values)) for name, values in self.fields.items()}


def parse(texts: Sequence[str], recipe: Recipe, epochs: Sequence[int]) -> Fidelity:
    """Parse the written fidelity for rungs at `epochs`. Raises ConfigError for invalid values."""
    known, fields = flat(recipe), dict[str, tuple[Any, ...]]()
    for text in texts:
        name, equals, written = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--fidelity {text!r} must be FIELD=VALUE,VALUE,..., such as clip.frames=4,8,16")
        allowed = [VIDEOS, *(one for one in known if one.startswith(BUDGETS))]
        if name not in allowed:
            raise ConfigError(no_such("budget of a trial in --fidelity", name, allowed))
        values = distributions.grid(distributions.parse(f"choice({written})"), 0)
        if len(values) != len(epochs):
            raise ConfigError(
                f"--fidelity {text!r} has {len(values)} values, the campaign has {len(epochs)} rungs, at epochs "
                f"{', '.join(map(str, epochs))}: give one for each"
            )
        if name == VIDEOS and not all(isinstance(value, int | float) and 0 < value <= 1 for value in values):
            raise ConfigError(f"--fidelity {text!r}: shares of the videos are above 0 and at most 1")
        own = 1 if name == VIDEOS else known[name]
        if values[-1] != own:
            raise ConfigError(f"--fidelity {text!r} must end with {own}, the recipe's own: the last rung is whole")
        fields[name] = tuple(values)
    return Fidelity(epochs=tuple(epochs), fields=fields)


def some_of_each_class(manifest: Manifest, share: float) -> Manifest:
    """Keep this share of the training videos of each class (at least one), chosen by a hash of their ids; where videos
    have several classes, of all training videos together."""
    if share == 1:
        return manifest
    classes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, split in enumerate(manifest.splits):
        if split == "train":
            classes[() if manifest.multi_label else tuple(manifest.labels[row].tolist())].append(row)
    kept: set[int] = set()
    for rows in classes.values():
        rows.sort(key=lambda row: hashlib.sha256(manifest.ids[row].encode()).digest())
        kept |= set(rows[: max(1, math.ceil(share * len(rows)))])
    rows = [row for row, split in enumerate(manifest.splits) if split != "train" or row in kept]
    return replace(manifest.rows(rows), version=f"{manifest.version}-{share:g}")
