"""Synthetic long videos with annotations like those of EPIC-KITCHENS. Runs on the driver.

Each long video shows several pulsing shapes one after the other, each an annotated segment. The shape's form is the
noun, which every frame reveals; its tempo is the verb, which no single frame reveals. `jobs/prepare.py --format epic`
cuts out the segments, and table 5 of the paper is trained on them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable

import numpy as np

from tpn_ray import storage
from tpn_ray.datasets.toy import TOY_CLASSES, ToyConfig, draw_toy, encode_toy

NOUNS = {"disc": 2.0, "square": 6.0, "star": 0.5}
"""Exponent of the norm whose unit ball has each form. Rotated by any angle, none of them looks like another."""
SEGMENTS_PER_VIDEO = 6
COLUMNS = (
    "narration_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "verb",
    "verb_class",
    "noun",
    "noun_class",
)


def write_kitchen(
    folder_uri: str, config: ToyConfig, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, str]:
    """Write folder/videos/*.MP4 and a CSV of segments for each split; the same bytes on every run.

    `config` counts the segments of each verb; forms alternate. Returns the CSV of each split.
    """
    total, done, found = (config.train_per_class + config.val_per_class) * len(TOY_CLASSES), 0, {}
    for split, person, count in (("train", "P01", config.train_per_class), ("val", "P02", config.val_per_class)):
        # Adjacent segments of a video have different verbs, as in a kitchen.
        shown = [(verb, number) for number in range(count) for verb in range(len(TOY_CLASSES))]
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        for video in range(math.ceil(len(shown) / SEGMENTS_PER_VIDEO)):
            segments = shown[video * SEGMENTS_PER_VIDEO :][:SEGMENTS_PER_VIDEO]
            name, drawn = f"{person}_{video:02d}", []
            for place, (verb, number) in enumerate(segments):
                row = _row(config, name, place, verb, (verb + number) % len(NOUNS))
                table.writerow(row)
                first = number if split == "train" else config.train_per_class + number
                drawn.append(draw_toy(config, verb, first, power=NOUNS[row["noun"]]))
                done += 1
                if progress:
                    progress(done, total)
            uri = storage.join(folder_uri, "videos", f"{name}.MP4")
            storage.write_bytes(uri, encode_toy(np.concatenate(drawn), config))
        found[split] = storage.join(folder_uri, f"EPIC_toy_{split}.csv")
        storage.write_bytes(found[split], text.getvalue().encode())
    return found


def _row(config: ToyConfig, video: str, place: int, verb: int, noun: int) -> dict[str, str]:
    begin, end = ((place + one) * config.frames / config.frames_per_second for one in (0, 1))
    return {
        "narration_id": f"{video}_{place}",
        "video_id": video,
        "start_timestamp": _timestamp(begin),
        "stop_timestamp": _timestamp(end),
        "verb": TOY_CLASSES[verb],
        "verb_class": str(verb),
        "noun": list(NOUNS)[noun],
        "noun_class": str(noun),
    }


def _timestamp(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{rest:05.2f}"
