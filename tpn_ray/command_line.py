"""What every job shares: flags from dataclasses, and names. Runs on the driver; `job` has the rest."""

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
    """Flags for every field of a dataclass, with help from its docstrings. A value that cannot be is a ConfigError."""
    return tyro.cli(type(default), default=default, args=list(arguments), prog=program, description=description)


def take_recipe_name(arguments: Sequence[str], known: Sequence[str], program: str) -> tuple[str, list[str]]:
    """The recipe's name, which comes first and decides the defaults of all flags, and the other arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {program} RECIPE [flags]\n\nrecipes: {', '.join(known)}\n\n{program} RECIPE --help shows the flags"
        )
        raise SystemExit(0 if arguments else job.USER_ERROR)
    if arguments[0] not in known:
        raise ConfigError(f"unknown recipe {arguments[0]!r}; known: {', '.join(known)}")
    return arguments[0], list(arguments[1:])


def fresh_name(recipe: str) -> str:
    """A run name that was not used before: reusing one means going on with that run."""
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
