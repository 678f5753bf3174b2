"""Grids that train without a cluster: the same bits as a run's, nothing trained twice, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.curves import settings, train_grid
from benchmarks.policies import POLICIES, PoliciesBench, measure_policies
from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes, storage
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import replace_fields
from tpn_ray.training import run_folder
from tpn_ray.training.machines import Machines
from tpn_ray.training.run import train
from tpn_ray.training.run_plan import recipe_for
from tpn_ray.tuning.distributions import parse

VARY = ("optim.lr=choice(0.05,0.1)",)
CHANGES = {"loop.epochs": 2, "loop.evaluate_every_epochs": 1}


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.usefixtures("joined")
def test_a_curve_is_that_of_a_run_bit_for_bit(toy_folder: Path, tmp_path: Path) -> None:
    recipe, manifest = replace_fields(recipes.toy_small(), CHANGES), load_manifest(str(toy_folder))
    grid = train_grid(recipe, str(toy_folder), str(toy_folder), VARY, tmp_path / "grid", say=print)
    run = recipe_for(replace_fields(recipe, {"optim.lr": 0.1}), manifest)
    train(run, manifest, Machines(workers=1), storage_uri=str(tmp_path), name="run", on_event=print)
    records = run_folder.read_records(str(tmp_path / "run"))
    assert [record.scores["val_top1"] for record in records if record.scores] == grid.tops[1].tolist()
    saved = checkpoints.load(run_folder.last_checkpoint(str(tmp_path / "run")) or "").weights
    kept = torch.load(tmp_path / "grid" / "001-2.pt", weights_only=True)
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


@pytest.mark.long
def test_policies_from_videos_to_the_report(toy_folder: Path, tmp_path: Path) -> None:
    bench = PoliciesBench(
        data=str(toy_folder),
        fresh=str(toy_folder),
        vary=VARY,
        seeds=1,
        epochs=2,
        folder=str(tmp_path / "grids"),
        share=0.5,
        replays=2,
        picture=str(tmp_path / "curves.png"),
    )
    said = list[str]()
    first = measure_policies(recipes.toy_small(), bench, say=said.append)
    assert len(said) == 2, "each setting is trained"
    assert first.results.keys() == POLICIES.keys()
    for result in first.results.values():
        assert result.fresh == pytest.approx(result.validation), "the fresh videos are the validation videos here"
    assert str(measure_policies(recipes.toy_small(), bench, say=said.append)) == str(first)
    assert len(said) == 2, "and not again"
    assert storage.read_bytes(bench.picture).startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="holds another grid; choose another --folder"):
        measure_policies(recipes.toy(), bench, say=said.append)


def test_what_is_no_grid_is_refused() -> None:
    assert settings({"optim.lr": parse("choice(0.1, 0.2)"), "model.alpha": parse("choice((1, 2))")}) == [
        {"optim.lr": 0.1, "model.alpha": (1, 2)},
        {"optim.lr": 0.2, "model.alpha": (1, 2)},
    ]
    with pytest.raises(ConfigError, match=r"optim.lr is no choice"):
        settings({"optim.lr": parse("loguniform(0.1, 1)")})
    with pytest.raises(ConfigError, match=r"clip.frames may change the clips"):
        settings({"clip.frames": parse("choice(4, 8)")})
