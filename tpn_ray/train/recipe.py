"""Recipe: all that decides how good the result is, and nothing about machines. Plain data; runs anywhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.train.loss import LossConfig
from tpn_ray.train.optim import OptimConfig
from tpn_ray.train.step import LoopConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One part per owner. The number of classes in `model` is set from the dataset."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        heads = self.model.auxiliary_count
        if len(self.loss.lambdas) != heads:
            raise ConfigError(
                f"lambdas={self.loss.lambdas} has {len(self.loss.lambdas)} entries, the network has {heads} auxiliary "
                f"heads; give one weight for each pyramid level but the top"
            )


_ADAPTER = TypeAdapter(Recipe)


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """As nested dicts of JSON values."""
    plain: dict[str, Any] = _ADAPTER.dump_python(recipe, mode="json")
    return plain


def from_plain(plain: dict[str, Any]) -> Recipe:
    """The inverse of `to_plain`. Raises ConfigError where fields are unknown or values cannot be."""
    try:
        recipe = _ADAPTER.validate_python(plain)
    except ValidationError as error:
        raise ConfigError(f"not a recipe: {error}") from error
    return recipe


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every field by its name on the command line, such as "optim.lr"."""
    parts = dataclasses.asdict(recipe)
    return {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}


def replace_fields(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with some fields, by their flat names, changed; all checks run again."""
    known = flat(recipe)
    for name in changes:
        if name not in known:
            raise ConfigError(f"a recipe has no field {name!r}; it has: {', '.join(known)}")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        part, field_name = name.split(".")
        parts.setdefault(part, {})[field_name] = value
    new = {part: dataclasses.replace(getattr(recipe, part), **values) for part, values in parts.items()}
    return dataclasses.replace(recipe, **new)
