"""A checkpoint to be scored."""

from __future__ import annotations

import pytest

from tests.checkpoints import save_untrained


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the recipe toy with random weights."""
    return save_untrained(tmp_path_factory.mktemp("checkpoint"))
