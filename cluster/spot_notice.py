"""Waits for EC2's notice that this spot instance will be reclaimed, and tells Ray, which tells the training on it.

Runs on every spot worker of aws.yaml, next to Ray, which does not look for the notice itself. A training run that is
told two minutes ahead makes a checkpoint and continues elsewhere; one that is not loses its work since the last
checkpoint. (On Kubernetes, draining a node sends SIGTERM, which has the same effect.)
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

METADATA_URL = "http://169.254.169.254"
"""Address where an EC2 instance queries its own metadata."""
LOOK_SECONDS = 5.0
ANSWER_SECONDS = 5.0
TOKEN_SECONDS = 21600
MARGIN_SECONDS = 10
"""Subtracted from the remaining time: a checkpoint too early is better than none."""
DRAIN_ATTEMPTS, DRAIN_SECONDS = 3, 40.0


def read_notice(metadata_url: str) -> dict[str, Any] | None:
    """Return EC2's planned action, {"action": ..., "time": ...}; None if there is no notice or no answer."""
    ask = urllib.request.Request(
        f"{metadata_url}/latest/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)},
    )
    try:
        with urllib.request.urlopen(ask, timeout=ANSWER_SECONDS) as answer:
            token = answer.read().decode()
        look = urllib.request.Request(
            f"{metadata_url}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(look, timeout=ANSWER_SECONDS) as answer:
            notice: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 404:  # 404: there is no notice
            print(f"the metadata service answers {error.code}", flush=True)
        return None
    except (OSError, ValueError) as error:
        print(f"the metadata service does not answer: {error}", flush=True)
        return None
    return notice


def seconds_left(notice: dict[str, Any], now: datetime.datetime) -> int:
    """Return the time that Ray may use, at least a second."""
    end = datetime.datetime.fromisoformat(notice["time"])
    return max(1, int((end - now).total_seconds()) - MARGIN_SECONDS)


def drain(address: str, seconds: int) -> bool:
    """Tell the cluster that this node goes away in `seconds`."""
    command = ["ray", "drain-node", "--address", address, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "EC2 takes this spot machine away", "--deadline-remaining-seconds", str(seconds)]
    environment = {**os.environ, "RAY_ADDRESS": address}  # the command uses it to find which node it runs on
    try:
        done = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True, timeout=DRAIN_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"ray drain-node: {error}", flush=True)
        return False
    print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the cluster's head")
    parser.add_argument("--metadata-url", default=METADATA_URL)
    flags = parser.parse_args()
    while (notice := read_notice(flags.metadata_url)) is None:
        time.sleep(LOOK_SECONDS)
    for _ in range(DRAIN_ATTEMPTS):
        seconds = seconds_left(notice, datetime.datetime.now(datetime.UTC))
        print(f"notice: {notice['action']} at {notice['time']}; {seconds} s are left", flush=True)
        if drain(flags.address, seconds):
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
