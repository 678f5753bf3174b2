from __future__ import annotations

import pytest
from mlflow import MlflowClient

from tpn_ray import tracking
from tpn_ray.meter import LOG_SECONDS
from tpn_ray.progress import Terminal, catch_up, line, track
from tpn_ray.training.events import BadVideos, Committed, NodeLoad, Progress, Started
from tpn_ray.training.record import Record, StepMetrics

PROGRESS = Progress(
    step=30, steps=240, epoch=2, epochs=10, loss=1.5, top1=0.25, clips_per_second=99.6, waiting=0.031, seconds_left=200
)


def test_a_progress_line_says_where_how_well_how_fast_and_how_long() -> None:
    assert line(PROGRESS) == (
        "epoch 2/10  step 30/240  loss 1.500  top-1 25.0%  100 clips/s  waiting for data 3%  3 min 20 s left"
    )


def test_a_log_gets_one_progress_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    for _ in range(3):
        terminal(PROGRESS)
    terminal.status.printed_at -= LOG_SECONDS
    terminal(PROGRESS)
    assert capsys.readouterr().out.count("step 30/240") == 2


def test_starts_are_counted_and_a_bad_video_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal(Started(step=0, workers=2, at=0.0))
    terminal(Started(step=8, workers=2, at=9.0))
    for _ in range(2):
        terminal(BadVideos(split="train", found=((3, "empty", "x.mp4 has no bytes"),)))
    terminal(Committed(step=9, epoch=1, checkpoint="c"))
    assert capsys.readouterr().out.splitlines() == [
        "training started with 2 workers",
        "training resumed from step 8 with 2 workers (start 2)",
        "bad video (empty): x.mp4 has no bytes",
        "checkpoint c",
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.local_uri(str(tmp_path_factory.mktemp("store")))


def test_what_a_killed_driver_had_sent_of_a_commit_is_not_sent_again(store: str) -> None:
    run = tracking.begin(store, "experiment", "run", parameters={}, tags={})
    run.log_metrics({"train/loss": 3.0}, 2)  # killed before the other steps and the evaluation
    history = tuple(StepMetrics(step=step, values={"loss": 5.0 - step}) for step in (2, 4))
    for _ in range(2):
        catch_up(run, [Record(step=4, epoch=1, scores={"val_top1": 0.5}, history=history)], "runs/x")
    for name, expected in {"train/loss": [(2, 3.0), (4, 1.0)], "val/top1": [(4, 0.5)], "epoch": [(4, 1.0)]}.items():
        found = MlflowClient(store).get_metric_history(run.run_id, name)
        assert [(metric.step, metric.value) for metric in found] == expected


def test_the_load_of_each_node_is_a_system_metric_of_its_own(store: str) -> None:
    run = tracking.begin(store, "experiment", "load", parameters={}, tags={})
    for node in ("10.0.0.1", "10.0.0.2"):
        track(run, NodeLoad(node=node, step=5, values={"cpu_utilization_percentage": 50.0}))
    assert run.client.get_run(run.run_id).data.metrics == {
        "system/10.0.0.1/cpu_utilization_percentage": 50.0,
        "system/10.0.0.2/cpu_utilization_percentage": 50.0,
    }
