"""One step: the same numbers however many workers share its micro-batches, and from a checkpoint on."""

from __future__ import annotations

import copy
import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import distributed as dist

from tests import workers as processes
from tpn_ray.errors import ConfigError
from tpn_ray.model.pixels import Normalise
from tpn_ray.model.recognizer import ModelConfig
from tpn_ray.recipe import LoopConfig, LossConfig, OptimConfig
from tpn_ray.training.step import MicroBatch, Training, random_seed
from tpn_ray.training.writer import copied

MODEL = ModelConfig(backbone="slowonly_toy", classes=5, alpha=(1, 2), dropout=0.3)
LOSS = LossConfig(lambdas=(0.5,))
OPTIM = OptimConfig(lr=0.05, schedule="cosine")
LOOP = LoopConfig(epochs=1, batch_clips=12, micro_batch_clips=3, seed=3)
STEPS = 3
NORM = "backbone.stem.norm.running_mean"


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


MIXED = LossConfig(lambdas=(0.5,), mixup=0.8, cutmix=1.0)


def training(
    *, ordered: bool = False, optim: OptimConfig = OPTIM, device: str = "cpu", loss: LossConfig = LOSS
) -> Training:
    torch.set_num_threads(1)
    loop = dataclasses.replace(LOOP, ordered_reduction=ordered, deterministic=device != "cpu")
    return Training(MODEL, loss, optim, loop, device)


def step_of(step: int, device: str = "cpu") -> list[MicroBatch]:
    """The four micro-batches of a step; the last clip of each is bad and left out."""
    random = torch.Generator().manual_seed(step)
    made = []
    for number in range(4):
        clips = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=random)
        labels = torch.randint(0, 5, (3, 1), generator=random)
        made.append(MicroBatch(number, clips[:2].to(device), labels[:2].to(device)))
    return made


def state(trained: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def run(trained: Training, rank: int = 0, workers: int = 1) -> dict[str, torch.Tensor]:
    for step in range(STEPS):
        trained.train_step(step_of(step)[rank::workers], STEPS)
    return state(trained)


def spawn(worker: Callable[[int, int, int, str], None], workers: int, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.run(worker, (workers, port, str(folder)), workers)


def synced(together: int, *, micro_batch_clips: int = 3) -> Training:
    """Several workers' micro-batches as one; without dropout, whose numbers belong to a micro-batch."""
    torch.set_num_threads(1)
    loop = dataclasses.replace(
        LOOP, ordered_reduction=True, sync_batch_norm=together, micro_batch_clips=micro_batch_clips
    )
    return Training(dataclasses.replace(MODEL, dropout=0.0), LOSS, OPTIM, loop, "cpu")


def _synced_worker(rank: int, workers: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    torch.save(run(synced(2), rank, workers), Path(folder) / f"{workers}-{rank}.pt")
    dist.destroy_process_group()


def test_batch_norm_sees_the_micro_batches_of_several_workers_as_one(tmp_path: Path) -> None:
    """Two by two, of two workers or of four: the same bits, and the step of one worker with twice the clips at once."""
    made = []
    for workers in (2, 4):
        spawn(_synced_worker, workers, tmp_path)
        made += [torch.load(tmp_path / f"{workers}-{rank}.pt") for rank in range(workers)]
    alone, apart = synced(1, micro_batch_clips=6), synced(1)
    begin = state(alone)
    for step in range(STEPS):
        batches = step_of(step)
        pairs = [
            MicroBatch(
                number, *(torch.cat(parts) for parts in zip(*(b[1:] for b in batches[2 * number :][:2]), strict=True))
            )
            for number in range(2)
        ]
        alone.train_step(pairs, STEPS)
        apart.train_step(batches, STEPS)
    for name, tensor in state(alone).items():
        assert all(torch.equal(rank[name], made[0][name]) for rank in made), name
        error, change = (made[0][name] - tensor).float().norm(), (tensor - begin[name]).float().norm()
        assert error <= 1e-2 * change, f"{name}: {error} of a change of {change}"
    weight = "backbone.stem.conv.weight"
    assert (state(apart)[weight] - made[0][weight]).norm() > 1e-2 * (state(alone)[weight] - begin[weight]).norm()


def test_workers_that_cannot_form_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 workers cannot form groups of sync_batch_norm=2"):
        synced(2)
    with pytest.raises(ConfigError, match="sync_batch_norm=3 does not divide the 4 micro-batches"):
        dataclasses.replace(LOOP, sync_batch_norm=3)
    with pytest.raises(ConfigError, match="sync_batch_norm=2 cannot be compiled"):
        dataclasses.replace(LOOP, sync_batch_norm=2, compile=True)


@pytest.mark.long
def test_a_compiled_network_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for dropout, whose numbers a compiler draws in an order of its own; from the same seed they are the same."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler cannot trace the tests' hook
    still, dropping = dataclasses.replace(MODEL, dropout=0.0), MODEL
    loop = dataclasses.replace(LOOP, micro_batch_clips=2, batch_clips=8, compile=True)  # as many as are usable
    eager, compiled = Training(still, LOSS, OPTIM, LOOP, "cpu"), Training(still, LOSS, OPTIM, loop, "cpu")
    first, second = (Training(dropping, LOSS, OPTIM, loop, "cpu") for _ in range(2))
    begin = state(eager)
    for trained in (eager, compiled, first, second):
        trained.train_step(step_of(0), STEPS)
    for name, tensor in state(eager).items():
        error, change = (state(compiled)[name] - tensor).float().norm(), (tensor - begin[name]).float().norm()
        assert error <= 1e-2 * change, f"{name}: {error} of a change of {change}"
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))


def test_a_micro_batch_that_lacks_a_clip_compiles_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler cannot trace the tests' hook
    compiled, compile_it = [], torch.nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_it(self, **how, backend=backend))
    loop = dataclasses.replace(LOOP, micro_batch_clips=2, batch_clips=8, compile=True)
    eager = dataclasses.replace(loop, compile=False)
    trained, plain = (Training(MODEL, LOSS, OPTIM, each, "cpu") for each in (loop, eager))
    whole = step_of(0)
    lacking = [whole[0], whole[1]._replace(clips=whole[1].clips[:1], labels=whole[1].labels[:1]), *whole[2:]]
    for step in (whole, lacking, whole):
        for training in (trained, plain):
            training.train_step(step, STEPS)
        assert len(compiled) == 1
    assert all(torch.equal(tensor, state(plain)[name]) for name, tensor in state(trained).items())


