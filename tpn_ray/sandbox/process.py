"""Runs code that reads videos of unknown origin in a child process that can be killed. Runs on workers, and anywhere.

A function is called in the child with the bytes of a video, or with an open file, and its result comes back as plain
values and arrays. The child has no credentials in its environment. It ends when it exceeds a limit: on address space
("too_large"), on CPU time ("timeout"; CPU time, so that the result does not depend on whether the machine is busy or
paused), or, should it sleep forever, on the time spent waiting for it. It serves many videos; after one that had to be
ended by force, the next video gets a new child.

This module is the asking side; the child's side is child.py, and the protocol between the two is channel.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import mmap
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpn_ray.errors import BadVideo, ConfigError, ResourceError, TpnRayError
from tpn_ray.sandbox.channel import END, PIXEL_BYTES, REFUSED, REPLY, REQUEST, SHARED_BYTES, aligned, unpack
from tpn_ray.sandbox.child import serve, unforeseen
from tpn_ray.sandbox.confinement import Confinement, child_environment
from tpn_ray.videos.packets import DecodeLimits

Function = Callable[..., Any]
"""A function of an importable module. Its first argument is the video; it returns or yields nested lists, dicts with
string keys, numbers, strings, bytes, and arrays."""

KEPT_BYTES = 64 * 1024**2
"""Shared memory beyond this, not counting that for pixels, is freed after each video."""

LOOK_SECONDS = 0.5
"""Interval at which a child that has not answered is checked."""
PROCESS_CLOCK = 2
"""Lowest bits of the id of the clock for a process's CPU time (clock_getcpuclockid); the bits above name the
process."""


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What one video may cost before it is given up."""

    cpu_seconds: int = 600
    """Maximum CPU time for decoding and encoding one video or segment, in seconds."""

    memory_gb: float = 4.0
    """Maximum address space of the child, in GB beyond what it starts with."""

    wall_seconds: float = 3600.0
    """Longest wait for a child that is not computing, in seconds."""

    max_file_gb: float = 1.0
    """Maximum size of a source that is not cut into segments, in GB; it is held in memory."""

    max_pixels: int = DecodeLimits.max_pixels
    """Maximum frame size: height times width, in pixels."""

    max_frames: int = DecodeLimits.max_frames
    """Maximum number of frames in a video or segment."""

    def __post_init__(self) -> None:
        for limit in dataclasses.fields(self):
            if getattr(self, limit.name) <= 0:
                raise ConfigError(f"{limit.name} is {getattr(self, limit.name)}; it must be above 0")

    @property
    def decode(self) -> DecodeLimits:
        """The limits inside the child, which leave the time limit to the watch from outside."""
        return DecodeLimits(
            max_bytes=int(self.max_file_gb * 1024**3),
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            max_seconds=10 * self.cpu_seconds,
        )


CLIP_LIMITS = SandboxLimits(cpu_seconds=90, memory_gb=3.0, wall_seconds=600.0)
"""Limits for the clips of one video. `DecodeLimits` ends most of what takes too long after 60 s, and says why; the
watch from outside ends what hangs inside a decoder."""

START_LIMITS = SandboxLimits(cpu_seconds=60, wall_seconds=300.0)
"""Limits for the imports of a child."""


