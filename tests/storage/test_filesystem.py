"""The filesystem that Ray Tune is given."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector, FileType, copy_files

from tests.faulty_proxy import FaultyProxy
from tpn_ray import storage
from tpn_ray.storage.s3 import endpoint


@pytest.mark.parametrize("outage", ["", "refused"])
def test_a_file_system_for_others(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outage: str) -> None:
    """What Ray Tune does with its own, here and where it was pickled, through an outage."""
    if outage and not storage.is_s3(root):
        pytest.skip("a disk does not go away")
    for name in ("result.json", "deep/pointer.json"):
        storage.write_bytes(str(tmp_path / "local" / name), name.encode())
    host, _, port = (endpoint() or "http://127.0.0.1:1").removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port)), "", lambda _: False) as proxy, ThreadPoolExecutor(1) as pool:
        if storage.is_s3(root):
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        pickled = pickle.dumps(storage.patient_filesystem(storage.join(root, "tune")))
        filesystem, path = pickle.loads(pickled)  # noqa: S301 - our own bytes

        def use() -> tuple[bytes, list[str]]:
            filesystem.create_dir(path)
            with filesystem.open_output_stream(f"{path}/mark") as stream:
                stream.write(b"1")
            copy_files(str(tmp_path / "local"), f"{path}/trial", destination_filesystem=filesystem)
            copy_files(f"{path}/trial", str(tmp_path / "back"), source_filesystem=filesystem)
            filesystem.delete_file(f"{path}/trial/result.json")
            with filesystem.open_input_stream(f"{path}/trial/deep/pointer.json") as stream:
                return stream.read(), [
                    info.path.removeprefix(f"{path}/")
                    for info in filesystem.get_file_info(FileSelector(path, recursive=True))
                    if info.is_file
                ]

        if outage:
            proxy.go_away(outage)
        under_way = pool.submit(use)
        if outage:
            time.sleep(1.5)
            assert not under_way.done()
            proxy.come_back()
        pointer, names = under_way.result(timeout=60)
        with pytest.raises(FileNotFoundError):
            filesystem.open_input_file(f"{path}/none")
        assert filesystem.get_file_info(f"{path}/none").type == FileType.NotFound
        filesystem.delete_dir(f"{path}/trial")
        assert [storage.name(file.uri) for file in storage.list_files(storage.join(root, "tune"))] == ["mark"]
    assert (pointer, sorted(names)) == (b"deep/pointer.json", ["mark", "trial/deep/pointer.json"])
    assert (tmp_path / "back" / "result.json").read_bytes() == b"result.json"


MANY_FILES = """
import sys
from pyarrow.fs import copy_files
from tpn_ray import storage
local, uri, back = sys.argv[1:]
filesystem, path = storage.patient_filesystem(uri)
filesystem.create_dir(path)
copy_files(local, path, destination_filesystem=filesystem)
copy_files(path, back, source_filesystem=filesystem)
print(len(storage.list_files(uri)))
"""


def test_many_files_at_once(root: str, tmp_path: Path) -> None:
    """pyarrow closes files on its own threads. If closing waited for those same threads, all would wait for ever."""
    for number in range(40):
        storage.write_bytes(str(tmp_path / "local" / f"{number}.json"), str(number).encode())
    (tmp_path / "back").mkdir()
    arguments = [str(tmp_path / "local"), storage.join(root, "many"), str(tmp_path / "back")]
    done = subprocess.run(
        [sys.executable, "-c", MANY_FILES, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "40", done.stderr
    assert {int(file.read_text()) for file in (tmp_path / "back").iterdir()} == set(range(40))
