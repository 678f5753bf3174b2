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


def test_mmaction_lists_with_several_classes(tmp_path: Path) -> None:
    videos = put(tmp_path / "videos", "a b.mp4", "c.mp4")
    manifest = load_annotated("mmaction", [write(tmp_path / "train.txt", "a b.mp4 0 2\nc.mp4 1\n")], videos)
    assert manifest.multi_label
    assert manifest.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert manifest.classes_of(0) == ["0", "2"]


CHARADES = """id,subject,actions,length
AAAAA,HR43,c092 11.90 21.20;c147 0.00 12.60;c092 1.00 2.00,24.83
BBBBB,HR43,,10.00
"""


def test_charades(tmp_path: Path) -> None:
    """A class that occurs twice counts once, and a video without any stays."""
    videos = put(tmp_path / "videos", "AAAAA.mp4", "BBBBB.mp4", "CCCCC.mp4")
    train = write(tmp_path / "Charades_v1_train.csv", CHARADES)
    test = write(tmp_path / "Charades_v1_test.csv", "id,actions\nCCCCC,c147 0.00 1.00\n")
    names = write(
        tmp_path / "classes.txt", "c000 Holding some clothes\nc092 Smiling at a book\nc147 Cooking something\n"
    )
    manifest = load_annotated("charades", [train, test], videos, [names])
    assert manifest.label_sets == {"action": ("Holding some clothes", "Smiling at a book", "Cooking something")}
    assert manifest.labels.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert manifest.splits == ["train", "train", "val"]
    assert load_annotated("charades", [train, test], videos).label_sets == {"action": ("c092", "c147")}
    few = write(tmp_path / "few.txt", "c092 Smiling at a book\n")
    with pytest.raises(ManifestError, match=r"1 classes of 'action' .* not in its label map: c147"):
        load_annotated("charades", [train, test], videos, [few])


def test_mistakes_are_named(tmp_path: Path) -> None:
    videos = put(tmp_path / "videos", "a_000000_000010.mp4")
    table = write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end\nrun,b,0,10\n")
    with pytest.raises(ConfigError, match=r"unknown format .ucf. \(did you mean ucf101\?\); known: kinetics"):
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


@pytest.mark.parametrize("classes", [600, 700])
def test_kinetics_600_and_700(classes: int, tmp_path: Path) -> None:
    """Their lists have no column is_cc; the test list has labels too."""
    videos = put(tmp_path / "videos", "washing feet/--GkrdYZ9Tc_000000_000010.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    lists = [
        write(tmp_path / f"k{classes}_train.csv", f"{header}washing feet,--GkrdYZ9Tc,0,10,train\n"),
        write(tmp_path / f"k{classes}_test.csv", f"{header}washing feet,--nQbRBEz2s,104,114,test\n"),
    ]
    assert rows(load_annotated("kinetics", lists, videos)) == {
        "--GkrdYZ9Tc_000000_000010": ("--GkrdYZ9Tc_000000_000010.mp4", ("washing feet",), "train"),
        "--nQbRBEz2s_000104_000114": ("--nQbRBEz2s_000104_000114.mp4", ("washing feet",), "test"),
    }


def test_jester(tmp_path: Path) -> None:
    videos = put(tmp_path / "20bn-jester-v1", "34870.mp4", "56557.mp4")
    train = write(tmp_path / "jester-v1-train.csv", "34870;Drumming Fingers\n")
    val = write(tmp_path / "jester-v1-validation.csv", "56557;Sliding Two Fingers Right\n")
    labels = write(tmp_path / "jester-v1-labels.csv", "Sliding Two Fingers Right\nDrumming Fingers\n")
    manifest = load_annotated("jester", [train, val], videos, [labels])
    assert manifest.labels[:, 0].tolist() == [1, 0]
    assert manifest.splits == ["train", "val"]


def test_ucf101(tmp_path: Path) -> None:
    """The folder of one class is spelled otherwise than its videos."""
    videos = put(
        tmp_path / "UCF-101", "HandstandPushups/v_HandStandPushups_g08_c01.avi", "Archery/v_Archery_g01_c01.avi"
    )
    train = write(tmp_path / "trainlist01.txt", "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n")
    test = write(tmp_path / "testlist01.txt", "Archery/v_Archery_g01_c01.avi\n")
    with pytest.raises(ManifestError, match="1 of 2 classes of 'action' .* have no training video: Archery"):
        load_annotated("ucf101", [train, test], videos)
    classes = write(tmp_path / "classInd.txt", "2 HandstandPushups\r\n1 Archery\r\n")
    manifest = load_annotated("ucf101", [train, test], videos, [classes])
    assert manifest.label_sets == {"action": ("Archery", "HandstandPushups")}
    assert rows(manifest) == {
        "Archery/v_Archery_g01_c01.avi": ("v_Archery_g01_c01.avi", ("Archery",), "val"),
        "HandstandPushups/v_HandStandPushups_g08_c01.avi": (
            *("v_HandStandPushups_g08_c01.avi", ("HandstandPushups",), "train"),
        ),
    }


