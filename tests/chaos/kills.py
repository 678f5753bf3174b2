"""A training run under fire: its processes are killed at random, and it must end as if nothing had happened.

The run is what a user starts: `python jobs/train.py` with its own Ray instance. Processes are recognized by their
titles. When the driver dies, all of its Ray instance goes with it, and the same command is run again. Runs on one
machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tests.chaos.job_process import JobProcess
from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes, storage
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.toy import ToyConfig, write_toy
from tpn_ray.errors import ConfigError, TrainingError
from tpn_ray.recipe import replace_fields
from tpn_ray.training import order_ledger, run_folder
from tpn_ray.training.run_plan import make_plan

TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "data worker": ("ray::MapBatches", "ray::IDLE"),
    "split coordinator": ("ray::SplitCoordinator",),
    "controller": ("ray::TrainController",),
    "mailbox": ("ray::Mailbox",),
}
"""Kind of process -> beginning of its title. A data worker between two tasks is idle."""
FIELDS = {
    "loop.batch_clips": 8,
    "loop.micro_batch_clips": 4,
    "loop.evaluate_every_epochs": 10,
    "loop.log_every_steps": 1,
    "optim.ema_decay": 0.9,  # the average of the weights must survive as well
}
TOY = ToyConfig(train_per_class=4, val_per_class=2)
CHECKPOINT_STEPS = 5
RUN_SECONDS = 300.0
"""Longest time without a new checkpoint; after that the run counts as hanging, and the attack fails."""
MOST_STEPS, LONGEST_PAUSE_SECONDS = 15, 0.5
"""Half of the strikes come after up to this many more steps were committed, plus a random pause of up to this long."""
LONGEST_START_SECONDS = 15.0
"""The other half come while the run is restarting, up to this long after the previous strike."""
DRIVER_SHARE = 1 / 6
"""Share of the strikes that kill the driver."""
MOST_AT_ONCE = 4
"""Maximum number of processes that any other strike kills, within a second; the kinds take turns."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a disturbed run compared with an undisturbed one."""

    seed: int
    steps: int
    starts: int
    """Number of worker groups that took part."""
    sha256: str
    """SHA-256 of all tensors and numbers in the last checkpoint of the undisturbed run."""
    seconds: float
    """Seconds from the command to its end, including disturbances."""
    undisturbed_seconds: float
    standstill: float
    """Longest time, in seconds, from one recorded commit to the next, including kills and starts."""
    order_faults: tuple[str, ...]
    different: tuple[str, ...]
    """Tensors of the last checkpoint that are not bit for bit those of the undisturbed run."""
    missing: tuple[str, ...]
    """Records that differ from those of the undisturbed run."""

    def __str__(self) -> str:
        return (
            f"{self.steps} steps in {self.seconds:.0f} s, {self.starts} start(s), {self.standstill:.0f} s at most from "
            f"one checkpoint to the next; undisturbed {self.undisturbed_seconds:.0f} s, so an effective training time "
            f"ratio of {self.undisturbed_seconds / self.seconds:.2f}\n"
            f"order:  {'every clip trained exactly once' if not self.order_faults else 'BROKEN'}\n"
            f"bits:   {'the same' if not self.different else 'DIFFERENT in ' + ', '.join(self.different)}; undisturbed "
            f"SHA-256 {self.sha256[:16]}\n"
            f"record: {'complete' if not self.missing else 'NOT COMPLETE: ' + ', '.join(self.missing)}"
        )

    def check(self, *more: str) -> None:
        """Raise TrainingError if the run did not end like the undisturbed one, or if there are `more` faults."""
        faults = [*self.order_faults, *self.different, *self.missing, *more]
        if faults:
            raise TrainingError(f"the run did not survive, seed {self.seed}:\n  " + "\n  ".join(faults[:20]))


