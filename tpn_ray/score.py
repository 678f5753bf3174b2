"""The validation score by which checkpoints, trials, and models are ranked: top-1, or mAP where videos have several
classes. Pure; runs anywhere."""

from __future__ import annotations

from collections.abc import Mapping

TOP1, MAP = "val_top1", "val_map"
NAMES = {TOP1: "top-1", MAP: "mAP"}
"""Name in the scores of an evaluation -> what people call it."""


def score_name(multi_label: bool) -> str:
    """Return what people call the score."""
    return NAMES[MAP if multi_label else TOP1]


def score_key(scores: Mapping[str, object]) -> str:
    """Return the name of the score among those that an evaluation has."""
    return MAP if MAP in scores else TOP1


def called(scores: Mapping[str, object]) -> str:
    """Return what people call the score that an evaluation has."""
    return NAMES[score_key(scores)]


def score_of(scores: Mapping[str, float | str]) -> float:
    """Return the score of an evaluation; -1 if it has none."""
    return float(scores.get(MAP, scores.get(TOP1, -1.0)))
