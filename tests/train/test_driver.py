from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import ray.exceptions
import ray.train
import ray.util

from tests.servers import free_port
from tpn_ray import checkpoint as checkpoints
from tpn_ray import lease, mailbox, recipes, session
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.clips.entries import Entry
from tpn_ray.clips.manifest import Manifest, build, load_manifest
from tpn_ray.errors import (
    BudgetError,
    CheckpointError,
    DamagedError,
    LeaseError,
    ResourceError,
    StorageError,
    TrainingError,
)
from tpn_ray.train import bad_record, driver, run_folder
from tpn_ray.train.events import BadVideos, Committed, Diverged, Event, Failed, Notice, Stopped
from tpn_ray.train.goodput import Goodput
from tpn_ray.train.machines import Machines
from tpn_ray.train.recipe import Recipe, replace_fields, to_plain
from tpn_ray.train.record import Record


@pytest.fixture(scope="module")
def manifest(toy_folder: Path) -> Manifest:
    return load_manifest(str(toy_folder))


def test_the_network_gets_the_classes_of_the_dataset(manifest: Manifest) -> None:
    recipe = driver.recipe_for(replace_fields(recipes.toy(), {"model.classes": 3}), manifest)
    assert recipe.model.classes == 8
    two = dataclasses.replace(manifest, label_sets={"verb": ("a", "b"), "noun": ("c", "d", "e")})
    assert driver.recipe_for(recipes.toy(), two).model.classes == (2, 3)


def write_run(folder: Path, manifest: Manifest, lr: float = 0.1) -> str:
    """A run folder with checkpoints at steps 4 and 8."""
    recipe, run = replace_fields(recipes.toy(), {"optim.lr": lr}), str(folder / "run")
    assert driver.check_resumable(run, recipe, manifest) == 0
    for step in (4, 8):
        saved = Checkpoint(
            step=step, weights={}, training={}, recipe=to_plain(recipe), dataset_version=manifest.version, label_sets={}
        )
        checkpoints.save(run_folder.checkpoint_uri(run, step), saved)
    return run


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, manifest: Manifest) -> None:
    run = write_run(tmp_path, manifest)
    assert driver.check_resumable(run, recipes.toy(), manifest) == 8
    assert driver.check_resumable(str(tmp_path / "new"), recipes.toy(), manifest) == 0


def test_another_recipe_or_dataset_under_the_same_name_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    run = write_run(tmp_path, manifest, lr=0.3)
    with pytest.raises(CheckpointError, match=r"\n  optim.lr: 0.3 then, 0.1 now\n.*another --name"):
        driver.check_resumable(run, recipes.toy(), manifest)
    other = dataclasses.replace(manifest, version="other")
    with pytest.raises(CheckpointError, match=f"dataset_version: '{manifest.version}' then, 'other' now"):
        driver.check_resumable(run, replace_fields(recipes.toy(), {"optim.lr": 0.3}), other)


def test_a_name_is_free_for_another_recipe_until_a_step_is_committed(tmp_path: Path, manifest: Manifest) -> None:
    run = str(tmp_path / "run")
    for lr in (0.1, 0.2):
        assert driver.check_resumable(run, replace_fields(recipes.toy(), {"optim.lr": lr}), manifest) == 0


def ledger_of(manifest: Manifest, seen: list[Event], run_uri: str = "/nowhere") -> driver._Ledger:
    plan = driver.make_plan(
        replace_fields(recipes.toy(), {"loop.batch_clips": 8, "loop.micro_batch_clips": 4}), manifest
    )
    # Of 48 videos two may be bad.
    return driver._Ledger(manifest, plan, Fraction(5, 100), seen.append, Goodput(begun=0.0), run_uri)


