from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.tuning import fake_campaign
from tests.tuning.fake_campaign import BRACKET, FAILS, SEARCH
from tpn_ray.errors import CheckpointError
from tpn_ray.tuning.halving import Ladder
from tpn_ray.tuning.journal import Held, Journal, Kind, Point, Transition, Trial
from tpn_ray.tuning.rungs import Bracket, planned, ranked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, fake_campaign.run(folder)


def trained(folder: Path) -> list[str]:
    return (folder / "trained.log").read_text().splitlines()


def test_the_best_are_promoted_and_no_epoch_is_trained_twice(undisturbed: tuple[Path, list[Trial]]) -> None:
    folder, trials = undisturbed
    assert len(trials) == 27
    assert Counter(trial.epochs for trial in trials) == {9: 3, 3: 6, 1: 17, 0: 1}
    for wave in range(3):
        members = [trial for trial in trials if trial.wave == wave and trial.points]
        first = sorted(members, key=lambda trial: (-trial.points[0].score, trial.number))
        assert {trial.number for trial in first[:3]} == {trial.number for trial in members if trial.epochs > 1}
    lines = trained(folder)
    assert len(lines) == len(set(lines)) == sum(trial.epochs for trial in trials)
    assert planned(SEARCH.waves(BRACKET), BRACKET)[0] == len(lines) + 1  # one epoch failed
    assert trials[0].score == max(trial.score for trial in trials)
    assert trials[0].history == ["promoted at epoch 1", "promoted at epoch 3"]


def test_a_failed_trial_is_a_row_with_its_reason(undisturbed: tuple[Path, list[Trial]]) -> None:
    trial = undisturbed[1][-1]
    assert trial.number == FAILS
    assert trial.failure == "TrainingError: the loss is nan at step 7"
    assert Journal(uri=str(undisturbed[0])).read(FAILS) == trial


@pytest.mark.parametrize("max_concurrent", [1, 8])
def test_the_table_does_not_depend_on_how_many_run_at_once(
    max_concurrent: int, undisturbed: tuple[Path, list[Trial]], tmp_path: Path
) -> None:
    loop = fake_campaign.tune(tmp_path, max_concurrent)
    assert loop.most <= max_concurrent
    assert fake_campaign.table(ranked(loop.journal.trials())) == fake_campaign.table(undisturbed[1])


def test_twenty_kills_leave_the_undisturbed_table(undisturbed: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.tuning.fake_campaign", str(tmp_path), "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    campaigns = sorted(tmp_path.iterdir())
    assert campaigns
    for folder in campaigns:
        assert (folder / "table.txt").read_text() == fake_campaign.table(undisturbed[1])
        # The log's line comes after the journal's entry: a kill between them loses the line, of at most three trials.
        lines = trained(folder)
        assert len(lines) == len(set(lines)) >= len(trained(undisturbed[0])) - 3 * 20


def test_model_waves_overlap_and_learn(undisturbed: tuple[Path, list[Trial]]) -> None:
    assert SEARCH.waves(BRACKET) == [9, 9, 9]
    assert dataclasses.replace(SEARCH, searcher="random").waves(BRACKET) == [27]
    assert dataclasses.replace(SEARCH, samples=20, wave=8).waves(BRACKET) == [8, 8, 4]
    mean = [
        sum(trial.points[0].score for trial in undisturbed[1] if trial.wave == w and trial.points) for w in range(3)
    ]
    assert mean[2] / 9 > mean[0] / 8


def test_tune_hears_of_all_trials_and_none_trains_again(undisturbed: tuple[Path, list[Trial]]) -> None:
    folder, trials = undisturbed
    before = trained(folder)
    again = fake_campaign.tune(folder)
    assert trained(folder) == before
    assert dict(again.told) == {trial.number: trial.epochs for trial in trials if trial.points}
    assert again.most <= 3
    assert {trial.status for trial in again.trials} == {"TERMINATED"}


def test_a_trial_that_tune_ends_is_a_row_and_nothing_waits_for_it(tmp_path: Path) -> None:
    class Loses(fake_campaign.FakeTune):
        def step(self, trial: fake_campaign.TuneTrial) -> None:
            if trial.config["number"] == 2:
                trial.status = "ERROR"
            else:
                super().step(trial)

    journal = Journal(uri=str(tmp_path))
    Loses(Ladder(journal, SEARCH, BRACKET, max_concurrent=3, say=lambda line: None), tmp_path).run()
    lost = journal.read(2)
    assert lost
    assert lost.failure == "TrainingError: its process ended before epoch 1"
    assert max(trial.epochs for trial in journal.trials()) == 9


def test_repeats_climb_in_full(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))
    sample = {"optim.lr": 0.1, "model.alpha": [1, 2], "loop.seed": 5}
    fixed = [Trial(number=number, sample=sample, repeat_of=0) for number in (100_001, 100_002)]
    bracket = Bracket(epochs=(9,))
    ladder = Ladder(journal, SEARCH, bracket, max_concurrent=1, say=lambda line: None, fixed=fixed)
    fake_campaign.FakeTune(ladder, tmp_path).run()
    assert [(trial.number, trial.epochs, trial.repeat_of) for trial in journal.trials()] == [
        (100_001, 9, 0),
        (100_002, 9, 0),
    ]
    assert journal.waves() == []


def test_a_campaign_goes_on_only_as_the_same(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))
    assert not journal.begin({"seed": 0, "space": {"optim.lr": "uniform(0, 1)"}, "rungs": (1, 3)})
    assert journal.begin({"seed": 0, "space": {"optim.lr": "uniform(0, 1)"}, "rungs": [1, 3]})
    with pytest.raises(CheckpointError, match=r"seed: 0 then, 1 now\n  space.optim.lr: 'uniform\(0, 1\)' then, None"):
        journal.begin({"seed": 1, "space": {}, "rungs": (1, 3)})


def test_a_trial_is_read_as_it_was_written(tmp_path: Path) -> None:
    trial = Trial(
        number=3,
        sample={"model.alpha": [1, 2], "optim.lr": 0.1},
        points=(Point(epoch=1, scores={"val_top1": 0.5}, checkpoint="c", train_loss=2.0),),
        held=(Held(session="a", begin=1.0, started=2.0, end=4.0),),
        lineage=(Transition(kind=Kind.PROMOTED, epoch=1),),
    )
    journal = Journal(uri=str(tmp_path))
    journal.write(trial)
    assert journal.read(3) == trial
    assert journal.trials() == [trial]
    assert (trial.seconds, trial.score, trial.epochs) == (3.0, 0.5, 1)
    assert journal.read(4) is None
    assert json.loads((tmp_path / "trials" / "0003.json").read_text())["number"] == 3
