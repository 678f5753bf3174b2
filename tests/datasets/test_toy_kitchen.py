"""The toy kitchen reads as EPIC-KITCHENS does: segments of long videos with a verb and a noun."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tpn_ray.datasets.annotations import load_annotated
from tpn_ray.datasets.toy import TOY_CLASSES, ToyConfig, draw_toy
from tpn_ray.datasets.toy_kitchen import NOUNS, SEGMENTS_PER_VIDEO, write_kitchen
from tpn_ray.videos.decode import open_video

SMALL = ToyConfig(train_per_class=3, val_per_class=1, frames=25)


def test_segments_of_long_videos(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    tables = write_kitchen(str(tmp_path), SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (32, 32)
    manifest = load_annotated("epic", list(tables.values()), str(tmp_path / "videos"))
    assert manifest.label_sets == {"verb": TOY_CLASSES, "noun": tuple(NOUNS)}
    train, val = manifest.select("train"), manifest.select("val")
    assert (len(train), len(val)) == (24, 8)
    # Each verb goes with each noun, so that neither tells the other.
    assert set(Counter(map(tuple, train.labels.tolist())).values()) == {1}
    assert not set(train.uris) & set(val.uris)
    assert len(set(train.uris)) == 4
    with open_video(Path(train.uris[0]).read_bytes()) as video:
        assert video.frame_count == SEGMENTS_PER_VIDEO * SMALL.frames
        third = video.frames(range(2 * 25, 3 * 25)).astype(float)
    assert train.segments_seconds is not None
    assert train.segments_seconds[2].tolist() == [2.0, 3.0]
    verb, noun = train.labels[2]
    drawn = draw_toy(SMALL, verb, 0, power=list(NOUNS.values())[noun])
    assert np.abs(third - drawn).mean() < 12  # through a lossy codec
    assert np.abs(third - draw_toy(SMALL, verb, 1, power=6.0)).mean() > 24


@pytest.mark.parametrize("noun", ["square", "star"])
def test_forms_differ_in_every_frame(noun: str) -> None:
    """Where everything else is drawn alike, the form alone changes what is seen."""
    config = ToyConfig(frames=4)
    for number in range(12):
        disc, other = (draw_toy(config, 0, number, power=NOUNS[form]).astype(int) for form in ("disc", noun))
        changed = np.abs(disc - other).max(axis=-1) > 12
        assert (changed.mean(axis=(1, 2)) > 0.01).all()
        assert (changed.mean(axis=(1, 2)) < 0.5).all()
