"""A job's command line, read by the job itself."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import ROOT
from tpn_ray import command_line

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
    own_parse = command_line.parse

    def parse_only(*arguments: Any, **keywords: Any) -> Any:
        raise Parsed(own_parse(*arguments, **keywords))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command_line, "parse", parse_only)
        patched.setattr(sys, "argv", [str(file), *words[2:]])
        try:
            _load(file).main()
        except Parsed as parsed:
            return parsed.flags
        except (SystemExit, ValueError) as error:
            raise ValueError(f"{' '.join(words)}: {error}") from None
    raise AssertionError(f"{file} does not read its flags by command_line.parse")


@functools.cache
def _load(file: Path) -> Any:
    """The job as a module; dataclasses look theirs up by name."""
    spec = importlib.util.spec_from_file_location(f"job_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
