"""Views: the clips and crops on which a video is tested, and the frames that they show. Pure; runs anywhere.

    1x1              the middle clip in its center crop
    10x3             ten clips spread over the video, each in three crops at the short side (the published test)
    10x3 random      the same with crops at random places, as in the paper; they depend on the video alone
    ten_crop         four corners and the center, plus their mirror images (TSN's test)
    segments 8       one frame from each of 8 equal parts of the video, regardless of the recipe's clip
    stride 16        the recipe's clip at another stride: the same video played at another speed

Words can be combined: `segments 8 ten_crop`, `2x3 stride 4`.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tpn_ray.clips import augment, sampling
from tpn_ray.clips.augment import AugmentConfig
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.errors import ConfigError

if TYPE_CHECKING:  # views of decoded frames are cut where there may be no decoder
    from tpn_ray.videos.decode import Video

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """One square of a frame."""

    name: str
    down: float | None
    """Vertical position within the available room, 0 to 1; None means random."""
    across: float | None
    whole: bool = False
    """Whether its side is the whole short side rather than crop_px."""
    mirrored: bool = False


CENTRE = (Crop("centre", 0.5, 0.5),)
THREE = tuple(Crop(name, at, at, whole=True) for name, at in (("left", 0.0), ("middle", 0.5), ("right", 1.0)))
"""Crops along the long side: left, middle, right; for a portrait top, middle, bottom."""
THREE_RANDOM = tuple(Crop(f"random_{number}", None, None, whole=True) for number in (1, 2, 3))
FIVE = (
    Crop("top_left", 0.0, 0.0),
    Crop("top_right", 0.0, 1.0),
    Crop("bottom_left", 1.0, 0.0),
    Crop("bottom_right", 1.0, 1.0),
    *CENTRE,
)
TEN = (*FIVE, *(replace(crop, name=f"{crop.name}_mirrored", mirrored=True) for crop in FIVE))

CROPS = {1: CENTRE, 3: THREE, 10: TEN}


@dataclass(frozen=True)
class Views:
    """`clips` clips spread over the video, each in every one of `crops`."""

    clips: int
    crops: tuple[Crop, ...]
    segments: int = 0
    """If above 0, clips have one frame from each of this many parts of the video."""
    stride_frames: int = 0
    """If above 0, replaces the stride of the recipe's clip."""

    @property
    def count(self) -> int:
        return self.clips * len(self.crops)

    @property
    def names(self) -> list[str]:
        """Name of each view, clips before crops: "3 left" is the left crop of the third clip."""
        return [f"{clip + 1} {crop.name}" for clip in range(self.clips) for crop in self.crops]

    def clip(self, config: ClipConfig) -> ClipConfig:
        """Return the recipe's clip as these views sample it."""
        if self.segments:
            made = replace(config, frames=self.segments, stride_frames=1, sampling="segments", clips_per_video=1)
            if made.stack != config.stack:
                raise ConfigError(f"views with segments {self.segments}: the recipe's flow is sampled without stacks")
            return made
        if self.stride_frames and config.sampling != "dense":
            raise ConfigError(f"views with stride {self.stride_frames}: the recipe's segments have none")
        return replace(config, stride_frames=self.stride_frames or config.stride_frames)

    def side_px(self, config: AugmentConfig) -> int:
        """Return the height and width of a view: three crops take the whole short side, as published."""
        return config.test_short_side_px if self.crops[0].whole else config.crop_px

    def most_bytes(self, clip: ClipConfig, config: AugmentConfig) -> int:
        """Return the bytes decoded for one video (`ViewFrames`) of the usual shape, if clips share no frame."""
        high = self.side_px(config) if len(self.crops) == 1 else config.test_short_side_px
        wide = high if len(self.crops) == 1 else high * 16 // 9
        return self.clips * self.clip(clip).pictures * high * wide * clip.colors


def parse_views(text: str) -> Views:
    """Parse a description of views; the module docstring lists the forms. Raises ConfigError."""
    words, chosen, crops = text.split(), dict[str, int](), dict[str, bool]()
    while words:
        word = words.pop(0)
        if word in ("segments", "stride") and words and words[0].isdigit() and int(words[0]) > 0 and word not in chosen:
            chosen[word] = int(words.pop(0))
        elif (match := re.fullmatch(r"([1-9]\d*)x(1|3|10)", word)) and "clips" not in chosen:
            chosen["clips"], chosen["crops"] = int(match[1]), int(match[2])
        elif word == "ten_crop" and "clips" not in chosen:
            chosen["clips"], chosen["crops"] = 1, 10
        elif word == "random" and not crops:
            crops["random"] = True
        else:
            raise _unknown(text)
    if not text.split() or {"segments", "stride"} <= chosen.keys() or (crops and chosen.get("crops") != 3):
        raise _unknown(text)
    return Views(
        clips=chosen.get("clips", 1),
        crops=THREE_RANDOM if crops else CROPS[chosen.get("crops", 1)],
        segments=chosen.get("segments", 0),
        stride_frames=chosen.get("stride", 0),
    )


