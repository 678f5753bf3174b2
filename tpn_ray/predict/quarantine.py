"""Videos of a prepared dataset that could not be prepared. Runs on the driver.

They have no pixels anymore, but a score "on the validation split" that leaves them out is better than it should be.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tpn_ray import storage
from tpn_ray.datasets import shards
from tpn_ray.datasets.shards import SHARDS

READERS = 16

Quarantined = tuple[str, str, str]
"""uri, reason, message."""


def quarantined(data_uri: str, splits: set[str]) -> list[Quarantined]:
    """Return the quarantined videos of these splits, from the shards' footers; none for a dataset of video files."""
    folder = storage.join(storage.absolute(data_uri), SHARDS)
    if data_uri.lower().endswith(".csv") or not storage.exists(
        storage.join(storage.absolute(data_uri), shards.DATASET)
    ):
        return []
    files = storage.list_files(folder, suffixes=(".parquet",))
    with ThreadPoolExecutor(READERS) as pool:
        summaries = list(pool.map(shards.read_summary, files))
    return sorted(bad[1:] for summary in summaries if summary.split in splits for bad in summary.bad)
