"""Contact sheets: clips as strips of frames, each with a line of text. Runs anywhere, without Ray."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tpn_ray.clips import decoding
from tpn_ray.clips.augment import AugmentConfig, test_view
from tpn_ray.clips.sampling import ClipConfig
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.datasets.reader import fetch
from tpn_ray.errors import BadVideo

FRAMES, SIDE_PX, TEXT_PX, GAP_PX = 8, 96, 18, 3


@dataclass(frozen=True)
class Strip:
    """One clip and its caption."""

    text: str
    frames: NDArray[np.uint8]
    """(t, h, w, 3), or flow (t, h, w, 2)"""


def sheet(strips: Sequence[Strip]) -> bytes:
    """Return a PNG with one strip below another; longer clips show FRAMES evenly spaced frames."""
    columns = max((min(len(strip.frames), FRAMES) for strip in strips), default=1)
    high, font = TEXT_PX + SIDE_PX + GAP_PX, ImageFont.load_default(12)
    # Text is never cut off, and is often wider than a strip of one frame.
    wide = max([columns * (SIDE_PX + GAP_PX), *(int(font.getlength(strip.text)) + 5 for strip in strips)])
    picture = Image.new("RGB", (wide, max(1, len(strips)) * high), "white")
    draw = ImageDraw.Draw(picture)
    for row, strip in enumerate(strips):
        draw.text((2, row * high + 2), strip.text, fill="black", font=font)
        places = np.linspace(0, len(strip.frames) - 1, min(len(strip.frames), FRAMES)).round().astype(int)
        for column, place in enumerate(places.tolist()):
            tile = Image.fromarray(_colored(strip.frames[place])).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
            picture.paste(tile, (column * (SIDE_PX + GAP_PX), row * high + TEXT_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _colored(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame in RGB; of flow, red is x and green is y, and gray is no flow."""
    return frame if frame.shape[2] == 3 else np.dstack([frame, np.full(frame.shape[:2], 128, np.uint8)])


def whole_videos(manifest: Manifest, chosen: Sequence[tuple[int, str]], config: AugmentConfig) -> list[Strip]:
    """Return frames spread over each of these videos, given as (sample, text). Videos that cannot be read anymore are
    left out."""
    strips, spread = [], ClipConfig(frames=FRAMES, sampling="segments")
    decode = decoding.decoder_of(manifest.placement is not None)
    for sample, text in chosen:
        try:
            frames = decode(decoding.spread_frames, fetch(manifest, sample), spread, config)
        except BadVideo:
            continue
        strips.append(Strip(text, test_view(frames, config)))
    return strips
