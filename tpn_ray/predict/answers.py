"""From scored blocks to one answer per video or window: JSON lines or Parquet, with class names. Runs on the driver."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tpn_ray import storage
from tpn_ray.clips import rows
from tpn_ray.clips.rows import Rows
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import ConfigError
from tpn_ray.predict.predictor import best_classes
from tpn_ray.predict.scorer import SCORES

STDOUT = "-"
BAD_SHOWN = 5
JSON_LINES, PARQUET = ".jsonl", ".parquet"
TIMES = ("start_seconds", "end_seconds")

BEST = pa.list_(pa.struct([("class", pa.string()), ("score", pa.float64())]))


def check_out(out: str) -> None:
    """Refuse an output with an unknown format. Raises ConfigError or StorageError."""
    if out == STDOUT:
        return
    if not out.endswith((JSON_LINES, PARQUET)):
        raise ConfigError(f"out is {out!r}; give a name that ends in {JSON_LINES} or {PARQUET}, or - for the terminal")
    storage.check_writable(storage.parent(storage.absolute(out)))


def answers(manifest: Manifest, blocks: Iterable[Rows], top: int) -> Iterator[dict[str, Any]]:
    """Yield one dict per row: uri, times for windows, the `top` best classes of each label set, and all scores, plus
    reason and message if the video could not be used."""
    for block in blocks:
        for row, sample in enumerate(block[rows.SAMPLE].tolist()):
            reason, scores = str(block[rows.REASON][row]), block[SCORES][row, 0]
            times = zip(TIMES, block[rows.SECONDS][row].tolist(), strict=True) if rows.SECONDS in block else ()
            best = {} if reason else best_classes(scores, manifest.label_sets, top)
            yield {
                "uri": manifest.uris[sample],
                **{name: None if seconds != seconds else seconds for name, seconds in times},
                **{name: [{"class": c, "score": s} for c, s in best.get(name, [])] for name in manifest.label_sets},
                "scores": [] if reason else scores.tolist(),
                "reason": reason,
                "message": str(block[rows.MESSAGE][row]),
            }


def write(found: Iterable[dict[str, Any]], manifest: Manifest, out: str) -> tuple[int, int]:
    """Write the answers, to the terminal as they come, and return how many there were and how many of them were bad."""
    if out == STDOUT:
        reasons = [_shown(answer) for answer in found]
        return len(reasons), sum(map(bool, reasons))
    kept = list(found)
    storage.write_bytes(storage.absolute(out), _file(kept, manifest, out))
    bad = [answer for answer in kept if answer["reason"]]
    for answer in bad[:BAD_SHOWN]:
        print(f"bad video {answer['uri']} ({answer['reason']}): {answer['message']}", file=sys.stderr)
    return len(kept), len(bad)


def _shown(answer: dict[str, Any]) -> str:
    print(line(answer), flush=True)
    return str(answer["reason"])


def line(answer: dict[str, Any]) -> str:
    """Format an answer as JSON, without the scores of all classes and without empty values."""
    shown = {name: value for name, value in answer.items() if name != "scores" and value not in ("", [], None)}
    return json.dumps(shown, ensure_ascii=False)


def _file(found: list[dict[str, Any]], manifest: Manifest, out: str) -> bytes:
    if out.endswith(JSON_LINES):
        return "".join(f"{line(answer)}\n" for answer in found).encode()
    times = [(name, pa.float64()) for name in TIMES if found and name in found[0]]
    sets = [(name, BEST) for name in manifest.label_sets]
    last = [("scores", pa.list_(pa.float32())), ("reason", pa.string()), ("message", pa.string())]
    table = pa.Table.from_pylist(found, schema=pa.schema([("uri", pa.string()), *times, *sets, *last]))
    classes = json.dumps(manifest.label_sets)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"tpn_ray.label_sets": classes}), buffer, compression="zstd")
    return buffer.getvalue()