def _unknown(text: str) -> ConfigError:
    return ConfigError(
        f"views {text!r} are not known; write CLIPSxCROPS with 1, 3 or 10 crops, such as 1x1 or 10x3, or ten_crop; "
        "`random` after CLIPSx3 draws the places of the crops, `segments N` or `stride N` changes the clips"
    )


# --- windows of a long video


@dataclass(frozen=True)
class Window:
    """A part of a video: frames [begin, end)."""

    begin: int
    end: int
    start_seconds: float
    end_seconds: float


def windows(video: Video, length_seconds: float, hop_seconds: float) -> list[Window]:
    """List windows that start every `hop_seconds`; the last one ends with the video and may be shorter."""
    if length_seconds <= 0 or not 0 < hop_seconds <= length_seconds:
        raise ConfigError(
            f"windows of {length_seconds:g} s every {hop_seconds:g} s: both must be above 0, the hop at most the length"
        )
    seconds = video.seconds()
    duration, found, number = duration_seconds(seconds), list[Window](), 0
    while not found or found[-1].end < len(seconds):
        start = number * hop_seconds
        begin, end = np.searchsorted(seconds, [start - 1e-6, start + length_seconds - 1e-6]).tolist()
        if end > begin:  # a video may pause for longer than a window
            found.append(Window(begin, end, start, min(start + length_seconds, duration)))
        number += 1
    return found


def duration_seconds(seconds: NDArray[np.float64]) -> float:
    """Return the time until the end of the last frame, which is assumed to last as long as the average frame."""
    steps = max(len(seconds) - 1, 1)
    return float(seconds[-1] * (1 + 1 / steps))


# --- what is decoded, and the squares that are cut out of it


@dataclass(frozen=True)
class ViewFrames:
    """What the views of a video show, each frame once; `cut.py` makes the views from it where the network runs."""

    frames: Pixels
    """(f, h, w, c), resized; for views with a single crop, already cropped."""
    places: NDArray[np.int64]
    """(clips, t): which frames make up each clip."""
    seed: int
    """Seed of the random crops."""


@dataclass(frozen=True)
class Square:
    """The position of one view."""

    clip: int
    top: int
    left: int
    mirrored: bool


def see(
    video: Video, data: bytes, views: Views, clip: ClipConfig, config: AugmentConfig, window: Window | None = None
) -> ViewFrames:
    """Decode the frames of all views of a video, or of a window, in one pass that decodes and resizes each once.

    `data` is the file, which seeds the random crops. The views are not cut here: thirty of them hold each frame many
    times, and writing them cost as much as decoding.
    """
    begin, end = (window.begin, window.end) if window else (0, video.frame_count)
    indices = begin + sampling.test_indices(views.clip(clip), end - begin, views.clips)
    distinct, places = np.unique(indices, return_inverse=True)
    seed, side = zlib.crc32(data), views.side_px(config)

    def shown(frame: Pixels) -> Pixels:
        resized: Pixels = augment.test_size(frame[None], config)[0]
        if len(views.crops) > 1:
            return resized
        height, width = resized.shape[:2]
        (one,) = _crops(views.crops, height, width, side, seed, clips=1)
        return resized[one.top : one.top + side, one.left : one.left + side]

    return ViewFrames(video.frames(distinct, shown), places.reshape(indices.shape), seed)


def squares(seen: ViewFrames, views: Views, config: AugmentConfig) -> list[Square]:
    """Return the square of every view, clips before crops."""
    height, width = seen.frames.shape[1:3]
    return _crops(views.crops, height, width, views.side_px(config), seen.seed, views.clips)


def _crops(crops: tuple[Crop, ...], height: int, width: int, side: int, seed: int, clips: int) -> list[Square]:
    random, found = np.random.default_rng(seed), list[Square]()
    for clip in range(clips):
        for crop in crops:
            drawn = random.random(2) if crop.down is None or crop.across is None else (crop.down, crop.across)
            top, left = (round((size - side) * share) for size, share in zip((height, width), drawn, strict=True))
            found.append(Square(clip, top, left, crop.mirrored))
    return found
