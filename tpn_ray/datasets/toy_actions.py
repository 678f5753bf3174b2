"""Synthetic videos of a single action with its own tempo, for analyzing tempo. Runs on the driver.

A shape appears and disappears on a static gray background. Its color is the class, so every frame that shows it reveals
the class, and no other frame does. How long it is visible, its tempo, is drawn for each video; classes differ in how
much it varies. The true tempo of every video is written next to the videos, for comparison with measurements.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.clips.augment import generator
from tpn_ray.datasets.toy import ToyConfig, encode_toy
from tpn_ray.errors import NotFoundError

COLOURS = {
    "blue": (60, 90, 255),
    "cyan": (60, 230, 240),
    "green": (60, 200, 60),
    "orange": (255, 140, 30),
    "pink": (255, 150, 200),
    "red": (230, 40, 40),
    "violet": (150, 60, 220),
    "yellow": (245, 235, 60),
}
SPREADS = dict(zip(COLOURS, (1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6), strict=True))
"""For each class, the largest factor between a video's tempo and the median one."""
ACTION_CLASSES = tuple(COLOURS)
MIDDLE_FRAMES = 30.0
"""Full width at half maximum of the shape's size over time, for the median tempo."""
MIN_FRAMES = 128
TEMPOS = "tempos.csv"


class Action(NamedTuple):
    """The ground truth of one video."""

    id: str
    name: str
    width_seconds: float
    """Full width at half maximum of the action."""


def write_actions(
    folder_uri: str, config: ToyConfig, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Action]:
    """Write folder/{train,val}/<class>/<number>.mp4 and tempos.csv; the same bytes on every run.

    Videos have at least MIN_FRAMES, so that the slowest actions fit.
    """
    made, total = [], (config.train_per_class + config.val_per_class) * len(ACTION_CLASSES)
    for action, data in _videos(replace(config, frames=max(config.frames, MIN_FRAMES))):
        storage.write_bytes(storage.join(folder_uri, action.id), data)
        made.append(action)
        progress(len(made), total)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Action._fields)
    table.writerows((action.id, action.name, f"{action.width_seconds:.4f}") for action in made)
    storage.write_bytes(storage.join(folder_uri, TEMPOS), text.getvalue().encode())
    return made


def read_tempos(folder_uri: str) -> dict[str, float]:
    """Read the true width of every video in seconds, by its id."""
    text = storage.read_bytes(storage.join(storage.absolute(folder_uri), TEMPOS)).decode()
    return {row["id"]: float(row["width_seconds"]) for row in csv.DictReader(io.StringIO(text))}


def known_tempos(folder_uri: str) -> dict[str, float]:
    """Return `read_tempos`, or an empty dict for other videos, whose true tempo is unknown."""
    try:
        return read_tempos(folder_uri)
    except NotFoundError:
        return {}


def _videos(config: ToyConfig) -> Iterator[tuple[Action, bytes]]:
    for label, name in enumerate(ACTION_CLASSES):
        for number in range(config.train_per_class + config.val_per_class):
            split = "train" if number < config.train_per_class else "val"
            frames, width = draw_action(config, name, label * 1_000_000 + number)
            action = Action(f"{split}/{name}/{number:04d}.mp4", name, width / config.frames_per_second)
            yield action, encode_toy(frames, config)


def draw_action(config: ToyConfig, name: str, number: int) -> tuple[NDArray[np.uint8], float]:
    """Draw the frames (t, h, w, 3) of one video, and return them with the width of the action in frames."""
    random = generator(config.seed, 0, 2_000_000_000 + number, 0)
    spread = math.log(SPREADS[name])
    width = MIDDLE_FRAMES * math.exp(random.uniform(-spread, spread))
    size = config.size_px
    time = np.arange(config.frames) - random.uniform(0.4, 0.6) * config.frames
    # Steep at its ends, so that whether the shape is visible at all hardly affects its width.
    radius = size * random.uniform(0.22, 0.3) * np.exp2(-((2 * time / width) ** 6))
    rows, columns = np.abs(np.mgrid[0:size, 0:size] + 0.5 - size * random.uniform(0.4, 0.6, size=(2, 1, 1)))
    distance = np.hypot(rows, columns) if random.random() < 0.5 else np.maximum(rows, columns)
    inside = np.clip(radius[:, None, None] - distance[None] + 0.5, 0, 1)[..., None]
    background = random.uniform(40, 120) + random.normal(0, 6, size=(size, size, 1))
    shape = np.array(COLOURS[name]) * random.uniform(0.85, 1.0)
    frames = background[None] + inside * (shape - background[None])
    return np.clip(frames, 0, 255).astype(np.uint8), width
