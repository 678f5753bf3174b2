"""Crops, flips, and color jitter of uint8 clips. Pure functions; run anywhere.

Pixels have three values, or two: x and y of optical flow, of which a mirrored picture has the opposite x. As in the
published code (TSN, mmaction2), a crop that is resized keeps the values of its flow, in pixels of the stored frame.

Every draw is a pure function of (seed, epoch, sample, clip), and drawing is separate from applying: `draw_crop` and
`draw_jitter` return small values that can be applied here with numpy and Pillow, or on a device. All frames of a clip
share one draw of each, so that no motion or flicker is added that is not in the video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpn_ray.errors import ConfigError

Frames = NDArray[np.uint8]
"""RGB pixels (t, h, w, 3), or flow (t, h, w, 2), 0 to 255."""

CropName = Literal["centre", "left", "middle", "right"]

CENTRE_CROP: tuple[CropName, ...] = ("centre",)
"""One crop of crop_px in the center: the quick test."""

THREE_CROPS: tuple[CropName, ...] = ("left", "middle", "right")
"""Three squares of test_short_side_px along the long side (top, middle, bottom of a portrait): the published test."""

CROP_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How the frames of a clip are cropped, flipped, and colored."""

    crop_px: int = 224
    """Height and width of the network's input in training and in the quick test, in pixels."""

    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the picture that a training crop covers, before it is resized to crop_px."""

    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest aspect ratio of a training crop, width over height."""

    flip: float = 0.5
    """Probability of mirroring a training clip left to right. Set 0 if the classes distinguish left from right."""

    brightness: float = 0.5
    """Strength of the brightness jitter: brightness is multiplied by a draw from 1 +- this; 0 disables it."""

    contrast: float = 0.5
    """Strength of the contrast jitter: the distance from the clip's mean gray is multiplied by a draw from 1 +- this; 0
    disables it."""

    saturation: float = 0.5
    """Strength of the saturation jitter: the distance from gray is multiplied by a draw from 1 +- this; 0 disables
    it."""

    hue: float = 0.1
    """Strength of the hue jitter: hue is rotated by a draw from +- this, in turns of the color wheel (at most 0.5); 0
    disables it."""

    rand_operations: int = 0
    """Number of random operations of RandAugment that a training clip goes through after all else, where the network
    is: turns, shifts, and changes of color (2 is usual); 0 disables it. Classes that are tempos or directions can
    suffer."""

    rand_magnitude: float = 9.0
    """Strength of the operations of RandAugment, from 0 to 10."""

    test_short_side_px: int = 256
    """Short side that test frames are resized to before cropping, in pixels."""

    @property
    def colors_change(self) -> bool:
        """Whether training clips are colored differently than they are stored."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)

    def __post_init__(self) -> None:
        if self.crop_px < 1:
            raise ConfigError(f"crop_px is {self.crop_px}; it must be at least 1")
        if self.test_short_side_px < self.crop_px:
            raise ConfigError(f"test_short_side_px is {self.test_short_side_px}, below crop_px {self.crop_px}")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area is {self.area}; it must be two shares, 0 < low <= high <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"aspect is {self.aspect}; it must be two ratios, 0 < low <= high")
        for field, most in (("flip", 1.0), ("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            value = getattr(self, field)
            if not 0 <= value <= most:
                raise ConfigError(f"{field} is {value}; it must be between 0 and {most:g}")
        if self.rand_operations < 0 or not 0 <= self.rand_magnitude <= 10:
            raise ConfigError(
                f"rand_operations is {self.rand_operations} and rand_magnitude {self.rand_magnitude}; the first must"
                " be 0 or more, the second between 0 and 10"
            )


def generator(seed: int, epoch: int, sample: int, clip: int) -> np.random.Generator:
    """Return the random generator of one clip: a pure function of these four non-negative integers, in any process.

    Philox is counter-based: (seed, epoch) is its key and (sample, clip) the upper half of its counter, so that no two
    clips share a number within 2**128 draws. (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011.)
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, sample, clip]))


AFTER_DECODING = 2**62
"""Number that is added to a clip's place in the plan to draw what is done to it where the network is. From 2**63 on,
numpy would round it, and neighbors would have the same draws."""


# --- draws


