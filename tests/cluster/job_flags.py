"""A job's command line, read by the job itself."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from tests.cluster.manifests import ROOT

IMAGE_FOLDER = "/opt/tpn_ray/"
"""Where the image has the jobs."""


class Parsed(Exception):  # noqa: N818 - it carries the flags out
    def __init__(self, flags: Any) -> None:
        self.flags = flags


def job_file(path: str) -> Path:
    """The file of the repository that is at `path` in the image."""
    assert path.startswith(IMAGE_FOLDER), f"{path} is not below {IMAGE_FOLDER}"
    return ROOT / path.removeprefix(IMAGE_FOLDER)


@functools.cache
def parse(*words: str) -> Any:
    """The flags that `python JOB ...` would run with. Raises ValueError for what the job refuses."""
    assert words[0] == "python", words
    file = job_file(words[1])
    if not file.is_file():
        raise ValueError(f"{words[1]} does not exist")
    own_cli, own_subcommands = tyro.cli, tyro.extras.subcommand_cli_from_dict
    own_plain = argparse.ArgumentParser.parse_args  # of jobs/device.py, which must do without tyro

    def parse_only(*arguments: Any, **keywords: Any) -> Any:
        raise Parsed(own_cli(*arguments, **keywords))

    def parse_subcommand(subcommands: dict[str, Any], **keywords: Any) -> Any:
        return own_subcommands({name: _unrun(function) for name, function in subcommands.items()}, **keywords)

    def parse_plain(parser: argparse.ArgumentParser) -> Any:
        raise Parsed(own_plain(parser))

    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()) as said:
        patched.setattr(tyro, "cli", parse_only)
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_plain)
        patched.setattr(tyro.extras, "subcommand_cli_from_dict", parse_subcommand)
        patched.setattr(sys, "argv", [str(file), *words[2:]])
        try:
            _load(file).main()
        except Parsed as parsed:
            return parsed.flags
        except (SystemExit, ValueError) as error:
            raise ValueError(f"{' '.join(words)}: {error}\n{said.getvalue()}") from None
    raise AssertionError(f"{file} does not read its flags")


def _unrun(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the same flags that only hands them out."""

    @functools.wraps(function)
    def hand_out(*arguments: Any, **keywords: Any) -> Any:
        raise Parsed((arguments, keywords))

    return hand_out


@functools.cache
def _load(file: Path) -> Any:
    """The job as a module; dataclasses look theirs up by name."""
    spec = importlib.util.spec_from_file_location(f"job_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
