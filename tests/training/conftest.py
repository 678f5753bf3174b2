from __future__ import annotations

from pathlib import Path

import pytest

from tpn_ray.datasets.manifest import Manifest, load_manifest


@pytest.fixture(scope="module")
def manifest(toy_folder: Path) -> Manifest:
    return load_manifest(str(toy_folder))
