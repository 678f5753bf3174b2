"""The commands of the guide, run in the order in which they stand, by a reader who has a folder of videos."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.manifests import ROOT
from tests.servers import S3Server, s3_server
from tests.test_docs import blocks
from tpn_ray.datasets.toy import ToyConfig, write_toy

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(2400)]

GUIDE = [ROOT / "docs" / "guide" / f"{name}.md" for name in ("videos", "train", "backbones", "tune", "scores", "paper")]
NEEDS = {"k400_r50_8x8": "the published size, for GPUs", "pip install": "the packages are those of the lock file"}
"""Parts of the commands that are not run here, with the reason."""
QUICKER = [
    (r"^(python jobs/(?:train|tune)\.py .*?)(?: --loop.epochs (\d+))?$", r"\1 --loop.epochs 2"),
    (r"(--extend \S+ .*)--loop.epochs 2", r"\1--loop.epochs 3"),
    (r"--samples \d+", "--samples 2"),
    (r"^(python jobs/reproduce\.py .*?)(?: --seeds \d+)?$", r"\1 --seeds 1 --epochs 1"),
    (r"--kind (\w+)", r"--kind \1 --train-per-class 5 --val-per-class 1"),
    (r"--train-per-class 32 --val-per-class 48", "--train-per-class 5 --val-per-class 1"),
    (r"^(python jobs/tune\.py (?!.*--samples).*)$", r"\1 --samples 2"),
    (r"(reproduce\.py backbones .*)", r'\1 --rows "tsm + TPN"'),
    (r"(reproduce\.py 5 .*)", r'\1 --rows "TSN + TPN"'),
]
"""What is given less to do, so that it does not take a day."""


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if re.match(r"(python|pip|ray|make) ", line)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("store"), bucket="bucket") as server:
        yield server


@pytest.fixture(scope="module")
def desk(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works: the project's folders, videos of their own, and a bucket with new ones."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("jobs", "benchmarks", "docs", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    toy = ToyConfig(train_per_class=5, val_per_class=1)
    for place in (folder / "my_videos", folder / "runs" / "demo" / "videos"):
        write_toy(str(place), toy)
    videos = sorted((folder / "my_videos" / "val").rglob("*.mp4"))
    for name, video in zip(("a.mp4", "b.mp4"), videos, strict=False):
        shutil.copy(video, folder / name)
    (folder / "list.txt").write_text(f"{videos[2]}\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        write_toy("s3://bucket/new", ToyConfig(train_per_class=1, val_per_class=1))
    return folder


def newest(folder: Path, pattern: str, count: int = 1) -> list[str]:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    assert len(found) >= count, f"nothing is called {pattern} yet"
    return [str(path.relative_to(folder)) for path in found[-count:]]


def filled_in(command: str, folder: Path) -> str:
    """The reader's own names in place of those in capitals, and less to do."""
    for pattern, quicker in QUICKER:
        command = re.sub(pattern, quicker, command)
    if "runs/demo/NAME" in command or re.search(r"\bNAME\b", command):
        (checkpoint,) = newest(folder, "runs/*/step-*")
        command = re.sub(r"(runs/demo/)?\bNAME\b", lambda found: checkpoint.split("/")[1], command)
        command = command.replace("replay.py ", "replay.py runs/")
    if "FRAMES_CHECKPOINT" in command:  # one network stands for all three, which saw the same videos
        (checkpoint,) = newest(folder, "runs/frames/step-*")
        command = re.sub(r"\b(FRAMES_CHECKPOINT|BASELINE|TPN)\b", checkpoint, command)
    if "CHECKPOINT" in command:
        (checkpoint,) = newest(folder, "runs/toy-*/step-*")
        command = command.replace("CHECKPOINT", checkpoint)
    if "SCORES_A" in command:
        first, second = newest(folder, "runs/*/scores.parquet", 2)
        command = command.replace("SCORES_A", first).replace("SCORES_B", second)
    return command


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_commands_run_in_the_order_in_which_they_stand(page: Path, desk: Path, store: S3Server) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {**store.environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    for command in commands(page):
        if any(part in command for part in NEEDS):
            continue
        line = filled_in(command, desk)
        done = subprocess.run(
            shlex.split(line), check=False, cwd=desk, env=environment, capture_output=True, text=True, timeout=900
        )
        print(f"$ {line}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0, f"{command}\nas {line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
