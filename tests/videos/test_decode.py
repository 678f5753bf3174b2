"""Decoding: wanted frames are bit for bit those of a full decode, whatever the codec; bad files have their reason."""

from __future__ import annotations

import functools
import io
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.videos import hostile, videos
from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.videos.decode import DecodeLimits, Video, open_video
from tpn_ray.videos.planes import Cut, whole


@functools.cache
def made(name: str) -> tuple[bytes, NDArray[np.uint8]]:
    data = videos.MADE[name]()
    return data, videos.decode_all(data)


@pytest.mark.parametrize("name", videos.MADE)
def test_wanted_frames_are_those_of_a_full_decode(name: str) -> None:
    data, full = made(name)
    random = np.random.default_rng(0)
    with open_video(data) as video:
        assert video.frame_count == len(full)
        assert (video.height, video.width) == full.shape[1:3]
        np.testing.assert_array_equal(video.frames(range(len(full))), full)
        for index in range(len(full)):
            np.testing.assert_array_equal(video.frames([index])[0], full[index], err_msg=f"frame {index}")
        for _ in range(10):
            wanted = random.integers(0, len(full), random.integers(1, 9))
            np.testing.assert_array_equal(video.frames(wanted), full[wanted], err_msg=str(wanted))
        for stride in (1, 3, 8):
            wanted = (random.integers(len(full)) + np.arange(8) * stride) % len(full)
            np.testing.assert_array_equal(video.frames(wanted), full[wanted], err_msg=str(wanted))


def test_each_frame_is_decoded_once_and_needless_ones_are_not() -> None:
    data, full = made("h264 non-reference B")
    with open_video(data) as video:
        fed = packets_fed(video)
        video.frames([40, 40, 40])
        # Frame 32 is the keyframe and 40 the next anchor: the seven B-frames between them are left out.
        assert fed.pop() <= 3
        video.frames(range(0, 60, 8))
        assert sum(fed) <= 12
        np.testing.assert_array_equal(video.frames([5, 5, 3, 59]), full[[5, 5, 3, 59]])


def packets_fed(video: Video) -> list[int]:
    """A list that grows by the number of packets of each decoder run."""
    fed: list[int] = []
    decode = video.decoded

    def counted(chosen):  # type: ignore[no-untyped-def]
        fed.append(len(chosen))
        return decode(chosen)

    video.decoded = counted  # type: ignore[method-assign]
    return fed


