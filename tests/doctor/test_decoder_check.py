from __future__ import annotations

import numpy as np
import pytest

from tpn_ray.doctor import decoder_check
from tpn_ray.doctor.decoder_check import decoder_self_test
from tpn_ray.videos.decode import Video


def test_a_sound_decoder_is_trusted() -> None:
    report = decoder_self_test()
    assert report.trusted
    assert report == decoder_self_test()


def test_a_decoder_that_gives_the_neighbouring_frame_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Video.frames
    monkeypatch.setattr(Video, "frames", lambda video, indices: right(video, [max(0, one - 1) for one in indices]))
    report = decoder_self_test()
    assert report.error > decoder_check.TOLERANCE
    assert not report.trusted


def test_pixels_that_depend_on_what_else_is_wanted_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Video.frames
    monkeypatch.setattr(Video, "frames", lambda video, indices: right(video, indices) ^ np.uint8(len(indices) & 1))
    report = decoder_self_test()
    assert not report.exact
    assert not report.trusted
