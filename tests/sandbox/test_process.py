"""The child process: verdicts on hostile files, limits of time and memory, crashes, and life after them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.sandbox import misbehaviour
from tests.videos import videos
from tests.videos.hostile import HOSTILE, LIMITS, bomb
from tpn_ray.errors import BadVideo, ConfigError, ResourceError
from tpn_ray.prepare.shard_maker import prepare_confined
from tpn_ray.sandbox import process
from tpn_ray.sandbox.process import Sandbox, SandboxLimits
from tpn_ray.videos.encode import EncodeConfig, Prepared
from tpn_ray.videos.source_frames import Segment


def prepare(box: Sandbox, path: Path, segment: Segment | None = None) -> Prepared:
    return prepare_confined(box, path, segment, EncodeConfig())


def verdict(box: Sandbox, path: Path, segment: Segment | None = None) -> tuple[str, str]:
    with pytest.raises(BadVideo) as caught:
        prepare(box, path, segment)
    return caught.value.reason, str(caught.value)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    path.write_bytes(videos.encode())
    return path


def test_every_kind_has_its_reason_and_the_next_video_is_well(good: Path, tmp_path: Path) -> None:
    with closing(Sandbox(LIMITS)) as box:
        expected = prepare(box, good)
        for name, (make, reason) in HOSTILE.items():
            path = tmp_path / name
            path.write_bytes(make())
            first = verdict(box, path)
            assert first[0] == reason, f"{name}: {first}"
            assert str(tmp_path) not in first[1], "a message must not depend on where the copy lay"
            if name != "bomb.mp4":
                assert verdict(box, path) == first
            assert prepare(box, good) == expected


def test_memory(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    path.write_bytes(bomb(8, 4320, 8192))
    with closing(Sandbox(SandboxLimits(memory_gb=0.15))) as box:
        assert verdict(box, path) == ("too_large", "it takes more than 0.15 GB of memory")
        assert len(prepare(box, good).times_us) == 60


SOON = SandboxLimits(cpu_seconds=1, wall_seconds=120)


@pytest.mark.parametrize(
    ("function", "reason", "message"),
    [
        (misbehaviour.sleeps, "timeout", "no reply within 2 s"),
        (misbehaviour.computes, "timeout", "it takes more than 1 s of CPU time"),
        (misbehaviour.crashes, "damaged", "the decoder crashed on it (SIGABRT)"),
        (misbehaviour.fails, "decoder_error", "IndexError: list index out of range"),
        (misbehaviour.hoards, "too_large", "it takes more than 4 GB of memory"),
    ],
)
def test_whatever_a_video_does_to_its_child_is_a_finding(
    function: Callable[[bytes], object], reason: str, message: str
) -> None:
    limits = dataclasses.replace(SOON, wall_seconds=2) if function is misbehaviour.sleeps else SOON
    with closing(Sandbox(limits)) as box:
        with pytest.raises(BadVideo) as caught:
            box.call(function, b"")
        assert (caught.value.reason, str(caught.value)) == (reason, message)
        box.limits = SOON
        assert box.call(len, b"abc") == 3, "the next one is well"


def test_a_pause_makes_no_video_bad() -> None:
    """The child is stopped for longer than it may compute, and goes on."""
    with closing(Sandbox(SandboxLimits(cpu_seconds=1, wall_seconds=60))) as box, ThreadPoolExecutor(1) as pool:
        box.call(misbehaviour.answers, b"")
        under_way = pool.submit(box.call, misbehaviour.stops, b"")
        child = psutil.Process(box.child)
        while child.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        time.sleep(2)
        child.resume()
        assert under_way.result(60) == "well"


def test_a_child_that_is_ended_from_outside(good: Path) -> None:
    with closing(Sandbox(SOON)) as box:
        expected = prepare(box, good)
        child = psutil.Process(box.child)
        child.kill()
        assert prepare(box, good) == expected, "it is begun again"
        with pytest.raises(ResourceError, match="killed from outside"):
            box.call(misbehaviour.ends, b"")


def test_values_come_back_as_they_are() -> None:
    with closing(Sandbox(SOON)) as box:
        *plain, arrays = box.call(misbehaviour.answers, b"")
        assert plain == [None, True, 1, 0.1, "text", b"bytes", []]
        assert np.array_equal(arrays["a"], np.arange(6).reshape(2, 3))
        assert arrays["b"][0] == b"" and arrays["b"][1].shape == (0, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"no json",
        b'{"value": {"array": ["|O", [1], 0]}, "near_limit": false}',
        b'{"value": {"array": ["|u1", [99999999999], 0]}, "near_limit": false}',
        b'{"value": {"bytes": ["|u1", [4], -8]}, "near_limit": false}',
        b'{"value": {"array": ["|u1", [-4, -4], 0]}, "near_limit": false}',
        b'{"value": {"else": 1}, "near_limit": false}',
        b'{"value": ' + b"[" * 5000 + b"]" * 5000 + b', "near_limit": false}',
        b"{}",
    ],
)
def test_a_child_that_was_taken_over_can_only_spoil_its_video(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    start = process.subprocess.Popen
    program = f"""
