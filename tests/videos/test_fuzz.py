"""Mutated videos of every container that the documents name: each is decoded or a finding, and never anything else.

`pytest -m long tests/videos/test_fuzz.py` tries 20,000; `make test` tries a few.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing

import pytest

from tests.videos import videos
from tpn_ray import recipes
from tpn_ray.clips import decoding
from tpn_ray.clips.views import parse_views
from tpn_ray.errors import REASONS, BadVideo
from tpn_ray.sandbox.process import Sandbox, SandboxLimits

FORMS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "mp4": ("libx264", "mp4", "yuv420p", {"preset": "ultrafast", "bf": "2"}),
    "mp4 hevc": ("libx265", "mp4", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "mp4 4:4:4": ("libx264", "mp4", "yuv444p", {"preset": "ultrafast"}),
    "mov": ("mjpeg", "mov", "yuvj420p", {}),
    "mkv": ("libx264", "matroska", "yuv420p", {"preset": "ultrafast"}),
    "webm": ("libvpx", "webm", "yuv420p", {}),
    "avi": ("mpeg4", "avi", "yuv420p", {}),
    "avi ffv1": ("ffv1", "avi", "yuv420p", {}),
    "mpegts": ("mpeg2video", "mpegts", "yuv420p", {}),
    "mpegts h264": ("libx264", "mpegts", "yuv420p", {"preset": "ultrafast"}),
    "mpeg": ("mpeg1video", "mpeg", "yuv420p", {}),
    "flv": ("flv", "flv", "yuv420p", {}),
    "asf": ("wmv2", "asf", "yuv420p", {}),
    "ogg": ("libvpx", "ogg", "yuv420p", {}),
    "gif": ("gif", "gif", "rgb8", {}),
    "mxf": ("mpeg2video", "mxf", "yuv420p", {}),
    "nut": ("rawvideo", "nut", "rgb24", {}),
    "m4v": ("mpeg4", "m4v", "yuv420p", {}),
    "h264": ("libx264", "h264", "yuv420p", {"preset": "ultrafast"}),
    "ivf": ("libvpx", "ivf", "yuv420p", {}),
}
"""Name -> codec, container, pixels, options of the encoder."""

LIMITS = SandboxLimits(cpu_seconds=10, memory_gb=2.0)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The file with some bytes changed, at its head, its tail or anywhere, and sometimes cut short."""
    made = bytearray(data)
    near = min(2000, len(made))
    zone = draw.choice([(0, len(made)), (0, near), (len(made) - near, len(made))])
    for _ in range(draw.choice([1, 1, 2, 4, 16, 64])):
        at = draw.randrange(*zone)
        made[at] = draw.choice([0, 255, 127, 128, draw.randrange(256), made[at] ^ (1 << draw.randrange(8))])
    return bytes(made[: draw.randrange(1, len(made))] if draw.random() < 0.1 else made)


@pytest.mark.parametrize("count", [100, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(7200)])])
def test_no_mutated_video_raises_anything_but_a_finding(count: int) -> None:
    recipe, views = recipes.toy(), parse_views("2x3")
    draw, found = random.Random(1), Counter[str]()
    seeds = [
        videos.encode(codec, container, frames=24, pixel_format=pixels, options=options)
        for codec, container, pixels, options in FORMS.values()
    ]
    with closing(Sandbox(LIMITS)) as box:
        for number in range(count):
            data = mutated(seeds[number % len(seeds)], draw)
            developed = draw.random() < 0.5
            try:
                box.call(decoding.training_clips, data, recipe.clip, recipe.augment, (0, 0, number, 0), developed)
                if number % 4 == 0:
                    box.call(decoding.seen, data, views, recipe.clip, recipe.augment)
                found["well"] += 1
            except BadVideo as bad:
                found[bad.reason] += 1
                assert bad.reason != "decoder_error", f"mutation {number} of {list(FORMS)[number % len(seeds)]}: {bad}"
    print(dict(found))
    assert found.keys() <= REASONS.keys() | {"well"}
    assert found["well"] and found["damaged"], "some survive, and some do not"
