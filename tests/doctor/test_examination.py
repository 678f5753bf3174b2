from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray.doctor.examination import Examination, Group, examine_tracking, gathered, group_for
from tpn_ray.doctor.findings import FAIL, NOT_HERE, PASS, Finding
from tpn_ray.errors import ConfigError, ResourceError
from tpn_ray.resources import PerWorker


def group(total: dict[str, float], free: dict[str, float], nodes: int = 1) -> Group | None:
    return group_for(Examination(), total, free, nodes)


def test_an_all_reduce_takes_what_is_free() -> None:
    assert group({"CPU": 8, "GPU": 8}, {"CPU": 8, "GPU": 8}) == Group(workers=8, each=PerWorker(gpus=1, cpus=0))
    held = group({"CPU": 8, "GPU": 8}, {"CPU": 8, "GPU": 6})
    assert held is not None
    assert (held.workers, held.remark) == (6, "; 2 of 8 GPUs are held by others")
    cpus = group({"CPU": 8}, {"CPU": 1}, nodes=3)
    assert cpus is not None
    assert (cpus.workers, cpus.each.gpus) == (3, 0)
    assert group({"CPU": 8}, {"CPU": 8}, nodes=1) == Group(workers=2, each=PerWorker(cpus=0.01))
    assert group({}, {}, nodes=0) is None


def test_an_all_reduce_takes_what_is_asked_for() -> None:
    each = PerWorker(gpus=1, cpus=2, resources=("spot=1",))
    asked = group_for(Examination(workers=4, per_worker=each), {}, {}, 1)
    assert asked == Group(workers=4, each=each)
    assert asked.each.bundle == {"GPU": 1, "CPU": 2, "spot": 1}


def test_what_cannot_be_asked_for() -> None:
    for fields, words in (
        ({"workers": 1}, "at least 2"),
        ({"check_seconds": 0}, "above 0"),
        ({"recipe": "x"}, "known"),
    ):
        with pytest.raises(ConfigError, match=words):
            Examination(**fields)  # type: ignore[arg-type]


def test_a_cluster_that_is_lost_in_between_is_a_row() -> None:
    def lost() -> list[Finding]:
        raise ResourceError("the GCS is gone")

    (row,) = gathered("nodes", lost, 20)
    assert (row.check, row.result, row.found) == ("nodes", FAIL, "the GCS is gone")
    assert row.remedy
    fine = Finding(check="x", where="y", result=PASS, found="z")
    assert gathered("nodes", lambda: [fine], 20) == [fine]


def test_tracking_below_the_storage_folder_and_none_at_all(tmp_path: Path) -> None:
    assert [row.result for row in examine_tracking("", str(tmp_path), 60)] == [PASS, PASS]
    server, run = examine_tracking("http://127.0.0.1:9", str(tmp_path), 60)
    assert (server.result, run.result) == (FAIL, NOT_HERE)
    assert "MLFLOW_TRACKING_PASSWORD" in server.remedy
