"""bad.json in the folder of a run: its unusable videos, so that those found before a stop still count after it.

Workers report a bad video when they decode it, which a resumed run may not do again. Written by the run's driver alone;
runs anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tpn_ray import storage
from tpn_ray.budget import Bad
from tpn_ray.errors import NotFoundError

FORMAT = 1
NAME = "bad.json"


def write(run_uri: str, dataset_version: str, bad: Mapping[str, Bad]) -> None:
    """Write all bad videos of a run, by id."""
    rows = [[id, *about] for id, about in bad.items()]
    plain = {"format": FORMAT, "dataset_version": dataset_version, "bad": rows}
    storage.write_bytes(storage.join(run_uri, NAME), json.dumps(plain).encode())


def read(run_uri: str, dataset_version: str) -> tuple[dict[str, Bad], str]:
    """Return the bad videos on record, by id, and what is wrong with the record in a sentence ("": nothing).

    Findings that a run of the same name made in another dataset, before it had a checkpoint, do not belong to this one.
    """
    uri = storage.join(run_uri, NAME)
    try:
        plain = json.loads(storage.read_bytes(uri))
        if plain["dataset_version"] != dataset_version:
            return {}, ""
        return {str(id): (str(uri), str(reason), str(message)) for id, uri, reason, message in plain["bad"]}, ""
    except NotFoundError:
        return {}, ""
    except (ValueError, KeyError, TypeError) as error:
        return {}, (
            f"{uri} is damaged ({type(error).__name__}): videos that were found to be bad before count again when they "
            "are decoded again"
        )
