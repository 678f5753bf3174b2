"""Manifests from folders and CSVs: what they hold, that they stay stable, and that mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import s3_server
from tpn_ray import storage
from tpn_ray.datasets.entries import Entry, derive_splits, split_by_name
from tpn_ray.datasets.manifest import Manifest, build, load_manifest
from tpn_ray.errors import ConfigError, ManifestError, NotFoundError


def put(folder: Path, *names: str) -> str:
    """Files that look like videos to a listing; their bytes are their names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return str(folder)


def many(count: int, *classes: str) -> list[str]:
    return [f"{label}/{number:03d}.mp4" for label in classes for number in range(count)]


def rows(manifest: Manifest) -> dict[str, tuple[str, str]]:
    names = manifest.label_sets["action"]
    return {
        id: (names[label], split)
        for id, label, split in zip(manifest.ids, manifest.labels[:, 0], manifest.splits, strict=True)
    }


def test_one_folder_per_class(tmp_path: Path) -> None:
    manifest = load_manifest(
        put(tmp_path, *many(100, "run", "jump"), "jump/readme.txt", "jump/._001.mp4", "jump/deep/x.WEBM")
    )
    assert len(manifest) == 201
    assert manifest.label_sets == {"action": ("jump", "run")}
    assert manifest.labels.shape == (201, 1)
    assert manifest.ids == sorted(manifest.ids)
    assert manifest.uris[0] == str(tmp_path / manifest.ids[0])
    assert rows(manifest)["jump/deep/x.WEBM"][0] == "jump"
    assert 20 < len(manifest.select("val")) < 60
    val = manifest.select("val")
    assert set(val.splits) == {"val"}
    assert val.version == manifest.version
    assert len(val) + len(manifest.select("train")) == 201
    with pytest.raises(ManifestError, match="no videos in split 'test'; it has train, val"):
        manifest.select("test")


def test_given_splits(tmp_path: Path) -> None:
    names = ["train/run/1.mp4", "train/jump/2.avi", "val/run/1.mp4", "test/jump/9.mov"]
    manifest = load_manifest(put(tmp_path, *names))
    assert rows(manifest) == {
        "train/run/1.mp4": ("run", "train"),
        "train/jump/2.avi": ("jump", "train"),
        "val/run/1.mp4": ("run", "val"),
        "test/jump/9.mov": ("jump", "test"),
    }


def test_csv(tmp_path: Path) -> None:
    put(tmp_path, "videos/a.mp4", "videos/b, c.mp4", "elsewhere/d.mp4")
    table = tmp_path / "list.csv"
    table.write_text(
        f'\ufeffuri, label,split,note\nvideos/a.mp4,3,train,x\n"videos/b, c.mp4",10,train,\n\n'
        f"{tmp_path}/elsewhere/d.mp4,3,val,y\n"
    )
    manifest = load_manifest(str(table))
    assert manifest.label_sets == {"action": ("10", "3")}, "numbers stay names"
    assert rows(manifest)["videos/b, c.mp4"] == ("10", "train")
    assert manifest.uris[manifest.ids.index("videos/a.mp4")] == str(tmp_path / "videos/a.mp4")
    assert manifest.select("val").uris == [str(tmp_path / "elsewhere/d.mp4")]


def test_derived_splits_do_not_move(tmp_path: Path) -> None:
    entries = [Entry(name, name, (name[:3],)) for name in many(200, "run", "hop")]
    before = dict(zip([entry.id for entry in entries], derive_splits(entries, 0.2), strict=True))
    fewer = [entry for number, entry in enumerate(entries) if number % 3]
    after = dict(zip([entry.id for entry in fewer], derive_splits(fewer, 0.2), strict=True))
    assert all(before[id] == split for id, split in after.items())
    assert 0.15 < list(before.values()).count("val") / 400 < 0.25


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_of_few_videos_can_be_trained_and_tested(count: int) -> None:
    for label in "abcdefghij":
        splits = derive_splits([Entry(f"{label}/{n}.mp4", "", (label,)) for n in range(count)], 0.2)
        assert "train" in splits
        assert "val" in splits or count == 1


def test_the_version_is_the_content(tmp_path: Path) -> None:
    names = many(5, "run", "jump")
    here, there = load_manifest(put(tmp_path / "a", *names)), load_manifest(put(tmp_path / "b", *reversed(names)))
    assert here.version == there.version, "it does not depend on the place"
    assert len(here.version) == 16
    assert load_manifest(str(tmp_path / "a"), val_fraction=0.7).version != here.version
    (tmp_path / "b/run/000.mp4").write_text("another size")
    assert load_manifest(str(tmp_path / "b")).version != here.version