def complete_run(folder: Path, manifest: Manifest) -> tuple[Recipe, str]:
    """Two epochs of four steps, evaluated and committed; the first is the better one."""
    changes = {"loop.epochs": 2, "loop.batch_clips": 8, "loop.micro_batch_clips": 4}
    recipe, run = driver.recipe_for(replace_fields(recipes.toy(), changes), manifest), str(folder / "run")
    driver.check_resumable(run, recipe, manifest)
    for step, top1 in ((4, 0.9), (8, 0.5)):
        run_folder.write_record(run, Record(step=step, epoch=step // 4, scores={"val_top1": top1}))
        saved = Checkpoint(
            step=step, weights={}, training={}, recipe=to_plain(recipe), dataset_version=manifest.version, label_sets={}
        )
        checkpoints.save(run_folder.checkpoint_uri(run, step), saved)
    return recipe, run


def run_again(folder: Path, recipe: Recipe, manifest: Manifest, seen: list[Event]) -> driver.RunResult:
    return driver.run(recipe, manifest, Machines(workers=1), storage_uri=str(folder), name="run", on_event=seen.append)


def test_a_complete_run_ends_with_what_is_there_of_it(tmp_path: Path, manifest: Manifest) -> None:
    (recipe, run), seen = complete_run(tmp_path, manifest), list[Event]()
    result = run_again(tmp_path, recipe, manifest, seen)
    assert (result.best, result.last) == (f"{run}/step-00000004", f"{run}/step-00000008")
    assert (result.trained, seen) == (False, [])
    run_folder.delete_checkpoint(run, 4)
    result = run_again(tmp_path, recipe, manifest, seen)
    assert (result.best, result.last) == (f"{run}/step-00000008", f"{run}/step-00000008")
    assert result.scores == {"val_top1": 0.5}
    (notice,) = seen
    assert isinstance(notice, Notice)
    assert "the checkpoint of the best evaluation (90.0% top-1 at step 4) is not there" in notice.text


def test_a_complete_run_whose_last_checkpoint_is_damaged_is_not_complete(tmp_path: Path, manifest: Manifest) -> None:
    (_, run), seen = complete_run(tmp_path, manifest), list[Event]()
    assert driver._is_complete(run, 8, 8, ledger_of(manifest, seen))
    (tmp_path / "run" / "step-00000008" / "weights.pt").write_bytes(b"x")
    assert not driver._is_complete(run, 8, 8, ledger_of(manifest, seen))
    assert "weights.pt does not have the SHA-256" in str(seen[0])
    (tmp_path / "run" / "step-00000004" / "weights.pt").write_bytes(b"x")
    with pytest.raises(DamagedError, match="every checkpoint of the run"):
        driver._is_complete(run, 4, 4, ledger_of(manifest, seen))


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
            with pytest.raises(LeaseError, match=r"another job works on the run run in .*, since 20"):
                run_again(tmp_path, asked, manifest, seen)
        assert files(tmp_path) == before
    assert run_again(tmp_path, recipe, manifest, seen).best == f"{run}/step-00000004"


def test_what_no_new_start_mends_ends_the_run(manifest: Manifest) -> None:
    seen: list[Event] = []
    error = StorageError("no checkpoint could be written for 30 min")
    with pytest.raises(StorageError, match="for 30 min"):
        ledger_of(manifest, seen)(Stopped(error=error))
    assert seen == [Stopped(error=error)]


def test_a_loss_that_is_no_number_names_the_videos(manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger = ledger_of(manifest, seen)
    videos = ledger.plan.slot(0, 1, 2).samples
    with pytest.raises(TrainingError, match=r"the loss is nan at step 2, micro-batch 0.*--optim.lr") as raised:
        ledger(Diverged(step=2, number=0, loss=float("nan")))
    assert all(manifest.select("train").uris[video] in str(raised.value) for video in videos)


def test_what_was_lost_on_its_way_is_passed_on_once(tmp_path: Path, manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger, run = ledger_of(manifest, seen), write_run(tmp_path, manifest)
    for step in (4, 8, 12):  # the checkpoint of step 12 was not committed
        run_folder.write_record(run, Record(step=step, epoch=1))
    ledger(Committed(step=4, epoch=1, checkpoint="c"))
    ledger.catch_up(run)
    ledger.catch_up(run)
    assert [event.step for event in seen if isinstance(event, Committed)] == [4, 8]


def test_what_several_processes_tell_of_storage_is_passed_on_once(manifest: Manifest) -> None:
    seen: list[Event] = []
    ledger = ledger_of(manifest, seen)
    away, back = Notice(text="away", about="storage"), Notice(text="back", about="storage")
    other = Notice(text="a checkpoint could not be written")
    for event in (away, away, other, back, other, back, away):
        ledger(event)
    assert seen == [away, other, back, other, away]


def test_bad_videos_are_booked_once_and_held_to_the_budget(manifest: Manifest, tmp_path: Path) -> None:
    seen: list[Event] = []
    ledger = ledger_of(manifest, seen, str(tmp_path))
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    ledger(BadVideos(split="train", found=((0, "empty", "a"), (1, "empty", "b"))))
    assert len(ledger.bad) == 2
    with pytest.raises(BudgetError, match=r"3 of 48 videos are bad .*, the budget allows 2(.|\n)*--max-bad"):
        ledger(BadVideos(split="val", found=((0, "damaged", "c"),)))
    assert len(seen) == 3


def test_bad_videos_count_after_a_restart(manifest: Manifest, tmp_path: Path) -> None:
    first, second = ledger_of(manifest, [], str(tmp_path)), ledger_of(manifest, [], str(tmp_path))
    first(BadVideos(split="train", found=((0, "empty", "a"), (1, "empty", "b"))))
    first.save(time.monotonic())
    second.take_up()
    assert second.bad == first.bad
    second(BadVideos(split="train", found=((1, "empty", "b"),)))  # decoded again
    with pytest.raises(BudgetError, match="3 of 48 videos are bad"):
        second(BadVideos(split="val", found=((0, "damaged", "c"),)))
    third = ledger_of(manifest, [], str(tmp_path))
    third.take_up()
    assert len(third.bad) == 3
    third(Notice(text="they may have been repaired since: nothing ends before one is bad again"))


def test_bad_videos_are_put_on_record_when_storage_takes_them_again(manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file is in the way of the folder")
    ledger = ledger_of(manifest, [], str(run))
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    ledger.save(time.monotonic())
    run.unlink()
    ledger.save(time.monotonic())
    assert not run.exists(), "not at once again"
    ledger.save(time.monotonic() + driver.SAVE_AGAIN_SECONDS)
    assert bad_record.read(str(run), manifest.version)[0] == ledger.bad


@pytest.mark.timeout(60)
def test_events_do_not_wait_for_storage_that_is_away(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    ledger = ledger_of(manifest, [], "s3://bucket/run")
    ledger(BadVideos(split="train", found=((0, "empty", "a"),)))
    begun = time.monotonic()
    ledger.save(begun + 1)  # would wait for five minutes
    assert begun < ledger.save_at < float("inf")


def test_a_bad_segment_is_not_taken_for_another_of_its_file() -> None:
    entries = [Entry(f"s{n}", "/videos/long.mp4", ("x",), "train", (n, n + 1.0)) for n in range(20)]
    ledger = ledger_of(build(entries, {"/videos/long.mp4": 1000}, source="test"), [])  # one may be bad
    with pytest.raises(BudgetError, match="2 of 20 videos are bad"):
        ledger(BadVideos(split="train", found=((0, "damaged", "a"), (2, "damaged", "b"))))


def test_a_burst_of_bad_videos_builds_no_split_for_each(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second each, in a dataset of a million videos."""
    ledger = ledger_of(manifest, [])
    ledger.max_bad = Fraction(1)
    monkeypatch.setattr(Manifest, "select", lambda *_: pytest.fail("a split was built"))
    looked: list[str] = []
    ledger.manifest = dataclasses.replace(manifest, splits=Looked(manifest.splits, looked))
    for row in range(16):
        ledger(BadVideos(split="train", found=((row, "empty", "a"),)))
        ledger(BadVideos(split="val", found=((row, "empty", "a"),)))
    assert len(ledger.bad) == 32
    assert len(looked) == 2, "the splits are gone through once each"


class Looked(list[str]):
    """A list that notes when it is gone through."""

    def __init__(self, values: list[str], looked: list[str]) -> None:
        super().__init__(values)
        self.looked = looked

    def __iter__(self) -> Iterator[str]:
        self.looked.append("")
        return super().__iter__()


@pytest.mark.parametrize("progress", [True, False])
def test_failures_to_place_workers_before_the_last_progress_are_past(
    progress: bool, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train gives up after some of them in all, which a run of weeks on nodes that come and go would meet."""
    ledger, fits = ledger_of(manifest, []), list[int]()
    monkeypatch.setattr(driver.mailbox, "take", lambda mail: [])

    class Trainer:
        def fit(self) -> None:
            fits.append(len(fits))
            ledger.commits += progress
            if len(fits) < 3:
                raise ray.train.ControllerError(RuntimeError("a worker was lost while it started"))

    if progress:
        driver._fit(Trainer, None, ledger, 60.0, 0)  # type: ignore[arg-type]
        assert len(fits) == 3
    else:
        with pytest.raises(TrainingError, match="a worker was lost while it started"):
            driver._fit(Trainer, None, ledger, 60.0, 0)  # type: ignore[arg-type]
        assert len(fits) == 1


@pytest.mark.parametrize(
    ("error", "groups"), [(CheckpointError("of another network"), 1), (ValueError("a fault that may pass"), 3)]
)
def test_an_error_that_would_come_again_takes_one_group_of_workers(
    error: Exception, groups: int, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []
    monkeypatch.setattr(driver.mailbox, "take", lambda mail: [])

    class Trainer:
        def fit(self) -> None:
            fits.append(len(fits))
            raise ray.train.WorkerGroupError("one worker", {0: error})

    with pytest.raises((CheckpointError, TrainingError), match=str(error)):
        driver._fit(Trainer, None, ledger_of(manifest, []), 60.0, 2)  # type: ignore[arg-type]
    assert len(fits) == groups


@pytest.mark.cluster
def test_a_controller_that_ends_with_a_worker_is_replaced_and_its_places_are_freed(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the moment when training is started on it, a worker takes the controller along. Seen at kill 27 of 200:
    the places of that group stayed taken, and the next one waited for clips for ever."""
    monkeypatch.setenv("RAY_ADDRESS", "")  # restored afterwards: the session names its own Ray there
    session.connect("", workers_cpus=1, decode_cpus=1)
    seen, fits = list[Event](), list[int]()
    monkeypatch.setattr(driver, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(driver, "_is_placed", lambda group: True)
    mail = mailbox.beside_driver()

    class Trainer:
        def fit(self) -> None:
            fits.append(len(fits))
            if len(fits) == 1:
                group = ray.util.placement_group([{"CPU": 1}] * 2)
                ray.get(group.ready(), timeout=60)
                raise ray.train.ControllerError(ray.exceptions.ActorDiedError())
            deadline = time.monotonic() + 90
            while ray.available_resources().get("CPU", 0.0) < ray.cluster_resources()["CPU"]:
                assert time.monotonic() < deadline, "the places stay taken"
                time.sleep(0.2)

    try:
        driver._fit(Trainer, mail, ledger_of(manifest, seen), 600.0, 0)  # type: ignore[arg-type]
    finally:
        session.disconnect()
    assert len(fits) == 2
    assert [type(event) for event in seen] == [Failed]


def test_the_projects_own_error_is_found_inside_what_ray_raises() -> None:
    class WorkerGroupError(Exception):
        worker_failures = {1: RuntimeError("outer")}  # noqa: RUF012

    WorkerGroupError.worker_failures[1].__cause__ = StorageError("cannot read s3://b/k")
    assert isinstance(driver.explain(WorkerGroupError()), StorageError)
    explained = driver.explain(ValueError("first\nlast line"))
    assert isinstance(explained, TrainingError)
    assert "last line" in str(explained)


def test_a_wait_for_workers_is_told_and_ends(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Event] = []
    placed = [True]
    monkeypatch.setattr(driver, "_is_placed", lambda group: placed[0])
    monkeypatch.setattr(driver.ray, "cluster_resources", lambda: {"CPU": 2.0, "node:127.0.0.1": 1.0, "memory": 9e9})
    places = driver._Places(ledger_of(manifest, seen), 600, 0.0)
    places.look(10_000)
    placed[0] = False
    places.look(10_030)
    assert seen == []
    places.look(10_070)
    places.look(10_400)
    assert [event.text for event in seen if isinstance(event, Notice)] == ["waits for workers; the cluster has 2 CPU"]
    with pytest.raises(ResourceError, match="no workers for 10 minutes; it has 2 CPU"):
        places.look(10_700)
