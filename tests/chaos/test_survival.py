"""A run whose processes are killed goes on, by itself or when it is submitted again, and ends with the same bits."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.chaos import kills, outages, twins
from tests.chaos.job_process import JobProcess
from tests.faulty_proxy import OUTAGES, faulty_proxy
from tests.jobs.processes import refusal
from tests.servers import S3Server
from tests.training.undisturbed import check_same_bits, undisturbed
from tpn_ray import recipes
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.datasets.toy import ToyConfig, write_toy
from tpn_ray.recipe import replace_fields
from tpn_ray.training import order_ledger, run_folder
from tpn_ray.training.run_plan import make_plan, recipe_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SEED, EPOCHS = 1, 16


@pytest.mark.long
def test_a_controller_that_is_killed_before_its_workers_began_leaves_no_places_taken(tmp_path: Path) -> None:
    """Nobody else knows of these: the next workers would find no CPU for decoding, again and again."""
    write_toy(str(tmp_path / "videos"), ToyConfig(train_per_class=4, val_per_class=2))
    command = ["jobs/train.py", "toy", "--data", str(tmp_path / "videos"), "--storage", str(tmp_path), "--name", "run"]
    fields = {**kills.FIELDS, "loop.epochs": 2, "loop.evaluate_every_epochs": 2}
    job = JobProcess(
        [*command, *(part for name, value in fields.items() for part in (f"--{name}", str(value)))], tmp_path / "log"
    )
    deadline, killed = time.monotonic() + 600, 0
    while job.keep_running():
        assert time.monotonic() < deadline, job.log.read_text()
        if not killed and job.below(kills.TITLES["worker"]):
            (controller,) = job.below(kills.TITLES["controller"])
            controller.kill()
            killed = controller.pid
        time.sleep(0.05)
    output = job.log.read_text()
    assert killed
    assert output.count("training started with 2 workers") == 1, output
    assert "run/step-00000008" in output
    assert job.starts == 1


@pytest.mark.long
def test_an_object_store_that_goes_away(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every default; the operations one by one are in tests/storage."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    with faulty_proxy(s3) as door:
        report = outages.attack(
            str(tmp_path),
            f"s3://{s3.bucket}/outages",
            door,
            kinds=OUTAGES,
            outages=3,
            seconds=(15.0, 40.0),
            seed=SEED,
            epochs=outages.epochs_for(3),
        )
    print(report)
    report.check()
    assert sum(report.outages.values()) == 3
    assert report.outcome.starts == 1
    assert "answers again" in (tmp_path / "in-outages.log").read_text()


@pytest.mark.long
def test_two_drivers_of_one_run(tmp_path: Path) -> None:
    """One beside a driver that lives, one whose predecessor is killed in the same moment."""
    report = twins.attack(str(tmp_path), twins=2, seed=1, epochs=10)
    print(report)
    report.check()
    assert sum(report.twins.values()) == 2


@pytest.mark.long
def test_kills_at_random(tmp_path: Path) -> None:
    """With Ctrl-C between them. 200 kills are a command, whose last figures are in docs/faults.md."""
    report = kills.attack(str(tmp_path), kills=3, seed=SEED, epochs=16, at_once=1)
    print(report)
    report.check()
    assert sum(report.killed.values()) == 3
    assert len(report.killed) >= 2, report


def test_a_controller_and_a_driver_are_killed(tmp_path: Path) -> None:
    """The run ends with the bits of plain torch in this process, and every clip was trained once."""
    videos, fields = str(tmp_path / "videos"), {"loop.batch_clips": 8, "loop.micro_batch_clips": 4}
    write_toy(videos, kills.TOY)
    flags = ("--max-failures", "9", "--loop.ordered-reduction")
    fire = kills.Run(
        tmp_path, "under-fire", videos, EPOCHS, fields={**fields, "loop.evaluate_every_epochs": EPOCHS}, flags=flags
    )
    assert fire.wait_for_workers(2, at_most=kills.RUN_SECONDS)
    assert fire.strike(["controller"], random.Random(SEED)) == ["controller"]
    assert fire.wait_for_workers(fire.step + kills.CHECKPOINT_STEPS, at_most=kills.RUN_SECONDS)
    assert fire.job.kill()
    fire.finish()
    assert fire.job.starts == 2
    manifest = load_manifest(videos)
    changes = {**fields, "loop.epochs": EPOCHS, "loop.ordered_reduction": True}
    recipe = recipe_for(replace_fields(recipes.recipe("toy"), changes), manifest)
    last = run_folder.last_checkpoint(fire.uri)
    assert last
    check_same_bits(undisturbed(recipe, manifest), last)
    assert order_ledger.check(fire.ledger, make_plan(recipe, manifest)) == []
    given = ["toy", "--data", videos, "--storage", str(tmp_path), "--name", "under-fire", *flags[2:]]
    given += [part for name, value in {**fields, "loop.epochs": EPOCHS}.items() for part in (f"--{name}", str(value))]
    given += ["--loop.evaluate_every_epochs", str(EPOCHS)]
    assert "optim.lr: 0.1 then, 0.07 now" in refusal("train", *given, "--optim.lr", "0.07")
