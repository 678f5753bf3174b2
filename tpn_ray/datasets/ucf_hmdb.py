"""Annotations of UCF101 and HMDB51, each with three ways to split its videos. Runs on the driver.

Formats: the README of UCF101TrainTestSplits-RecognitionTask.zip (crcv.ucf.edu/data/UCF101.php), and the readme of
test_train_splits.rar (serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database). Give the lists of one
split. Its test videos become the split val.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, published_split
from tpn_ray.datasets.video_folder import VideoFolder, stem
from tpn_ray.errors import ManifestError

ENDING = "_test_split"
FLAGS = {"1": "train", "2": "val"}


def read_ucf101(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read lines "class/video.avi", followed by a class number in training lists.

    `label_map` is classInd.txt, "number class" from 1; without it, the classes are sorted, which is the same order.
    """
    entries = []
    for file in files:
        for line in _lines(file):
            path = line.split()[0]
            label, _, name = path.rpartition("/")
            if not label or "." not in name:
                raise ManifestError(f"{file.uri} has the line {line!r}; 'class/video.avi' was expected")
            found = videos.find([stem(name)], inside=label) or videos.at(path)
            entries.append(Entry(path, found, (label,), published_split(file.uri)))
    return Annotated(entries, ("action",), {"action": _numbered(label_map[0])} if label_map else None)


def read_hmdb51(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read lines "video.avi flag" of files <class>_test_split<number>.txt; the flags are 1 for training, 2 for testing,
    and 0 for neither. The classes are sorted, as is customary; there is no label map."""
    numbers = {file.uri.rpartition(ENDING)[2] for file in files}
    if label_map or len(numbers) > 1:
        raise ManifestError(
            "--format hmdb51 takes no label map, and the 51 files of one split, such as *_test_split1.txt; it got"
            f" {len(label_map)} label maps and the endings {', '.join(sorted(numbers))}"
        )
    entries = []
    for file in files:
        label, ending, _ = file.uri.rpartition("/")[2].rpartition(ENDING)
        if not label or not ending:
            raise ManifestError(f"{file.uri} is not named <class>{ENDING}<number>.txt, so its class is not known")
        for line in _lines(file):
            name, _, flag = line.rpartition(" ")
            if not name or flag not in ("0", *FLAGS):
                raise ManifestError(f"{file.uri} has the line {line!r}; 'video.avi' and 0, 1, or 2 were expected")
            if flag in FLAGS:
                path = f"{label}/{name.strip()}"
                found = videos.find([stem(path)], inside=label) or videos.at(path)
                entries.append(Entry(path, found, (label,), FLAGS[flag]))
    return Annotated(entries, ("action",), None)


def _lines(file: AnnotationFile) -> list[str]:
    return [line.strip() for line in file.text.splitlines() if line.strip()]


def _numbered(file: AnnotationFile) -> tuple[str, ...]:
    rows = [dict(zip(("number", "name"), line.split(maxsplit=1), strict=False)) for line in _lines(file)]
    if any(len(row) < 2 for row in rows):
        raise ManifestError(f"{file.uri} has a line that is not 'number class', as in classInd.txt")
    return tuple(row["name"] for row in sorted(rows, key=lambda row: file.class_number(row, "number")))