def test_hmdb51(tmp_path: Path) -> None:
    videos = put(tmp_path / "hmdb51", "brush_hair/a_0.avi", "wave/b&c_0.avi", "wave/d_0.avi", "wave/e_0.avi")
    brush = write(tmp_path / "brush_hair_test_split1.txt", "a_0.avi 1 \n")
    wave = write(tmp_path / "wave_test_split1.txt", "b&c_0.avi 1 \nd_0.avi 2 \ne_0.avi 0 \n")
    manifest = load_annotated("hmdb51", [brush, wave], videos)
    assert rows(manifest) == {
        "brush_hair/a_0.avi": ("a_0.avi", ("brush_hair",), "train"),
        "wave/b&c_0.avi": ("b&c_0.avi", ("wave",), "train"),
        "wave/d_0.avi": ("d_0.avi", ("wave",), "val"),
    }
    with pytest.raises(ManifestError, match=r"endings 1\.txt, 2\.txt"):
        load_annotated("hmdb51", [brush, write(tmp_path / "wave_test_split2.txt", "d_0.avi 1\n")], videos)


def test_diving48(tmp_path: Path) -> None:
    videos = put(tmp_path / "rgb", "-mmq0PT-u8k_00155.mp4", "x_1.mp4")
    one = {"vid_name": "-mmq0PT-u8k_00155", "label": 1, "start_frame": 0, "end_frame": 48}
    train = write(tmp_path / "Diving48_V2_train.json", json.dumps([one]))
    test = write(tmp_path / "Diving48_V2_test.json", json.dumps([{**one, "vid_name": "x_1", "label": 0}]))
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]]
    words = write(tmp_path / "Diving48_vocab.json", json.dumps(vocabulary))
    assert rows(load_annotated("diving48", [train, test], videos, [words])) == {
        "-mmq0PT-u8k_00155": ("-mmq0PT-u8k_00155.mp4", ("Back 15som 15Twis FREE",), "train"),
        "x_1": ("x_1.mp4", ("Back 15som 05Twis FREE",), "val"),
    }
    assert load_annotated("diving48", [train, test], videos).label_sets == {"action": ("0", "1")}


GYM_TIMES = {
    "0LtLS9wROrk": {
        "E_002407_002435": {
            "event": 4,
            "timestamps": [[2407.32, 2435.28]],
            "segments": {
                "A_0003_0005": {"stages": 1, "timestamps": [[3.45, 5.64]]},
                "A_0006_0010": {"stages": 2, "timestamps": [[6.0, 7.5], [7.5, 10.0]]},
            },
        }
    }
}


def test_finegym(tmp_path: Path) -> None:
    event = "0LtLS9wROrk_E_002407_002435"
    train = write(tmp_path / "gym99_train_element_v1.1.txt", f"{event}_A_0003_0005 1\n{event}_A_0006_0010 0\n")
    categories = (
        "Clabel:   0; set:   1; Glabel:   1; (VT) round-off, flic-flac\nClabel:   1; set: 12; Glabel: 9; (UB) x\n"
    )
    names = write(tmp_path / "gym99_categories.txt", categories)
    times = write(tmp_path / "finegym_annotation_info_v1.1.json", json.dumps(GYM_TIMES))
    whole = put(tmp_path / "whole", "0LtLS9wROrk.mp4")
    manifest = load_annotated("finegym", [train, times], whole, [names])
    assert manifest.label_sets == {"action": ("(VT) round-off, flic-flac", "(UB) x")}
    assert manifest.labels[:, 0].tolist() == [1, 0]
    assert manifest.segments_seconds == pytest.approx(np.array([[2410.77, 2412.96], [2413.32, 2417.32]]))
    of_event = load_annotated("finegym", [train, times], put(tmp_path / "events", f"{event}.mp4"), [names])
    assert of_event.segments_seconds == pytest.approx(np.array([[3.45, 5.64], [6.0, 10.0]]))
    cut = load_annotated("finegym", [train], put(tmp_path / "cut", f"{event}_A_0003_0005.mp4"), [names])
    assert cut.segments_seconds is None
    assert cut.sizes_bytes.tolist() == [len(f"{event}_A_0003_0005.mp4"), -1]
    with pytest.raises(ManifestError, match="add finegym_annotation_info_v1.1.json to --annotations"):
        load_annotated("finegym", [train], whole, [names])


@pytest.mark.parametrize(
    ("format", "name", "text", "message"),
    [
        ("ucf101", "trainlist01.txt", "v_Archery_g01_c01.avi 1\n", "'class/video.avi' was expected"),
        ("hmdb51", "wave_test_split1.txt", "a.avi 3\n", "'video.avi' and 0, 1, or 2 were expected"),
        ("hmdb51", "train.txt", "a.avi 1\n", "is not named <class>_test_split<number>.txt"),
        ("diving48", "train.json", '[{"label": 1}]', "an entry without vid_name or label"),
        ("diving48", "train.json", '[{"vid_name": "a", "label": -1}]', "has label '-1' in a row"),
        ("finegym", "gym99_train.txt", "abc 1\n", "'video_E_..._A_... number' was expected"),
        ("finegym", "gym99_train.txt", "a_E_1_2_A_3_4 1\n", "is a part of; add finegym_annotation_info"),
    ],
)
def test_lines_that_cannot_be_are_named(format: str, name: str, text: str, message: str, tmp_path: Path) -> None:
    videos = put(tmp_path / "videos", "a.mp4")
    with pytest.raises(ManifestError, match=message):
        load_annotated(format, [write(tmp_path / name, text)], videos)
