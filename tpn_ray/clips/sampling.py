"""Which frames make up a clip. Pure index arithmetic on a frame count; runs anywhere.

There are two protocols, both as published for TPN (in mmaction2's form):

"dense": `frames` frames at a fixed stride from one place (SlowOnly models on Kinetics);
"segments": one frame from each of `frames` equal parts of the video (TSN and TSM models on Something-Something).

Of optical flow, segments take FLOW_STACK consecutive frames at each place, which become channels (TSN), and dense clips
one, whose x and y are the channels (I3D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.names import no_such

SAMPLINGS = ("dense", "segments")
MODALITIES = ("rgb", "flow")
FLOW_STACK = 5

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How a clip is sampled from a video."""

    frames: int = 8
    """Number of frames in a clip (T)."""

    stride_frames: int = 8
    """Distance between two frames of a clip (tau), in frames of the video. Only for sampling "dense"."""

    sampling: Literal["dense", "segments"] = "dense"
    """Placement of the frames. dense: `stride_frames` apart; segments: one in each of `frames` equal parts."""

    modality: Literal["rgb", "flow"] = "rgb"
    """What a clip shows. rgb: the frames; flow: the optical flow between them, which jobs/prepare.py --flow stores."""

    clips_per_video: int = 1
    """Number of training clips drawn from a video each time it is opened, in one decoding pass (repeated augmentation).
    An epoch has this many times as many clips; those of a video are in the same micro-batch, whose size must be a
    multiple of their number."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"frames is {self.frames}; a clip needs at least 1")
        if self.stride_frames < 1:
            raise ConfigError(f"stride_frames is {self.stride_frames}; it must be at least 1")
        if self.clips_per_video < 1:
            raise ConfigError(f"clips_per_video is {self.clips_per_video}; it must be at least 1")
        if self.sampling not in SAMPLINGS:
            raise ConfigError(no_such("sampling", self.sampling, SAMPLINGS))
        if self.modality not in MODALITIES:
            raise ConfigError(no_such("modality", self.modality, MODALITIES))

    @property
    def span_frames(self) -> int:
        """Number of video frames that a dense clip covers, from its first to its last frame."""
        return (self.frames - 1) * self.stride_frames + 1

    @property
    def stack(self) -> int:
        """Number of consecutive pictures at each place of a clip."""
        return FLOW_STACK if self.modality == "flow" and self.sampling == "segments" else 1

    @property
    def pictures(self) -> int:
        """Number of pictures that a clip holds: frames, or stacks of flow one after the other."""
        return self.frames * self.stack

    @property
    def colors(self) -> int:
        """Values of a pixel: red, green, and blue, or x and y of flow."""
        return 2 if self.modality == "flow" else 3

    @property
    def channels(self) -> int:
        """Channels of the network's input, in which a stack of pictures is one frame."""
        return self.colors * self.stack


def train_indices(config: ClipConfig, frame_count: int, random: np.random.Generator) -> Indices:
    """Draw the frame indices (pictures,) of a random clip, in [0, frame_count). Raises BadVideo for an empty video."""
    _refuse_empty(frame_count)
    if config.sampling == "segments":
        return _stacked(config, _train_segments(config.frames, _places(config, frame_count), random), frame_count)
    # In training, mmaction2 reserves T * tau frames rather than the (T - 1) * tau + 1 that a clip covers.
    starts = frame_count - config.frames * config.stride_frames + 1
    start = int(random.integers(starts)) if starts > 0 else 0
    return _dense(config, np.array([start]), frame_count).reshape(config.frames)


def test_indices(config: ClipConfig, frame_count: int, clips: int) -> Indices:
    """Return the frame indices (clips, pictures) of evenly spread clips. Raises BadVideo for an empty video.

    The result is a pure function of the arguments.

    Dense: the first clip starts at the first frame, and the last ends at the last; a single clip is in the middle.
    Segments: a single clip takes the middle of each part, a second one its beginning (mmaction2's `twice_sample`).
    """
    _refuse_empty(frame_count)
    if clips < 1:
        raise ConfigError(f"clips is {clips}; a test needs at least 1 clip per video")
    if config.sampling == "segments":
        return _stacked(config, _test_segments(config.frames, _places(config, frame_count), clips), frame_count)
    room = max(frame_count - config.span_frames, 0)
    starts = np.round(np.arange(clips) * (room / (clips - 1))) if clips > 1 else np.array([room // 2])
    return _dense(config, starts.astype(np.int64), frame_count)


test_indices.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test where it is imported


def _places(config: ClipConfig, frame_count: int) -> int:
    """Return the number of places at which a stack can begin."""
    return max(1, frame_count - config.stack + 1)


def _stacked(config: ClipConfig, begins: Indices, frame_count: int) -> Indices:
    """Follow each index by those of its stack; a video shorter than a stack repeats, as in `_dense`."""
    stacks = (begins[..., None] + np.arange(config.stack)) % frame_count
    return stacks.reshape(*begins.shape[:-1], config.pictures)


def _dense(config: ClipConfig, starts: Indices, frame_count: int) -> Indices:
    steps = np.arange(config.frames, dtype=np.int64) * config.stride_frames
    # A video shorter than the clip repeats from its beginning, as in mmaction2 ("loop"). The official code repeats the
    # last frame instead, which shows the network a freeze that is not in the video.
    return (starts[:, None] + steps[None, :]) % frame_count


def _train_segments(frames: int, frame_count: int, random: np.random.Generator) -> Indices:
    length = frame_count // frames
    if length > 0:
        return np.arange(frames, dtype=np.int64) * length + random.integers(length, size=frames)
    # Fewer frames than parts: mmaction2 spreads the parts evenly and so repeats frames in order.
    return np.minimum(np.round(np.arange(frames) * (frame_count / frames)).astype(np.int64), frame_count - 1)


def _test_segments(frames: int, frame_count: int, clips: int) -> Indices:
    # Within its part, clip c is at phase 1/2 + c/clips, wrapped to [0, 1): the published 1/2, or 1/2 and 0 for two
    # clips.
    phases = (0.5 + np.arange(clips) / clips) % 1.0
    places = (np.arange(frames)[None, :] + phases[:, None]) * (frame_count / frames)
    return np.minimum(places.astype(np.int64), frame_count - 1)


def _refuse_empty(frame_count: int) -> None:
    if frame_count < 1:
        raise BadVideo("no_picture", f"a video of {frame_count} frames has no clip")
