"""Contact sheets show clips as they are, and of videos their frames."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tpn_ray import recipes
from tpn_ray.data.tasks import ClipSource
from tpn_ray.datasets.manifest import load_manifest
from tpn_ray.predict.sheet import FRAMES, GAP_PX, SIDE_PX, TEXT_PX, Strip, sheet, whole_videos


@pytest.fixture(scope="module")
def source(toy_folder: Path) -> ClipSource:
    recipe = recipes.toy()
    manifest = load_manifest(str(toy_folder)).select("train")
    return ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=3)


def test_tiles_stand_where_they_belong() -> None:
    frames = np.zeros((16, 8, 8, 3), dtype=np.uint8)
    frames[:, :, :, 0] = np.arange(16)[:, None, None] * 16
    picture = np.asarray(Image.open(io.BytesIO(sheet([Strip("a", frames), Strip("b", frames[::-1])]))))
    assert picture.shape == (2 * (TEXT_PX + SIDE_PX + GAP_PX), FRAMES * (SIDE_PX + GAP_PX), 3)
    middle = TEXT_PX + SIDE_PX // 2
    assert [picture[middle, at * (SIDE_PX + GAP_PX) + 5, 0] for at in (0, FRAMES - 1)] == [0, 240]
    below = middle + TEXT_PX + SIDE_PX + GAP_PX
    assert picture[below, 5, 0] == 240


def test_videos_that_cannot_be_read_are_left_out(source: ClipSource, tmp_path: Path) -> None:
    uris = [*source.manifest.uris]
    uris[1] = str(tmp_path / "gone.mp4")
    strips = whole_videos(replace(source.manifest, uris=uris), [(0, "first"), (1, "gone")], source.augment)
    assert [strip.text for strip in strips] == ["first"]
    assert strips[0].frames.shape == (FRAMES, 48, 48, 3)


def test_no_videos_no_strips() -> None:
    assert Image.open(io.BytesIO(sheet([]))).size[0] > 0
