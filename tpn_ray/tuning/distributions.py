"""Distributions of the values of a field, and how they are written on a command line. Pure; runs anywhere.

    choice(step, cosine)     one of these; tuples are written (4, 8)
    uniform(0, 0.2)          a number from the range
    loguniform(0.01, 1)      the same, equally often in each power of ten
    whole(1, 8)              a whole number, both ends included

The distributions are Optuna's. A draw is a pure function of a distribution and a share in [0, 1).
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tpn_ray.errors import ConfigError

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


def choice(values: Sequence[Any]) -> CategoricalDistribution:
    """Make a distribution over some values, which may include tuples."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return CategoricalDistribution(values)  # it warns about tuples, for which Optuna's databases have no type


_KINDS: dict[str, Callable[..., Distribution]] = {
    "uniform": FloatDistribution,
    "loguniform": partial(FloatDistribution, log=True),
    "whole": IntDistribution,
}
_WAYS = "choice(a, b), uniform(0, 1), loguniform(0.01, 1) or whole(1, 8)"


def parse(text: str) -> Distribution:
    """Parse a distribution from its written form. Raises ConfigError with the accepted forms."""
    try:
        call: ast.expr | None = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
        raise ConfigError(f"{text!r} is not a distribution; write {_WAYS}")
    kind, values = call.func.id, [_value(part, text.strip()) for part in call.args]
    if kind not in ("choice", *_KINDS):
        raise ConfigError(f"unknown distribution {kind!r} in {text!r}; write {_WAYS}")
    try:
        if kind == "choice":
            return choice(values)
        number = int if kind == "whole" else int | float
        if len(values) != 2 or not all(isinstance(value, number) for value in values):
            raise ConfigError(f"{text!r}: {kind} takes two {'whole ' * (kind == 'whole')}numbers")
        return _KINDS[kind](*values)
    except ValueError as error:  # Optuna's, which shows the values
        raise ConfigError(f"{text!r}: {error}") from error


def _value(part: ast.expr, text: str) -> Any:
    try:
        return from_json(ast.literal_eval(part))
    except ValueError:
        return ast.get_source_segment(text, part)


def written(one: Distribution) -> str:
    """Format a distribution in the form that `parse` reads."""
    if isinstance(one, CategoricalDistribution):
        return f"choice({', '.join(value if isinstance(value, str) else repr(value) for value in one.choices)})"
    if isinstance(one, IntDistribution):
        return f"whole({one.low}, {one.high})"
    return f"{'log' * one.log}uniform({one.low:g}, {one.high:g})"


def at(one: Distribution, share: float) -> Any:
    """Return the value at a share of the range, from 0 to below 1."""
    if isinstance(one, CategoricalDistribution):
        return one.choices[int(share * len(one.choices))]
    if isinstance(one, IntDistribution):
        return one.low + int(share * (one.high - one.low + 1))
    return one.low * (one.high / one.low) ** share if one.log else one.low + (one.high - one.low) * share


def grid(one: Distribution, points: int) -> list[Any]:
    """List all choices, or at most `points` values of a range: the midpoints of equal parts."""
    if isinstance(one, CategoricalDistribution):
        return list(one.choices)
    return sorted({at(one, (i + 0.5) / points) for i in range(points)})


def edges(one: Distribution) -> list[Any]:
    """List the ends of a range, or all choices; if these values are valid, all are."""
    if isinstance(one, CategoricalDistribution):
        return list(one.choices)
    return [one.low, one.high if isinstance(one, IntDistribution) else math.nextafter(one.high, one.low)]


def from_json(value: Any) -> Any:
    """Convert a list, as which JSON stores a tuple, back to a tuple."""
    return tuple(value) if isinstance(value, list) else value
