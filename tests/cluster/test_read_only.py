"""Ray and a job where nothing can be written to but what the manifests mount: an image that is read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.manifests import ROOT, cluster_specs, container, rendered
from tests.jobs.processes import without_ray

HIDDEN = ("/tmp/", "/home/")

SCRIPT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/code /mnt/data /mnt/python
mount --bind {code} /mnt/code; mount --bind {data} /mnt/data; mount --bind {python} /mnt/python
mount -t tmpfs tmpfs /home; mkdir -p /home/ray
{mounts}
for place in / /mnt /home /mnt/code /mnt/data /mnt/python; do mount -o remount,bind,ro $place; done
if touch /etc/x /mnt/code/x /home/x 2> /dev/null; then echo "it can be written to"; exit 9; fi
cd /mnt/code
/mnt/python/bin/python {command} || {{ tail -n 30 /tmp/ray/session_latest/logs/raylet.err >&2; exit 1; }}
"""

RAY = """-c '
import ray
from tpn_ray import session
session.connect("", workers_cpus=1, decode_cpus=1)
print("it said", ray.get(ray.remote(lambda: 3).remote()))
session.disconnect()'"""
JOB = "jobs/train.py toy --data /mnt/data --storage /tmp/runs --name read-only --workers 1 --loop.epochs 1"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        pytest.param(RAY, "it said 3", id="a task"),
        pytest.param(JOB, "best checkpoint  /tmp/runs/read-only/", id="a job", marks=pytest.mark.long),
    ],
)
@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root on Linux mounts file systems")
@pytest.mark.skipif(sys.base_prefix.startswith(HIDDEN), reason="Python itself is below /tmp or /home")
@pytest.mark.timeout(600)
def test_ray_needs_no_more_than_what_is_mounted(toy_folder: Path, command: str, said: str) -> None:
    (spec,) = cluster_specs(rendered("cluster"))
    paths = [mount["mountPath"] for mount in container(spec["headGroupSpec"])["volumeMounts"]]
    assert sorted(paths) == ["/dev/shm", "/home/ray", "/tmp"]
    script = SCRIPT.format(
        code=ROOT,
        data=toy_folder,
        python=sys.prefix,
        command=command,
        mounts="; ".join(f"mount -t tmpfs tmpfs {path}" for path in paths),
    )
    environment = {
        "HOME": "/home/ray",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": "/mnt/code",
        "COLUMNS": without_ray()["COLUMNS"],
    }
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
