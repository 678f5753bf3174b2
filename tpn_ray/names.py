"""Names from outside: validation, and conversion to file names. Runs anywhere.

Names of runs, models, and label sets become parts of paths and MLflow keys. They come from flags and from files of
unknown origin (dataset.json, checkpoint.json, Parquet). Class names are only displayed and may hold any visible
character.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpn_ray.errors import ConfigError

MOST_CHARACTERS = 100
MOST_CHARACTERS_OF_A_CLASS = 500

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, break lines, or reverse the text direction, and lone surrogates."""
_NAME = re.compile(r"\w[\w .,=+-]*")
_FILE = re.compile(r"\w[\w .,=+-]*", re.ASCII)


def problem(name: object) -> str:
    """Return why a name cannot be part of a path; "" if it can."""
    if not isinstance(name, str) or not name:
        return "is not text" if name != "" else "is empty"
    if len(name) > MOST_CHARACTERS:
        return f"has {len(name)} characters, more than {MOST_CHARACTERS}"
    if not _NAME.fullmatch(name) or name != name.strip():
        return "may hold only letters, digits, spaces, and _ . , = + -, and must begin with a letter, a digit, or _"
    return ""


def checked(what: str, name: str) -> str:
    """Return a name given by a user if it is valid. Raises ConfigError."""
    if why := problem(name):
        raise ConfigError(f"{what} {shown(name)} is not a valid name: it {why}; choose another one")
    return name


MOST_NAMES = 20
"""Names to list in a message. Of more, only the nearest ones help."""


def no_such(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses a name which is not among the `known` ones: the nearest of them, and all if they
    are few."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    text = f"unknown {what} {shown(name)}" + (f" (did you mean {' or '.join(near)}?)" if near else "")
    return f"{text}; known: {', '.join(names)}" if len(names) <= MOST_NAMES or not near else text


def label_sets_problem(label_sets: object) -> str:
    """Return what is wrong with class names by label set, as read from a file; "" if nothing is."""
    if not isinstance(label_sets, Mapping):
        return f"has label sets of the type {type(label_sets).__name__}"
    for name, classes in label_sets.items():
        if why := problem(name):
            return f"has a label set called {shown(name)}, which {why}"
        if not isinstance(classes, Sequence) or isinstance(classes, str):
            return f"has {shown(classes)} instead of the class names of {name!r}"
        for label in classes:
            if why := _class_problem(label):
                return f"has a class called {shown(label)} in {name!r}, which {why}"
    return ""


def _class_problem(label: object) -> str:
    if not isinstance(label, str):
        return "is not text"
    if len(label) > MOST_CHARACTERS_OF_A_CLASS:
        return f"has {len(label)} characters, more than {MOST_CHARACTERS_OF_A_CLASS}"
    return "holds control characters" if CONTROL.search(label) else ""


def shown(value: Any) -> str:
    """Format a value for a message: quoted, with control characters escaped, and truncated."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def file_name(name: str) -> str:
    """Convert a name into a file-name part: a harmless one is kept, any other becomes a unique one."""
    if _FILE.fullmatch(name) and len(name) <= MOST_CHARACTERS:
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:40]
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}".lstrip("-")