class Sandbox:
    """One child process. Calls from several threads take turns; the child ends with `close` or with this process."""

    def __init__(self, limits: SandboxLimits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._modules: set[str] = set()
        self._child: _Child | None = None
        self._held: dict[str, Any] = {}

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def call(self, function: Function, video: bytes | Path, *arguments: Any) -> Any:
        """Call `function(video, *arguments)` in the child: with bytes, or for a path with the open file.

        Raises BadVideo for whatever the function raises and whatever the child dies of, and ResourceError for a child
        that is killed from outside twice.
        """
        request = pickle.dumps((function, arguments))
        with self._lock:
            self._load(function)
            try:
                return self._ask(request, video)
            except ResourceError:  # retry once if it was killed from outside
                return self._ask(request, video)

    def stream(self, function: Function, video: bytes | Path, *arguments: Any) -> Iterator[Any]:
        """Yield what `function(video, *arguments)` yields, one item at a time. Raises as `call` does."""
        request = pickle.dumps((function, arguments))
        with contextlib.closing(Sandbox(self.limits)) as alone:
            alone._load(function)
            child = alone._send(request, video, lend=False)  # its function may keep what it has made
            while (reply := alone._reply(self.limits))[0] != END:
                yield reply[1]
                child.go_on()

    @property
    def child(self) -> int | None:
        """Process id of the running child; None before the first call and after `close`."""
        return self._child.pid if self._child is not None else None

    def confinement(self) -> Confinement:
        """Start a child and return the layers that confine it."""
        self.call(len, b"")
        return Confinement(**self._held)

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the child has used, which this process's own clock does not include; 0 without a child."""
        return self._child.cpu_seconds() if self._child is not None else 0.0

    def _load(self, function: Function) -> None:
        """End a child that has not imported the function's module: once confined, it cannot import."""
        if function.__module__ not in self._modules:
            self.close()
            self._modules.add(function.__module__)

    def _ask(self, request: bytes, video: bytes | Path) -> Any:
        child = self._send(request, video)
        try:
            return self._reply(self.limits)[1]
        finally:
            if child.near_limit:
                self.close()  # its peak would count against the next video

    def _send(self, request: bytes, video: bytes | Path, *, lend: bool = True) -> _Child:
        if self._child is None:
            self._child = _Child(self.limits, sorted(self._modules))
            _, self._held = self._reply(START_LIMITS)
        self._child.send(request, video, lend=lend)
        return self._child

    def _reply(self, limits: SandboxLimits) -> tuple[bytes, Any]:
        assert self._child is not None
        try:
            return self._child.reply(limits)
        finally:
            if self._child.ended:
                self._child = None


@functools.lru_cache(maxsize=1)
def clip_sandbox() -> Sandbox:
    """Return this process's sandbox for the clips of raw videos."""
    return Sandbox(CLIP_LIMITS)


class _Child:
    """The process, the socket, and the shared memory."""

    def __init__(self, limits: SandboxLimits, modules: list[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._requests, self._replies = os.memfd_create("requests"), os.memfd_create("replies", os.MFD_ALLOW_SEALING)
        os.truncate(self._replies, SHARED_BYTES)
        # Reading memory that the other side has truncated would end this process.
        fcntl.fcntl(self._replies, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = mmap.mmap(self._replies, SHARED_BYTES)
        self._lent: dict[int, int] = {}  # beginning -> end of the pixels that are in use
        self.near_limit = False
        descriptors = (theirs.fileno(), self._requests, self._replies)
        settings = json.dumps([os.getpid(), descriptors, limits.memory_gb, modules])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {serve.__module__} import serve; serve()", settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                pass_fds=descriptors,
            )
        self.pid = self._process.pid
        # Also covers a sandbox that is never closed.
        self._end = weakref.finalize(self, _end, self._process, self._socket, self._requests, self._replies)

    @property
    def ended(self) -> bool:
        """Whether the child was ended, by `kill` or because no usable reply came."""
        return not self._end.alive

    def send(self, request: bytes, video: bytes | Path, *, lend: bool) -> None:
        """Send a call to the child, which starts on it at once.

        With `lend`, it makes pixels where this process reads them, in a place that is not in use.
        """
        free, limit = self._gap() if lend else (0, 0)
        with contextlib.ExitStack() as stack:
            files = []
            if isinstance(video, Path):
                files, video = [stack.enter_context(video.open("rb")).fileno()], b""
            _write_all(self._requests, request, video)
            head = REQUEST.pack(len(request), len(video), free, limit, bool(files))
            # A child that has just died is detected by the missing reply.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._socket, [head], files)

    def go_on(self) -> None:
        """Have the child make the next item of a stream."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(b".")

    def reply(self, limits: SandboxLimits) -> tuple[bytes, Any]:
        """Wait for the next reply, and return its kind and value.

        Raises BadVideo for a refusal and for whatever the child dies of, and ResourceError if it was killed from
        outside.
        """
        overrun = self._wait(limits)
        if overrun:
            raise self._finding("timeout", overrun)
        head = b""
        with contextlib.suppress(ConnectionResetError):
            head = self._socket.recv(REPLY.size, socket.MSG_WAITALL)
        if len(head) < REPLY.size:
            raise self._death()
        kind, begin, end = REPLY.unpack(head)
        try:
            header = json.loads(self._memory[begin:end])
            value = unpack(header["value"], memoryview(self._memory)[:begin], self._lend)
            self.near_limit = bool(header["near_limit"])
            refusal = BadVideo(value["reason"], value["message"]) if kind == REFUSED else None
        except Exception as error:  # a decoder that was taken over may answer anything
            message = f"the process that decodes it gave an impossible answer: {error!r}"
            raise self._finding("decoder_error", message) from error
        self._give_back(end)
        if refusal:
            raise refusal
        return kind, value

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far; 0 once the child has ended."""
        try:
            return time.clock_gettime(~self.pid << 3 | PROCESS_CLOCK)
        except OSError:
            return 0.0

    def kill(self) -> int:
        """End the child, if it has not ended, and return its exit status."""
        self._end()
        return self._process.wait()

    def _finding(self, reason: str, message: str) -> BadVideo:
        self.kill()
        return BadVideo(reason, message)

    def _death(self) -> BadVideo | ResourceError:
        """Return the error for a child that ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may have closed its socket and still be running
            self._process.wait(LOOK_SECONDS)
        status = self.kill()
        if status < 0 and status != -signal.SIGKILL:
            return BadVideo("damaged", f"the decoder crashed on it ({signal.Signals(-status).name})")
        return ResourceError(
            f"the decoding process was killed from outside (status {status}); probably its node ran out of memory:"
            " run fewer tasks at once with a larger --decode-cpus"
        )

    def _wait(self, limits: SandboxLimits) -> str:
        """Wait until there is something to read; otherwise return which limit was exceeded.

        A wait during which this process was itself paused counts only for its intended length.
        """
        waited, before = 0.0, None
        while not self._poll.poll(LOOK_SECONDS * 1000):
            waited += LOOK_SECONDS
            used = self.cpu_seconds()
            before = used - LOOK_SECONDS if before is None else before
            if used - before > limits.cpu_seconds:
                return f"it takes more than {limits.cpu_seconds} s of CPU time"
            if waited > limits.wall_seconds:
                return f"no reply within {limits.wall_seconds:g} s"
        return ""

    def _lend(self, array: NDArray[np.uint8], begin: int) -> None:
        """Reserve an array's place for as long as it, or any view of it, is in use."""
        self._lent[begin] = begin + aligned(array.nbytes)
        weakref.finalize(array, self._lent.pop, begin, None).atexit = False

    def _gap(self) -> tuple[int, int]:
        """Return beginning and end of a free place: the first that would hold what is in use now, or the largest.

        So a caller that drops its clips uses the same few pages over and over.
        """
        lent = sorted(self._lent.copy().items())  # the garbage collector may take entries out meanwhile
        gaps, begin = [], 0
        for first, last in [*lent, (PIXEL_BYTES, PIXEL_BYTES)]:
            gaps.append((begin, first))
            begin = max(begin, last)
        in_use = sum(last - first for first, last in lent)
        return next((gap for gap in gaps if gap[1] - gap[0] > in_use), max(gaps, key=lambda gap: gap[1] - gap[0]))

    def _give_back(self, used: int) -> None:
        if used > PIXEL_BYTES + KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, PIXEL_BYTES, SHARED_BYTES - PIXEL_BYTES)
        if os.fstat(self._requests).st_size > KEPT_BYTES:
            os.truncate(self._requests, 0)


def _end(process: subprocess.Popen[bytes], channel: socket.socket, *memories: int) -> None:
    process.kill()
    process.wait()
    channel.close()
    for memory in memories:
        os.close(memory)


def _write_all(file: int, *parts: bytes) -> None:
    at = 0
    for part in parts:
        view = memoryview(part)
        while view:
            written = os.pwrite(file, view, at)
            view, at = view[written:], at + written


@contextlib.contextmanager
def findings() -> Iterator[None]:
    """Convert whatever is raised inside because of a video to a BadVideo.

    Nobody can foresee everything that a hostile file may trigger in the libraries. An error ends its own video, not the
    job. If the cause is a bug in this code, the budget for bad videos stops the job, since every video fails.
    """
    try:
        yield
    except TpnRayError:
        raise
    except Exception as error:
        raise unforeseen(error) from error
