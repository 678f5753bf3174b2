"""Every annotation format by a sample in its published form: entries, classes, splits, absent videos, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tpn_ray import storage
from tpn_ray.datasets.annotations import load_annotated
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError, ManifestError, NotFoundError


def put(folder: Path, *names: str) -> str:
    """Files that look like videos to a listing."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return str(folder)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def rows(manifest: Manifest) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """File name, class names and split by id."""
    sets = list(manifest.label_sets.values())
    return {
        id: (storage.name(uri), tuple(names[label] for names, label in zip(sets, labels, strict=True)), split)
        for id, uri, labels, split in zip(manifest.ids, manifest.uris, manifest.labels, manifest.splits, strict=True)
    }


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
riding a bike,--3ouPhoy2A,20,30,train,0
riding a bike,abc_123,7,17,train,0
"clapping, slowly",zzzzzzzzzzz,0,10,train,0
"clapping, slowly",whole_file_,12,22,validate,0
riding a bike,gone_gone__,1,11,validate,0
"""


def test_kinetics(tmp_path: Path) -> None:
    videos = put(
        tmp_path / "videos",
        "riding a bike/--3ouPhoy2A_000020_000030.mp4",
        "abc_123_7_17.mkv",
        "clapping_slowly/zzzzzzzzzzz_000000_000010.mp4",
        "other/zzzzzzzzzzz_000000_000010.mp4",
        "whole_file_.webm",
    )
    manifest = load_annotated("kinetics", [write(tmp_path / "k400.csv", KINETICS)], videos)
    assert rows(manifest) == {
        "--3ouPhoy2A_000020_000030": ("--3ouPhoy2A_000020_000030.mp4", ("riding a bike",), "train"),
        "abc_123_000007_000017": ("abc_123_7_17.mkv", ("riding a bike",), "train"),
        "zzzzzzzzzzz_000000_000010": ("zzzzzzzzzzz_000000_000010.mp4", ("clapping, slowly",), "train"),
        "whole_file__000012_000022": ("whole_file_.webm", ("clapping, slowly",), "val"),
        "gone_gone___000001_000011": ("gone_gone___000001_000011.mp4", ("riding a bike",), "val"),
    }
    assert "clapping_slowly/" in manifest.uris[manifest.ids.index("zzzzzzzzzzz_000000_000010")]
    assert manifest.sizes_bytes[manifest.ids.index("gone_gone___000001_000011")] == -1
    assert (manifest.sizes_bytes >= 0).sum() == 4
    segments = dict(zip(manifest.ids, manifest.segments_seconds.tolist(), strict=True))  # type: ignore[union-attr]
    assert segments["whole_file__000012_000022"] == [12, 22], "without times in its name, the file is still whole"
    assert np.isnan(segments["abc_123_000007_000017"]).all()


def test_kinetics_splits_by_file_and_label_map(tmp_path: Path) -> None:
    videos = put(tmp_path / "videos", "a_000000_000010.mp4", "b_000000_000010.mp4")
    header = "label,youtube_id,time_start,time_end\n"
    lists = [
        write(tmp_path / "kinetics_train.csv", header + "run,a,0,10\n"),
        write(tmp_path / "kinetics_val.csv", header + "jump,b,0,10\n"),
    ]
    names = write(tmp_path / "names.txt", "walk\nrun\njump\n")
    manifest = load_annotated("kinetics", lists, videos, [names])
    assert manifest.label_sets == {"action": ("walk", "run", "jump")}, "the published order is kept"
    assert manifest.labels[:, 0].tolist() == [1, 2]
    assert manifest.splits == ["train", "val"]
    with pytest.raises(ManifestError, match=r"1 classes of 'action' .* are not in its label map: run"):
        load_annotated("kinetics", lists, videos, [write(tmp_path / "few.txt", "walk\njump\n")])


