"""Annotations of Diving48, V1 or V2. Runs on the driver.

Format: Diving48_V2_train.json, Diving48_V2_test.json, and Diving48_vocab.json of
www.svcl.ucsd.edu/projects/resound/dataset.html. The test videos become the split val.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, published_split
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read JSON objects with vid_name and label. `label_map` is the vocabulary: a list of four words for each class.

    Without it, numbers are the names. The published videos are cut, so the frame numbers are not needed.
    """
    rows = []
    for file in files:
        for row in file.json(list):
            if not isinstance(row, dict) or "vid_name" not in row or "label" not in row:
                raise ManifestError(f"{file.uri} has an entry without vid_name or label: {str(row)[:80]}")
            number = file.class_number({"label": str(row["label"])}, "label")
            rows.append((file, str(row["vid_name"]), number))
    count = max((number for _, _, number in rows), default=-1) + 1
    names = tuple(str(number) for number in range(count))
    if label_map:
        names = tuple(" ".join(words) for words in label_map[0].json(list))
    if count > len(names):
        raise ManifestError(f"class {count - 1} is in the lists, but the label map has {len(names)} names, from 0")
    entries = [
        Entry(name, videos.find([name]) or videos.at(f"{name}.mp4"), (names[number],), published_split(file.uri))
        for file, name, number in rows
    ]
    return Annotated(entries, ("action",), {"action": names})
