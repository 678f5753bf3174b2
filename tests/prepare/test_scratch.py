"""Folders for fetched sources: gone with their task, and with their process at the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tpn_ray.prepare.scratch import PREFIX, scratch_folder

HOLD = """
from tpn_ray.prepare.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "0").write_bytes(b"half of a video")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_removed_at_the_end(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        (folder / "0").write_bytes(b"video")
        assert folder.name.startswith(PREFIX)
        with scratch_folder() as other:
            assert other != folder
            assert (folder / "0").exists(), "what is held is not touched"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_at_the_next_start() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout
    left = Path(process.stdout.readline().strip())
    assert (left / "0").exists()
    with scratch_folder():
        assert left.exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert left.exists()
    with scratch_folder():
        assert not left.exists()
