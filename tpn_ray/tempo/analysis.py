"""Derives numbers, figures, and a page from measured tempos and the hits of two networks. Pure; runs anywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpn_ray.metrics import spearman
from tpn_ray.tempo import figures
from tpn_ray.tempo.fwhm import Tempo
from tpn_ray.tempo.gain import Line, bins, class_tempos, fit_line
from tpn_ray.tempo.page import Page

MISSED = 10
"""Number of videos in the picture of mistakes."""

Hits = dict[str, float]
"""Id -> 1 for right, 0 for wrong; for a network trained with several seeds, the share of them that is right."""


@dataclass
class TempoReport:
    """A report that grows section by section."""

    page: Page = field(default_factory=lambda: Page("Visual tempo"))
    numbers: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG by file name."""

    def picture(self, name: str, png: bytes, caption: str) -> None:
        """Add a figure to the page and as a file."""
        self.pictures[name] = png
        self.page.picture(png, caption)

    def lines(self) -> list[str]:
        """List the most important numbers, one per line."""
        return [f"{name}: {value}" for name, value in self.numbers.items() if isinstance(value, str)]


def share(right: Hits) -> float:
    """Return the top-1 accuracy."""
    return float(np.mean(list(right.values()))) if right else math.nan


def add_tempo(report: TempoReport, tempos: Sequence[Tempo], true_seconds: dict[str, float]) -> None:
    """Add how tempo varies in each class (figure 1), and how accurately it is measured where the truth is known."""
    measured = [one for one in tempos if not math.isnan(one.seconds)]
    classes = class_tempos([one.name for one in measured], np.array([one.seconds for one in measured]))
    page = report.page
    page.heading("Tempo of each class")
    said = f"measured in {len(measured)} of {len(tempos)} videos with a label"
    page.text(
        f"Tempo is how long a class is visible in single frames: the full width at half maximum of a frame-wise "
        f"classifier's probability; {said}."
    )
    report.numbers["tempo"] = said
    report.numbers["classes"] = [dataclasses.asdict(one) for one in classes]
    report.picture("variance.png", figures.variances(classes), "variance of tempo of each class")
    ordered = sorted(classes, key=lambda one: -one.variance)
    shown = ordered if len(ordered) <= 20 else [*ordered[:10], *ordered[-10:]]
    rows = [(one.name, str(one.videos), f"{one.mean_seconds:.2f}", f"{one.variance:.3f}") for one in shown]
    page.table(("class", "videos", "mean width (s)", "variance (s²)"), rows)
    both = [(true_seconds[one.id], one.seconds) for one in measured if one.id in true_seconds]
    if both:
        true, found = np.array(both).T
        correlation = spearman(true, found)
        report.numbers["spearman_with_truth"] = f"{correlation:.3f} over {len(both)} videos whose true tempo is known"
        page.heading("Measured against true tempo")
        report.picture("truth.png", figures.measured_against_true(true, found, correlation), "measured and true tempo")


def add_gain(report: TempoReport, tempos: Sequence[Tempo], first: Hits, second: Hits, per_bin: int) -> Line:
    """Add the per-class gain of the second network over the first against the class's tempo variance (figure 4)."""
    common = [one for one in tempos if one.id in first and one.id in second]
    known = class_tempos([one.name for one in common], np.array([one.seconds for one in common]))
    gains = [
        float(np.mean([second[one.id] - first[one.id] for one in common if one.name == cls.name])) for cls in known
    ]
    variance, gain = np.array([cls.variance for cls in known]), np.array(gains)
    line, binned = fit_line(variance, gain), bins(variance, gain, per_bin)
    page = report.page
    page.heading("Gain against variance of tempo")
    low, high = line.slope_interval
    said = (
        f"slope {100 * line.slope:+.2f} points of top-1 per s² (95 %: {100 * low:+.2f} to {100 * high:+.2f}), "
        f"rank correlation {line.rank_correlation:+.2f} over {len(known)} classes"
    )
    meaning = "the gain grows with the variance" if low > 0 else "no growth of the gain with the variance is shown"
    page.text(f"Top-1 of the first {share(first):.1%}, of the second {share(second):.1%}; {said}: {meaning}.")
    report.numbers["gain"] = said
    report.numbers["gains"] = dict(zip([cls.name for cls in known], gains, strict=True))
    figure = figures.gain_against_variance(variance, gain, binned, line)
    report.picture("gain.png", figure, "gain against variance of tempo")
    return line


def missed(tempos: Sequence[Tempo], right: Hits, count: int = MISSED) -> list[tuple[str, str]]:
    """List (id, text) of videos that the network gets wrong, evenly spread from the fastest to the slowest."""
    wrong = [one for one in tempos if right.get(one.id, 1) < 0.5 and not math.isnan(one.seconds)]
    ordered = sorted(wrong, key=lambda one: one.seconds)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)).tolist()
    return [(ordered[i].id, f"{ordered[i].name}, {ordered[i].seconds:.2f} s wide   {ordered[i].id}") for i in places]


def add_missed(report: TempoReport, picture: bytes) -> None:
    """Add the picture of the videos of `missed`."""
    report.page.heading("Videos that the second gets wrong")
    report.page.text("From the fastest to the slowest, frames spread over the whole video.")
    report.picture("missed.png", picture, "misclassified videos with their tempo")


def add_strides(
    report: TempoReport, first: dict[int, Hits], second: dict[int, Hits], trained: int, names: tuple[str, str]
) -> None:
    """Add the accuracy when the same videos are played at other speeds (figure 5)."""
    strides = sorted(first)
    tops = [[share(one[stride]) for stride in strides] for one in (first, second)]
    page = report.page
    page.heading("Accuracy against playback speed")
    page.text(f"Trained at a stride of {trained} frames, scored at others: a larger one plays the video faster.")
    figure = figures.against_stride(strides, tops[0], tops[1], trained, names)
    report.picture("strides.png", figure, "top-1 against stride")
    rows = [
        (str(s), f"{a:.1%}", f"{b:.1%}", f"{b - a:+.1%}") for s, a, b in zip(strides, tops[0], tops[1], strict=True)
    ]
    page.table(("stride", names[0], names[1], "gain"), rows)
    report.numbers["strides"] = {"stride": strides, names[0]: tops[0], names[1]: tops[1]}
    falls = [max(top) - min(top) for top in tops]
    report.numbers["robustness"] = (
        f"top-1 moves by {falls[0]:.1%} ({names[0]}) and {falls[1]:.1%} ({names[1]}) over strides "
        f"{strides[0]} to {strides[-1]}"
    )
