from __future__ import annotations

import pytest

from tpn_ray.data.nodes import amounts_of, has_labels, labels_of
from tpn_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "matching"),
    [
        ("pool=cpu", ["cpu"]),
        ("pool=!cpu", ["big", None]),
        ("pool=in(cpu, big)", ["cpu", "big"]),
        ("pool=!in(cpu,big)", [None]),
    ],
)
def test_a_node_is_wanted_by_its_labels(flag: str, matching: list[str | None]) -> None:
    wanted = labels_of([flag], "decode_on")
    found = [pool for pool in ("cpu", "big", None) if has_labels({"pool": pool} if pool else {}, wanted)]
    assert found == matching


def test_all_labels_count() -> None:
    wanted = labels_of(["pool=cpu", "market=spot"], "decode_on")
    assert has_labels({"pool": "cpu", "market": "spot", "zone": "a"}, wanted)
    assert not has_labels({"pool": "cpu"}, wanted)
    assert has_labels({}, labels_of([], "decode_on"))


def test_amounts() -> None:
    assert amounts_of(["spot=1", "accelerator_type:H100=0.001"], "x") == {"spot": 1.0, "accelerator_type:H100": 0.001}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("spot", "must be of the form spot=1"),
        ("spot=many", "has no number"),
        ("spot=0", "must be above 0"),
        ("spot=nan", "must be above 0"),
        ("GPU=1", "--gpus-per-worker"),
    ],
)
def test_amounts_that_cannot_be(flag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"worker_resources: .*{message}"):
        amounts_of([flag], "worker_resources")
