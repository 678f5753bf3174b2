"""How a campaign spends epochs, and what that costs. Runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such
from tpn_ray.recipe import Recipe
from tpn_ray.tuning import fidelity, rungs, schedulers
from tpn_ray.tuning.fidelity import Fidelity
from tpn_ray.tuning.halving import Search
from tpn_ray.tuning.rungs import Bracket
from tpn_ray.tuning.trial import Campaign

HALVING = "halving"
SCHEDULERS = (HALVING, *schedulers.SCHEDULERS)


@dataclass(frozen=True, kw_only=True)
class How:
    """Which trials train for how long."""

    scheduler: str = HALVING
    """Scheduler. halving: synchronous successive halving; trials pause at rungs and the best resume, deterministically.
    From Ray Tune, deciding as results come in: asha, median, hyperband, pbt (changes lambda, alpha, and rates in
    flight). none: all trials train to the end."""
    rungs: int = 3
    """halving: number of times that trials are compared, including at the end."""
    reduction_factor: Annotated[int, tyro.conf.arg(aliases=("--keep",))] = 3
    """halving: ratio of the trials at a rung to those promoted from it, and of the epochs of two successive rungs."""
    min_promoted: Annotated[int, tyro.conf.arg(aliases=("--finalists",))] = 1
    """halving: minimum number of trials promoted. As many as run concurrently leave no machine idle at the end."""
    max_concurrent: Annotated[int, tyro.conf.arg(aliases=("--at-once",))] = 0
    """Maximum number of concurrent trials; 0: as many as fit."""
    budget_hours: float = 0.0
    """Limit on wall-clock time over all submissions, in hours; 0: no limit."""
    fidelity: tuple[str, ...] = ()
    """halving: what trials get less of at the lower rungs, as FIELD=VALUE,... with one value per rung, such as
    clip.frames=4,8,16 augment.crop_px=96,160,224 videos=0.25,0.5,1 (the share of the training videos)."""
    repeats: int = 0
    """Number of additional seeds for each of the best trials."""
    repeat_best: int = 3
    """Number of best trials to repeat."""

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ConfigError(no_such("scheduler", self.scheduler, SCHEDULERS))
        for name in ("max_concurrent", "budget_hours", "repeats"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.fidelity and self.scheduler != HALVING:
            raise ConfigError(f"--fidelity belongs to the rungs of --scheduler {HALVING}, not to {self.scheduler!r}")
        if self.repeats and self.repeat_best < 1:
            raise ConfigError(f"repeat_best={self.repeat_best} must be at least 1")


def bracket_at(epochs: int, how: How) -> Bracket:
    """Return the rungs of trials of so many epochs."""
    return rungs.bracket(epochs, rungs=how.rungs, reduction_factor=how.reduction_factor, min_promoted=how.min_promoted)


def bracket_of(recipe: Recipe, how: How) -> Bracket:
    """Return the rungs of a campaign around a recipe."""
    return bracket_at(recipe.loop.epochs, how)


def fidelity_of(recipe: Recipe, how: How) -> Fidelity:
    """Return what the campaign's trials get less of at the lower rungs."""
    return fidelity.parse(how.fidelity, recipe, bracket_of(recipe, how).epochs)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Maximum cost of a campaign."""

    epochs: int
    starts: int
    """Number of times that a trial starts or resumes."""
    in_full: int
    """Epochs if all trials trained to their end."""
    rungs: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.rungs:
            return f"at most {self.epochs} epochs"
        share = self.epochs / self.in_full
        rungs_at = ", ".join(map(str, self.rungs))
        return f"{self.epochs} epochs with rungs at {rungs_at} ({share:.0%} of {self.in_full})"

    def hours(self, start_seconds: float, epoch_seconds: float) -> float:
        """Return the hours of trials' time."""
        return (self.starts * start_seconds + self.epochs * epoch_seconds) / 3600


def cost(campaign: Campaign, wanted: Search, how: How) -> Cost:
    """Return the cost of a campaign, repeats included."""
    whole, repeats = campaign.recipe.loop.epochs, how.repeats * min(how.repeat_best, wanted.samples)
    bracket = bracket_of(campaign.recipe, how)
    epochs, starts = wanted.samples * whole, wanted.samples
    if how.scheduler == HALVING:
        epochs, starts = rungs.planned(wanted.waves(bracket), bracket)
    return Cost(
        epochs=epochs + repeats * whole,
        starts=starts + repeats,
        in_full=(wanted.samples + repeats) * whole,
        rungs=bracket.epochs if how.scheduler == HALVING else (),
    )