def _worker(rank: int, workers: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    both = {False: training(), True: training(ordered=True, loss=MIXED)}
    made = {ordered: run(trained, rank, workers) for ordered, trained in both.items()}
    torch.save(made, Path(folder) / f"{workers}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[bool, dict[str, torch.Tensor]]]]:
    """Number of workers -> rank -> whether the reduction is ordered -> the state after the steps."""
    folder, made = tmp_path_factory.mktemp("ranks"), {}
    for workers in (2, 3):  # four micro-batches: with three workers, one has two of them
        spawn(_worker, workers, folder)
        made[workers] = [torch.load(folder / f"{workers}-{rank}.pt") for rank in range(workers)]
    return made


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_computes_the_same_step(
    workers: int, ranks: dict[int, list[dict[bool, dict[str, torch.Tensor]]]]
) -> None:
    alone = training()
    begin = state(alone)
    expected = run(alone)
    shared = [rank[False] for rank in ranks[workers]]
    for name, tensor in expected.items():
        for rank in shared:
            assert torch.equal(rank[name], shared[0][name]), f"{name} differs between ranks"
        error, change = (shared[0][name] - tensor).float().norm(), (tensor - begin[name]).float().norm()
        assert error <= 1e-2 * change, f"{name}, {workers} workers: {error} of a change of {change}"


def test_an_ordered_reduction_gives_the_same_bits_with_any_number_of_workers(
    ranks: dict[int, list[dict[bool, dict[str, torch.Tensor]]]],
) -> None:
    expected = run(training(ordered=True, loss=MIXED))
    for rank in [*ranks[2], *ranks[3]]:
        assert all(torch.equal(rank[True][name], tensor) for name, tensor in expected.items())


def test_an_ordered_reduction_computes_the_same_step() -> None:
    one, other = training(), training(ordered=True)
    begin = state(one)
    for trained in (one, other):
        trained.train_step(step_of(0), STEPS)
    for name, tensor in state(one).items():
        error, change = (state(other)[name] - tensor).float().norm(), (tensor - begin[name]).float().norm()
        assert error <= 1e-3 * change, f"{name}: {error} of a change of {change}"


def test_the_average_of_the_weights_is_scored_and_saved_and_goes_on_with_the_same_bits() -> None:
    optim = dataclasses.replace(OPTIM, ema_decay=0.75)
    straight = training(optim=optim)
    average: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        if step == 1:
            saved = copy.deepcopy(straight.state())
        straight.train_step(step_of(step), STEPS)
        for name, weight in straight.model.named_parameters():
            before = average.get(name, weight.detach())
            average[name] = before + (1 - 0.75) * (weight.detach() - before)
    weights, _ = straight.state()
    for name, expected in average.items():
        torch.testing.assert_close(weights[name], expected)
    assert torch.equal(weights[NORM], straight.model.state_dict()[NORM])
    resumed = training(optim=optim)
    resumed.load(*saved, 1)
    for step in range(1, STEPS):
        resumed.train_step(step_of(step), STEPS)
    assert all(torch.equal(tensor, resumed.state()[0][name]) for name, tensor in weights.items())
    batch = step_of(0)[0]
    assert torch.equal(straight.evaluate(batch.clips, batch.labels), resumed.evaluate(batch.clips, batch.labels))


def test_frozen_parts_keep_their_weights_and_their_statistics() -> None:
    trained = training(optim=dataclasses.replace(OPTIM, freeze=("backbone",)))
    begin = state(trained)
    trained.train_step(step_of(0), STEPS)
    changed = {name for name, tensor in state(trained).items() if not torch.equal(tensor, begin[name])}
    assert changed
    assert not any(name.startswith("backbone") and not name.endswith("num_batches_tracked") for name in changed)


@pytest.mark.parametrize("device", DEVICES)
def test_two_runs_give_the_same_bits(device: str) -> None:
    first, second = training(device=device), training(device=device)
    for step in range(STEPS):
        sums = [trained.train_step(step_of(step, device), STEPS) for trained in (first, second)]
        assert torch.equal(sums[0].losses, sums[1].losses)
        assert torch.equal(sums[0].gradient_norm, sums[1].gradient_norm)
        assert sums[0].gradient_norm > 0
        weights = torch.tensor([1.0, *LOSS.lambdas], device=device)
        torch.testing.assert_close(sums[0].heads @ weights, sums[0].losses.sum())
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))


