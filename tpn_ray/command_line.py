"""Command-line helpers that all jobs share: flags from dataclasses, and names. Runs on the driver; see also `job`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
import time
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar, get_type_hints

import tyro
import tyro._strings

from tpn_ray import job
from tpn_ray.errors import ConfigError
from tpn_ray.names import no_such

T = TypeVar("T")


def _paragraphs(helptext: str) -> str:
    """Join the lines of each paragraph of a docstring. Tyro itself keeps a line break before an indented line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(helptext).split("\n\n"))


tyro._strings.remove_single_line_breaks = _paragraphs


def parse(default: T, arguments: Sequence[str], *, program: str, description: str) -> T:
    """Parse flags for every field of a dataclass, with help from its docstrings. Invalid values raise ConfigError."""
    return tyro.cli(type(default), default=default, args=list(arguments), prog=program, description=description)


def parse_new(kind: type[T], arguments: Sequence[str], *, program: str, description: str) -> T:
    """Do the same as `parse` for a dataclass some of whose fields have no default, and are required."""
    return tyro.cli(kind, args=list(arguments), prog=program, description=description)


def run_subcommand(subcommands: Mapping[str, Callable[..., Any]], *, program: str, description: str) -> None:
    """Run the function that the first argument names, with the other arguments as its flags."""
    tyro.extras.subcommand_cli_from_dict(dict(subcommands), prog=program, description=description)


def flags(changed: Any, default: Any, prefix: str = "") -> str:
    """Write the flags that turn one dataclass into another of its type when `parse` reads them."""
    words: list[str] = []
    hints = get_type_hints(type(changed), include_extras=True)
    for field in dataclasses.fields(changed):
        value, before = getattr(changed, field.name), getattr(default, field.name)
        told = [about.name for about in getattr(hints[field.name], "__metadata__", ()) if about.name is not None]
        name = told[0] if told else field.name.replace("_", "-")
        if value == before:
            continue
        if dataclasses.is_dataclass(value):
            words.append(flags(value, before, f"{prefix}{name}." if name else prefix))
        elif isinstance(value, bool):
            words.append(f"--{prefix}{'' if value else 'no-'}{name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(shlex.join([f"--{prefix}{name}", *map(str, values)]))
    return " ".join(words)


def take_recipe_name(arguments: Sequence[str], known: Mapping[str, str], program: str) -> tuple[str, list[str]]:
    """Split off the recipe's name, the first argument, which sets the defaults of all flags; return it and the rest.

    `known` maps names to descriptions.
    """
    usage = f"{program} RECIPE [flags]"
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, known))
        recipes = "\n".join(f"  {name:{width}}  {about}" for name, about in known.items())
        print(f"usage: {usage}\n\nrecipes:\n{recipes}\n\n{program} RECIPE --help shows the flags")
        raise SystemExit(0 if arguments else job.USER_ERROR)
    first = arguments[0]
    if first.startswith("-"):
        place = _place_of_recipe(arguments, known)
        rest = shlex.join(word for i, word in enumerate(arguments) if i != place)
        name = "RECIPE" if place is None else arguments[place]
        raise ConfigError(f"the name of a recipe comes first: {program} {name} {rest}; known: {', '.join(known)}")
    if first not in known:
        raise ConfigError(no_such("recipe", first, known))
    return first, list(arguments[1:])


def _place_of_recipe(arguments: Sequence[str], known: Container[str]) -> int | None:
    """Return where a recipe is named, unless the word is the value of the flag before it."""
    pairs = enumerate(pairwise(arguments), start=1)
    return next((i for i, (before, word) in pairs if word in known and not before.startswith("-")), None)


def fresh_name(recipe: str) -> str:
    """Return a run name that has not been used before: reusing one means resuming that run."""
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
