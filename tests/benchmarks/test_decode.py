"""The decoding benchmark: it measures what it says, and refuses to time wrong frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decode, decode_readers
from benchmarks.decode import DecodeBench, measure_decode
from benchmarks.decode_videos import Stored
from tests.videos import videos
from tpn_ray.errors import ConfigError


def test_a_folder_is_measured_in_all_forms(tmp_path: Path) -> None:
    for name in ("run", "jump"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "a.mp4").write_bytes(videos.encode(frames=70, gop=20, b_frames=2))
    figures = tmp_path / "figures.json"
    options = {"videos": str(tmp_path / "videos"), "cache": str(tmp_path / "cache"), "against": (), "rounds": 2}
    report = measure_decode(DecodeBench(**options, clips=1, json=str(figures)))  # type: ignore[arg-type]
    assert {"tpn_ray planes prepared 8x8", "tpn_ray rgb prepared 32x2"} <= report.milliseconds.keys()
    assert report.videos == 2, "of the same name, in two folders"
    assert report.bytes_over_gop12["gop12"] == 1
    assert min(report.psnr_db.values()) > 30
    assert json.loads(figures.read_text())["ratios"] == report.ratios
    assert "every_frame_once_over_ten_clips" in report.ratios
    assert "of GOP-12's bytes" in str(report)


def test_folders_without_usable_videos(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ConfigError, match=r"holds no videos \(\.mp4"):
        measure_decode(DecodeBench(videos=str(tmp_path), cache=str(tmp_path / "cache")))
    (tmp_path / "sound.mp4").write_bytes(videos.audio_only())
    with pytest.raises(ConfigError, match=r"sound\.mp4 cannot be measured: there is no video stream"):
        measure_decode(DecodeBench(videos=str(tmp_path), cache=str(tmp_path / "cache")))


def test_promised_ratios_compare_with_torchcodec() -> None:
    readers = dict.fromkeys(("torchcodec", "decord", "opencv"), decode_readers.read_rgb)
    seconds = {case.name: [2.0, 3.0] for case in decode.make_cases(readers)}
    seconds["tpn_ray planes prepared 8x8"] = [0.5, 1.0]
    ratios = decode.ratios_of(seconds)
    assert ratios["prepared_8x8_over_torchcodec_gop12"] == [4.0, 3.0]
    assert {"prepared_8x8_rgb_over_torchcodec_gop12", "raw_gop250_8x8_over_torchcodec"} <= ratios.keys()


def test_other_frames_are_not_timed() -> None:
    def wrong(data: bytes, indices: np.ndarray) -> object:  # type: ignore[type-arg]
        return np.asarray(decode_readers.read_rgb(data, indices))[::-1]

    video = Stored("a", videos.encode(frames=70), 70, 40.0)
    case = decode.Case("wrong gop12 8x8", "8x8", "gop12", wrong)
    with pytest.raises(ConfigError, match="wrong gop12 8x8 gives other pixels for frame"):
        decode.check([case], {"gop12": [video]})


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown decoder 'mplayer'; known: torchcodec"):
        DecodeBench(against=("mplayer",))
    with pytest.raises(ConfigError, match="rounds=0"):
        DecodeBench(rounds=0)
    with pytest.raises(ConfigError, match="its folder is not there; make it first"):  # not after all the measuring
        DecodeBench(json="nowhere/figures.json")
