"""A training run under fire: its processes are killed at random, and it must end as if nothing had happened.

The run is what a user starts: `python jobs/train.py` with a Ray of its own. Kinds of processes are told by their
titles. When the driver dies, all of its Ray goes with it, and the same command is given again. Runs on one machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.clips.manifest import load_manifest
from tpn_ray.clips.toy import ToyConfig, write_toy
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.job_process import JobProcess
from tpn_ray.train import driver, order_ledger, run_folder
from tpn_ray.train.recipe import replace_fields

TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "data worker": ("ray::MapBatches", "ray::IDLE"),
    "split coordinator": ("ray::SplitCoordinator",),
    "controller": ("ray::TrainController",),
    "mailbox": ("ray::Mailbox",),
}
"""Kind of process -> how its title begins. A data worker between two tasks is idle."""
FIELDS = {
    "loop.batch_clips": 8,
    "loop.micro_batch_clips": 4,
    "loop.evaluate_every_epochs": 10,
    "loop.log_every_steps": 1,
    "optim.ema_decay": 0.9,  # the average of the weights is to survive as well
}
CHECKPOINT_STEPS = 5
RUN_SECONDS = 300.0
"""Longest time without a new checkpoint: then the run hangs, and the attack fails."""
MOST_STEPS, LONGEST_PAUSE_SECONDS = 15, 0.5
"""Half of the strikes come at a random moment so long after up to so many more steps were committed."""
LONGEST_START_SECONDS = 15.0
"""The other half come while the run is still starting again, up to so long after the strike before."""
DRIVER_SHARE = 1 / 6
"""Of the strikes, those that kill the driver."""
MOST_AT_ONCE = 4
"""The others kill one process to so many, within a second."""


@dataclass(frozen=True, kw_only=True)
class ChaosReport:
    """What happened, and what it did to the result."""

    seed: int
    killed: dict[str, int]
    """Kind of process -> times."""
    steps: int
    starts: int
    """Groups of workers that took part."""
    interrupted: bool
    """Whether Ctrl-C stopped the run once as well."""
    sha256: str
    """Of all tensors and numbers in the last checkpoint of the undisturbed run."""
    seconds: float
    standstill: float
    """Longest time, in seconds, that passed from one commit on record to the next, kills and starts included."""
    order_faults: tuple[str, ...]
    different: tuple[str, ...]
    """Tensors of the last checkpoint that are not, bit for bit, those of the undisturbed run."""
    missing: tuple[str, ...]
    """What is not on record as it is for the undisturbed run."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.killed.items()))
        return (
            f"{sum(self.killed.values())} kills with seed {self.seed} ({kinds}){' and Ctrl-C' * self.interrupted} over "
            f"{self.steps} steps in {self.seconds:.0f} s, {self.starts} starts, "
            f"{self.standstill:.0f} s at most from one checkpoint to the next\n"
            f"order:  {'every clip trained exactly once' if not self.order_faults else 'BROKEN'}\n"
            f"bits:   {'the same' if not self.different else 'DIFFERENT in ' + ', '.join(self.different)}; undisturbed "
            f"SHA-256 {self.sha256[:16]}\n"
            f"record: {'complete' if not self.missing else 'NOT COMPLETE: ' + ', '.join(self.missing)}"
        )

    def check(self) -> None:
        """Raises TrainingError if the run did not end as the undisturbed one."""
        faults = [*self.order_faults, *self.different, *self.missing]
        if faults:
            raise TrainingError(f"the run did not survive, seed {self.seed}:\n  " + "\n  ".join(faults[:20]))


def epochs_for(kills: int) -> int:
    """Epochs of four steps in which so many kills find the run still going."""
    return 20 + 2 * kills


