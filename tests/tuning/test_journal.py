"""What is in the journal is what was written, and whoever reads something else is told what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tpn_ray import lease
from tpn_ray.errors import CheckpointError, DamagedError, LeaseError
from tpn_ray.tuning.journal import Journal, Kind, Point, Transition, Trial

TRIAL = Trial(number=0, sample={"optim.lr": 0.1, "model.alpha": [1, 2]}).with_point(
    Point(epoch=1, scores={"val_top1": 0.5}, checkpoint="c")
)
SETTINGS = {"recipe": {"optim": {"lr": 0.1}}}
DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:40],
    lambda data: b"",
    lambda data: b"3",
    lambda data: data.replace(b"0.1", b"0.2"),
]


def written(folder: Path) -> Journal:
    journal = Journal(uri=str(folder))
    assert not journal.begin(SETTINGS)
    journal.write_wave(0, [TRIAL.sample])
    journal.write(TRIAL)
    return journal


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    journal = written(tmp_path)
    assert journal.begin(SETTINGS)
    assert journal.trials() == [TRIAL]
    assert journal.read(0) == TRIAL
    assert journal.waves() == [[TRIAL.sample]]


def test_a_campaign_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its files hold no hashes of themselves, and its waves are plain lists."""
    journal = written(tmp_path)
    for file in tmp_path.rglob("*.json"):
        content = json.loads(file.read_bytes())
        content.pop("sha256")
        file.write_text(json.dumps(content.get("samples", content)))
    assert journal.begin(SETTINGS)
    assert (journal.trials(), journal.waves()) == ([TRIAL], [[TRIAL.sample]])


@pytest.mark.parametrize(
    ("line", "transition"),
    [
        ("promoted at epoch 3", Transition(kind=Kind.PROMOTED, epoch=3)),
        ("ended at epoch 2: the loss: flat", Transition(kind=Kind.ENDED, epoch=2, detail="the loss: flat")),
        (
            "from trial 3 at epoch 2: lr 0.1 -> 0.2",
            Transition(kind=Kind.MUTATED, epoch=2, donor=3, detail="lr 0.1 -> 0.2"),
        ),
    ],
)
def test_a_sentence_of_an_earlier_version_is_read(tmp_path: Path, line: str, transition: Transition) -> None:
    file = tmp_path / "trials" / "0000.json"
    file.parent.mkdir()
    about = {"number": 0, "sample": {"loop.seed": 8}, "repeat_of": 7, "stopped": True}
    lines = ["repeats trial 7 with seed 8", line, "stopped at epoch 0"]
    file.write_text(json.dumps({**about, "lineage": lines}))
    journal = Journal(uri=str(tmp_path))
    (trial,) = journal.trials()
    assert (trial.lineage, trial.history) == ((transition,), lines)
    journal.write(trial)
    assert journal.trials() == [trial]
    file.write_text(json.dumps({**about, "lineage": ["something else"]}))
    with pytest.raises(DamagedError, match="it is not a trial: lineage.0"):
        journal.trials()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_with_a_way_on(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    journal = written(tmp_path)
    reads: dict[str, Callable[[], object]] = {
        "campaign.json": lambda: journal.begin(SETTINGS),
        "waves/0000.json": journal.waves,
        "trials/0000.json": journal.trials,
    }
    for name, read in reads.items():
        file = tmp_path / name
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        with pytest.raises(DamagedError, match=rf"{name} is damaged: .*\. Put it back from a copy.* delete it"):
            read()
        file.unlink()
        read()
        file.write_bytes(whole)


def test_files_of_something_else(tmp_path: Path) -> None:
    journal = written(tmp_path)
    (tmp_path / "trials" / "0000.json").write_text('{"number": "x"}')
    with pytest.raises(DamagedError, match=r"trials/0000.json is damaged: it is not a trial: number: "):
        journal.trials()
    (tmp_path / "waves" / "0000.json").write_text('{"a": 1}')
    with pytest.raises(DamagedError, match=r"waves/0000.json is damaged: it holds no samples"):
        journal.waves()


def test_a_campaign_with_settings_of_earlier_names_goes_on(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))
    journal.begin({"scheduler": "promote", "keep": 3, "finalists": 1})
    assert journal.begin({"scheduler": "halving", "reduction_factor": 3, "min_promoted": 1})
    with pytest.raises(CheckpointError, match="reduction_factor: 3 then, 2 now"):
        journal.begin({"scheduler": "halving", "reduction_factor": 2, "min_promoted": 1})


def test_a_campaign_is_what_the_first_driver_says(tmp_path: Path) -> None:
    journal = written(tmp_path)
    with pytest.raises(CheckpointError, match=r"recipe.optim.lr: 0.1 then, 0.2 now"):
        journal.begin({"recipe": {"optim": {"lr": 0.2}}})


def test_a_driver_that_lost_the_campaign_writes_nothing_more(tmp_path: Path) -> None:
    uri = str(tmp_path)
    with lease.held(uri, "campaign demo") as former:
        journal = Journal(uri=uri, token=former.token)
        journal.write(TRIAL)
    with lease.held(uri, "campaign demo"):
        for attempt in (lambda: journal.write(Trial(number=0, sample={})), lambda: journal.write_wave(0, [])):
            with pytest.raises(LeaseError, match="another job has taken over the campaign demo"):
                attempt()
    assert Journal(uri=uri).trials() == [TRIAL]