ADAMW = OptimConfig(lr=1e-3, optimizer="adamw", weight_decay=0.05, decay_norm_and_bias=False, layer_decay=0.7)


@pytest.mark.parametrize(
    ("optim", "loss"), [(OPTIM, LOSS), (ADAMW, LOSS), (OPTIM, MIXED)], ids=["sgd", "adamw", "mixed"]
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_restored_from_its_state_dicts_gives_the_same_bits(
    device: str, optim: OptimConfig, loss: LossConfig
) -> None:
    straight = training(device=device, optim=optim, loss=loss)
    straight.train_step(step_of(0, device), STEPS)
    weights, rest = copied(straight.state())
    resumed = training(device=device, optim=optim, loss=loss)
    resumed.load(weights, rest, 1)
    for step in range(1, STEPS):
        straight.train_step(step_of(step, device), STEPS)
        resumed.train_step(step_of(step, device), STEPS)
    assert all(torch.equal(a, b) for a, b in zip(state(straight).values(), state(resumed).values(), strict=True))


def test_a_micro_batch_of_bad_videos_only_changes_no_statistics_and_no_gradient() -> None:
    empty = MicroBatch(0, torch.zeros(0, 4, 32, 32, 3, dtype=torch.uint8), torch.zeros(0, 1, dtype=torch.long))
    trained = training()
    before = trained.statistics.clone()
    sums = trained.train_step([empty], STEPS)
    assert sums.clips == 0
    assert not sums.losses.any()
    gradients = [parameter.grad for parameter in trained.model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    # One of four micro-batches was given; the mean is over four.
    assert torch.equal(trained.statistics, before / 4)


def test_statistics_are_the_mean_over_the_micro_batches() -> None:
    """Each micro-batch moves the statistics from the same beginning; the step takes the mean of where they get to."""
    reached = []
    for micro_batch in step_of(0):
        alone = training()
        torch.manual_seed(random_seed(LOOP.seed, 0, micro_batch.number))
        alone.model.train()(Normalise()(micro_batch.clips))
        reached.append(alone.statistics.clone())
    trained = training()
    begin = trained.statistics.clone()
    trained.train_step(step_of(0), STEPS)
    assert not torch.equal(trained.statistics, begin)
    torch.testing.assert_close(trained.statistics, torch.stack(reached).mean(dim=0))


def test_evaluation_counts_every_clip() -> None:
    trained = training()
    batch = step_of(0)[0]
    sums = trained.evaluate(batch.clips, batch.labels)
    scores = trained.model.eval()(Normalise()(batch.clips)).action.detach()
    assert sums[3] == 2
    assert sums[1] == (scores.argmax(1) == batch.labels[:, 0]).sum()
    assert sums[2] == 2  # five classes: the right one is always among the first five
    assert sums[0] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, batch.labels[:, 0])) * 2, rel=1e-5)


def test_seeds_of_neighbours_have_nothing_in_common() -> None:
    seeds = {random_seed(seed, step, number) for seed in range(5) for step in range(20) for number in range(8)}
    assert len(seeds) == 5 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