import json, mmap, socket, sys
from tpn_ray.sandbox.channel import REPLY, SHARED_BYTES
channel, _, replies = json.loads(sys.argv[1])[1]
mmap.mmap(replies, SHARED_BYTES)[: {len(answer)}] = {answer!r}
channel = socket.socket(fileno=channel)
channel.sendall(REPLY.pack(b"r", 0, {len(answer)}))
channel.recv(100)
"""
    monkeypatch.setattr(
        process.subprocess, "Popen", lambda command, **rest: start([*command[:2], program, command[3]], **rest)
    )
    with closing(Sandbox(SOON)) as box, pytest.raises(BadVideo, match="impossible answer"):
        box.call(len, b"")


def test_a_stream_comes_one_by_one_and_can_be_left() -> None:
    before = psutil.Process().children()
    with closing(Sandbox(SOON)) as box:
        assert list(box.stream(misbehaviour.counts, b"", 2)) == [0, 1]
        items = box.stream(misbehaviour.counts, b"", 9)
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BadVideo, match="three"):
            next(items)
        left = box.stream(misbehaviour.counts, b"", 9)
        assert next(left) == 0
        left.close()
    assert psutil.Process().children() == before


@pytest.mark.parametrize("rows", [4, 256, 40_000], ids=["copied", "in place", "more than is kept"])
def test_pixels_stay_what_they_are_for_as_long_as_they_are_held(rows: int) -> None:
    """Later videos are decoded into the same memory, and the child may be ended."""
    shape, held = (rows, 1000), []
    with closing(Sandbox(SOON)) as box:
        for color in range(80 if rows < 1000 else 3):
            arrays = box.call(misbehaviour.paints, b"", shape, color)
            held.append(arrays[:: 1 if color % 2 else 2])
            if color % 7 == 3:  # leave gaps
                held[color // 2] = []
    for color, arrays in enumerate(held):
        colors = [color, color + 1, color] if color % 2 else [color, color]
        assert [set(np.unique(array)) for array in arrays] == [{one} for one in colors[: len(arrays)]]
    assert [array.shape[0] for array in held[-1]] == ([rows, rows - 2] if len(held) % 2 else [rows, rows, rows - 2])


def test_memory_of_pixels_that_are_no_longer_held_is_used_again() -> None:
    shape = (1000, 1000)
    with closing(Sandbox(SOON)) as box:
        places = set()
        for color in range(200):  # far more than is kept
            made, _, part = box.call(misbehaviour.paints, b"", shape, color % 250)
            places.add(made.__array_interface__["data"][0])
            del made  # a view of it is still held
            assert set(np.unique(part)) == {color % 250}
        assert len(places) < 5


def test_a_stream_may_keep_its_pixels() -> None:
    with closing(Sandbox(SOON)) as box:
        first, (again, second) = box.stream(misbehaviour.paints_each, b"", (300, 1000))
        assert [set(np.unique(array)) for array in (first, again, second)] == [{1}, {1}, {2}]


def test_a_large_video_does_not_stay_in_memory() -> None:
    def shared() -> dict[str, int]:
        """Blocks of each piece of shared memory that this process has open."""
        files = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
        return {str(file): file.stat().st_blocks for file in files if os.path.realpath(file).startswith("/memfd:")}

    before = shared()
    with closing(Sandbox(SOON)) as box:
        large = bytes(process.KEPT_BYTES + 1)
        assert box.call(bytes, large) == large
        assert {blocks for file, blocks in shared().items() if file not in before} == {0}


def test_the_child_knows_no_secrets_and_writes_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    with closing(Sandbox(SandboxLimits())) as box:
        prepare(box, good)
        child = psutil.Process(box.child)
        process = Path(f"/proc/{child.pid}")
        assert b"do-not-tell" not in (process / "environ").read_bytes()
        assert "Max file size             0 " in (process / "limits").read_text()
        assert not box.confinement().missing, "on this machine everything holds"
    assert not child.is_running(), "it ends with the sandbox"


def test_segments(good: Path) -> None:
    with closing(Sandbox(SandboxLimits())) as box:
        assert len(prepare(box, good, Segment(0.4, 0.8)).times_us) == 10
        assert verdict(box, good, Segment(5, 6))[0] == "too_short"


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="cpu_seconds is 0"):
        SandboxLimits(cpu_seconds=0)
