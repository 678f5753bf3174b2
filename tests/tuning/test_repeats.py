from __future__ import annotations

from pathlib import Path

from tpn_ray.errors import TrainingError
from tpn_ray.tuning.journal import Journal, Point, Trial
from tpn_ray.tuning.repeats import repeat


def test_the_best_are_trained_again_once_each(tmp_path: Path) -> None:
    journal = Journal(uri=str(tmp_path))
    done = tuple(Point(epoch=4, scores={"val_top1": 0.5}, checkpoint="c") for _ in range(1))
    trials = [
        Trial(number=7, sample={"optim.lr": 0.1}, points=done),
        Trial(number=2, sample={"optim.lr": 0.2}, points=done),
        Trial(number=3, sample={"optim.lr": 0.3}, points=done),
        Trial(number=4, sample={"optim.lr": 0.4}),
    ]
    trained: list[tuple[float, int]] = []

    def train(trial: Trial, epoch: int) -> Trial:
        trained.append((trial.sample["optim.lr"], trial.sample["loop.seed"]))
        if trained[-1] == (0.2, 12):
            raise TrainingError("the loss is nan")
        trial = trial.with_point(Point(epoch=epoch, scores={"val_top1": 0.6}, checkpoint="c"))
        journal.write(trial)
        return trial

    def again() -> list[Trial]:
        return repeat(
            journal,
            trials,
            best=2,
            seeds=2,
            first_seed=10,
            epochs=4,
            train=train,
            max_concurrent=1,
            look=lambda: None,
        )

    found = again()
    assert trained == [(0.1, 11), (0.1, 12), (0.2, 11), (0.2, 12)]
    assert [trial.repeat_of for trial in found] == [7, 7, 2, 2]
    assert [trial.failure for trial in found] == ["", "", "", "TrainingError: the loss is nan"]
    assert len({trial.number for trial in found}) == 4
    assert found[0].history == ["repeats trial 7 with seed 11"]
    assert again() == found
    assert len(trained) == 4
