"""Self-test of the decoder with a small synthetic H.264 clip. Runs where clips are decoded."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpn_ray.datasets.toy import ToyConfig, encode_toy
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.encode import EncodeConfig, prepare_video
from tpn_ray.videos.packets import DecodeLimits

FRAMES, SIDE_PX = 40, 64
WANTED = (37, 3, 17, 18, 3)
"""Frame indices out of order, with neighbors and a repetition: the decoder skips frames in between."""
TOLERANCE = 4.0
"""Levels of brightness by which the mean of a frame may be off; neighboring frames are 5 apart."""


@dataclass(frozen=True)
class DecoderReport:
    """How the decoded frames compare with the drawn ones."""

    error: float
    """Largest difference of a frame's brightness from what was drawn, in levels of 256."""
    exact: bool
    """Whether selected frames equal those of a full decode bit for bit."""
    digest: str
    """Digest of the decoded pixels: the same on all machines that decode alike."""

    @property
    def trusted(self) -> bool:
        return self.error <= TOLERANCE and self.exact


def decoder_self_test() -> DecoderReport:
    """Encode, prepare, and decode the clip. Raises BadVideo, or what the libraries raise, if that fails."""
    config = ToyConfig(frames=FRAMES, size_px=SIDE_PX)
    source = encode_toy(drawn(), config)
    stored = prepare_video(io.BytesIO(source), None, EncodeConfig(short_side_px=SIDE_PX), DecodeLimits()).video
    with open_video(stored) as video:
        picked = video.frames(WANTED)
        every = video.frames(range(video.frame_count))
    expected = np.array([brightness(index) for index in WANTED])
    error = float(np.abs(picked.mean(axis=(1, 2, 3)) - expected).max())
    exact = bool(np.array_equal(picked, every[list(WANTED)]))
    return DecoderReport(error, exact, hashlib.sha256(picked.tobytes()).hexdigest()[:16])


def brightness(index: int) -> int:
    """Return the gray level of a drawn frame."""
    return 30 + 5 * index


def drawn() -> NDArray[np.uint8]:
    """Draw the frames (t, h, w, 3), each a ramp around the gray level that identifies it."""
    greys = np.array([brightness(index) for index in range(FRAMES)], dtype=np.int64)
    ramp = np.arange(SIDE_PX) - SIDE_PX // 2
    frames = np.clip(greys[:, None, None, None] + ramp[None, None, :, None] // 2, 0, 255)
    return np.broadcast_to(frames, (FRAMES, SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
