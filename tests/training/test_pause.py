"""A run that pauses goes on as if it had not; a run can begin from another's checkpoint. One real Ray for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.recipe import Recipe, replace_fields
from tpn_ray.training.events import Event, Started
from tpn_ray.training.machines import Machines
from tpn_ray.training.run import Stretch, train
from tpn_ray.training.run_plan import checkpoint_to_extend, recipe_for

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("joined")]

SHORT = {"loop.epochs": 2, "loop.evaluate_every_epochs": 2, "loop.batch_clips": 8, "loop.micro_batch_clips": 8}


@pytest.fixture(scope="module")
def recipe(manifest: Manifest) -> Recipe:
    return recipe_for(replace_fields(recipes.toy(), SHORT), manifest)


def trained(
    recipe: Recipe, manifest: Manifest, folder: Path, name: str, until: int = 0, begin: str = ""
) -> list[Event]:
    events: list[Event] = []
    train(
        recipe,
        manifest,
        Machines(workers=1),
        storage_uri=str(folder),
        name=name,
        on_event=events.append,
        stretch=Stretch(until_epoch=until, start_from=begin),
    )
    return events


def tensors(folder: Path, name: str, step: int = 8) -> list[torch.Tensor]:
    saved = checkpoints.load(str(folder / name / f"step-{step:08d}"))
    momenta = [state["momentum_buffer"] for state in saved.training["optimizer"]["state"].values()]
    return [*saved.weights.values(), *momenta]


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    trained(recipe, manifest, folder, "whole")
    return folder


@pytest.mark.long
def test_a_pause_changes_no_bit(recipe: Recipe, manifest: Manifest, undisturbed: Path, tmp_path: Path) -> None:
    trained(recipe, manifest, tmp_path, "paused", until=1)
    at_pause = checkpoints.load(str(tmp_path / "paused" / "step-00000004"))
    assert at_pause.scores["val_videos"] == 16  # it was evaluated, though only every second epoch is
    events = trained(recipe, manifest, tmp_path, "paused")
    assert [event.step for event in events if isinstance(event, Started)] == [4]
    whole, paused = tensors(undisturbed, "whole"), tensors(tmp_path, "paused")
    assert all(torch.equal(one, other) for one, other in zip(whole, paused, strict=True))


@pytest.mark.long
def test_another_runs_checkpoint_and_other_settings(
    recipe: Recipe, manifest: Manifest, undisturbed: Path, tmp_path: Path
) -> None:
    donor = str(undisturbed / "whole" / "step-00000008")
    longer = {"loop.epochs": 3, "loss.lambdas": (0.1,), "model.alpha": (2, 4), "optim.lr": 0.02}
    events = trained(replace_fields(recipe, longer), manifest, tmp_path, "mutant", begin=donor)
    assert [event.step for event in events if isinstance(event, Started)] == [8]
    saved = checkpoints.load(str(tmp_path / "mutant" / "step-00000012"))
    assert saved.recipe["model"]["alpha"] == [2, 4]


@pytest.mark.long
def test_an_extended_run_is_the_run_that_was_longer_from_the_beginning(
    recipe: Recipe, manifest: Manifest, tmp_path: Path
) -> None:
    """Bit for bit, if the learning rate does not depend on the number of epochs."""
    recipe = replace_fields(recipe, {"optim.schedule": "constant", "optim.warmup": 0.0})
    short = replace_fields(recipe, {"loop.epochs": 1})
    trained(short, manifest, tmp_path, "short")
    trained(recipe, manifest, tmp_path, "whole")
    uri = str(tmp_path / "short")
    start = checkpoint_to_extend(uri, recipe, manifest)
    events = list[Event]()
    stretch = Stretch(start_from=start, extends=uri)
    arguments = {"storage_uri": str(tmp_path), "name": "extended", "on_event": events.append}
    train(recipe, manifest, Machines(workers=1), stretch=stretch, **arguments)  # type: ignore[arg-type]
    assert [event.step for event in events if isinstance(event, Started)] == [4]
    both = zip(tensors(tmp_path, "whole"), tensors(tmp_path, "extended"), strict=True)
    assert all(torch.equal(one, other) for one, other in both)


def test_a_pause_beyond_the_end(recipe: Recipe, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="until_epoch=3 is beyond the 2 epochs"):
        trained(recipe, manifest, tmp_path, "never", until=3)