def attack(folder: str, *, kills: int, seed: int, epochs: int) -> ChaosReport:
    """Train undisturbed and under fire, and compare. Raises TrainingError if the run stops for good, or hangs."""
    here = Path(folder)
    if here.exists() and any(here.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty")
    videos = here / "videos"
    write_toy(str(videos), ToyConfig(train_per_class=4, val_per_class=2))
    plain = _Run(here, "undisturbed", videos, epochs)
    plain.finish()
    fire = _Run(here, "under-fire", videos, epochs)
    killed, begun = Counter[str](), time.monotonic()
    choice, interrupted = random.Random(seed), False
    while sum(killed.values()) < kills:
        _wait_for_strike(fire, choice, f"{sum(killed.values())} of {kills} kills")
        if choice.random() < DRIVER_SHARE:
            struck = ["driver"] * fire.job.kill()
        elif sum(killed.values()) >= kills / 2 and not interrupted:
            struck, interrupted = [], fire.wait_for_workers(fire.step, at_most=RUN_SECONDS)
            fire.job.interrupt()
            print(f"Ctrl-C; step {fire.step} is committed", flush=True)
        else:
            most = min(MOST_AT_ONCE, kills - sum(killed.values()))
            struck = fire.strike(choice.randint(1, most), choice)
        killed.update(struck)
        if struck:
            print(f"kill {sum(killed.values())}: {', '.join(struck)}; step {fire.step} is committed", flush=True)
    fire.finish()
    return _compare(plain, fire, seed, dict(killed), interrupted, time.monotonic() - begun)


def _wait_for_strike(fire: _Run, choice: random.Random, so_far: str) -> None:
    """Until the run trains and has committed some more steps; or until any moment of its next start."""
    if choice.random() < 0.5:
        going = fire.wait_for_workers(0, at_most=choice.uniform(0.0, LONGEST_START_SECONDS))
    else:
        going = fire.wait_for_workers(fire.step + choice.randrange(MOST_STEPS), at_most=RUN_SECONDS)
        time.sleep(choice.uniform(0.0, LONGEST_PAUSE_SECONDS))
    if not going:
        raise TrainingError(f"the run was over after {so_far}; give more --epochs")


def _compare(
    plain: _Run, fire: _Run, seed: int, killed: dict[str, int], interrupted: bool, seconds: float
) -> ChaosReport:
    manifest = load_manifest(str(plain.videos))
    changes = {**FIELDS, "loop.epochs": plain.epochs}
    plan = driver.make_plan(replace_fields(recipes.recipe("toy"), changes), manifest)
    one, other = _tensors(plain.uri), _tensors(fire.uri)
    different = [name for name in one.keys() | other.keys() if not _same(one.get(name), other.get(name))]
    return ChaosReport(
        seed=seed,
        killed=killed,
        steps=plan.steps,
        starts=len({path.name.partition("-")[0] for path in Path(fire.ledger).glob("*.jsonl")}),
        interrupted=interrupted,
        sha256=_sha256(one),
        seconds=seconds,
        standstill=fire.standstill,
        order_faults=tuple(order_ledger.check(fire.ledger, plan)),
        different=tuple(sorted(different)),
        missing=tuple(_record_faults(plain.uri, fire.uri)),
    )


def _record_faults(plain: str, fire: str) -> list[str]:
    """Losses and scores that differ between the records of two runs."""

    def measured(run_uri: str) -> dict[tuple[int, str], float]:
        records = run_folder.read_records(run_uri)
        losses = {(m.step, "loss"): m.values["loss"] for record in records for m in record.history}
        return losses | {(record.step, name): value for record in records for name, value in record.scores.items()}

    one, other = measured(plain), measured(fire)
    places = sorted(one.keys() | other.keys())
    return [f"{name} of step {step}" for step, name in places if one.get((step, name)) != other.get((step, name))]


def _tensors(run_uri: str) -> dict[str, object]:
    """Everything in the last checkpoint that decides how training goes on, by its place."""
    last = run_folder.last_checkpoint(run_uri)
    if last is None:
        raise TrainingError(f"{run_uri} has no checkpoint")
    saved = checkpoints.load(last)
    found: dict[str, object] = {"step": saved.step}

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}.{key}", part)
        elif isinstance(value, (list, tuple)):
            for place, part in enumerate(value):
                walk(f"{name}.{place}", part)
        else:
            found[name] = value

    walk("weights", saved.weights)
    walk("training", saved.training)
    return found


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def _sha256(tensors: dict[str, object]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(name.encode())
        digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()


class _Run:
    """One run of `jobs/train.py`."""

    def __init__(self, here: Path, name: str, videos: Path, epochs: int) -> None:
        self.videos, self.epochs = videos, epochs
        self.uri, self.ledger = str(here.absolute() / name), str(here.absolute() / f"ledger-{name}")
        command = ["jobs/train.py", "toy", "--data", str(videos), "--storage", str(here.absolute()), "--name", name]
        command += ["--order-ledger", self.ledger, "--max-failures", "1000"]
        command += ["--saving.every-steps", str(CHECKPOINT_STEPS)]
        for field, value in {**FIELDS, "loop.epochs": epochs}.items():
            command += [f"--{field.replace('_', '-')}", str(value)]
        self.job = JobProcess(command, here / f"{name}.log")
        self._seen, self._since, self.standstill = 0, time.monotonic(), 0.0

    @property
    def step(self) -> int:
        """The newest that is committed."""
        newest, now = max(run_folder.committed_steps(self.uri), default=0), time.monotonic()
        self.standstill = max(self.standstill, now - self._since)
        if newest > self._seen:
            self._seen, self._since = newest, now
        return newest

    def wait_for_workers(self, target: int, at_most: float) -> bool:
        """Until workers train and step `target` is committed, or so many seconds; False if the run is over.

        The command is given again if its process is gone.
        """
        deadline = time.monotonic() + at_most
        while time.monotonic() < deadline:
            if not self.job.keep_running():
                return False
            if self.step >= target and len(self._found("worker")) == 2 and self._found("split coordinator"):
                return True
            time.sleep(0.1)
        if at_most >= RUN_SECONDS:
            self.job.kill()
            raise TrainingError(f"step {target} not reached within {at_most:g} s; see {self.job.log}")
        return True

    def strike(self, processes: int, choice: random.Random) -> list[str]:
        """SIGKILL to some processes, each of a kind that is there at its moment; the kinds that were hit."""
        struck = []
        for _ in range(processes):
            time.sleep(choice.uniform(0.0, 1.0 / processes))
            kind = choice.choice(list(TITLES))
            found = self._found(kind)
            with contextlib.suppress(psutil.NoSuchProcess):
                if found:
                    choice.choice(found).kill()
                    struck.append(kind)
        return struck

    def _found(self, kind: str) -> list[psutil.Process]:
        return self.job.below(TITLES[kind])

    def finish(self) -> None:
        """Wait for the end, giving the command again where needed. A run without progress is an error."""
        step, since = self.step, time.monotonic()
        while self.job.keep_running():
            if self.step != step:
                step, since = self.step, time.monotonic()
            if time.monotonic() - since > RUN_SECONDS:
                self.job.kill()
                raise TrainingError(f"no new checkpoint after step {step} for {RUN_SECONDS:g} s; see {self.job.log}")
            time.sleep(0.2)
