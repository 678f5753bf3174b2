"""Command-line helpers that all jobs share: flags from dataclasses, and names. Runs on the driver; see also `job`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TypeVar

import tyro

from tpn_ray import job
from tpn_ray.errors import ConfigError

T = TypeVar("T")


def parse(default: T, arguments: Sequence[str], *, program: str, description: str) -> T:
    """Parse flags for every field of a dataclass, with help from its docstrings. Invalid values raise ConfigError."""
    return tyro.cli(type(default), default=default, args=list(arguments), prog=program, description=description)


def take_recipe_name(arguments: Sequence[str], known: Sequence[str], program: str) -> tuple[str, list[str]]:
    """Split off the recipe's name, the first argument, which sets the defaults of all flags; return it and the rest."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {program} RECIPE [flags]\n\nrecipes: {', '.join(known)}\n\n{program} RECIPE --help shows the flags"
        )
        raise SystemExit(0 if arguments else job.USER_ERROR)
    if arguments[0] not in known:
        raise ConfigError(f"unknown recipe {arguments[0]!r}; known: {', '.join(known)}")
    return arguments[0], list(arguments[1:])


def fresh_name(recipe: str) -> str:
    """Return a run name that has not been used before: reusing one means resuming that run."""
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
