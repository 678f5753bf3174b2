"""What a prediction is asked for: files, lists, folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray.errors import ManifestError, NotFoundError
from tpn_ray.predict.videos import find_videos

SETS = {"action": ("run", "walk")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MKV", "deep/c.webm", "._b.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(folder: Path, *named: str) -> list[str]:
    return [uri[len(str(folder)) + 1 :] for uri in find_videos([str(folder / one) for one in named], SETS).uris]


def test_a_folder_gives_its_videos_at_every_depth(folder: Path) -> None:
    assert names(folder, "") == ["a.MKV", "b.mp4", "deep/c.webm"]


def test_files_keep_their_order_and_come_once(folder: Path) -> None:
    assert names(folder, "b.mp4", "a.MKV", "b.mp4", "deep", "gone.mp4") == ["b.mp4", "a.MKV", "deep/c.webm", "gone.mp4"]


def test_lists(folder: Path) -> None:
    (folder / "list.txt").write_text(f"# mine\ndeep/c.webm\n\n{folder}/b.mp4\n")
    (folder / "list.csv").write_text("label,uri\nrun,a.MKV\n")
    assert names(folder, "list.txt", "list.csv") == ["deep/c.webm", "b.mp4", "a.MKV"]
    (folder / "wrong.csv").write_text("path\na.MKV\n")
    with pytest.raises(ManifestError, match="has no column uri; its first line is 'path'"):
        names(folder, "wrong.csv")


def test_nothing_is_said_so(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ManifestError, match="no videos"):
        names(folder, "empty")
    with pytest.raises(NotFoundError):
        names(folder, "absent")


def test_they_have_the_classes_of_the_checkpoint_and_no_labels(folder: Path) -> None:
    manifest = find_videos([str(folder)], SETS)
    assert manifest.label_sets == SETS
    assert manifest.labels.tolist() == [[-1]] * 3
