"""Annotations of Kinetics-400, -600, and -700. Runs on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray.datasets.entries import SPLITS, Annotated, AnnotationFile, Entry, class_names, split_by_name, split_called
from tpn_ray.datasets.video_folder import VideoFolder
from tpn_ray.errors import ManifestError
from tpn_ray.names import no_such


def read(files: Sequence[AnnotationFile], videos: VideoFolder, label_map: Sequence[AnnotationFile]) -> Annotated:
    """Read the rows of CSVs. `label_map` is a list of class names; without it, they are sorted, as is customary."""
    entries = [_entry(row, file, videos) for file in files for row in file.table(["youtube_id", "time_start"])]
    return Annotated(entries, ("action",), class_names(label_map, ("action",)))


def _entry(row: dict[str, str], file: AnnotationFile, videos: VideoFolder) -> Entry:
    label = row.get("label", "")
    if not label:
        raise ManifestError(
            f"{file.uri} has no label for {row['youtube_id']}: published test lists carry none; leave it out"
        )
    split = split_called(row["split"]) if row.get("split") else split_by_name(file.uri)
    if split is None:
        raise ManifestError(f"{file.uri}: {no_such('split', row['split'], SPLITS)}")
    begin = file.seconds(row, "time_start")
    end = file.seconds(row, "time_end") if row.get("time_end") else begin + 10
    name = f"{row['youtube_id']}_{int(begin):06d}_{int(end):06d}"
    # The published crawlers cut out the ten seconds and put them into the name, some with leading zeros, some without.
    found = videos.find([name, f"{row['youtube_id']}_{int(begin)}_{int(end)}"], inside=label)
    if found:
        return Entry(name, found, (label,), split)
    whole = videos.find([row["youtube_id"]], inside=label)  # as downloaded: still to be cut
    if whole:
        return Entry(name, whole, (label,), split, (begin, end))
    return Entry(name, videos.at(f"{name}.mp4"), (label,), split)
