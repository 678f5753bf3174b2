from __future__ import annotations

import pytest
import ray

from tpn_ray import session
from tpn_ray.errors import ResourceError


def test_a_ray_that_cannot_start_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is too busy: Ray raises a bare Exception then."""

    def init(**flags: object) -> None:
        raise Exception("The current node timed out during startup.\nSecond line")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ResourceError, match=r"could not be started .* timed out during startup.\nIs it busy"):
        session.connect(None, workers_cpus=1, decode_cpus=1)
