"""What dashboards show of a run."""

from __future__ import annotations

from typing import Any

import pytest

from tpn_ray.training import gauges
from tpn_ray.training.events import Committed, Failed, Progress, Started
from tpn_ray.training.gauges import RUN_GAUGES, RunGauges


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """Values of the metrics, by name and labels."""
    found: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self.name, self.keys = name, tag_keys

        def set(self, value: float, tags: dict[str, Any]) -> None:
            assert set(tags) == set(self.keys)
            found[(self.name, *tags.values())] = value

    monkeypatch.setattr(gauges, "_made", {})
    monkeypatch.setattr(gauges.ray.util.metrics, "Gauge", Gauge)
    return found


def test_a_run_is_shown_from_its_start_to_its_end(shown: dict[tuple[str, ...], float]) -> None:
    run, seconds = RunGauges("r"), {"compute": 3.0, "lost": 1.0}
    run(Started(step=8, workers=2, at=0.0), seconds, ["empty"])
    progress = Progress(
        step=16,
        steps=64,
        epoch=1,
        epochs=4,
        loss=1.5,
        top1=0.25,
        clips_per_second=99.0,
        waiting=0.125,
        seconds_left=9.0,
    )
    run(progress, {"compute": 99.0}, ["damaged"])  # the books change only with what is durable
    assert shown["tpn_step", "r"] == 16
    assert shown["tpn_waiting_share", "r"] == 0.125
    assert shown["tpn_worker_seconds", "r", "compute"] == 3.0
    run(Committed(step=16, epoch=1, checkpoint="c", scores={"val_top1": 0.5}), seconds, ["empty", "empty"])
    run(Committed(step=16, epoch=1, checkpoint="c", scores={"val_map": 0.25}), seconds, ["empty", "empty"])
    assert (shown["tpn_val_top1", "r"], shown["tpn_val_map", "r"]) == (0.5, 0.25)
    assert shown["tpn_bad_videos", "r", "empty"] == 2
    assert shown["tpn_checkpoint_unixtime", "r"] > 1e9
    run(Failed(at=9.0), seconds, [])
    assert shown["tpn_workers", "r"] == 0
    run(Started(step=16, workers=1, at=10.0), seconds, [])
    assert (shown["tpn_workers", "r"], shown["tpn_starts", "r"]) == (1, 2)
    run.over()
    assert (shown["tpn_workers", "r"], shown["tpn_clips_per_second", "r"]) == (0, 0)
    assert {key[0] for key in shown} == {f"tpn_{name}" for name in RUN_GAUGES}
