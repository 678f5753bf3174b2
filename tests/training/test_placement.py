from __future__ import annotations

import pytest

from tests.training.small_runs import ledger_of
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ResourceError
from tpn_ray.training import placement
from tpn_ray.training.events import Event, Notice
from tpn_ray.training.placement import Places


def test_a_wait_for_workers_is_told_and_ends(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Event] = []
    placed = [True]
    monkeypatch.setattr(placement, "is_placed", lambda group: placed[0])
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 2.0, "node:127.0.0.1": 1.0, "memory": 9e9})
    places = Places(ledger_of(manifest, seen), 600, 0.0)
    places.look(10_000)
    placed[0] = False
    places.look(10_030)
    assert seen == []
    places.look(10_070)
    places.look(10_400)
    assert [event.text for event in seen if isinstance(event, Notice)] == ["waiting for workers; the cluster has 2 CPU"]
    with pytest.raises(ResourceError, match="no workers for 10 minutes; it has 2 CPU"):
        places.look(10_700)
