from __future__ import annotations

import pytest

from tpn_ray.errors import ConfigError
from tpn_ray.training.saving import Saving


def test_a_checkpoint_is_due_by_steps_or_by_seconds() -> None:
    assert [Saving(every_seconds=0, every_steps=3).is_due(step, 999.0) for step in (1, 2, 3, 4, 6)] == [
        *(False, False, True, False, True)
    ]
    assert [Saving(every_seconds=10).is_due(1, seconds) for seconds in (0.0, 9.9, 10.0)] == [False, False, True]
    assert not Saving(every_seconds=0).is_due(5, 1e9)


def test_the_best_and_the_newest_stay() -> None:
    top1 = {10: 0.5, 20: None, 30: 0.9, 40: 0.7, 50: None, 60: None}
    assert Saving(keep_best=1, keep_last=1).to_delete(top1) == [10, 20, 40, 50]
    assert Saving(keep_best=2, keep_last=2).to_delete(top1) == [10, 20]
    assert Saving(keep_best=5, keep_last=1).to_delete(top1) == [20, 50]
    assert Saving().to_delete({}) == []


def test_of_equally_good_ones_the_later_stays() -> None:
    assert Saving(keep_best=1, keep_last=1).to_delete({1: 0.5, 2: 0.5, 3: None}) == [1]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep_last=0"):
        Saving(keep_last=0)