def test_something_v2(tmp_path: Path) -> None:
    videos = put(tmp_path / "20bn", "78687.webm", "42326.webm")
    holding = {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}
    turning = {"id": "42326", "label": "turning a cup", "template": "Turning [something] upside down"}
    train = write(tmp_path / "something-something-v2-train.json", json.dumps([holding]))
    val = write(tmp_path / "something-something-v2-validation.json", json.dumps([turning]))
    labels = {"Turning something upside down": "0", "Holding something": "1", "Unused something": "2"}
    label_map = write(tmp_path / "something-something-v2-labels.json", json.dumps(labels))
    manifest = load_annotated("something-v2", [train, val], videos, [label_map])
    assert manifest.label_sets == {"action": tuple(labels)}
    assert rows(manifest) == {
        "42326": ("42326.webm", ("Turning something upside down",), "val"),
        "78687": ("78687.webm", ("Holding something",), "train"),
    }
    with pytest.raises(ManifestError, match="without id or template"):
        load_annotated("something-v2", [write(tmp_path / "test.json", '[{"id": "1"}]')], videos)
    with pytest.raises(ManifestError, match="is not JSON"):
        load_annotated("something-v2", [write(tmp_path / "train.json", "id;x")], videos)


def test_something_v1(tmp_path: Path) -> None:
    videos = put(tmp_path / "v1", "100218.mp4", "24413.mp4")
    train = write(
        tmp_path / "something-something-v1-train.csv",
        "24413;Putting something on a surface\n100218;Tearing something\n",
    )
    labels = write(
        tmp_path / "something-something-v1-labels.csv", "Tearing something\nPutting something on a surface\n"
    )
    manifest = load_annotated("something-v1", [train], videos, [labels])
    assert manifest.labels[:, 0].tolist() == [0, 1]
    assert rows(manifest)["24413"] == ("24413.mp4", ("Putting something on a surface",), "train")


EPIC_100 = """narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,\
stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes
P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,2,['door'],[2]
P01_01_1,P01,P01_01,00:00:02.629,00:00:04.37,00:01:06.17,262,370,take knife,pick-up,0,knife,0,['knife'],[0]
P01_01_2,P01,P01_01,00:00:05.349,01:00:06.98,01:00:09.49,418,569,take plate,take,0,plate,1,['plate'],[1]
P01_01_3,P01,P01_01,00:00:05.349,01:00:06.98,01:00:09.50,418,569,take plate,take,0,plate,1,['plate'],[1]
"""


def test_epic(tmp_path: Path) -> None:
    videos = put(tmp_path / "EPIC", "P01/videos/P01_01.MP4")
    train = write(tmp_path / "EPIC_100_train.csv", EPIC_100)
    manifest = load_annotated("epic", [train], videos)
    assert manifest.label_sets == {
        "verb": ("take", "class (1)", "class (2)", "open"),
        "noun": ("knife", "plate", "door"),
    }
    assert manifest.labels.tolist() == [[3, 2], [0, 0], [0, 1], [0, 1]]
    assert manifest.segments_seconds is not None
    assert manifest.segments_seconds.tolist() == [[0.14, 3.37], [4.37, 66.17], [3606.98, 3609.49], [3606.98, 3609.5]]
    assert len(set(manifest.uris)) == 1
    verbs = write(
        tmp_path / "EPIC_100_verb_classes.csv", 'id,key,instances,category\n0,take,"[""get""]",x\n3,open,"[]",x\n'
    )
    nouns = write(tmp_path / "EPIC_100_noun_classes_v2.csv", "id,key\n0,knife\n1,plate\n2,door\n")
    with pytest.raises(ManifestError, match="verb class 3 at P01_01_0; the label map has 2"):
        load_annotated("epic", [train], videos, [verbs, nouns])
    verbs = write(tmp_path / "EPIC_100_verb_classes.csv", "id,key\n3,open\n1,put\n2,wash\n0,take\n")
    assert load_annotated("epic", [train], videos, [nouns, verbs]).label_sets["verb"] == ("take", "put", "wash", "open")


def test_epic_55_and_mistakes(tmp_path: Path) -> None:
    videos = put(tmp_path / "EPIC", "P01_01.MP4")
    header = "uid,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,noun_class\n"
    manifest = load_annotated(
        "epic", [write(tmp_path / "train.csv", header + "7,P01_01,00:00:01,00:00:02,open,0,door,0\n")], videos
    )
    assert manifest.ids == ["P01_01/7"]
    backwards = write(tmp_path / "b_train.csv", header + "7,P01_01,00:00:03,00:00:02,open,0,door,0\n")
    with pytest.raises(ManifestError, match="ends before it begins: P01_01/7, 3 s to 2 s"):
        load_annotated("epic", [backwards], videos)
    minutes = write(tmp_path / "c_train.csv", header + "7,P01_01,3.5,00:00:02,open,0,door,0\n")
    with pytest.raises(ManifestError, match=r"the time '3\.5'; hours:minutes:seconds"):
        load_annotated("epic", [minutes], videos)


