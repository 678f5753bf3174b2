"""What is left when a campaign ends: the report, MLflow's family of runs, the registered model; without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.tuning.test_campaigns import campaign, manifest  # noqa: F401 - fixtures
from tpn_ray import checkpoint as checkpoints
from tpn_ray import tracking
from tpn_ray.checkpoint import Checkpoint
from tpn_ray.errors import TrainingError
from tpn_ray.meter import TABLE_COLUMNS
from tpn_ray.tracking import TrackedRun
from tpn_ray.tuning.campaigns import CampaignOutcome
from tpn_ray.tuning.journal import Point, Trial
from tpn_ray.tuning.leaderboard import show
from tpn_ray.tuning.space import space
from tpn_ray.tuning.trial import Campaign, begin_child

COMMAND = "python jobs/train.py toy --data videos --optim.lr 0.2"


@pytest.fixture
def parent(tmp_path: Path) -> TrackedRun:
    uri = tracking.local_uri(str(tmp_path))
    return tracking.begin(uri, "tpn_ray", "search", parameters={}, tags={})


@pytest.fixture
def tracked_campaign(campaign: Campaign, parent: TrackedRun, tmp_path: Path) -> Campaign:  # noqa: F811
    return dataclasses.replace(
        campaign,
        tracking_uri=parent.tracking_uri,
        experiment="tpn_ray",
        parent_run=parent.run_id,
    )


def trial(number: int, *tops: float, failure: str = "") -> Trial:
    points = tuple(
        Point(epoch=epoch, scores={"val_top1": top, "val_videos": 16.0}, checkpoint=f"/runs/{number}/{epoch}")
        for epoch, top in enumerate(tops, 1)
    )
    sample = {
        "optim.lr": 0.1 * (number + 1),
        "optim.schedule": "cosine",
        "optim.gamma": 0.3,
        "optim.weight_decay": 0.000123,
        "model.alpha": [4, 8],
        "loss.lambdas.0": 0.456,
        "model.flow": "cascade",
        "optim.warmup": 0.123,
    }
    return Trial(number=number, sample=sample, points=points, failure=failure)


def end(outcome: CampaignOutcome, campaign: Campaign, parent: TrackedRun) -> None:  # noqa: F811
    fields = space("none", campaign.recipe, ["optim.lr=loguniform(0.01,1)"])
    show(outcome, campaign, fields, command=COMMAND, again="python jobs/tune.py toy", tracked=parent)


def test_the_end_of_a_campaign_whose_server_was_away(
    tracked_campaign: Campaign, parent: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tmp_path / "step-00000002")
    checkpoints.save(
        checkpoint, Checkpoint(step=2, weights={}, training={}, recipe={}, label_sets={}, dataset_version="v")
    )
    best = trial(1, 0.25, 0.75)
    last = dataclasses.replace(best.points[-1], checkpoint=checkpoint)
    best = dataclasses.replace(best, points=(*best.points[:-1], last))
    trials = [best, trial(0, 0.5), trial(2, failure="TrainingError: the loss is nan")]
    end(CampaignOutcome(trials=trials, max_concurrent=2), tracked_campaign, parent)
    printed = capsys.readouterr().out
    assert COMMAND in printed
    assert f"its checkpoint is {checkpoint}" in printed
    table = [line for line in printed.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(table) > 4
    assert max(map(len, table)) <= TABLE_COLUMNS, "it fits where there is no terminal"
    assert "schedule=cosine" in printed
    assert "gamma=" not in printed, "a cosine has no gamma"
    assert "version 1 of the model 'search'" in printed
    client = MlflowClient(parent.tracking_uri)
    runs = client.search_runs([client.get_run(parent.run_id).info.experiment_id])
    children = {run.info.run_name: run for run in runs if run.data.tags.get(tracking.PARENT_TAG) == parent.run_id}
    assert {name: run.info.status for name, run in children.items()} == {
        "search-trial-0000": "FINISHED",
        "search-trial-0001": "FINISHED",
        "search-trial-0002": "FAILED",
    }
    curve = client.get_metric_history(children["search-trial-0001"].info.run_id, "val/top1")
    assert [(metric.step, metric.value) for metric in curve] == [(1, 0.25), (2, 0.75)]
    assert children["search-trial-0001"].data.params["optim.lr"] == "0.2"
    assert (tmp_path / "report.md").read_text().startswith("# search\n")
    (version,) = client.search_model_versions("name = 'search'")
    assert version.tags["checkpoint"] == checkpoint


def test_a_pause_leaves_trials_open_and_a_campaign_of_failures_is_one(
    tracked_campaign: Campaign, parent: TrackedRun
) -> None:
    end(CampaignOutcome(trials=[trial(0)], max_concurrent=1, paused="the hours are spent"), tracked_campaign, parent)
    runs = MlflowClient(parent.tracking_uri).search_runs(["1"])
    assert [run.info.run_id for run in runs] == [parent.run_id]
    with pytest.raises(TrainingError, match="no trial was evaluated; the first failed with: TrainingError: nan"):
        end(
            CampaignOutcome(trials=[trial(0, failure="TrainingError: nan")], max_concurrent=1), tracked_campaign, parent
        )


def test_a_server_that_is_away_stops_no_trial(tracked_campaign: Campaign) -> None:
    away, said = dataclasses.replace(tracked_campaign, tracking_uri="http://127.0.0.1:9"), list[str]()
    assert begin_child(away, trial(3), said.append) is None
    assert said[0].startswith("trial-0003 is not tracked while it trains: the MLflow store http://127.0.0.1:9")
