"""Terminal output of the scoring jobs. Runs on the driver."""

from __future__ import annotations

from rich.table import Table

from tpn_ray.meter import print_table
from tpn_ray.names import file_name
from tpn_ray.predict.evaluate import EvaluationQuestion, Result
from tpn_ray.predict.labels import warning
from tpn_ray.predict.summary import JOINT
from tpn_ray.predict.table import METRICS, VIDEOS

SHOWN = 5


def announce(question: EvaluationQuestion) -> None:
    """Print what will be scored, and warn about labels that do not match."""
    matched = question.matched
    print(
        f"{len(matched.manifest)} videos ({question.split}) of {question.data}, views {question.views}; "
        f"checkpoint {question.checkpoint}, step {question.step}",
        flush=True,
    )
    if said := warning(matched):
        print(f"warning: {said}", flush=True)


def results(question: EvaluationQuestion, found: list[Result]) -> None:
    """Print a table, the bad videos, and where the results are."""
    names = list(question.matched.manifest.label_sets)
    if question.recipe.model.multi_label:
        _ranked(names[0], found)
        return
    prefixes = [f"{name}_" for name in names] if len(names) > 1 else [""]
    if len(names) > 1:
        prefixes.append(f"{JOINT}_")
    table = Table("", "top-1", "95 %", "top-5", "mean class", "top-1 of all")
    for result in found:
        for prefix in prefixes:
            alpha = f"alpha {','.join(map(str, result.alpha))} " if result.alpha else ""
            table.add_row(f"{alpha}{prefix.rstrip('_')}".strip() or "action", *_cells(result.numbers, prefix))
    print_table(table)
    numbers = found[0].numbers
    unlabelled = int(numbers["unlabelled_videos"])
    without = f", {unlabelled} of them without a label to count by" if unlabelled else ""
    print(
        f"{int(numbers['videos'])} videos scored{without}; "
        f"{int(numbers['bad_videos'])} could not be used, "
        f"{int(numbers['quarantined_videos'])} were quarantined by preparing: both count as wrong in `top-1 of all`"
    )
    _written(found, [f"{kind}_{file_name(name)}.png" for name in names for kind in ("confusion", "classes")])


def _ranked(name: str, found: list[Result]) -> None:
    """Do the same where videos have several classes."""
    table = Table("", "mAP", "95 %", "by chance", "classes", "mAP of all")
    for result in found:
        numbers = result.numbers
        table.add_row(
            f"alpha {','.join(map(str, result.alpha))}" if result.alpha else name,
            f"{numbers['map']:.2%}",
            f"{numbers['map_low']:.1%} to {numbers['map_high']:.1%}",
            f"{numbers['map_by_chance']:.1%}",
            f"{numbers['classes']:.0f}",
            f"{numbers['map_of_all']:.2%}",
        )
    print_table(table)
    numbers = found[0].numbers
    print(
        f"{int(numbers['videos'])} videos scored; {int(numbers['bad_videos'])} could not be used, and count as ranked "
        f"last in `mAP of all`; {int(numbers['quarantined_videos'])} were quarantined by preparing, and count nowhere"
    )
    _written(found, [f"classes_{file_name(name)}.png"])


def _written(found: list[Result], pictures: list[str]) -> None:
    _bad(found[0])
    for result in found:
        print(f"results in {result.folder}: {METRICS}, {VIDEOS}, {', '.join(pictures)}, mistakes.png", flush=True)


def _cells(numbers: dict[str, float], prefix: str) -> list[str]:
    low, high = numbers[f"{prefix}top1_low"], numbers[f"{prefix}top1_high"]
    mean = numbers.get(f"{prefix}mean_class")
    return [
        f"{numbers[f'{prefix}top1']:.2%}",
        f"{low:.1%} to {high:.1%}",
        f"{numbers[f'{prefix}top5']:.2%}",
        "" if mean is None else f"{mean:.2%}",
        f"{numbers[f'{prefix}top1_of_all']:.2%}",
    ]


def _bad(result: Result) -> None:
    rows = zip(*(result.table[name].to_pylist() for name in ("uri", "reason", "message")), strict=True)
    bad = [row for row in rows if row[1]]
    for uri, reason, message in bad[:SHOWN]:
        print(f"bad video {uri} ({reason}): {message}")
    if len(bad) > SHOWN:
        print(f"... and {len(bad) - SHOWN} more, in metrics.json")