def test_two_label_sets() -> None:
    entries = [Entry("1", "1", ("open", "door"), "train"), Entry("2", "2", ("close", "door"), "train")]
    manifest = build(entries, {"1": 1, "2": 2}, source="list", label_sets=("verb", "noun"))
    assert manifest.label_sets == {"verb": ("close", "open"), "noun": ("door",)}
    assert manifest.labels.tolist() == [[1, 0], [0, 0]]


@pytest.mark.cluster
def test_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*many(3, "run", "jump"), "train.csv"]
    table = "uri,label\n" + "".join(f"{name},{name[:3]}\n" for name in names[:-1])
    with s3_server(tmp_path / "server") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        root = f"s3://{server.bucket}/data"
        for name in names:
            storage.write_bytes(storage.join(root, name), table.encode() if name.endswith(".csv") else name.encode())
        folder, listed = load_manifest(root), load_manifest(f"{root}/train.csv")
        assert folder.ids == listed.ids
        assert folder.uris == listed.uris == [f"{root}/{id}" for id in folder.ids]
        assert folder.version == load_manifest(put(tmp_path / "local", *names)).version
        with pytest.raises(ManifestError, match="in no class folder"):
            load_manifest(f"s3://{server.bucket}/data/run")


# --- mistakes


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at"):
        load_manifest(str(tmp_path / "none"))
    with pytest.raises(NotFoundError, match="nothing at"):
        load_manifest(str(tmp_path / "none.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"is empty: it has no videos; names of videos end in \.mp4"):
        load_manifest(str(tmp_path / "empty"))
    with pytest.raises(ManifestError, match="holds 2 files and has no videos"):
        load_manifest(put(tmp_path / "photos", "a/1.jpg", "b/2.png"))


def test_videos_outside_class_folders(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"loose\.mp4 is in no class folder; .*/<class>/loose\.mp4"):
        load_manifest(put(tmp_path / "a", "run/1.mp4", "loose.mp4"))
    with pytest.raises(ManifestError, match=r"1\.mp4 is in no class folder; .*/train/<class>/1\.mp4"):
        load_manifest(put(tmp_path / "b", "train/1.mp4", "val/run/1.mp4"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "has no column uri and no column label"),
        ("a.mp4,run\n", "its first line is 'a.mp4,run', it must be a header: uri,label"),
        ("uri,class\na.mp4,run\n", "has no column label"),
        ("uri,label\n", "names no videos"),
        ("uri,label\na.mp4,\n", "line 2 has no label"),
        ("uri,label\na.mp4\n", "line 2 has no label"),
        ("uri,label,split\na.mp4,run,trains\n", r"line 2: unknown split 'trains' \(did you mean train"),
        ("uri,label,split\na.mp4,run,train\nb.mp4,run,\n", "1 videos in .* have no split, others do: b.mp4"),
        ("uri,label,split\na.mp4,run,train\nb.mp4,hop,val\n", "1 of 2 classes of 'action' .* no training video: hop"),
        ("uri,label\na.mp4,run\na.mp4,hop\n", "1 videos occur in .* more than once"),
        ("uri,label\na.mp4,run\n./a.mp4,hop\n", "1 videos occur in .* more than once"),
        ("uri,label\ngs://x/a.mp4,run\n", "gs:// is not supported"),
    ],
)
def test_a_wrong_csv(tmp_path: Path, table: str, message: str) -> None:
    put(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text(table)
    with pytest.raises((ManifestError, ConfigError), match=message):
        load_manifest(str(tmp_path / "list.csv"))


def test_absent_videos_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path, "clips/0.mp4")
    lines = [f"clips/{number}.mp4,run" for number in range(10)] + ["nowhere/1.mp4,run"]
    (tmp_path / "list.csv").write_text("\n".join(["uri,label", *lines]))
    with pytest.raises(ManifestError, match=r"10 of 11 videos named in .* and 5 more; upload them") as caught:
        load_manifest(str(tmp_path / "list.csv"))
    assert str(caught.value).count(".mp4") == 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_val_fraction(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match="val_fraction is"):
        load_manifest(str(tmp_path), val_fraction=fraction)


def test_a_test_needs_neither_training_videos_nor_labels(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text("uri,label,split\na.mp4,run,val\nb.mp4,,val\nc.mp4,jump,val\n")
    manifest = load_manifest(str(tmp_path / "list.csv"), for_training=False)
    assert manifest.label_sets == {"action": ("jump", "run")}
    assert manifest.labels[:, 0].tolist() == [1, -1, 0]
    with pytest.raises(ManifestError, match="line 3 has no label"):
        load_manifest(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("uri,label,split\na.mp4,run,val\n")
    with pytest.raises(ManifestError, match="no training video"):
        load_manifest(str(tmp_path / "list.csv"))


@pytest.mark.parametrize(("train", "val", "test"), [("training", "validation", "testing"), ("Train", "VALID", "Test")])
def test_splits_are_read_as_what_they_mean(tmp_path: Path, train: str, val: str, test: str) -> None:
    videos = [f"{split}/{label}/{split}.mp4" for split in (train, val, test) for label in ("run", "hop")]
    folder = put(tmp_path / "set", *videos)
    manifest = load_manifest(folder)
    assert dict(zip(manifest.ids, manifest.splits, strict=True)) == {
        id: {train: "train", val: "val", test: "test"}[id.partition("/")[0]] for id in videos
    }
    assert manifest.label_sets == {"action": ("hop", "run")}
    lines = "".join(f"set/{video},{video.split('/')[1]},{video.split('/')[0]}\n" for video in videos)
    (tmp_path / "list.csv").write_text("uri,label,split\n" + lines)
    listed = load_manifest(str(tmp_path / "list.csv"))
    assert sorted(listed.splits) == sorted(manifest.splits)


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "train/run/a.mp4", "val/run/b.mp4", "validation/run/c.mp4")
    with pytest.raises(
        ManifestError, match="has 'val' and 'validation', which both mean the split val; put them together"
    ):
        load_manifest(folder)
    (tmp_path / "list.csv").write_text(
        "uri,label,split\nset/train/run/a.mp4,r,train\nset/val/run/b.mp4,r,Val\nset/validation/run/c.mp4,r,valid\n"
    )
    with pytest.raises(ManifestError, match=r"list\.csv has 'val' and 'valid', which both mean the split val"):
        load_manifest(str(tmp_path / "list.csv"))


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("something-something-v2-validation.json", "val"),
        ("something-something-v2-train.json", "train"),
        ("validate.csv", "val"),
        ("EPIC_100_validation.csv", "val"),
        ("kinetics400_val_list_videos.txt", "val"),
        ("trainlist01.txt", "train"),
        ("testlist01.txt", "test"),
        ("k400val.txt", "val"),
        ("my-testing.csv", "test"),
        ("evaluation_test.csv", "test"),
        ("s3://bucket/train/sth_valid.csv", "val"),
    ],
)
def test_the_name_of_a_file_tells_the_split(file: str, split: str) -> None:
    assert split_by_name(file) == split


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("evaluation.csv", "does not tell its split"),
        ("interval.csv", "does not tell its split"),
        ("train_val.csv", "tells the splits train and val"),
        ("test-validation.csv", "tells the splits test and val"),
    ],
)
def test_the_name_of_a_file_that_tells_no_split_or_two(file: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        split_by_name(file)


def test_a_class_that_would_command_a_terminal_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "run/a.mp4", "h\x1b[2Jop/b.mp4")
    with pytest.raises(ManifestError, match=r"has a class called 'h\\x1b\[2Jop' in 'action', which holds control") as e:
        load_manifest(str(tmp_path))
    assert "\x1b" not in str(e.value)


