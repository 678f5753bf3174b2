"""What values a field may take, and how they are written on a command line. Pure; runs anywhere.

    choice(step, cosine)     one of these; tuples are written (4, 8)
    uniform(0, 0.2)          a number from the range
    loguniform(0.01, 1)      the same, equally often in each power of ten
    whole(1, 8)              a whole number, both ends included

A distribution is sampled by a share in [0, 1), so that a draw is a pure function of it.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any

from tpn_ray.errors import ConfigError


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("choice() needs at least one value")

    def __str__(self) -> str:
        return f"choice({', '.join(_written(value) for value in self.values)})"

    def at(self, share: float) -> Any:
        """The value at a share of the range."""
        return self.values[int(share * len(self.values))]

    def place(self, value: Any) -> int:
        """Where a value is among them; stored samples hold lists where tuples were."""
        return self.values.index(tuple(value) if isinstance(value, list) else value)

    def grid(self, points: int) -> list[Any]:
        """All values, however many."""
        return list(self.values)

    def edges(self) -> list[Any]:
        """Values that are valid if all are."""
        return list(self.values)


@dataclass(frozen=True)
class Uniform:
    """A number from low to below high."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self, self.low < self.high)

    def __str__(self) -> str:
        return f"{'log' * self.log}uniform({self.low:g}, {self.high:g})"

    def at(self, share: float) -> float:
        """The value at a share of the range."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + (self.high - self.low) * share

    def grid(self, points: int) -> list[float]:
        """The middles of equal parts: no extremes."""
        return [self.at((i + 0.5) / points) for i in range(points)]

    def edges(self) -> list[float]:
        """Values that are valid if all are."""
        return [self.low, math.nextafter(self.high, self.low)]


@dataclass(frozen=True)
class Whole:
    """A whole number from low to high, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_range(self, self.low <= self.high and isinstance(self.low, int) and isinstance(self.high, int))

    def __str__(self) -> str:
        return f"whole({self.low}, {self.high})"

    def at(self, share: float) -> int:
        """The value at a share of the range."""
        return self.low + int(share * (self.high - self.low + 1))

    def grid(self, points: int) -> list[int]:
        """At most `points` of them, evenly spread."""
        return sorted({self.at((i + 0.5) / points) for i in range(points)})

    def edges(self) -> list[int]:
        """Values that are valid if all are."""
        return [self.low, self.high]


Distribution = Choice | Uniform | Whole


def parse(text: str) -> Distribution:
    """The distribution that is written; raises ConfigError with the ways to write one."""
    kind, bracket, rest = text.strip().partition("(")
    if not bracket or not rest.endswith(")"):
        raise ConfigError(f"{text!r} is no distribution; write {_WAYS}")
    values = [_value(part) for part in _split(rest[:-1])]
    if kind == "choice":
        return Choice(tuple(values))
    if kind not in ("uniform", "loguniform", "whole"):
        raise ConfigError(f"unknown distribution {kind!r} in {text!r}; write {_WAYS}")
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        raise ConfigError(f"{text!r}: {kind} takes two numbers")
    low, high = values
    return Whole(low, high) if kind == "whole" else Uniform(low, high, log=kind == "loguniform")


_WAYS = "choice(a, b), uniform(0, 1), loguniform(0.01, 1) or whole(1, 8)"


def _check_range(one: Uniform | Whole, rises: bool) -> None:
    if not rises:
        raise ConfigError(f"{one}: the first number must be below the second, and both whole for whole()")
    if isinstance(one, Uniform) and one.log and one.low <= 0:
        raise ConfigError(f"{one}: a logarithmic range must begin above 0")


def _split(text: str) -> list[str]:
    """Parts between commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text.strip("'\"")
    return tuple(value) if isinstance(value, list) else value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
