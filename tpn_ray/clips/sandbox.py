"""Videos of unknown origin are converted in a child process that can be killed. Runs on workers, and anywhere.

The child has no credentials in its environment, writes no files, and ends at its limits: of address space
("too_large"), of CPU time ("timeout"; CPU time, so that a busy machine decides as an idle one) and, should it sleep for
ever, of wall-clock time. It lives for many videos; after a verdict by force the next one gets a new child.
Requests are a line of JSON, replies JSON with the video's bytes behind it: nothing that was read is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import av

from tpn_ray.clips import packets
from tpn_ray.clips.encode import EncodeConfig, Prepared, prepare_video
from tpn_ray.clips.packets import DecodeLimits
from tpn_ray.clips.source_frames import Segment
from tpn_ray.errors import BadVideo, ConfigError, ResourceError

PIPE_BYTES = 1024**2
SIZES = struct.Struct("<QQ")
"""A reply begins with the bytes of its JSON and of its video."""


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What one video may cost before it is given up."""

    cpu_seconds: int = 600
    """CPU time for decoding and encoding one video or segment."""

    memory_gb: float = 4.0
    """Address space of the child above what it starts with."""

    wall_seconds: float = 3600.0
    """Against a child that waits without computing."""

    max_file_gb: float = 1.0
    """Size of a source that is not cut into segments; it is held in memory."""

    max_pixels: int = DecodeLimits.max_pixels
    """Height times width of a frame."""

    max_frames: int = DecodeLimits.max_frames
    """Frames of a video or segment."""

    def __post_init__(self) -> None:
        for limit in dataclasses.fields(self):
            if getattr(self, limit.name) <= 0:
                raise ConfigError(f"{limit.name} is {getattr(self, limit.name)}; it must be above 0")

    @property
    def decode(self) -> DecodeLimits:
        """The limits inside the child; time is not looked at there."""
        return DecodeLimits(
            max_bytes=int(self.max_file_gb * 1024**3),
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            max_seconds=10 * self.wall_seconds,
        )


