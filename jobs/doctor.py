"""Check what the jobs need of a cluster, and how to fix what fails; run it first. `python jobs/doctor.py --help`."""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tpn_ray import command_line, session, storage
from tpn_ray.doctor import examination, verdict_table
from tpn_ray.doctor.examination import Examination
from tpn_ray.doctor.findings import FAIL
from tpn_ray.meter import print_table

PROGRAM = "python jobs/doctor.py"
SOME_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags that the jobs will get."""

    json: str = ""
    """File to write all findings to."""

    examination: Annotated[Examination, tyro.conf.arg(name="")] = field(default_factory=Examination)


def main() -> int:
    description = "Check storage, tracking server, nodes, and network. Status 0: all passed; 1: some check failed."
    flags = command_line.parse(Arguments(), sys.argv[1:], program=PROGRAM, description=description)
    wanted = flags.examination
    session.refuse_jobs_address(wanted.address)
    findings = examination.services(wanted)

    def join() -> None:
        session.connect(wanted.address, workers_cpus=1, decode_cpus=1, storage_seconds=storage.CHECK_SECONDS)

    findings += examination.cluster(wanted, join)
    print_table(verdict_table.as_table(findings))
    print(verdict_table.summary(findings), flush=True)
    if flags.json:
        storage.write_bytes(storage.absolute(flags.json), verdict_table.as_json(findings).encode())
    return SOME_FAILED if any(finding.result == FAIL for finding in findings) else 0


if __name__ == "__main__":
    run_job(main, leave=session.disconnect)
