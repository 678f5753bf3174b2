"""Figures of scores as PNG files. Pure: numbers in, bytes out; runs anywhere."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tpn_ray.predict.compare import ClassGain

matplotlib.rcParams["text.parse_math"] = False  # a dollar in the name of a class is a dollar
BLUE, ORANGE, GREY = "#2a6fb0", "#d1652a", "#8a8a8a"
NAMED = 40
"""Maximum number of classes whose names fit beside a figure."""
NAME_LETTERS = 34


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Create an empty figure, with its size in inches and without a window."""
    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = made.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def short(name: str) -> str:
    """Shorten a class name to fit beside a figure, keeping both ends, where names that are whole sentences differ."""
    if len(name) <= NAME_LETTERS:
        return name
    half = (NAME_LETTERS - 1) // 2
    return f"{name[:half].rstrip()}…{name[-half:].lstrip()}"


def title(made: Figure, text: str) -> None:
    """Set a title over the whole figure rather than its axes, since names beside the axes take up much of the width."""
    made.suptitle(textwrap.fill(text, int(12 * made.get_figwidth())), x=0.01, ha="left", fontsize=10)


def png(made: Figure) -> bytes:
    """Return the figure as PNG, with the same bytes for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(made)
    made.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Plot the share of the videos of each class (row) by predicted class (column)."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 3.0 + 0.35 * min(len(classes), NAMED))
    made, axes = figure(side + 1.0, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = made.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("share of the class's videos")
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    names = [short(name) for name in classes]
    if len(classes) <= NAMED:
        axes.set_xticks(range(len(classes)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= 15:
        letters_pt = 8 if matrix.max() < 1000 else 6
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                text = axes.text(column, row, str(count), ha="center", va="center", fontsize=letters_pt)
                text.set_color("white" if shares[row, column] > 0.5 else "black")
    return png(made)


def per_class(classes: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Plot the top-1, or the average precision, of each class, best first; of many classes, the 20 best and the 20
    worst.

    `classes` is per_class of `tpn_ray.predict.summary.details`: name -> videos, and top1 or average_precision.
    """
    score = "average_precision" if any("average_precision" in one for one in classes.values()) else "top1"
    order = sorted((name for name, one in classes.items() if one["videos"]), key=lambda name: -classes[name][score])
    shown = order if len(order) <= NAMED else [*order[: NAMED // 2], *order[-NAMED // 2 :]]
    made, axes = figure(7.5, 1.2 + 0.24 * len(shown))
    axes.barh(range(len(shown)), [classes[name][score] for name in shown], color=BLUE)
    axes.set_yticks(range(len(shown)), [f"{short(name)} ({classes[name]['videos']})" for name in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"{'top-1' if score == 'top1' else 'average precision'} (videos in brackets)")
    mean = float(np.mean([classes[name][score] for name in order])) if order else 0.0
    axes.axvline(mean, color=ORANGE, linewidth=1)
    title(made, f"{'mean class accuracy' if score == 'top1' else 'mAP'} {mean:.1%}")
    return png(made)


def class_gains(classes: Sequence[ClassGain], said: str, score: str = "top-1") -> bytes:
    """Plot the gain of each class as a bar, in the given order; of many classes, the first 20 and the last 20."""
    shown = list(classes) if len(classes) <= NAMED else [*classes[: NAMED // 2], *classes[-NAMED // 2 :]]
    made, axes = figure(7.5, 1.4 + 0.24 * len(shown))
    colours = [BLUE if one.gain >= 0 else ORANGE for one in shown]
    axes.barh(range(len(shown)), [100 * one.gain for one in shown], color=colours)
    axes.set_yticks(range(len(shown)), [f"{short(one.name)} ({one.videos})" for one in shown])
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    if not any(one.gain for one in shown):
        axes.set_xlim(-1, 1)
    of_class = "average precision" if score == "mAP" else score
    axes.set_xlabel(f"gain in {of_class}, percentage points (videos in brackets)")
    title(made, said)
    return png(made)