@dataclass(frozen=True, kw_only=True)
class ChaosReport:
    """Which processes were killed, and how it affected the run."""

    killed: dict[str, int]
    """Kind of process -> number of kills."""
    interrupted: bool
    """Whether Ctrl-C also stopped the run once."""
    outcome: Outcome

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.killed.items()))
        interrupted = " and Ctrl-C" * self.interrupted
        seed = self.outcome.seed
        return f"{sum(self.killed.values())} kills with seed {seed} ({kinds}){interrupted} over {self.outcome}"

    def check(self) -> None:
        """Raise TrainingError if the run did not end like the undisturbed one."""
        self.outcome.check()


def epochs_for(kills: int) -> int:
    """Return the number of epochs, of four steps, that keep the run going for this many kills."""
    return 20 + 2 * kills


def attack(folder: str, *, kills: int, seed: int, epochs: int, at_once: int = MOST_AT_ONCE) -> ChaosReport:
    """Train undisturbed and under fire, and compare. Raises TrainingError if the run stops for good or hangs."""
    here = empty_folder(folder)
    videos = str(here / "videos")
    write_toy(videos, TOY)
    plain = Run(here, "undisturbed", videos, epochs)
    plain.finish()
    fire = Run(here, "under-fire", videos, epochs)
    killed = Counter[str]()
    choice, interrupted, due = random.Random(seed), False, list[str]()
    while sum(killed.values()) < kills:
        _wait_for_strike(fire, choice, f"{sum(killed.values())} of {kills} kills")
        if choice.random() < DRIVER_SHARE:
            struck = ["driver"] * fire.job.kill()
        elif sum(killed.values()) >= kills / 2 and not interrupted:
            struck, interrupted = [], fire.wait_for_workers(fire.step, at_most=RUN_SECONDS)
            fire.job.interrupt()
            print(f"Ctrl-C; step {fire.step} is committed", flush=True)
        else:
            most = min(at_once, kills - sum(killed.values()))
            wanted = choice.randint(1, most)
            while len(due) < wanted:  # every kind has its turn, in random order
                due += choice.sample(list(TITLES), len(TITLES))
            struck = fire.strike(due[:wanted], choice)
            missed = [kind for kind in due[:wanted] if kind not in struck]
            due = due[wanted:] + missed
        killed.update(struck)
        if struck:
            print(f"kill {sum(killed.values())}: {', '.join(struck)}; step {fire.step} is committed", flush=True)
    fire.finish()
    return ChaosReport(killed=dict(killed), interrupted=interrupted, outcome=compare(plain, fire, seed))


