"""The videos below a folder, found by the names that annotations give them. Runs on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from tpn_ray import storage
from tpn_ray.errors import ManifestError


class VideoFolder:
    """A folder, listed once; all queries are then answered from memory."""

    def __init__(self, root: str, suffixes: tuple[str, ...]) -> None:
        """List the folder. Raises ManifestError if it holds no videos."""
        self.root = storage.absolute(root)
        files = storage.list_files(self.root, suffixes=suffixes)
        self.sizes = {file.uri: file.size_bytes for file in files if not storage.name(file.uri).startswith(".")}
        if not self.sizes:
            raise ManifestError(f"{self.root} has no videos; names of videos end in {' '.join(suffixes)}")
        self._by_stem: dict[str, list[str]] = {}
        for uri in self.sizes:
            self._by_stem.setdefault(stem(uri), []).append(uri)

    def find(self, stems: Sequence[str], inside: str = "") -> str | None:
        """Return the video of the first stem that has any, preferring one in a folder called `inside`."""
        for name in stems:
            found = self._by_stem.get(name, [])
            if found:
                return next((uri for uri in found if _folder(uri) == _plain(inside)), found[0])
        return None

    def at(self, path: str) -> str:
        """Return the URI of a path below the folder, whether it exists or not."""
        return storage.join(self.root, path)


def stem(uri: str) -> str:
    """Return a file's name without its suffix."""
    return storage.name(uri).rpartition(".")[0]


def _folder(uri: str) -> str:
    return _plain(storage.name(storage.parent(uri)))


def _plain(name: str) -> str:
    """Normalize a name: class folders are named after their class, except for spaces and punctuation."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
