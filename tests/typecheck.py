"""How shapes and types in signatures are checked while testing."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is a float as well, as type checkers have it."""