@pytest.mark.parametrize(("rotation", "corner"), [(0, "left top"), (90, "left bottom"), (180, "right bottom")])
def test_rotation_is_applied_as_players_do(rotation: int, corner: str) -> None:
    def white_corner(_: int, height: int, width: int) -> NDArray[np.uint8]:
        frame = np.zeros((height, width, 3), dtype=np.uint8)
        frame[: height // 2, : width // 2] = 255
        return frame

    data = videos.encode(frames=3, rotation=rotation, draw=white_corner)
    with open_video(data) as video:
        frame = video.frames([1])[0].mean(axis=-1)
    height, width = frame.shape
    assert (height > width) == (rotation == 90)
    places = {
        "left top": frame[:9, :9],
        "right bottom": frame[-9:, -9:],
        "left bottom": frame[-9:, :9],
        "right top": frame[:9, -9:],
    }
    assert max(places, key=lambda place: places[place].mean()) == corner


def test_indices_outside_the_video_are_refused() -> None:
    with open_video(made("h264")[0]) as video:
        for wrong in ([60], [-1], [0, 61]):
            with pytest.raises(IndexError, match="of a video of 60"):
                video.frames(wrong)
        with pytest.raises(ValueError, match="no frame indices"):
            video.frames([])


def test_an_edit_list_hides_frames() -> None:
    data = videos.encode(b_frames=2, times=[n * 40 - 400 for n in range(60)])
    full = videos.decode_all(data)
    with open_video(data) as video:
        assert video.frame_count == len(full)
        np.testing.assert_array_equal(video.frames(range(len(full))), full)


def test_a_transport_stream_cut_in_its_middle() -> None:
    data = made("h264 ts open GOP")[0]
    cut = data[len(data) // 3 // 188 * 188 :]
    full = videos.decode_all(cut)
    with open_video(cut) as video:
        got = video.frames(range(video.frame_count))
    # The plain decoder may show some damaged frames before the first keyframe; from there on they agree.
    np.testing.assert_array_equal(got, full[-len(got) :])


# --- bad videos


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    return file.getvalue()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes, begin: int) -> bytes:
    """The file with 20 bits turned over after byte `begin`."""
    random, damaged = np.random.default_rng(1), bytearray(data)
    for place in random.integers(begin, len(data), 20):
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def front(**options: str) -> bytes:
    """An MP4 with its index in front, so that a cut file still opens."""
    return videos.encode(b_frames=2, container_options={"movflags": "faststart"}, **options)  # type: ignore[arg-type]


BAD = {
    "nothing": (lambda: b"", "empty"),
    "noise": (lambda: np.random.default_rng(0).bytes(20_000), "not_video"),
    "zeros": (lambda: bytes(10_000), "not_video"),
    "web page": (lambda: b"<!DOCTYPE html><html><body>404</body></html>" * 50, "not_video"),
    "sound only": (videos.audio_only, "not_video"),
    "photo": (lambda: image("jpeg"), "not_video"),
    "drawing": (lambda: image("png"), "not_video"),
    "mp4 cut, index lost": (lambda: cut(videos.encode()), "truncated"),
    "mp4 cut, index kept": (lambda: cut(front()), "truncated"),
    "mp4 short of a byte": (lambda: front()[:-1], "truncated"),
    "webm cut": (lambda: cut(videos.encode("libvpx", "webm")), "truncated"),
    "avi cut": (lambda: cut(videos.encode("mpeg4", "avi")), "truncated"),
    "mp4 with flipped bits": (lambda: flipped(front(), 3000), "damaged"),
    "mkv with flipped bits": (lambda: flipped(videos.encode(container="matroska", b_frames=2), 1000), "damaged"),
    "avi with flipped bits": (lambda: flipped(videos.encode("mpeg4", "avi"), 1000), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.timeout(20)
def test_a_bad_video_has_its_reason(name: str) -> None:
    make, reason = BAD[name]
    data = make()
    for _ in range(2):  # the same verdict every time
        with pytest.raises(BadVideo) as caught, open_video(data) as video:
            video.frames(range(video.frame_count))
        assert caught.value.reason == reason, str(caught.value)
        assert len(str(caught.value)) > 10
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason  # noqa: S301


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", videos.MADE)
def test_damage_anywhere_is_a_verdict_and_never_a_hang(name: str) -> None:
    """Bytes changed, cut off or taken out at random: frames or BadVideo, and the same again at a second look."""
    whole = made(name)[0]
    for seed in range(25):
        data = spoiled(whole, np.random.default_rng(seed))
        assert verdict(data, seed) == verdict(data, seed)


def spoiled(whole: bytes, random: np.random.Generator) -> bytes:
    data = bytearray(whole)
    kind, (begin, end) = random.integers(3), sorted(random.integers(1, len(data), 2))
    if kind == 0:
        for place in random.integers(0, len(data), random.integers(1, 30)):
            data[place] = random.integers(256)
        return bytes(data)
    return bytes(data[:end]) if kind == 1 else bytes(data[:begin] + data[end:])


def verdict(data: bytes, seed: int) -> str | bytes:
    try:
        with open_video(data) as video:
            return video.frames(np.random.default_rng(seed).integers(0, video.frame_count, 8)).tobytes()
    except BadVideo as bad:
        return bad.reason


def test_colours_that_cannot_be_converted() -> None:
    with open_video(hostile.colours()) as video:
        assert video.planes([0]) is None
        with pytest.raises(BadVideo, match=r"cannot be converted to RGB \(matrix 8 of yuv420p") as caught:
            video.frames([0])
    assert caught.value.reason == "no_picture"


def test_limits() -> None:
    data = made("h264")[0]
    for limits, message in (
        (DecodeLimits(max_bytes=1000), "bytes, the limit is 1000"),
        (DecodeLimits(max_pixels=64 * 47), "64 x 48 pixels"),
        (DecodeLimits(max_frames=59), "more than 59 frames"),
    ):
        with pytest.raises(BadVideo, match=message) as caught, open_video(data, limits):
            pass
        assert caught.value.reason == "too_large"
    with pytest.raises(BadVideo) as caught, open_video(data, DecodeLimits(max_seconds=1e-9)):
        pass
    assert caught.value.reason == "timeout"
    with pytest.raises(ConfigError, match="max_frames is 0"):
        DecodeLimits(max_frames=0)


def test_ffmpeg_opens_nothing_but_the_bytes(tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(videos.encode(container="mpegts"))
    playlists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {secret}\n",
        f"ffconcat version 1.0\nfile 'subfile,,start,0,end,99,,:{secret}'\n",
    ]
    for playlist in playlists:
        with pytest.raises(BadVideo) as caught, open_video(playlist.encode()):
            pass
        assert caught.value.reason == "not_video"
    with av.open(str(secret)) as container:  # the file itself is fine
        assert container.streams.video


# --- planes


def test_planes_are_the_decoders_own() -> None:
    data = made("h264 non-reference B")[0]
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]  # one above the other: y, u, v
    wanted = np.array([40, 3, 3, 59, 20])
    with open_video(data) as video:
        full = video.planes(wanted)
        part = video.planes(wanted, lambda height, width: (8, 4, height - 2, width - 6))
    assert full is not None
    assert part is not None
    for place, index in enumerate(wanted):
        stacked = np.concatenate([plane[place].reshape(-1, 64) for plane in full[:3]])
        np.testing.assert_array_equal(stacked, frames[index])
    np.testing.assert_array_equal(part.y, full.y[:, 8:-2, 4:-6])
    np.testing.assert_array_equal(part.v, full.v[:, 4:-1, 2:-3])


def test_clips_of_one_pass_are_those_of_several() -> None:
    data = made("h264 non-reference B")[0]
    wanted = [np.array([40, 3, 3]), np.array([3, 40, 59]), np.array([40])]
    cuts: list[Cut] = [whole, lambda height, width: (8, 4, height - 2, width - 6), lambda height, width: (0, 0, 2, 2)]
    with open_video(data) as video:
        together = video.clip_planes(wanted, cuts)
        alone = [video.planes(indices, cut) for indices, cut in zip(wanted, cuts, strict=True)]
        refused = video.clip_planes(wanted, [whole, lambda height, width: None, whole])
        fed = packets_fed(video)
        video.clip_planes(wanted, cuts)
        at_once = sum(fed)
        video.decode_only([3, 40, 59])
        assert at_once == sum(fed) - at_once, "each frame is decoded once"
    assert together is not None
    for one, other in zip(together, alone, strict=True):
        assert other is not None
        assert one[3:] == other[3:]
        for plane, expected in zip(one[:3], other[:3], strict=True):
            np.testing.assert_array_equal(plane, expected)
    assert refused is None


@pytest.mark.parametrize("name", ["h264 4:4:4", "h264 10 bit", "h264 odd size", "h264 rotated 90", "gif"])
def test_other_pictures_have_no_planes(name: str) -> None:
    with open_video(made(name)[0]) as video:
        assert video.planes([0]) is None
        np.testing.assert_array_equal(video.frames([0])[0], made(name)[1][0])