def empty_folder(folder: str) -> Path:
    """Return the folder, creating it if needed. Raises ConfigError if it is not empty."""
    here = Path(folder)
    here.mkdir(parents=True, exist_ok=True)
    if any(here.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty")
    return here


def _wait_for_strike(fire: Run, choice: random.Random, so_far: str) -> None:
    """Wait until the run trains and has committed some more steps, or until a random moment of its next start."""
    if choice.random() < 0.5:
        going = fire.wait_for_workers(0, at_most=choice.uniform(0.0, LONGEST_START_SECONDS))
    else:
        going = fire.wait_for_workers(fire.step + choice.randrange(MOST_STEPS), at_most=RUN_SECONDS)
        time.sleep(choice.uniform(0.0, LONGEST_PAUSE_SECONDS))
    if not going:
        raise TrainingError(f"the run was over after {so_far}; give more --epochs")


def compare(plain: Run, fire: Run, seed: int) -> Outcome:
    """Compare a disturbed run that has ended with an undisturbed one."""
    manifest = load_manifest(plain.videos)
    changes = {**plain.fields, "loop.epochs": plain.epochs}
    plan = make_plan(replace_fields(recipes.recipe("toy"), changes), manifest)
    one, other = _tensors(plain.uri), _tensors(fire.uri)
    different = [name for name in one.keys() | other.keys() if not _same(one.get(name), other.get(name))]
    return Outcome(
        seed=seed,
        steps=plan.steps,
        starts=len({path.name.partition("-")[0] for path in Path(fire.ledger).glob("*.jsonl")}),
        sha256=_sha256(one),
        seconds=fire.seconds,
        undisturbed_seconds=plain.seconds,
        standstill=fire.standstill,
        order_faults=tuple(order_ledger.check(fire.ledger, plan)),
        different=tuple(sorted(different)),
        missing=tuple(_record_faults(plain.uri, fire.uri)),
    )


def _record_faults(plain: str, fire: str) -> list[str]:
    """List losses and scores that differ between the records of two runs."""

    def measured(run_uri: str) -> dict[tuple[int, str], float]:
        records = run_folder.read_records(run_uri)
        losses = {(m.step, "loss"): m.values["loss"] for record in records for m in record.history}
        return losses | {(record.step, name): value for record in records for name, value in record.scores.items()}

    one, other = measured(plain), measured(fire)
    places = sorted(one.keys() | other.keys())
    return [f"{name} of step {step}" for step, name in places if one.get((step, name)) != other.get((step, name))]


def _tensors(run_uri: str) -> dict[str, object]:
    """Collect everything in the last checkpoint that affects further training, by its place."""
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


class Run:
    """One run of `jobs/train.py`, with its files in the folder `here`; its storage may be elsewhere."""

    def __init__(
        self,
        here: Path,
        name: str,
        videos: str,
        epochs: int,
        *,
        storage_uri: str = "",
        fields: Mapping[str, object] = FIELDS,
        flags: Sequence[str] = ("--max-failures", "1000"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.videos, self.epochs, self.fields = videos, epochs, fields
        folder = storage_uri or str(here.absolute())
        self.uri, self.ledger = storage.join(folder, name), str(here.absolute() / f"ledger-{name}")
        command = ["jobs/train.py", "toy", "--data", videos, "--storage", folder, "--name", name]
        command += ["--order-ledger", self.ledger, *flags, "--saving.every-steps", str(CHECKPOINT_STEPS)]
        for field, value in {**fields, "loop.epochs": epochs}.items():
            command += [f"--{field.replace('_', '-')}", str(value)]
        self.job = JobProcess(command, here / f"{name}.log", environment)
        self._seen, self._since, self.standstill = 0, time.monotonic(), 0.0
        self._begun, self._ended = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the start of the run to the end that `finish` saw."""
        return self._ended - self._begun

    @property
    def step(self) -> int:
        """The newest committed step."""
        newest, now = max(run_folder.committed_steps(self.uri), default=0), time.monotonic()
        self.standstill = max(self.standstill, now - self._since)
        if newest > self._seen:
            self._seen, self._since = newest, now
        return newest

    def wait_for_workers(self, target: int, at_most: float) -> bool:
        """Wait up to `at_most` seconds until workers train and step `target` is committed; False if the run is over.

        The command is run again if its process is gone.
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

    def strike(self, kinds: Sequence[str], choice: random.Random) -> list[str]:
        """Send SIGKILL to a process of each of these kinds, if there is one in its turn; return the kinds hit."""
        struck = []
        for kind in kinds:
            time.sleep(choice.uniform(0.0, 1.0 / len(kinds)))
            found = self._found(kind)
            with contextlib.suppress(psutil.NoSuchProcess):
                if found:
                    choice.choice(found).kill()
                    struck.append(kind)
        return struck

    def _found(self, kind: str) -> list[psutil.Process]:
        return self.job.below(TITLES[kind])

    def finish(self) -> None:
        """Wait for the end, rerunning the command where needed. A run without progress raises TrainingError."""
        step, since = self.step, time.monotonic()
        while self.job.keep_running():
            if self.step != step:
                step, since = self.step, time.monotonic()
            if time.monotonic() - since > RUN_SECONDS:
                self.job.kill()
                raise TrainingError(f"no new checkpoint after step {step} for {RUN_SECONDS:g} s; see {self.job.log}")
            time.sleep(0.2)
        self._ended = time.monotonic()
