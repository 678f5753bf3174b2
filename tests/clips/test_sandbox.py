"""The child process: verdicts on hostile files, limits of time and memory, crashes, and life after them."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from tests.clips import videos
from tests.clips.hostile import HOSTILE, LIMITS, bomb
from tpn_ray.clips import sandbox
from tpn_ray.clips.encode import EncodeConfig
from tpn_ray.clips.sandbox import Sandbox, SandboxLimits
from tpn_ray.clips.source_frames import Segment
from tpn_ray.errors import BadVideo, ConfigError, ResourceError


def verdict(box: Sandbox, path: Path, segment: Segment | None = None) -> tuple[str, str]:
    with pytest.raises(BadVideo) as caught:
        box.prepare(path, segment, EncodeConfig())
    return caught.value.reason, str(caught.value)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    path.write_bytes(videos.encode())
    return path


def test_every_kind_has_its_reason_and_the_next_video_is_well(good: Path, tmp_path: Path) -> None:
    with closing(Sandbox(LIMITS)) as box:
        expected = box.prepare(good, None, EncodeConfig())
        for name, (make, reason) in HOSTILE.items():
            path = tmp_path / name
            path.write_bytes(make())
            first = verdict(box, path)
            assert first[0] == reason, f"{name}: {first}"
            assert str(tmp_path) not in first[1], "a message must not depend on where the copy lay"
            if name != "bomb.mp4":
                assert verdict(box, path) == first
            assert box.prepare(good, None, EncodeConfig()) == expected


def test_memory(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    path.write_bytes(bomb(8, 4320, 8192))
    with closing(Sandbox(SandboxLimits(memory_gb=0.15))) as box:
        assert verdict(box, path) == ("too_large", "it takes more than 0.15 GB of memory")
        assert len(box.prepare(good, None, EncodeConfig()).times_us) == 60


def test_a_child_that_sleeps_or_crashes_or_is_ended(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = "from tpn_ray.clips.sandbox import serve; serve()"
    start = sandbox.subprocess.Popen
    program = ["import time; time.sleep(100)"]
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda command, **rest: start([*command[:-1], program[0]], **rest))
    with closing(Sandbox(SandboxLimits(wall_seconds=2))) as box:
        assert verdict(box, good) == ("timeout", "no reply within 2 s")
    with closing(Sandbox()) as box:
        program[0] = "import os; os.abort()"
        assert verdict(box, good) == ("damaged", "the decoder crashed on it (SIGABRT)")
        program[0] = serve
        assert box.prepare(good, None, EncodeConfig()).times_us
        assert box._child is not None
        expected = box.prepare(good, None, EncodeConfig())
        os.kill(box._child.pid, signal.SIGKILL)
        assert box.prepare(good, None, EncodeConfig()) == expected, "what is ended from outside is begun again"
        os.kill(box._child.pid, signal.SIGKILL)
        program[0] = "import os; os.kill(os.getpid(), 9)"
        with pytest.raises(ResourceError, match="ended from outside"):
            box.prepare(good, None, EncodeConfig())


def test_the_child_knows_no_secrets_and_writes_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    with closing(Sandbox()) as box:
        box.prepare(good, None, EncodeConfig())
        assert box._child is not None
        process = Path(f"/proc/{box._child.pid}")
        assert b"do-not-tell" not in (process / "environ").read_bytes()
        limits = (process / "limits").read_text()
        assert "Max file size             0 " in limits
        child = box._child
    assert child.poll() is not None, "it ends with the sandbox"


def test_what_nobody_foresaw_ends_its_video_and_not_the_job(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import tpn_ray.clips.sandbox as s; s.prepare_video = lambda *_: [][0]; s.serve()"
    start = sandbox.subprocess.Popen
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda command, **rest: start([*command[:-1], broken], **rest))
    with closing(Sandbox()) as box:
        assert verdict(box, good) == ("damaged", "it cannot be converted: IndexError: list index out of range")
        child = box._child
        assert verdict(box, good)[0] == "damaged"
        assert box._child is child, "the child lives on"


def test_segments(good: Path) -> None:
    with closing(Sandbox()) as box:
        assert len(box.prepare(good, Segment(0.4, 0.8), EncodeConfig()).times_us) == 10
        assert verdict(box, good, Segment(5, 6))[0] == "too_short"


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="cpu_seconds is 0"):
        SandboxLimits(cpu_seconds=0)