@dataclass
class Sandbox:
    """Use it from one thread, and `close` it; its child also ends with this process."""

    limits: SandboxLimits = field(default_factory=SandboxLimits)
    _child: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe:
                    pipe.close()
            self._child = None

    def prepare(self, path: Path, segment: Segment | None, config: EncodeConfig) -> Prepared:
        """`encode.prepare_video` of a local file, in the child. Raises BadVideo, also for what the child dies of."""
        if segment is None and path.stat().st_size > self.limits.decode.max_bytes:
            raise BadVideo(
                "too_large", f"the file has {path.stat().st_size} bytes, more than {self.limits.max_file_gb:g} GB"
            )
        request = {
            "path": str(path),
            "segment": dataclasses.asdict(segment) if segment else None,
            "config": dataclasses.asdict(config),
        }
        header, video = self._answer(json.dumps(request).encode() + b"\n")
        if header["near_limit"]:
            self.close()  # its peak would be held against the next video
        if "reason" in header:
            raise BadVideo(header["reason"], header["message"])
        return Prepared(video=video, **header["prepared"])

    def _answer(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        """The reply, or the verdict where there is none; a child that was ended from outside is asked once more."""
        try:
            return self._ask(request)
        except _SilentChildError as death:
            verdict = self._verdict(death)
        if isinstance(verdict, BadVideo):
            raise verdict
        try:
            return self._ask(request)
        except _SilentChildError as death:
            raise self._verdict(death) from None

    def _ask(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        child = self._child or self._start()
        assert child.stdin and child.stdout
        deadline = time.monotonic() + self.limits.wall_seconds
        try:
            child.stdin.write(request)
            child.stdin.flush()
        except BrokenPipeError:
            raise _SilentChildError("at once") from None
        header_bytes, video_bytes = SIZES.unpack(self._read(child.stdout, SIZES.size, deadline))
        header: dict[str, Any] = json.loads(self._read(child.stdout, header_bytes, deadline))
        return header, self._read(child.stdout, video_bytes, deadline)

    def _read(self, pipe: IO[bytes], size: int, deadline: float) -> bytes:
        """`size` bytes from the child, which must come before the deadline."""
        data = bytearray()
        while len(data) < size:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _SilentChildError("waiting")
            piece = os.read(pipe.fileno(), min(size - len(data), PIPE_BYTES))
            if not piece:
                raise _SilentChildError("closed")
            data += piece
        return bytes(data)

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from tpn_ray.clips.sandbox import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            bufsize=0,
        )
        assert self._child.stdin
        self._child.stdin.write(json.dumps(dataclasses.asdict(self.limits)).encode() + b"\n")
        return self._child

    def _verdict(self, death: _SilentChildError) -> BadVideo | ResourceError:
        """What it means that the child gave no reply; the next request gets a new child."""
        assert self._child is not None
        waited = str(death) == "waiting"
        if waited:
            self._child.kill()
        status = self._child.wait()
        self.close()
        if waited:
            return BadVideo("timeout", f"no reply within {self.limits.wall_seconds:g} s")
        if status == -signal.SIGXCPU:
            return BadVideo("timeout", f"it takes more than {self.limits.cpu_seconds} s of CPU time")
        if status < 0 and status != -signal.SIGKILL:
            return BadVideo("damaged", f"the decoder crashed on it ({signal.Signals(-status).name})")
        return ResourceError(
            f"the process that decodes was ended from outside (status {status}); probably its node ran out of memory:"
            " run fewer tasks at once with a larger --cpus-per-task"
        )


class _SilentChildError(Exception):
    """No reply: "waiting" (still alive), or the pipe was closed."""


# --- in the child


def serve() -> None:
    """The child's whole life: a line of limits, then requests until the pipe is closed."""
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a library prints is no reply
    limits = SandboxLimits(**json.loads(requests.readline()))
    _confine(limits)
    for line in requests:
        _allow_cpu_seconds(limits.cpu_seconds)
        header, video = _reply(json.loads(line), limits)
        text = json.dumps(header).encode()
        replies.write(SIZES.pack(len(text), len(video)) + text + video)
        replies.flush()


def _confine(limits: SandboxLimits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(limits.memory_gb * 1024**3)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_cpu_seconds(seconds: int) -> None:
    """From now on; the limit counts from the start of the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _reply(request: dict[str, Any], limits: SandboxLimits) -> tuple[dict[str, Any], bytes]:
    segment = Segment(**request["segment"]) if request["segment"] else None
    with Path(request["path"]).open("rb") as source:
        try:
            made = prepare_video(source, segment, EncodeConfig(**request["config"]), limits.decode)
        except (BadVideo, MemoryError) as error:
            return _refusal(error, limits), b""
        except (av.FFmpegError, ArithmeticError, AssertionError, LookupError, ValueError) as error:
            # Nobody knows all that a hostile file can make of the libraries. It ends its own conversion, not the job;
            # should it be a fault of this code, the budget stops a job of which every video ends so.
            reason = BadVideo("damaged", f"it cannot be converted: {type(error).__name__}: {packets.said(error)}")
            return _refusal(reason, limits), b""
    fields = {one.name: getattr(made, one.name) for one in dataclasses.fields(made) if one.name != "video"}
    return {"prepared": fields, "near_limit": _is_near_limit(limits)}, made.video


def _refusal(error: BadVideo | MemoryError, limits: SandboxLimits) -> dict[str, Any]:
    """Decoders call it damage when they get no memory; the peak tells the two apart."""
    near_limit = _is_near_limit(limits)
    if isinstance(error, MemoryError) or (near_limit and error.reason == "damaged"):
        return {
            "reason": "too_large",
            "message": f"it takes more than {limits.memory_gb:g} GB of memory",
            "near_limit": True,
        }
    return {"reason": error.reason, "message": str(error), "near_limit": near_limit}


def _is_near_limit(limits: SandboxLimits) -> bool:
    """Whether this process ever used more than three quarters of its address space."""
    peak_kb = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmPeak"))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return soft - int(peak_kb.split()[1]) * 1024 < limits.memory_gb * 1024**3 / 4
