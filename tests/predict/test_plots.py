"""Figures hold all their text, also with class names of whole sentences."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tpn_ray.predict import plots
from tpn_ray.predict.compare import ClassGain
from tpn_ray.tempo import figures
from tpn_ray.tempo.gain import Bin, ClassTempo, Line

CLASSES = [f"Pretending to put something behind something else but failing, number {i}" for i in range(40)]
GAINS = [ClassGain(name, 9000, 0.5, 0.5 + i / 100) for i, name in enumerate(CLASSES)]
MATRIX = np.diag(np.arange(1, 41)) * 500 + 1
TEMPOS = [ClassTempo(name, 10, 1.0, 0.1 * i) for i, name in enumerate(CLASSES)]
LINE = Line(1.0, (-100.25, 100.25), 0.0, 0.5, 0.5)
STRIDES, TOPS = [2, 4, 8, 64], [0.1, 0.2, 0.3, 0.4]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written."""
    written: list[Figure] = []
    png = plots.png
    for module in (plots, figures):
        monkeypatch.setattr(module, "png", lambda made: written.append(made) or png(made))
    return written


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.confusion(MATRIX, CLASSES),
        lambda: plots.confusion(MATRIX[:15, :15], CLASSES[:15]),
        lambda: plots.per_class({name: {"videos": 9000, "top1": i / 40} for i, name in enumerate(CLASSES)}),
        lambda: plots.class_gains(GAINS, "action: +1.2% in all, no significant difference on 19796 videos (p = 0.12)"),
        lambda: plots.class_gains([ClassGain("a", 3, 0.5, 0.5)], "action: nothing, " * 12),
        lambda: figures.variances(TEMPOS),
        lambda: figures.gain_against_variance(np.arange(4.0), np.arange(4.0), [Bin(4, 1.5, 1.5)], LINE),
        lambda: figures.against_stride(STRIDES, TOPS, TOPS, 64, ("the first of them", "the second of them")),
    ],
)
def test_all_text_is_inside(draw, drawn: list[Figure]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that does not fit
        assert draw()[:4] == b"\x89PNG"
    (made,) = drawn
    renderer = FigureCanvasAgg(made).get_renderer()
    width, height = made.bbox.size
    boxes = [axes.get_tightbbox(renderer) for axes in made.axes]
    boxes += [part.get_window_extent(renderer) for part in (made._suptitle, *made.legends) if part]
    for box in boxes:
        assert min(box.x0, box.y0) >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


def test_short_names_stay_and_long_ones_keep_both_ends() -> None:
    assert plots.short("period_10") == "period_10"
    shortened = plots.short(CLASSES[7])
    assert len(shortened) <= plots.NAME_LETTERS
    assert shortened.startswith("Pretending")
    assert shortened.endswith("number 7")


def test_dollars_in_the_name_of_a_class_are_dollars() -> None:
    assert plots.confusion(np.eye(2, dtype=np.int64), ["$\\frac", "100 $"])[:4] == b"\x89PNG"
