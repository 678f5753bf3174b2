from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.data import share
from tpn_ray.data.share import Shelf


def block(value: int, reason: str = "", size: int = 10) -> Rows:
    return {
        rows.CLIP: np.full((1, size), value, dtype=np.uint8),
        rows.REASON: np.array([reason], dtype=np.str_),
        rows.MESSAGE: np.array([""], dtype=np.str_),
    }


def same(one: Rows, other: Rows) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def never() -> Rows:
    raise AssertionError("it was on the shelf")


def test_a_block_is_made_once_and_comes_back_as_it_was(tmp_path: Path) -> None:
    shelf = Shelf(limit_bytes=10**6, folder=str(tmp_path))
    assert same(shelf.get("a", lambda: block(1)), block(1))
    assert same(shelf.get("a", never), block(1))
    assert same(shelf.get("b", lambda: block(2)), block(2))


def test_those_who_want_it_at_the_same_time_wait_for_the_first(tmp_path: Path) -> None:
    shelf, made, got = Shelf(limit_bytes=10**6, folder=str(tmp_path)), list[int](), list[Rows]()

    def make() -> Rows:
        made.append(1)
        time.sleep(0.2)
        return block(7)

    threads = [threading.Thread(target=lambda: got.append(shelf.get("a", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(got) == 8
    assert all(same(one, block(7)) for one in got)


def test_nobody_waits_for_ever_for_a_process_that_is_gone(tmp_path: Path, monkeypatch: object) -> None:
    shelf = Shelf(limit_bytes=10**6, folder=str(tmp_path))
    shelf.get("a", lambda: block(1))
    (stored,) = tmp_path.glob("*.npz")
    stored.rename(tmp_path / "away")
    stored.with_suffix(".claim").touch()
    monkeypatch.setattr(share, "WAIT_SECONDS", 0.1)  # type: ignore[attr-defined]
    assert same(shelf.get("a", lambda: block(3)), block(3))
    assert same(shelf.get("a", lambda: block(4)), block(4))  # the claim was lifted
    assert same(shelf.get("a", never), block(4))


def test_a_torn_block_is_made_again_and_a_bad_video_is_not_kept(tmp_path: Path) -> None:
    shelf = Shelf(limit_bytes=10**6, folder=str(tmp_path))
    shelf.get("a", lambda: block(1))
    (stored,) = tmp_path.glob("*.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    assert same(shelf.get("a", lambda: block(2)), block(2))
    shelf.get("bad", lambda: block(0, reason="unreadable"))
    assert same(shelf.get("bad", lambda: block(5)), block(5))


def test_the_oldest_make_room(tmp_path: Path) -> None:
    shelf = Shelf(limit_bytes=35_000, folder=str(tmp_path))
    for number in range(3):
        shelf.get(f"{number}", lambda: block(1, size=10_000))
        time.sleep(0.02)
    shelf.get("0", never)  # wanted again: not the oldest any more
    time.sleep(0.02)
    shelf.get("3", lambda: block(1, size=10_000))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.npz")) <= 35_000
    shelf.get("0", never)
    shelf.get("3", never)
    assert same(shelf.get("1", lambda: block(9)), block(9))
