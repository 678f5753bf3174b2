from __future__ import annotations

from tpn_ray.tuning.journal import Point, Trial
from tpn_ray.tuning.repeats import repeats


def test_the_best_complete_ones_are_repeated_with_more_seeds() -> None:
    done = (Point(epoch=4, scores={"val_top1": 0.5}, checkpoint="c"),)
    trials = [
        Trial(number=7, sample={"optim.lr": 0.1}, points=done),
        Trial(number=5, sample={"optim.lr": 0.1}, points=done, failure="TrainingError: the loss is nan"),
        Trial(number=2, sample={"optim.lr": 0.2}, points=done),
        Trial(number=3, sample={"optim.lr": 0.3}, points=done),
        Trial(number=4, sample={"optim.lr": 0.4}),
    ]
    found = repeats(trials, best=2, seeds=2, first_seed=10, epochs=4)
    assert [(trial.repeat_of, trial.sample["optim.lr"], trial.sample["loop.seed"]) for trial in found] == [
        (7, 0.1, 11),
        (7, 0.1, 12),
        (2, 0.2, 11),
        (2, 0.2, 12),
    ]
    assert len({trial.number for trial in found}) == 4
    assert found[0].history == ["repeats trial 7 with seed 11"]
    # A repeat's number depends on nothing else that is repeated.
    assert repeats(trials[2:], best=2, seeds=1, first_seed=10, epochs=4)[0] == found[2]
