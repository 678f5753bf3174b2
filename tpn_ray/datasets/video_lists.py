"""Reads folders with one subfolder per class, and CSVs of videos. Runs on the driver."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tpn_ray import storage
from tpn_ray.datasets.entries import SPLITS, Entry, refuse_two_names, some_of, split_called
from tpn_ray.errors import ManifestError, NotFoundError
from tpn_ray.names import no_such

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif")
"""Suffixes of video files, in any case."""


def read_folder(root: str) -> tuple[list[Entry], dict[str, int]]:
    """Read entries and sizes (bytes by URI) from a folder with one subfolder per class.

    The class folders may be below train/, val/, and test/, in any recognized spelling.
    """
    files = storage.list_files(root)
    videos = {file.uri: file.size_bytes for file in files if _is_video(file.uri)}
    if not videos:
        held = f"holds {len(files)} files and" if files else "is empty: it"
        raise ManifestError(f"{root} {held} has no videos; names of videos end in {' '.join(SUFFIXES)}")
    ids = {uri: uri[len(root) :].lstrip("/") for uri in videos}
    top = {id.partition("/")[0] for id in ids.values()}
    given = all(map(split_called, top))
    depth = 1 if given else 0
    if given:
        refuse_two_names(top, root)
    entries = []
    for uri, id in ids.items():
        parts = id.split("/")
        if len(parts) < depth + 2:
            form = f"{root}/{parts[0]}/<class>/{parts[-1]}" if given else f"{root}/<class>/{parts[-1]}"
            raise ManifestError(f"{uri} is in no class folder; put it into a folder named after its class: {form}")
        entries.append(Entry(id, uri, (parts[depth],), split_called(parts[0]) if given else None))
    return entries, videos


def _is_video(uri: str) -> bool:
    """Return whether a file's name is a video's. Hidden files are not: macOS leaves "._clip.mp4" next to clip.mp4."""
    return uri.lower().endswith(SUFFIXES) and not storage.name(uri).startswith(".")


def read_csv(uri: str, labelled: bool = True) -> tuple[list[Entry], dict[str, int], bool]:
    """Read entries and sizes from a CSV with the columns uri, label, and optionally split; every video must exist.

    A label may be empty only if they need not be `labelled`. With a column `labels` in its place, a video has all
    the classes there, separated by ";", or none; the third value says which it is.
    """
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    table = csv.DictReader(io.StringIO(text))
    columns = [column.strip() for column in table.fieldnames or []]
    table.fieldnames = columns
    several = "labels" in columns
    if several and "label" in columns:
        raise ManifestError(f"{uri} has the columns label and labels: keep label for one class a video, or labels")
    missing = [column for column in ("uri", "labels" if several else "label") if column not in columns]
    if missing:
        raise ManifestError(
            f"{uri} has no column {' and no column '.join(missing)}; its first line is {','.join(columns)!r},"
            " it must be a header: uri,label or uri,label,split (or labels, for several classes a video)"
        )
    folder, split_names, entries = storage.parent(uri), set[str](), list[Entry]()
    for row in table:
        read = _entry_of_several if several else _csv_entry
        entries.append(read(row, table.line_num, uri, folder, labelled))
        split_names.add((row.get("split") or "").strip().lower())
    refuse_two_names(split_names, uri)
    if not entries:
        raise ManifestError(f"{uri} names no videos: there is nothing below its header")
    return entries, _sizes_of([entry.uri for entry in entries], named_in=uri), several


def _entry_of_several(row: dict[str, str | None], line: int, source: str, folder: str, labelled: bool) -> Entry:
    labels = {label.strip() for label in (row.get("labels") or "").split(";")} - {""}
    entry = _csv_entry({**row, "label": ""}, line, source, folder, labelled=False)
    return replace(entry, labels=tuple(sorted(labels)))


def _csv_entry(row: dict[str, str | None], line: int, source: str, folder: str, labelled: bool) -> Entry:
    values = {column: (row.get(column) or "").strip() for column in ("uri", "label", "split")}
    for column in ("uri", "label") if labelled else ("uri",):
        if not values[column]:
            raise ManifestError(f"{source} line {line} has no {column}; every line needs uri and label")
    split = split_called(values["split"])
    if values["split"] and split is None:
        raise ManifestError(f"{source} line {line}: {no_such('split', values['split'], SPLITS)}")
    named = values["uri"]
    return Entry(named, _resolve(named, folder), (values["label"],), split)


def _resolve(named: str, folder: str) -> str:
    return storage.absolute(named) if storage.is_absolute(named) else storage.absolute(f"{folder}/{named}")


def _sizes_of(uris: Sequence[str], named_in: str) -> dict[str, int]:
    """Look up the size of each named video, with one listing per folder instead of a request per file."""
    wanted, sizes = set(uris), dict[str, int]()
    for folder in _topmost({storage.parent(uri) for uri in uris}):
        try:
            sizes.update({file.uri: file.size_bytes for file in storage.list_files(folder) if file.uri in wanted})
        except NotFoundError:
            continue  # its videos are missing, and reported below
    absent = sorted(wanted - sizes.keys())
    if absent:
        raise ManifestError(
            f"{len(absent)} of {len(wanted)} videos named in {named_in} are not in storage: {some_of(absent)};"
            " upload them or remove their lines"
        )
    return sizes


def _topmost(folders: Iterable[str]) -> list[str]:
    """List the folders that are not inside another one of them."""
    top: list[str] = []
    for folder in sorted(folders, key=lambda folder: folder + "/"):
        if not top or not (folder + "/").startswith(top[-1].rstrip("/") + "/"):
            top.append(folder)
    return top
