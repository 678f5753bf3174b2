"""A training run under fire: its processes are killed at random, and it must end as if nothing had happened.

The run is what a user starts: `python jobs/train.py` with a Ray of its own. Kinds of processes are told by their
titles. When the driver dies, all of its Ray goes with it, and the same command is given again. Runs on one machine.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
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
KINDS = (*TITLES, "driver")
FIELDS = {
    "loop.batch_clips": 8,
    "loop.micro_batch_clips": 4,
    "loop.evaluate_every_epochs": 10,
    "loop.log_every_steps": 1,
}
CHECKPOINT_STEPS = 5
RUN_SECONDS = 300.0
"""Longest time without a new checkpoint: then the run hangs, and the attack fails."""
MOST_STEPS, LONGEST_PAUSE_SECONDS = 20, 1.0
"""A kill comes at a random moment so long after up to so many more steps were committed."""


@dataclass(frozen=True, kw_only=True)
class ChaosReport:
    """What happened, and what it did to the result."""

    seed: int
    killed: dict[str, int]
    """Kind of process -> times."""
    steps: int
    starts: int
    """Groups of workers that took part."""
    seconds: float
    order_faults: tuple[str, ...]
    different: tuple[str, ...]
    """Tensors of the last checkpoint that are not, bit for bit, those of the undisturbed run."""
    missing: tuple[str, ...]
    """What is not on record as it is for the undisturbed run."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.killed.items()))
        return (
            f"{sum(self.killed.values())} kills with seed {self.seed} ({kinds}) over {self.steps} steps in "
            f"{self.seconds:.0f} s, {self.starts} starts\n"
            f"order: {'every clip trained exactly once' if not self.order_faults else 'BROKEN'}\n"
            f"bits:  {'the same as undisturbed' if not self.different else 'DIFFERENT in ' + ', '.join(self.different)}"
            f"\nrecord: {'complete' if not self.missing else 'NOT COMPLETE: ' + ', '.join(self.missing)}"
        )

    def check(self) -> None:
        """Raises TrainingError if the run did not end as the undisturbed one."""
        faults = [*self.order_faults, *self.different, *self.missing]
        if faults:
            raise TrainingError(f"the run did not survive, seed {self.seed}:\n  " + "\n  ".join(faults[:20]))


def epochs_for(kills: int) -> int:
    """Epochs of four steps in which so many kills find the run still going: each waits for up to `MOST_STEPS` steps."""
    return 20 + 7 * kills


def attack(folder: str, *, kills: int, seed: int, epochs: int) -> ChaosReport:
    """Train undisturbed and under fire, and compare. Raises TrainingError if the run stops for good, or hangs."""
    here = Path(folder)
    if here.exists() and any(here.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty")
    videos = here / "videos"
    write_toy(str(videos), ToyConfig(train_per_class=4, val_per_class=2))
    plain, fire = _Run(here, "undisturbed", videos, epochs), _Run(here, "under-fire", videos, epochs)
    plain.start()
    plain.finish()
    killed, begun = Counter[str](), time.monotonic()
    choice = random.Random(seed)
    fire.start()
    while sum(killed.values()) < kills:
        target, pause = fire.step + choice.randrange(MOST_STEPS), choice.uniform(0.0, LONGEST_PAUSE_SECONDS)
        if not fire.wait_for_workers(target):
            raise TrainingError(f"the run was over after {sum(killed.values())} of {kills} kills; give more --epochs")
        time.sleep(pause)
        kind = choice.choice(KINDS)
        if fire.kill(kind, choice):
            killed[kind] += 1
            print(f"kill {sum(killed.values())}: {kind}, step {fire.step} is committed", flush=True)
    fire.finish()
    return _compare(plain, fire, seed, dict(killed), time.monotonic() - begun)


def _compare(plain: _Run, fire: _Run, seed: int, killed: dict[str, int], seconds: float) -> ChaosReport:
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
        seconds=seconds,
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


class _Run:
    """One run of `jobs/train.py`, with all processes below it."""

    def __init__(self, here: Path, name: str, videos: Path, epochs: int) -> None:
        self.videos, self.epochs = videos, epochs
        self.uri, self.ledger = str(here.absolute() / name), str(here.absolute() / f"ledger-{name}")
        self.log = here / f"{name}.log"
        self.command = [sys.executable, "jobs/train.py", "toy", "--data", str(videos)]
        self.command += ["--storage", str(here.absolute()), "--name", name, "--order-ledger", self.ledger]
        for field, value in {**FIELDS, "loop.epochs": epochs}.items():
            self.command += [f"--{field.replace('_', '-')}", str(value)]
        self.command += ["--max-failures", "1000"]
        self.command += ["--saving.every-steps", str(CHECKPOINT_STEPS)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Give the command."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def step(self) -> int:
        """The newest that is committed."""
        return max(run_folder.committed_steps(self.uri), default=0)

    def wait_for_workers(self, target: int) -> bool:
        """Until workers train and step `target` is committed; False if the run is over.

        The command is given again if its process is gone.
        """
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                if self._is_over():
                    return False
                self.start()
            if self.step >= target and len(self._found("worker")) == 2 and self._found("split coordinator"):
                return True
            time.sleep(0.2)
        raise TrainingError(f"step {target} not reached within {RUN_SECONDS:g} s; see {self.log}")

    def _is_over(self) -> bool:
        assert self.process is not None
        if self.process.returncode not in (0, -9):
            raise TrainingError(f"the run stopped with status {self.process.returncode}; see {self.log}")
        return self.process.returncode == 0

    def kill(self, kind: str, choice: random.Random) -> bool:
        """SIGKILL to one process of that kind; False if there is none at this moment."""
        if kind == "driver":
            self._kill_all()
            return True
        found = self._found(kind)
        if not found:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            choice.choice(found).kill()
            return True
        return False

    def _kill_all(self) -> None:
        """The driver first; what it leaves of its Ray would end by itself some time later."""
        assert self.process is not None
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below, timeout=30)

    def _found(self, kind: str) -> list[psutil.Process]:
        if self.process is None or self.process.poll() is not None:
            return []
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if " ".join(process.cmdline()).startswith(TITLES[kind]):
                        found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def finish(self) -> None:
        """Wait for the end, giving the command again where needed. A run without progress is an error."""
        step, since = self.step, time.monotonic()
        while True:
            if self.process is None or self.process.poll() is not None:
                if self.process is not None and self._is_over():
                    return
                self.start()
            if self.step != step:
                step, since = self.step, time.monotonic()
            if time.monotonic() - since > RUN_SECONDS:
                self._kill_all()
                raise TrainingError(f"no new checkpoint after step {step} for {RUN_SECONDS:g} s; see {self.log}")
            time.sleep(0.2)
