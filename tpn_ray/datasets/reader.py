"""Reads the bytes of one video, from its own file or out of a shard. Runs on Ray Data workers, and anywhere.

A video of a prepared dataset costs one ranged request for exactly its bytes: the index says where they are, and no
footer is read. Whole row groups are not read, because the rows of a window are spread over all decoding processes, each
of which would read nearly every group of it for a few rows.
"""

from __future__ import annotations

import hashlib

from tpn_ray import storage
from tpn_ray.datasets.manifest import Manifest
from tpn_ray.errors import BadVideo, ManifestError, NotFoundError

MAX_VIDEO_BYTES = 2 * 1024**3


def fetch(manifest: Manifest, sample: int) -> bytes:
    """Return a video's bytes; those of a prepared video are checked against their hash.

    Raises BadVideo for a video that is missing or was changed, and StorageError if storage fails permanently.
    """
    place = manifest.placement
    try:
        if place is not None:
            uri = place.shard_uris[place.shards[sample]]
            data = storage.read_range(uri, int(place.offsets[sample]), int(manifest.sizes_bytes[sample]))
            return _checked(data, place.hashes[sample].tobytes(), uri)
        if manifest.segments_seconds is not None:
            raise ManifestError(
                f"{manifest.uris[sample]} is a longer video of which only segments are wanted;"
                " cut them out with jobs/prepare.py and give its folder"
            )
        return storage.read_bytes(manifest.uris[sample], max_bytes=MAX_VIDEO_BYTES)
    except NotFoundError as error:
        raise BadVideo("missing", str(error)) from error


def _checked(data: bytes, sha256: bytes, shard_uri: str) -> bytes:
    if hashlib.sha256(data).digest() != sha256:
        raise BadVideo(
            "damaged",
            f"its bytes in {shard_uri} are not those that were stored; delete that shard and run jobs/prepare.py again",
        )
    return data
