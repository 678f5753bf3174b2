from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.small_runs import ledger_of
from tpn_ray import checkpoint as checkpoints
from tpn_ray import lease, recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import DamagedError, LeaseError
from tpn_ray.recipe import Recipe, replace_fields, to_plain
from tpn_ray.training import run_folder
from tpn_ray.training.events import Event, Notice
from tpn_ray.training.machines import Machines
from tpn_ray.training.record import Record
from tpn_ray.training.run import RunResult, is_complete, train
from tpn_ray.training.run_plan import check_resumable, recipe_for


def complete_run(folder: Path, manifest: Manifest) -> tuple[Recipe, str]:
    """Two epochs of four steps, evaluated and committed; the first is the better one."""
    changes = {"loop.epochs": 2, "loop.batch_clips": 8, "loop.micro_batch_clips": 4}
    recipe, run = recipe_for(replace_fields(recipes.toy(), changes), manifest), str(folder / "run")
    check_resumable(run, recipe, manifest)
    for step, top1 in ((4, 0.9), (8, 0.5)):
        run_folder.write_record(run, Record(step=step, epoch=step // 4, scores={"val_top1": top1}))
        saved = Checkpoint(
            step=step, weights={}, training={}, recipe=to_plain(recipe), dataset_version=manifest.version, label_sets={}
        )
        checkpoints.save(run_folder.checkpoint_uri(run, step), saved)
    return recipe, run


def run_again(folder: Path, recipe: Recipe, manifest: Manifest, seen: list[Event]) -> RunResult:
    return train(recipe, manifest, Machines(workers=1), storage_uri=str(folder), name="run", on_event=seen.append)


def test_a_complete_run_ends_with_what_is_there_of_it(tmp_path: Path, manifest: Manifest) -> None:
    (recipe, run), seen = complete_run(tmp_path, manifest), list[Event]()
    result = run_again(tmp_path, recipe, manifest, seen)
    assert (result.best, result.last) == (f"{run}/step-00000004", f"{run}/step-00000008")
    assert (result.trained, seen) == (False, [])
    run_folder.delete_checkpoint(run, 4)
    result = run_again(tmp_path, recipe, manifest, seen)
    assert (result.best, result.last) == (f"{run}/step-00000008", f"{run}/step-00000008")
    assert result.scores == {"val_top1": 0.5}
    assert "<th>top-1 of the best checkpoint</th><td>50.0%</td>" in result._repr_html_()
    (notice,) = seen
    assert isinstance(notice, Notice)
    assert "the checkpoint of the best evaluation (90.0% top-1 at step 4) is missing" in notice.text


def test_a_complete_run_whose_last_checkpoint_is_damaged_is_not_complete(tmp_path: Path, manifest: Manifest) -> None:
    (_, run), seen = complete_run(tmp_path, manifest), list[Event]()
    assert is_complete(run, 8, 8, ledger_of(manifest, seen))
    (tmp_path / "run" / "step-00000008" / "weights.pt").write_bytes(b"x")
    assert not is_complete(run, 8, 8, ledger_of(manifest, seen))
    assert "weights.pt does not match the SHA-256" in str(seen[0])
    (tmp_path / "run" / "step-00000004" / "weights.pt").write_bytes(b"x")
    with pytest.raises(DamagedError, match="every checkpoint of the run"):
        is_complete(run, 4, 4, ledger_of(manifest, seen))


def files(folder: Path) -> dict[Path, bytes]:
    """Contents of all files but those of the lease."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "lease"}


def test_a_run_that_another_job_works_on_is_refused_and_left_alone(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    (recipe, run), seen = complete_run(tmp_path, manifest), list[Event]()
    other = replace_fields(recipe, {"optim.lr": 0.7})
    with lease.held(run, "run run"):
        before = files(tmp_path)
        for asked in (recipe, other):
            with pytest.raises(LeaseError, match=r"another job is working on the run run in .*, since 20"):
                run_again(tmp_path, asked, manifest, seen)
        assert files(tmp_path) == before
    assert run_again(tmp_path, recipe, manifest, seen).best == f"{run}/step-00000004"
