"""What fits groups of nodes."""

from __future__ import annotations

import pytest

from tests.cluster.capacity import Demand, NodeGroup, problem
from tpn_ray.errors import ConfigError

CPU = NodeGroup(name="cpu", nodes=2, cpus=30)
GPU = NodeGroup(name="gpu", nodes=2, cpus=44, gpus=4)


def training(workers: int, cpus: float = 4, decoders: int = 1, decode_cpus: float = 1) -> Demand:
    return Demand(workers=workers, cpus_per_worker=cpus, gpus_per_worker=1, decoders=decoders, decode_cpus=decode_cpus)


def test_workers_need_gpus_and_their_cpus_on_the_same_node() -> None:
    assert problem(training(8), [CPU, GPU]) == ""
    assert "8 of the workers fit on 2 x cpu (30 CPUs, 0 GPUs); 2 x gpu" in problem(training(9), [CPU, GPU])
    assert "2 of the workers fit" in problem(training(8, cpus=40), [CPU, GPU])
    assert "0 of the workers fit" in problem(training(8, cpus=45), [CPU, GPU])
    assert "0 of the workers fit" in problem(training(1), [CPU])
    assert "fit on no nodes" in problem(training(1), [])


def test_decoders_take_what_is_left() -> None:
    assert problem(training(8, cpus=11), [CPU, GPU]) == ""
    assert "0 of the decoding tasks fit" in problem(training(8, cpus=11), [GPU])
    assert problem(training(8, cpus=4, decoders=2 * 28 + 2 * 30), [CPU, GPU]) == ""
    assert "116 of the decoding tasks fit" in problem(training(8, cpus=4, decoders=117), [CPU, GPU])
    assert problem(Demand(decode_cpus=30), [CPU]) == ""
    assert "0 of the decoding tasks fit" in problem(Demand(decode_cpus=31), [CPU])


def test_a_decoder_does_not_span_nodes() -> None:
    assert "2 of the decoding tasks fit" in problem(Demand(decoders=3, decode_cpus=20), [CPU])


def test_workers_without_gpus_leave_gpu_nodes_alone() -> None:
    two = Demand(workers=2, cpus_per_worker=30, decoders=88)
    assert problem(two, [GPU, CPU]) == ""
    nothing_held = Demand(workers=5)
    assert problem(nothing_held, [CPU]) == ""


def test_fractions_add_up() -> None:
    tenths = NodeGroup(name="small", nodes=1, cpus=0.3)
    assert problem(Demand(decoders=3, decode_cpus=0.1), [tenths]) == ""


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="group gpu: nodes=-1"):
        NodeGroup(name="gpu", nodes=-1, cpus=1)
