"""Clips developed on a device have the pixels of those augmented on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.videos import videos
from tpn_ray.clips import augment, handover, notes
from tpn_ray.clips import develop as develop_module
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.develop import clips_of_block, clips_of_blocks, develop
from tpn_ray.clips.notes import FLOW, NO_CLIP, PLANES, RGB, Note
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.encode import EncodeConfig
from tpn_ray.videos.flow import prepare_with_flow
from tpn_ray.videos.packets import DecodeLimits

PLAIN = AugmentConfig(crop_px=32, brightness=0, contrast=0, saturation=0, hue=0)
COLOURED = AugmentConfig(crop_px=32)
INDICES = np.array([3, 11, 19, 27])

KINDS = {
    "even": (lambda: videos.encode(size=(64, 96), b_frames=3), PLANES),
    "odd width": (lambda: videos.encode("ffv1", "matroska", size=(64, 81)), PLANES),
    "large": (lambda: videos.encode(size=(180, 240), gop=60), PLANES),
    "full range": (lambda: videos.encode(size=(64, 80), pixel_format="yuvj420p"), PLANES),
    "bt709": (lambda: videos.encode(size=(64, 80), options={"colorspace": "bt709"}), PLANES),
    "odd height": (lambda: videos.encode("ffv1", "matroska", size=(63, 80)), RGB),
    "4:4:4": (lambda: videos.encode(size=(64, 80), pixel_format="yuv444p"), RGB),
    "10 bit": (lambda: videos.encode(size=(64, 80), pixel_format="yuv420p10le"), RGB),
    "rotated": (lambda: videos.encode(size=(64, 80), rotation=90), RGB),
}


def both(name: str, config: AugmentConfig, seed: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]], Note]:
    """The clip augmented here, and the same clip as it is handed over."""
    with open_video(KINDS[name][0]()) as video:
        expected = augment.train_view(video.frames(INDICES), config, augment.generator(seed, 0, 0, 0))
        ((parts, note),) = handover.training_clips(video, [INDICES], config, [augment.generator(seed, 0, 0, 0)])
    assert note.kind == KINDS[name][1]
    return expected, parts, note


def developed(made: list[tuple[list[NDArray[np.uint8]], Note]]) -> NDArray[np.uint8]:
    """All of them as one batch, through the form in which notes travel."""
    flat, placed = list[NDArray[np.uint8]](), list[Note]()
    for parts, note in made:
        placed.append(note._replace(begin=sum(part.size for part in flat)))
        flat += [part.reshape(-1) for part in parts]
    travelled = notes.from_array(notes.to_array(placed))
    assert travelled == placed
    return develop(torch.from_numpy(np.concatenate(flat)), travelled, 32).numpy()


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(one.astype(np.int16) - other)


@pytest.mark.parametrize("name", KINDS)
def test_the_pixels_are_those_of_the_cpu(name: str) -> None:
    made = [both(name, PLAIN, seed) for seed in range(6)]
    expected, got = np.stack([one[0] for one in made]), developed([one[1:] for one in made])
    assert difference(got, expected).max() <= 1
    assert (got == expected).mean() > 0.999


def test_clips_of_all_sizes_and_kinds_in_one_micro_batch_with_colours() -> None:
    made = [both(name, COLOURED, seed) for seed, name in enumerate(KINDS)]
    got, expected = developed([one[1:] for one in made]), np.stack([one[0] for one in made])
    # A strong change of colour makes two or three levels of a level's difference.
    assert difference(got, expected).max() <= 3
    assert (difference(got, expected) <= 1).mean() > 0.999


def test_a_batch_does_not_change_its_clips() -> None:
    """Not in one bit: which clips are developed together depends on the number of workers."""
    made = [both(name, config, seed)[1:] for seed, config in enumerate((COLOURED, PLAIN, COLOURED)) for name in KINDS]
    together = developed(made)
    for place, one in enumerate(made):
        assert np.array_equal(together[place], developed([one])[0])


def test_blocks_are_developed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    for kinds in (("even", "large"), ("rotated",), (), ("bt709", "odd width")):
        made = [both(name, COLOURED, seed)[1:] for seed, name in enumerate(kinds)]
        block = {**handover.columns([*made, None], len(INDICES), len(made) + 1)}
        blocks.append((block, np.array([*[True] * len(made), False])))
    expected = [clips_of_block(*one, 32, "cpu") for one in blocks]
    for most in (1, 4 * 64 * 96 * 2, 10**9):
        monkeypatch.setattr(develop_module, "PIXELS_AT_ONCE", most)
        found = clips_of_blocks(blocks, 32, "cpu")
        assert [len(clips) for clips in found] == [2, 1, 0, 2]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stored_px", [64, 63, 180])
def test_centre_crops_are_those_of_the_cpu(name: str, stored_px: int) -> None:
    """Of videos stored in the size of the test, as prepared ones are, planes are handed over; others are resized."""
    config = AugmentConfig(crop_px=32, test_short_side_px=stored_px)
    with open_video(KINDS[name][0]()) as video:
        expected = augment.test_view(video.frames(INDICES), config)
        parts, note = handover.centre_clip(video, INDICES, config)
        fits = KINDS[name][1] == PLANES and min(video.height, video.width) == stored_px
    assert note.kind == (PLANES if fits else RGB)
    got = developed([(parts, note), (parts, note)])
    assert difference(got, np.stack([expected, expected])).max() <= 1


@pytest.mark.parametrize("name", ["large", "rotated"])
def test_several_clips_of_one_video(name: str) -> None:
    indices = [INDICES, INDICES + 2, np.array([3, 3, 5, 0])]
    with open_video(KINDS[name][0]()) as video:
        made = handover.training_clips(video, indices, PLAIN, [augment.generator(7, 1, 2, clip) for clip in range(3)])
        expected = [
            augment.train_view(video.frames(places), PLAIN, augment.generator(7, 1, 2, clip))
            for clip, places in enumerate(indices)
        ]
    assert difference(developed(made), np.stack(expected)).max() <= 1


def test_flow_has_exactly_the_pixels_of_the_cpu() -> None:
    """Nothing is converted: what is left is the resize, and x of a mirrored clip, both the same to the bit."""
    data = prepare_with_flow(videos.encode(size=(64, 96)), None, EncodeConfig(flow=True), DecodeLimits())["flow"]
    expected, made = [], []
    with open_video(data, flow=True) as video:
        for seed in range(6):
            randoms = [augment.generator(seed, 0, 0, 0)]
            expected.append(augment.train_view(video.frames(INDICES), PLAIN, augment.generator(seed, 0, 0, 0)))
            made += handover.training_clips(video, [INDICES], PLAIN, randoms)
        config = AugmentConfig(crop_px=32, test_short_side_px=48)
        expected.append(augment.test_view(video.frames(INDICES), config))
        made.append(handover.centre_clip(video, INDICES, config))
    assert {note.kind for _, note in made} == {FLOW}
    assert len({note.mirrored for _, note in made}) == 2
    got = developed(made)
    assert got.shape == (7, 4, 32, 32, 2)
    assert np.array_equal(got, np.stack(expected))


def test_clips_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of them without a clip"):
        develop(torch.zeros(0, dtype=torch.uint8), [NO_CLIP], 32)
