"""A training run whose command is given twice: two drivers of one name, at any moment, must do what one does.

The run is what a user starts: `python jobs/train.py` with its own Ray instance. During the run, the same command is
given again in three situations. The driver is alive: the second must be refused and told who holds the run. The first
driver is frozen for longer than its lease lasts: the second must take over, and the first must stop when it wakes. The
first driver is killed at the same moment, while its workers live on for some seconds. A run that is over too soon is
followed by another one. Runs on one machine.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import kills
from tests.chaos.job_process import JobProcess, end
from tests.chaos.kills import Outcome, Run
from tpn_ray import checkpoint as checkpoints
from tpn_ray import lease
from tpn_ray.datasets.toy import write_toy
from tpn_ray.errors import TornCheckpointError, TrainingError
from tpn_ray.training import run_folder

BESIDE, FROZEN, FROZEN_WHOLE, KILLED = "beside", "driver frozen", "all of it frozen", "killed"
USER_ERROR = 2
START_SECONDS = 180.0
"""Longest time until a second driver is refused or holds the run: its start, and the longest silence of a lease."""
LONGEST_PAUSE_SECONDS = 8.0
"""Longest random delay before a twin starts, wakes up, or is killed."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class TwinReport:
    """How often the run was given twice, and how it was affected."""

    twins: dict[str, int]
    """What became of the first and the second driver -> number of times."""
    faults: tuple[str, ...]
    """Second drivers that were not told, first ones that did not stop, and checkpoints that are not intact."""
    outcomes: tuple[Outcome, ...]
    """The outcome of each run."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.twins.items()))
        told = "every driver knew its place" if not self.faults else "FAULTS: " + "; ".join(self.faults)
        return (
            f"{sum(self.twins.values())} twins with seed {self.outcomes[0].seed} ({kinds}) over "
            + "\nand ".join(map(str, self.outcomes))
            + f"\ntwins:  {told}"
        )

    def check(self) -> None:
        """Raise TrainingError if a run did not end like the undisturbed one, or a driver misbehaved."""
        for outcome in self.outcomes:
            outcome.check(*self.faults)


EPOCHS = 60
"""Number of epochs of each run, of four steps each."""


def attack(folder: str, *, twins: int, seed: int, epochs: int) -> TwinReport:
    """Train undisturbed and with twins, and compare. Raises TrainingError if the run stops for good or hangs."""
    here = kills.empty_folder(folder)
    videos = str(here / "videos")
    write_toy(videos, kills.TOY)
    plain = Run(here, "undisturbed", videos, epochs)
    plain.finish()
    choice, happened = random.Random(seed), Counter[str]()
    kinds, faults, outcomes = _kinds(twins, choice), list[str](), list[Outcome]()
    while kinds:
        attacked = _Twins(here, f"twins-{len(outcomes) + 1}", videos, epochs, choice)
        while kinds and attacked.goes_on():
            attacked.twin(twins - len(kinds) + 1, kinds.pop())
        if not attacked.happened:
            raise TrainingError(f"a run was over before it was attacked; give more than {epochs} --epochs")
        attacked.run.finish()
        happened += attacked.happened
        faults += [*attacked.faults, *_torn(attacked.run.uri)]
        outcomes.append(kills.compare(plain, attacked.run, seed))
    return TwinReport(twins=dict(happened), faults=tuple(faults), outcomes=tuple(outcomes))


def _kinds(twins: int, choice: random.Random) -> list[str]:
    """Shuffle the kinds of twins: half find a live driver, and few of the others wait for a lease to end."""
    some = [BESIDE, KILLED, FROZEN, BESIDE, KILLED, BESIDE, FROZEN_WHOLE, BESIDE]
    kinds = (some * (1 + twins // len(some)))[:twins]
    choice.shuffle(kinds)
    return kinds


class _Twins:
    """The run, and the other drivers that were given its name."""

    def __init__(self, here: Path, name: str, videos: str, epochs: int, choice: random.Random) -> None:
        self.here, self.name, self.choice = here, name, choice
        self.run = Run(here, name, videos, epochs)
        self.happened, self.faults = Counter[str](), list[str]()

    def twin(self, number: int, kind: str) -> None:
        """Run the command a second time; whichever driver remains is the run."""
        first = self.run.job
        second = JobProcess(first.command[1:], self.here / f"twin-{number}.log")
        step = self.run.step
        if kind == KILLED:
            said = self._killed(first, second)
        elif kind == BESIDE:
            second.keep_running()
            said = self._refused(first, second)
        else:
            said = self._frozen(first, second, whole=kind == FROZEN_WHOLE)
        self.happened[f"{kind}: {said}"] += 1
        print(f"twin {number}: {kind}: {said}; steps {step} to {self.run.step} were committed meanwhile", flush=True)
        if self.run.step < step:
            self.faults.append(f"twin {number} ({kind}): step {step} was committed, and is lost")

    def goes_on(self) -> bool:
        """Wait until a random moment of a start or of training; return False if the run is over."""
        steps = self.choice.randrange(kills.MOST_STEPS) if self.choice.random() < 0.7 else -1
        target = self.run.step + steps if steps >= 0 else 0
        at_most = kills.RUN_SECONDS if steps >= 0 else self.choice.uniform(2.0, kills.LONGEST_START_SECONDS)
        going = self.run.wait_for_workers(target, at_most=at_most)
        deadline = time.monotonic() + kills.RUN_SECONDS
        while going and not self._has_it(self.run.job):  # which it takes before everything else
            going = self.run.job.keep_running()
            if time.monotonic() > deadline:
                raise TrainingError(f"no driver has the run for {kills.RUN_SECONDS:g} s; see {self.run.job.log}")
            time.sleep(LOOK_SECONDS)
        time.sleep(self.choice.uniform(0.0, 1.0))
        return going

    def _has_it(self, job: JobProcess) -> bool:
        return bool(job.pid) and lease.holder(self.run.uri).get("process") == job.pid

    def _refused(self, first: JobProcess, second: JobProcess) -> str:
        status, output = second.wait(START_SECONDS), second.log.read_text(errors="replace")
        if status == 0 and first.wait(0) == 0:
            return "found it complete"  # the first one ended meanwhile
        named = (
            f"another job is working on the run {self.name} in {self.run.uri}:" in output
            and f"process {first.pid}," in output
        )
        if status != USER_ERROR or not named:
            second.kill()
            self.faults.append(f"a second driver beside {first.pid} ended with {status} and said: {output[-500:]}")
        return "refused"

    def _frozen(self, first: JobProcess, second: JobProcess, *, whole: bool) -> str:
        before, thaw = first.children(), first.freeze(below=whole)
        second.keep_running()
        self._until(lambda: self._has_it(second), second)
        time.sleep(self.choice.uniform(0.0, 3 * LONGEST_PAUSE_SECONDS))
        said = first.log.stat().st_size
        thaw()
        status = first.wait(START_SECONDS)
        self.run.job = second
        output = first.log.read_bytes()[said:].decode(errors="replace")
        if status == 0 and not output.strip():
            return "it had just ended"
        if status != USER_ERROR or f"another job has taken over the run {self.name}" not in output:
            first.kill()
            self.faults.append(f"a frozen driver ended with {status} when it woke, and said: {output[-500:]}")
        time.sleep(self.choice.uniform(0.0, LONGEST_PAUSE_SECONDS))
        end(before)  # its Ray instance ends by itself some time later
        return "taken over"

    def _killed(self, first: JobProcess, second: JobProcess) -> str:
        """Kill only the driver: its workers live on for some seconds while the second driver is already starting."""
        below, pause = first.children(), self.choice.uniform(-1.0, LONGEST_PAUSE_SECONDS)
        if pause < 0:
            first.kill(below=False)
            second.keep_running()
        else:
            second.keep_running()
            time.sleep(pause)
            first.kill(below=False)
        time.sleep(self.choice.uniform(0.0, LONGEST_PAUSE_SECONDS))
        end(below)
        self._until(lambda: self._has_it(second) or second.wait(0) is not None, second)
        if second.wait(0) == USER_ERROR:  # it had seen that the first one was alive; the command is run again
            return "refused just before"
        self.run.job = second
        return "taken over"

    def _until(self, come: Callable[[], bool], job: JobProcess) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not come():
            if time.monotonic() > deadline:
                raise TrainingError(f"the second driver neither has the run nor ended; see {job.log}")
            time.sleep(LOOK_SECONDS)


def _torn(run_uri: str) -> list[str]:
    """List checkpoints that exist but are not intact."""
    found = run_folder.contents(run_uri)
    faults = [f"the checkpoint of step {step} was damaged" for step in found.set_aside]
    for step in found.committed:
        try:
            checkpoints.verify(run_folder.checkpoint_uri(run_uri, step))
        except TornCheckpointError as error:
            faults.append(str(error))
    return faults
