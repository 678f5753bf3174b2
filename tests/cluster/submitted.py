"""A training job that was submitted to a head, and what can be seen of it from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ray._raylet import GcsClient
from ray.job_submission import JobSubmissionClient

from tests.jobs.processes import ROOT, submit
from tests.ray_head import BIN, RayHead

LONGEST = 300.0
"""For every single thing that is waited for: seconds where nothing else runs."""


class Submitted:
    """`jobs/train.py toy`, under way; with `upload` the code goes along, else the nodes have it."""

    def __init__(
        self, head: RayHead, name: str, ledger: Path, flags: list[str], fields: Mapping[str, object], *, upload: bool
    ) -> None:
        self.head, self._name, self._ledger = head, name, ledger
        command = [str(BIN / "ray"), "job", "submit", "--no-wait", "--submission-id", name]
        command += ["--working-dir", ".", "--", "python"] if upload else ["--", "python"]
        command += ["jobs/train.py" if upload else str(ROOT / "jobs" / "train.py"), "toy", "--name", name]
        command += ["--order-ledger", str(ledger), *flags]
        command += [part for field, value in fields.items() if value is not True for part in (f"--{field}", str(value))]
        command += [f"--{field}" for field, value in fields.items() if value is True]
        status, said = submit(command, {**head.environment, "RAY_ADDRESS": head.jobs_url})
        assert status == 0, said
        self._client, self._gcs = JobSubmissionClient(head.jobs_url), GcsClient(address=head.address)

    def status(self) -> str:
        return str(self._client.get_job_status(self._name).value)

    def output(self) -> str:
        return str(self._client.get_job_logs(self._name))

    def starts(self) -> list[str]:
        """What the job said of each group of workers that began."""
        return [line for line in self.output().splitlines() if line.startswith("training ") and " with " in line]

    def trained(self, ranks: str = "*") -> int:
        """Micro-batches so far; the first line of each file is none."""
        return sum(len(path.read_text().splitlines()) - 1 for path in self._ledger.glob(f"{ranks}.jsonl"))

    def nodes(self) -> dict[str, tuple[str, bool]]:
        """Pool of every node there ever was, and whether it is alive."""
        found = self._gcs.get_all_node_info(timeout=60).items()
        return {id.hex(): (dict(node.labels).get("pool", ""), node.state == 0) for id, node in found}

    def alive(self, *pools: str) -> list[str]:
        return sorted(node for node, (pool, alive) in self.nodes().items() if alive and pool in pools)

    def wait_for(self, what: str, happened: Callable[[], bool]) -> float:
        """Seconds until then."""
        begun = time.monotonic()
        while not happened():
            assert self.status() in ("PENDING", "RUNNING", "SUCCEEDED"), f"no {what}; the job said\n{self.output()}"
            assert time.monotonic() - begun < LONGEST, f"no {what}; {self.nodes()}; the job said\n{self.output()}"
            time.sleep(0.2)
        print(f"{time.monotonic() - begun:.0f} s until {what}", flush=True)
        return time.monotonic() - begun