def test_a_csv_with_several_classes_a_video(tmp_path: Path) -> None:
    lines = [f"{i}.mp4,{'a; b' if i % 2 else 'b;;b'}" for i in range(20)]
    for i in range(22):
        (tmp_path / f"{i}.mp4").write_text("x" * (i + 1))
    (tmp_path / "list.csv").write_text("\n".join(["uri,labels", *lines, "20.mp4,", "21.mp4,rare"]))
    manifest = load_manifest(str(tmp_path / "list.csv"))
    assert (manifest.multi_label, manifest.label_sets) == (True, {"action": ("a", "b", "rare")})
    names = [manifest.classes_of(manifest.ids.index(f"{i}.mp4")) for i in (0, 1, 20, 21)]
    assert names == [["b"], ["a", "b"], [], ["rare"]]
    val = manifest.select("val")
    assert val.labels.sum(axis=0).tolist()[2] == 0  # the only video of a class is a training video
    assert (val.labels.sum(axis=0)[:2] > 0).all()
    (tmp_path / "list.csv").write_text("uri,label\n0.mp4,b\n")
    (tmp_path / "other.csv").write_text("uri,labels\n0.mp4,b\n")
    one, other = (load_manifest(str(tmp_path / name), for_training=False) for name in ("list.csv", "other.csv"))
    assert one.version != other.version


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("uri,labels,label\n0.mp4,b,b\n", "has the columns label and labels: keep label"),
        ("uri,labels\n0.mp4,\n", "no video in .* has a class"),
        ("uri,labels,split\n0.mp4,b,val\n", r"classes of 'action' in .* have no training video: b"),
    ],
)
def test_a_wrong_csv_with_several_classes(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "0.mp4").write_text("x")
    (tmp_path / "list.csv").write_text(table)
    with pytest.raises(ManifestError, match=message):
        load_manifest(str(tmp_path / "list.csv"))
