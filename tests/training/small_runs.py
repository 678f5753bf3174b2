"""Small runs: their folders and their books."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from tpn_ray import checkpoint as checkpoints
from tpn_ray import recipes
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.recipe import replace_fields, to_plain
from tpn_ray.training import run_folder
from tpn_ray.training.accounting import RunLedger
from tpn_ray.training.events import Event
from tpn_ray.training.goodput import Goodput
from tpn_ray.training.run_plan import check_resumable, make_plan


def ledger_of(manifest: Manifest, seen: list[Event], run_uri: str = "/nowhere") -> RunLedger:
    plan = make_plan(replace_fields(recipes.toy(), {"loop.batch_clips": 8, "loop.micro_batch_clips": 4}), manifest)
    # Of 48 videos two may be bad.
    return RunLedger(manifest, plan, Fraction(5, 100), seen.append, Goodput(begun=0.0), run_uri)


def write_run(folder: Path, manifest: Manifest, lr: float = 0.1) -> str:
    """A run folder with checkpoints at steps 4 and 8."""
    recipe, run = replace_fields(recipes.toy(), {"optim.lr": lr}), str(folder / "run")
    assert check_resumable(run, recipe, manifest) == 0
    for step in (4, 8):
        saved = Checkpoint(
            step=step, weights={}, training={}, recipe=to_plain(recipe), dataset_version=manifest.version, label_sets={}
        )
        checkpoints.save(run_folder.checkpoint_uri(run, step), saved)
    return run
