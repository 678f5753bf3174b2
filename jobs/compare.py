"""Test whether one checkpoint beats another. `python jobs/compare.py A B`, with two results of jobs/evaluate.py."""

from __future__ import annotations

from tpn_ray.job import run_job

import dataclasses
import json
import sys
from dataclasses import dataclass

import tyro
from rich.table import Table

from tpn_ray import command_line, names, storage
from tpn_ray.meter import print_table
from tpn_ray.predict import compare, plots
from tpn_ray.predict.fusion import fuse
from tpn_ray.predict.table import VIDEOS, read_scores, write_scores

PROGRAM = "python jobs/compare.py"


@dataclass(frozen=True)
class Arguments:
    """Two sets of scores of the same videos."""

    first: tyro.conf.Positional[str]
    """Folder that jobs/evaluate.py wrote (or scores.parquet of jobs/train.py), on disk or s3://."""

    second: tyro.conf.Positional[str]
    """The same for the checkpoint that is expected to be better."""

    out: str = ""
    """Folder for comparison.json and a plot of each class's gain, and for fused scores; if empty, nothing is
    written."""

    fuse: float = 0.0
    """Weight of the second's scores in their weighted mean with the first's, such as 1.5 for flow beside RGB. Above 0,
    the fused scores are what the first is compared with."""


def main() -> None:
    description = "Compare two checkpoints, with intervals and exact tests."
    flags = command_line.parse_new(Arguments, sys.argv[1:], program=PROGRAM, description=description)
    both = read_scores(flags.first), read_scores(flags.second)
    second = "second"
    if flags.fuse:
        for one in compare.compare(*both):
            print(f"{one.name}: {one.second:.2%} for the second alone")
        both, second = (both[0], fuse(*both, flags.fuse)), "fused"
    found = compare.compare(*both)
    table = Table("", "first", second, "points", "95 %", "only first", f"only {second}", "McNemar p", "bootstrap p")
    for one in found:
        low, high = one.interval
        counts = ["-", "-", "-"]
        if one.p_mcnemar is not None:
            counts = [str(one.only_first), str(one.only_second), f"{one.p_mcnemar:.3g}"]
        counts.append(f"{one.p_bootstrap:.3g}")
        points = [f"{100 * one.difference:+.2f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
        table.add_row(f"{one.name} {one.score}", f"{one.first:.2%}", f"{one.second:.2%}", *points, *counts)
    print_table(table)
    for one in found:
        print(f"{one.name}: {compare.verdict(one, second)}")
        gained = [cls for cls in one.classes if cls.gain > 0][:5]
        lost = [cls for cls in reversed(one.classes) if cls.gain < 0][:5]
        for said, classes in (("gained", gained), ("lost", lost)):
            if classes:
                shown = [f"{cls.name} {100 * cls.gain:+.1f} points ({cls.videos} videos)" for cls in classes]
                print(f"  {said} most: {', '.join(shown)}")
    for line in compare.left_out(*both):
        print(line)
    if flags.out:
        folder = storage.absolute(flags.out)
        if flags.fuse:
            write_scores(both[1][0], storage.join(folder, VIDEOS))
        content = json.dumps([{**dataclasses.asdict(one), "difference": one.difference} for one in found], indent=1)
        storage.write_bytes(storage.join(folder, "comparison.json"), content.encode())
        for one in found:
            title = f"{one.name}: {100 * one.difference:+.1f} points in all, {compare.verdict(one, second)}"
            storage.write_bytes(
                storage.join(folder, f"gains_{names.file_name(one.name)}.png"),
                plots.class_gains(one.classes, title, one.score),
            )
        print(f"comparison.json, plots{', and fused scores' if flags.fuse else ''} in {folder}")


if __name__ == "__main__":
    run_job(main, leave=lambda: None)
    sys.exit(0)