@dataclass(frozen=True)
class CropDraw:
    """A rectangle of the source picture, in pixels, and whether to mirror it."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    mirrored: bool = False


@dataclass(frozen=True)
class JitterDraw:
    """Color jitter of a clip as one affine map: rgb' = matrix @ rgb + grey_share * (the clip's mean gray).

    All four changes are linear, so in any order they amount to one 3 x 3 matrix and one multiple of the mean gray: a
    single pass over the pixels, the same on CPU and GPU, clipped once at the end.
    """

    matrix: tuple[tuple[float, float, float], ...]
    grey_share: float

    @property
    def is_identity(self) -> bool:
        """Whether the jitter changes nothing."""
        return self == NO_JITTER


NO_JITTER = JitterDraw(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), 0.0)


def draw_crop(config: AugmentConfig, height_px: int, width_px: int, random: np.random.Generator) -> CropDraw:
    """Draw a random resized crop and a flip: uniform area, log-uniform aspect, up to ten tries, as in mmaction2.

    The official code draws the aspect uniformly and confuses height and width in its fit test; that is not reproduced
    here.
    """
    logs = random.uniform(math.log(config.aspect[0]), math.log(config.aspect[1]), CROP_ATTEMPTS)
    areas = random.uniform(config.area[0], config.area[1], CROP_ATTEMPTS) * (height_px * width_px)
    widths = np.maximum(np.round(np.sqrt(areas * np.exp(logs))).astype(int), 1)
    heights = np.maximum(np.round(np.sqrt(areas / np.exp(logs))).astype(int), 1)
    left_share, top_share, coin = random.random(3)  # always drawn, so that what follows does not depend on the tries
    fitting = np.flatnonzero((widths <= width_px) & (heights <= height_px))
    mirrored = bool(coin < config.flip)
    if fitting.size == 0:
        side = min(height_px, width_px)
        return CropDraw((width_px - side) // 2, (height_px - side) // 2, side, side, mirrored)
    width, height = int(widths[fitting[0]]), int(heights[fitting[0]])
    left, top = int(left_share * (width_px - width + 1)), int(top_share * (height_px - height + 1))
    return CropDraw(left, top, width, height, mirrored)


LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def draw_jitter(config: AugmentConfig, random: np.random.Generator) -> JitterDraw:
    """Draw the color jitter: the four changes in a random order.

    Three things differ from mmaction2 (torchvision's functions). Hue is rotated in the YIQ plane, as in the official
    TPN code, rather than through HSV, which makes it linear. The order is drawn per clip, not once per process.
    Contrast changes around the mean of the clip rather than of each frame, which would shift the brightness of a
    blinking scene.
    """
    brightness, contrast, saturation = (
        random.uniform(1 - strength, 1 + strength)
        for strength in (config.brightness, config.contrast, config.saturation)
    )
    turns = random.uniform(-config.hue, config.hue)
    order = random.permutation(4)
    if not config.colors_change:
        return NO_JITTER
    grey = np.tile(LUMA, (3, 1))
    maps = (
        brightness * np.eye(3),
        contrast * np.eye(3),
        saturation * np.eye(3) + (1 - saturation) * grey,
        hue_turn(turns),
    )
    matrix, grey_share, grey_gain = np.eye(3), 0.0, 1.0
    for step in order:
        matrix = maps[step] @ matrix
        if step == 0:
            grey_share, grey_gain = brightness * grey_share, brightness * grey_gain
        if step == 1:  # towards the mean gray of the picture as it is at this point
            grey_share += (1 - contrast) * grey_gain
            grey_gain *= contrast
    return JitterDraw(tuple((float(row[0]), float(row[1]), float(row[2])) for row in matrix), float(grey_share))


def hue_turn(turns: float) -> NDArray[np.float64]:
    """Return the map that rotates the chroma plane and keeps luma."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    turned: NDArray[np.float64] = np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    return turned


# --- applying


def crop_and_resize(frames: Frames, crop: CropDraw, size_px: int) -> Frames:
    """Crop each frame, resize it (antialiased bilinear) to size_px x size_px, and mirror it if drawn."""
    bottom_px, right_px = crop.top_px + crop.height_px, crop.left_px + crop.width_px
    # Cut first: with Pillow's `box`, the antialiasing would mix in pixels from outside the crop.
    return _resize(frames[:, crop.top_px : bottom_px, crop.left_px : right_px], size_px, size_px, crop.mirrored)


def apply_jitter(frames: Frames, jitter: JitterDraw) -> Frames:
    """Apply the color jitter to a clip, rounded and clipped to 0..255."""
    if jitter.is_identity:
        return frames
    # All frames as one tall picture: Pillow's color matrix takes a fifth of the time of a numpy product.
    tall = Image.fromarray(frames.reshape(-1, frames.shape[2], 3))
    counts = np.array(tall.histogram(), dtype=np.int64).reshape(3, 256)
    mean_grey = float(counts @ np.arange(256) @ LUMA) / (frames.size // 3)
    shift = jitter.grey_share * mean_grey
    rows = tuple(value for row in jitter.matrix for value in (*row, shift))
    jittered: Frames = np.array(tall.convert("RGB", rows)).reshape(frames.shape)
    return jittered


def train_view(frames: Frames, config: AugmentConfig, random: np.random.Generator) -> Frames:
    """Make the augmented clip (t, crop_px, crop_px, 3)."""
    crop = draw_crop(config, frames.shape[1], frames.shape[2], random)
    jitter = draw_jitter(config, random)
    return apply_jitter(crop_and_resize(frames, crop, config.crop_px), jitter)


def train_views(
    decode: Callable[[Sequence[Callable[[Frames], Frames]]], list[Frames]],
    config: AugmentConfig,
    randoms: Sequence[np.random.Generator],
) -> list[Frames]:
    """Make several clips as `train_view` does, but crop and resize each frame as soon as it is decoded.

    `decode` takes one function per clip and returns the clips, with the function applied to each frame (h, w, 3).
    """
    crops: dict[int, CropDraw] = {}

    def cut_of(place: int) -> Callable[[Frames], Frames]:
        def cut(frame: Frames) -> Frames:
            if place not in crops:
                crops[place] = draw_crop(config, frame.shape[0], frame.shape[1], randoms[place])
            one: Frames = crop_and_resize(frame[None], crops[place], config.crop_px)[0]
            return one

        return cut

    clips = decode([cut_of(place) for place in range(len(randoms))])
    return [apply_jitter(clip, draw_jitter(config, random)) for clip, random in zip(clips, randoms, strict=True)]


def test_view(frames: Frames, config: AugmentConfig, crop: CropName = "centre") -> Frames:
    """Resize the clip's short side to test_short_side_px, then crop it; a pure function of the frames.

    "centre" gives (t, crop_px, crop_px, 3) from the center. "left", "middle", and "right" give (t, short, short, 3),
    where short = test_short_side_px, along the long side (for a portrait: top, middle, bottom).
    """
    return cut_view(test_size(frames, config), config, crop)


def test_size(frames: Frames, config: AugmentConfig) -> Frames:
    """Resize the frames' short side to test_short_side_px: the step that all crops share."""
    height, width = test_shape(frames.shape[1], frames.shape[2], config)
    return frames if (height, width) == frames.shape[1:3] else _resize(frames, height, width)


def test_shape(height_px: int, width_px: int, config: AugmentConfig) -> tuple[int, int]:
    """Return the height and width of test frames."""
    scale = config.test_short_side_px / min(height_px, width_px)
    # Rounding must not make the short side one pixel smaller than the crop.
    return (
        max(round(height_px * scale), config.test_short_side_px),
        max(round(width_px * scale), config.test_short_side_px),
    )


def cut_view(resized: Frames, config: AugmentConfig, crop: CropName) -> Frames:
    """Cut a view out of the frames of `test_size`."""
    top, left, side = view_square(resized.shape[1], resized.shape[2], config, crop)
    return np.ascontiguousarray(resized[:, top : top + side, left : left + side])


def view_square(height_px: int, width_px: int, config: AugmentConfig, crop: CropName) -> tuple[int, int, int]:
    """Return the top, left, and side of a view within test frames of this size."""
    side = config.crop_px if crop == "centre" else config.test_short_side_px
    share = {"left": 0.0, "centre": 0.5, "middle": 0.5, "right": 1.0}.get(crop)
    if share is None:
        raise ConfigError(f"crop is {crop!r}; known: {', '.join((*CENTRE_CROP, *THREE_CROPS))}")
    return round((height_px - side) * share), round((width_px - side) * share), side


test_shape.__test__ = False  # type: ignore[attr-defined]
test_size.__test__ = False  # type: ignore[attr-defined]
test_view.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test where it is imported


def negated(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the opposite flow; as in the published code, 128 (none) becomes 127."""
    return 255 - x


def _resize(frames: Frames, height_px: int, width_px: int, mirrored: bool = False) -> Frames:
    resized = np.empty((len(frames), height_px, width_px, frames.shape[3]), dtype=np.uint8)
    # Pillow takes two values for gray and its opacity, so flow is resized as two pictures.
    parts: list[slice | int] = [slice(None)] if frames.shape[3] == 3 else [0, 1]
    for source, target in zip(frames, resized, strict=True):
        for part in parts:
            image = Image.fromarray(np.ascontiguousarray(source[..., part]))
            if image.size != (width_px, height_px):
                image = image.resize((width_px, height_px), Image.Resampling.BILINEAR)
            target[..., part] = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image)
    if mirrored and frames.shape[3] == 2:
        resized[..., 0] = negated(resized[..., 0])
    return resized