def test_mmaction_lists(tmp_path: Path) -> None:
    videos = put(tmp_path / "k400", "abseiling/a b.mp4", "zumba/c.mp4")
    train = write(tmp_path / "kinetics400_train_list_videos.txt", "abseiling/a b.mp4 0\n\nzumba/c.mp4 2\n")
    manifest = load_annotated("mmaction", [train], videos)
    assert manifest.label_sets == {"action": ("0", "1", "2")}
    names = write(tmp_path / "label_map_k400.txt", "abseiling\nair drumming\nzumba\n")
    manifest = load_annotated("mmaction", [train], videos, [names])
    assert rows(manifest) == {
        "abseiling/a b.mp4": ("a b.mp4", ("abseiling",), "train"),
        "zumba/c.mp4": ("c.mp4", ("zumba",), "train"),
    }
    for line in ("frames/a 300 4", "a.mp4", "a.mp4 one"):
        with pytest.raises(ManifestError, match="'path number' was expected"):
            load_annotated("mmaction", [write(tmp_path / "train.txt", line)], videos)


def test_mistakes_are_named(tmp_path: Path) -> None:
    videos = put(tmp_path / "videos", "a_000000_000010.mp4")
    table = write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end\nrun,b,0,10\n")
    with pytest.raises(ConfigError, match="unknown format 'ucf'; known: kinetics, something-v1"):
        load_annotated("ucf", [table], videos)
    with pytest.raises(ConfigError, match=r"needs --annotations FILE \.\.\. and --videos FOLDER"):
        load_annotated("kinetics", [table], "")
    with pytest.raises(ManifestError, match=r"none of the 1 videos .*b_000000_000010\.mp4; check --videos"):
        load_annotated("kinetics", [table], videos)
    with pytest.raises(ManifestError, match="has no column video_id and no column start_timestamp"):
        load_annotated("epic", [table], videos)
    with pytest.raises(NotFoundError):
        load_annotated("kinetics", [str(tmp_path / "absent.csv")], videos)
    nameless = write(tmp_path / "list.csv", "label,youtube_id,time_start,time_end\nrun,a,0,10\n")
    with pytest.raises(ManifestError, match="does not tell its split; put one of train, training, val"):
        load_annotated("kinetics", [nameless], videos)


KINETICS_COLUMNS = "label,youtube_id,time_start,time_end\n"
EPIC_ROW = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\na,00:00:01,00:00:02,"
TEMPLATE = '[{"id": "a", "template": "Doing"}]'


@pytest.mark.parametrize(
    ("format", "text", "label_maps", "message"),
    [
        ("kinetics", f"{KINETICS_COLUMNS}run,a,soon,10\n", [], "has time_start 'soon' in a row; seconds from 0"),
        ("kinetics", f"{KINETICS_COLUMNS}run,a,,10\n", [], "has time_start '' in a row"),
        ("kinetics", f"{KINETICS_COLUMNS}run,a,0,nan\n", [], "has time_end 'nan' in a row"),
        ("kinetics", KINETICS_COLUMNS, [], "names no video; check --annotations"),
        ("kinetics", f"{KINETICS_COLUMNS}run,a,0,10\n", ["run\n", "run\n"], r"2 label maps for 1 label set \(action\)"),
        ("something-v2", '[{"id": "a", "template": null}]', [], "an entry without id or template"),
        ("something-v2", TEMPLATE, ['{"Doing": "first"}'], "has Doing 'first' in a row; a whole number from 0"),
        ("epic", f"{EPIC_ROW}open,0\n", [], "has verb_class 'open' in a row; a whole number from 0"),
        ("epic", f"{EPIC_ROW}0,-1\n", [], "has noun_class '-1' in a row"),
    ],
)
def test_values_that_cannot_be_are_named(
    format: str, text: str, label_maps: list[str], message: str, tmp_path: Path
) -> None:
    videos = put(tmp_path / "videos", "a.mp4")
    maps = [write(tmp_path / f"map{number}", text) for number, text in enumerate(label_maps)]
    with pytest.raises(ManifestError, match=message):
        load_annotated(format, [write(tmp_path / "train", text)], videos, maps)
