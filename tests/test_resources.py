from __future__ import annotations

from collections.abc import Callable

import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.resources import Decoding, PerWorker, Resources, amounts_of, has_labels, labels_of


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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PerWorker(gpus=-1), "gpus_per_worker=-1 must not be negative"),
        (lambda: PerWorker(resources=("spot",)), "worker_resources: 'spot' must be of the form spot=1"),
        (lambda: Decoding(cpus=0), "decode_cpus=0 must be above 0"),
        (lambda: Decoding(tasks=-1), "decode_tasks=-1 not below 0"),
        (lambda: Decoding(on=("cpu",)), "decode_on: 'cpu' must be of the form pool=cpu"),
        (lambda: Resources(workers=0), "workers=0 must be at least 1"),
    ],
)
def test_what_nothing_can_take(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_bundle_holds_what_is_not_zero() -> None:
    assert PerWorker(cpus=0, gpus=0.5, resources=("spot=1",)).bundle == {"GPU": 0.5, "spot": 1.0}
    assert PerWorker().bundle == {"CPU": 1.0}


def test_a_cluster_that_grows_is_waited_for_longer() -> None:
    assert Decoding(may_grow=True).patience_seconds > Decoding().patience_seconds > 0
