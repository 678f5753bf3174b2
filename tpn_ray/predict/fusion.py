"""Late fusion of two sets of scores of the same videos, such as those of RGB and of flow. Pure; runs anywhere."""

from __future__ import annotations

import pyarrow as pa

from tpn_ray.errors import ConfigError
from tpn_ray.predict.compare import Named
from tpn_ray.predict.predictor import predicted_classes
from tpn_ray.predict.summary import is_multi_label, scores_array


def fuse(first: Named, second: Named, weight: float) -> Named:
    """Return the scores (first + weight * second) / (1 + weight) of the videos that both have, in the first's order.

    Scores are probabilities, averaged over views, as two-stream networks average them (Simonyan and Zisserman, NIPS
    2014). A video that one of the two could not use keeps that one's reason. Raises ConfigError if classes or labels
    differ, or if no video is in both.
    """
    if weight <= 0:
        raise ConfigError(f"fuse={weight:g} must be above 0: it is the weight of the second, relative to the first")
    if first[1] != second[1]:
        raise ConfigError("the two have other classes, or in another order; score both on the same dataset")
    rows = {id: row for row, id in enumerate(second[0]["id"].to_pylist())}
    common = [(row, rows[id]) for row, id in enumerate(first[0]["id"].to_pylist()) if id in rows]
    if not common:
        raise ConfigError("the two have no video in common; score both on the same dataset and split")
    one, other = (named[0].take([pair[side] for pair in common]) for side, named in enumerate((first, second)))
    if is_multi_label(one) != is_multi_label(other) or one["labels"] != other["labels"]:
        raise ConfigError("the two have other labels for the same videos; score both on the same dataset")
    scores = (scores_array(one) + weight * scores_array(other)) / (1 + weight)
    reasons = [mine or its for mine, its in zip(one["reason"].to_pylist(), other["reason"].to_pylist(), strict=True)]
    messages = [mine or its for mine, its in zip(one["message"].to_pylist(), other["message"].to_pylist(), strict=True)]
    predicted = [
        [] if reason else predicted_classes(row, first[1], is_multi_label(one))
        for row, reason in zip(scores, reasons, strict=True)
    ]
    columns = {
        "predicted": pa.array(predicted, type=one.schema.field("predicted").type),
        "scores": pa.array(scores.tolist(), type=one.schema.field("scores").type),
        "reason": pa.array(reasons, type=pa.string()),
        "message": pa.array(messages, type=pa.string()),
    }
    fused = one
    for name, column in columns.items():
        fused = fused.set_column(fused.schema.get_field_index(name), name, column)
    return fused, first[1]
