"""A campaign from its command to what is left, without its training; and one that is refused, which leaves nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import tpn_ray
from tests.jobs.processes import refusal
from tests.tuning.test_watch import trial
from tpn_ray import recipes, session, tracking
from tpn_ray.commands import tune
from tpn_ray.tuning import campaigns, live, watch
from tpn_ray.tuning.campaigns import CampaignOutcome
from tpn_ray.tuning.journal import Journal, Kind, Transition
from tpn_ray.tuning.trial import Campaign


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--searcher", "tpee"], "unknown searcher 'tpee' (did you mean tpe?)"),
        (["--scheduler", "halvin"], "unknown scheduler 'halvin' (did you mean halving?)"),
        (["--objectives", "top"], "unknown objectives 'top' (did you mean top1?)"),
        (["--space", "lambda_alfa"], "unknown space 'lambda_alfa' (did you mean lambda_alpha?)"),
        (["--fidelity", "clip.frame=8,16"], "'clip.frame' (did you mean clip.frames"),
        (["--samples", "-1"], "samples=-1 must be at least 1"),
        (["--scheduler", "pbt", "--searcher", "tpe"], "use --searcher random or grid, not tpe"),
        (["--scheduler", "pbt", "--vary", "clip.frames=whole(8,16)"], "pbt changes fields in flight"),
        (["--rungs", "0"], "rungs=0 must be at least 1"),
        (["--workers", "0"], "give --workers 1 or more here"),
        (["--cpus-per-worker", "500"], "too few cores: the workers need 500 CPUs"),
    ],
)
def test_a_refused_campaign_leaves_nothing(flags: list[str], words: str, toy_folder: Path, tmp_path: Path) -> None:
    said = refusal("tune", "toy", "--data", str(toy_folder), "--storage", str(tmp_path), *flags)
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_before_ray_starts(toy_folder: Path, tmp_path: Path) -> None:
    Journal(uri=str(tmp_path / "mine")).begin({"samples": 3})
    where = ["--storage", str(tmp_path), "--name", "mine"]
    said = refusal("tune", "toy", "--data", str(toy_folder), *where, "--address", "127.0.0.1:9")
    assert "is a campaign with other settings" in said
    assert "samples: 3 then, 16 now" in said
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["campaign.json"]


def test_the_curve_and_the_report_are_there_while_it_runs(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(campaign: Campaign, *wanted: Any, **told: Any) -> CampaignOutcome:
        first = dataclasses.replace(trial(0, 0.25, 0.5), sample={"optim.lr": 0.1})
        promoted = (Transition(kind=Kind.PROMOTED, epoch=1),)
        known = [dataclasses.replace(first, lineage=promoted), dataclasses.replace(first, number=1)]
        for one in known:
            campaign.journal.write(one)
        return CampaignOutcome(trials=known, max_concurrent=2)

    monkeypatch.setattr(session, "connect", lambda *told, **more: None)
    monkeypatch.setattr(campaigns, "max_concurrent", lambda *told: 2)
    monkeypatch.setattr(campaigns, "run", runs)
    monkeypatch.setattr(watch, "show", lambda *told, **more: None)
    written: list[int] = []
    monkeypatch.setattr(tune.leaderboard, "write_report", lambda found, campaign: written.append(1) or {})
    job = tpn_ray.TuningJob(data=str(toy_folder), storage=str(tmp_path), name="search", recipe=recipes.toy())
    tpn_ray.tune(job)
    assert len(written) == 2, "when a rung ended, and at the end"
    client = MlflowClient(tracking.local_uri(str(tmp_path)))
    runs_of = client.search_runs([client.get_experiment_by_name("tpn_ray").experiment_id])
    (parent,) = [run for run in runs_of if run.info.run_name == "search"]
    curve = client.get_metric_history(parent.info.run_id, live.BEST_SO_FAR)
    assert [(one.step, one.value) for one in curve] == [(4, 0.5)]
    assert "trial-0001" in capsys.readouterr().out
