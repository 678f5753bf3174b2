"""Annotations of Charades: several classes a video. Runs on the driver.

Format: Charades_v1_train.csv and Charades_v1_test.csv of prior.allenai.org/projects/charades, whose column `actions`
holds "c092 11.90 21.20;c147 0.00 12.60". A class counts for the whole video, as in the published scores; the times are
not used. Some videos have no class.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.datasets.entries import Annotated, AnnotationFile, Entry, published_split
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read the rows of CSVs; the test list is the split "val". `label_map` has lines "c000 name"; without it, the codes
    are the names."""
    rows = [(file, row) for file in files for row in file.table(["id", "actions"])]
    codes = [(file, row["id"], _codes(row["actions"])) for file, row in rows]
    names = (
        _names(label_map[0]) if label_map else {code: code for code in sorted({c for *_, row in codes for c in row})}
    )
    entries = [
        Entry(
            id,
            videos.find([id]) or videos.at(f"{id}.mp4"),
            tuple(names.get(code, code) for code in own),
            published_split(file.uri),
        )
        for file, id, own in codes
    ]
    return Annotated(entries, ("action",), {"action": tuple(names.values())}, multi_label=True)


def _codes(actions: str) -> list[str]:
    """Return the codes of a video's classes, each once."""
    return sorted({action.split()[0] for action in actions.split(";") if action.strip()})


def _names(file: AnnotationFile) -> dict[str, str]:
    names = {}
    for line in filter(str.strip, file.text.splitlines()):
        code, _, name = line.strip().partition(" ")
        if not name:
            raise ManifestError(f"{file.uri} has the line {line.strip()!r}; 'c000 name' was expected")
        names[code] = name.strip()
    return names
