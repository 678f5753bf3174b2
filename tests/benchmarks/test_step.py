from __future__ import annotations

from typing import Any

import pytest

from benchmarks.step import StepBench, describe_ratio, measure_step, variants
from tpn_ray import recipes
from tpn_ray.recipe import replace_fields

RECIPE = replace_fields(recipes.toy(), {"clip.frames": 4, "augment.crop_px": 32, "loop.micro_batch_clips": 2})


@pytest.mark.long
def test_every_precision_is_measured() -> None:
    report = measure_step(RECIPE, StepBench(rounds=2, precisions=("fp32", "bf16"), device="cpu"))
    lines = report.splitlines()
    assert "2 clips of 4x32x32" in lines[0]
    assert lines[1].startswith("training step: ")
    assert [line.split(":")[0] for line in lines[2:4]] == ["matrix product, fp32", "matrix product, bf16"]
    rows = [line.split() for line in lines[5:]]
    assert [row[:2] for row in rows] == [["fp32", "eager"], ["bf16", "eager"]]
    assert rows[0][3:5] == ["1.00", "1.00-1.00"]
    assert all(float(row[2]) > 0 and float(row[6]) > 0 for row in rows)


def test_variants_differ_in_precision_and_compilation_only() -> None:
    wanted = StepBench(precisions=("fp32", "bf16"), compiled=(False, True), micro_batch_clips=4)
    found = variants(RECIPE, wanted)
    assert list(found) == ["fp32 eager", "bf16 eager", "fp32 compiled", "bf16 compiled"]
    assert {(each.loop.precision, each.loop.compile) for each in found.values()} == {
        (precision, compiled) for precision in ("fp32", "bf16") for compiled in (False, True)
    }
    assert {each.loop.micro_batch_clips for each in found.values()} == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"micro_batch_clips": -1}, "micro_batch_clips=-1 must be at least 0"),
        ({"precisions": ()}, "at least one value"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepBench(**options)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    assert describe_ratio((2.0, 3.0, 8.0), (1.0, 2.0, 2.0)).split() == ["2.00", "1.50-4.00"]
