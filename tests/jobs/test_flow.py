"""Optical flow as a user has it: prepared with the videos, trained, scored, fused with RGB, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.checkpoints import save_untrained
from tests.jobs.processes import refusal, run_on
from tests.ray_head import RayHead
from tpn_ray.datasets.toy import ToyConfig, write_toy
from tpn_ray.errors import ConfigError
from tpn_ray.predict.predictor import load

pytestmark = pytest.mark.cluster

SMALL = (
    *("--loop.epochs", "1", "--loop.batch-clips", "4", "--loop.micro-batch-clips", "4", "--clip.frames", "8"),
    *("--loop.evaluate-every-epochs", "1", "--clip.modality", "flow"),
)


@pytest.mark.long
def test_from_videos_to_scores(cluster: RayHead, tmp_path: Path) -> None:
    write_toy(str(tmp_path / "videos"), ToyConfig(train_per_class=1, val_per_class=1, frames=40))
    data = str(tmp_path / "dataset")
    flags = ["--flow", "--data", str(tmp_path / "videos"), "--out", data, "--preset", "veryfast"]
    status, output = run_on(cluster, "prepare", *flags)
    assert status == 0, output
    assert "times as much as the videos" in output
    flags = ["toy", "--data", data, "--storage", str(tmp_path), "--name", "flow", *SMALL]
    status, output = run_on(cluster, "train", *flags)
    assert status == 0, output
    assert "bad video" not in output
    scores = tmp_path / "flow" / "scores.parquet"
    assert [row["reason"] for row in pq.read_table(scores).to_pylist()] == [""] * 8


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the recipe toy for flow."""
    return save_untrained(tmp_path_factory.mktemp("checkpoint"), changes={"clip.modality": "flow"})


@pytest.mark.long
def test_scores_of_both_modalities_and_a_program(
    cluster: RayHead, untrained: str, flow_dataset: str, tmp_path: Path
) -> None:
    checkpoints = {"rgb": save_untrained(tmp_path / "untrained"), "flow": untrained}
    for modality, checkpoint in checkpoints.items():
        out = str(tmp_path / modality)
        status, output = run_on(cluster, "evaluate", "--checkpoint", checkpoint, "--data", flow_dataset, "--out", out)
        assert status == 0, output
    fused = tmp_path / "fused"
    both = [str(tmp_path / modality) for modality in checkpoints]
    status, output = run_on(cluster, "compare", *both, "--fuse", "1", "--out", str(fused))
    assert status == 0, output
    assert json.loads((fused / "comparison.json").read_text())[0]["videos"] == 8
    program = ["--checkpoint", untrained, "--out", str(tmp_path / "program.pt2"), "--videos", flow_dataset]
    status, output = run_on(cluster, "export", *program)
    assert status == 0, output
    assert "takes uint8 (n, 16, 48, 48, 2)" in output


def test_what_a_user_gets_wrong(untrained: str, toy_folder: Path, tmp_path: Path) -> None:
    colors = ("--augment.brightness", "0.5")
    for expected, arguments in {
        "optical flow (clip.modality flow), which this dataset does not have": SMALL,
        "flow has no colors to change": (*SMALL, *colors),
    }.items():
        assert expected in refusal("train", "toy", "--data", str(toy_folder), "--storage", str(tmp_path), *arguments)
    assert "leave out --copy, or --flow" in refusal("prepare", "--data", "x", "--out", "y", "--flow", "--copy")
    for job in (
        ("evaluate", "--checkpoint", untrained, "--data", str(toy_folder)),
        ("export", "--checkpoint", untrained, "--out", str(tmp_path / "x.pt2"), "--videos", str(toy_folder)),
    ):
        assert "which this dataset does not have: prepare it with `python jobs/prepare.py --flow" in refusal(*job)
    with pytest.raises(ConfigError, match=r"the network looks at optical flow, which x.mp4 does not hold"):
        load(untrained, device="cpu").predict("x.mp4")
