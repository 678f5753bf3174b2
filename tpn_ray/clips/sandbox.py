"""Runs what reads a video of unknown origin in a child process that can be killed. Runs on workers, and anywhere.

A function is called in the child with the bytes of a video, or with an open file, and its result comes back as plain
values and arrays. The child has no credentials in its environment and ends at its limits: of address space
("too_large"), of CPU time ("timeout"; CPU time, so that a busy or paused machine decides as an idle one does) and,
should it sleep forever, of time spent waiting for it. It lives for many videos; after a verdict by force the next video
gets a new child. Nothing that comes out of the child is ever unpickled or executed.

Requests and replies are a few bytes on a socket; what they carry lies in two pieces of memory that both processes see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import inspect
import json
import math
import mmap
import os
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tpn_ray.clips import packets
from tpn_ray.clips.confinement import Confinement, child_environment, confine
from tpn_ray.clips.packets import DecodeLimits
from tpn_ray.errors import BadVideo, ConfigError, ResourceError, TpnRayError

Function = Callable[..., Any]
"""A function of an importable module. Its first argument is the video; it returns, or yields, nests of lists, dicts
with text for keys, numbers, text, bytes and arrays."""

REQUEST = struct.Struct("<QQ?")
"""Bytes of the pickled call, bytes of the video behind it, and whether an open file comes along instead."""
REPLY = struct.Struct("<cQQ")
"""Kind, and where its JSON begins and ends in the child's memory."""
RESULT, ITEM, END, REFUSED = b"r", b"i", b"e", b"x"
LOOK_SECONDS = 0.5
"""How often a child that has not answered is looked at."""
PROCESS_CLOCK = 2
"""Lowest bits of the clock that counts a process's CPU time (clock_getcpuclockid), above which stands which process."""
KEPT_BYTES = 64 * 1024**2
"""Shared memory beyond this is given back after each video."""
SHARED_BYTES = 4 * 1024**3
"""Most that a reply may hold: address space, of which only what is written takes memory."""


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What one video may cost before it is given up."""

    cpu_seconds: int = 600
    """CPU time for decoding and encoding one video or segment."""

    memory_gb: float = 4.0
    """Address space of the child above what it starts with."""

    wall_seconds: float = 3600.0
    """Longest wait for a child that does not compute."""

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
        """The limits inside the child, which leave time to the watch from outside."""
        return DecodeLimits(
            max_bytes=int(self.max_file_gb * 1024**3),
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
            max_seconds=10 * self.cpu_seconds,
        )


CLIP_LIMITS = SandboxLimits(cpu_seconds=90, memory_gb=3.0, wall_seconds=600.0)
"""For the clips of one video. `DecodeLimits` ends most of what takes too long after 60 s, and says why; the watch from
outside ends what hangs inside a decoder."""


START_LIMITS = SandboxLimits(cpu_seconds=60, wall_seconds=300.0)
"""For a child to import what it needs."""


class Sandbox:
    """One child. Calls from several threads take turns; `close` it, and its child also ends with this process."""

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
        that is ended from outside twice.
        """
        request = pickle.dumps((function, arguments))
        with self._lock:
            self._load(function)
            try:
                return self._ask(request, video)
            except _SilentChildError as silence:
                verdict = self._verdict(silence)
            if isinstance(verdict, BadVideo):
                raise verdict
            try:  # what was ended from outside is asked once more
                return self._ask(request, video)
            except _SilentChildError as silence:
                raise self._verdict(silence) from None

    def stream(self, function: Function, video: bytes | Path, *arguments: Any) -> Iterator[Any]:
        """Yield what `function(video, *arguments)` yields, one item at a time. Raises as `call` does."""
        request = pickle.dumps((function, arguments))
        with contextlib.closing(Sandbox(self.limits)) as alone:
            alone._load(function)
            try:
                yield from alone._items(request, video)
            except _SilentChildError as silence:
                raise alone._verdict(silence) from None

    @property
    def child(self) -> int | None:
        """Process id of the child that runs; None before the first call and after `close`."""
        return self._child.pid if self._child is not None else None

    def confinement(self) -> Confinement:
        """Start a child, and say what holds it."""
        self.call(len, b"")
        return Confinement(**self._held)

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the child has used: what measures this process does not see it. 0 without a child."""
        return self._child.cpu_seconds() if self._child is not None else 0.0

    def _load(self, function: Function) -> None:
        """A child is confined once it has imported what it needs: a function of another module needs a new one."""
        if function.__module__ not in self._modules:
            self.close()
            self._modules.add(function.__module__)

    def _ask(self, request: bytes, video: bytes | Path) -> Any:
        child = self._send(request, video)
        _, reply = child.reply(self.limits)
        if child.near_limit:
            self.close()  # its peak would be held against the next video
        if isinstance(reply, BadVideo):
            raise reply
        return reply

    def _items(self, request: bytes, video: bytes | Path) -> Iterator[Any]:
        child = self._send(request, video)
        while True:
            kind, reply = child.reply(self.limits)
            if isinstance(reply, BadVideo):
                raise reply
            if kind == END:
                return
            yield reply
            child.go_on()

    def _send(self, request: bytes, video: bytes | Path) -> _Child:
        if self._child is None:
            self._child = _Child(self.limits, sorted(self._modules))
            _, self._held = self._child.reply(START_LIMITS)
        self._child.send(request, video)
        return self._child

    def _verdict(self, silence: _SilentChildError) -> BadVideo | ResourceError:
        """What it means that the child gave no reply; the next request gets a new child."""
        assert self._child is not None
        status = self._child.kill() if silence.finding else self._child.wait()
        self._child = None
        if silence.finding:
            return silence.finding
        if status < 0 and status != -signal.SIGKILL:
            return BadVideo("damaged", f"the decoder crashed on it ({signal.Signals(-status).name})")
        return ResourceError(
            f"the process that decodes was ended from outside (status {status}); probably its node ran out of memory:"
            " run fewer tasks at once with a larger --decode-cpus"
        )


@functools.lru_cache(maxsize=1)
def clip_sandbox() -> Sandbox:
    """Return this process's sandbox for the clips of raw videos."""
    return Sandbox(CLIP_LIMITS)


class _SilentChildError(Exception):
    """No usable reply came: the child has ended by itself, or has to because of a finding about its video."""

    def __init__(self, finding: BadVideo | None = None) -> None:
        super().__init__(str(finding))
        self.finding = finding


class _Child:
    """The process, the socket and the shared memory."""

    def __init__(self, limits: SandboxLimits, modules: list[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._requests, self._replies = os.memfd_create("requests"), os.memfd_create("replies", os.MFD_ALLOW_SEALING)
        os.truncate(self._replies, SHARED_BYTES)
        # To read memory that the other side has cut short would end this process.
        fcntl.fcntl(self._replies, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = mmap.mmap(self._replies, SHARED_BYTES)
        self.near_limit = False
        descriptors = (theirs.fileno(), self._requests, self._replies)
        settings = json.dumps([os.getpid(), descriptors, dataclasses.asdict(limits), modules])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tpn_ray.clips.sandbox import serve; serve()", settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                pass_fds=descriptors,
            )
        # Also for a sandbox that nobody closes.
        self._end = weakref.finalize(self, _end, self._process, self._socket, self._requests, self._replies)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, request: bytes, video: bytes | Path) -> None:
        """Hand a call over; the child begins with it at once."""
        with contextlib.ExitStack() as stack:
            files = []
            if isinstance(video, Path):
                files, video = [stack.enter_context(video.open("rb")).fileno()], b""
            _write_all(self._requests, request, video)
            head = REQUEST.pack(len(request), len(video), bool(files))
            # A child that has just died is found out by the reply that does not come.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._socket, [head], files)

    def go_on(self) -> None:
        """Have the child make the next item of a stream."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(b".")

    def reply(self, limits: SandboxLimits) -> tuple[bytes, Any]:
        """Wait for the next reply: its kind, and the value or the BadVideo in it. Raises _SilentChildError."""
        self._wait(limits)
        kind, begin, end = REPLY.unpack(self._received(REPLY.size))
        try:
            header = json.loads(self._memory[begin:end])
            value = _unpacked(header["value"], memoryview(self._memory)[:begin])
            self.near_limit = bool(header["near_limit"])
            reply = BadVideo(value["reason"], value["message"]) if kind == REFUSED else value
        except Exception as error:  # a decoder that was taken over may answer anything
            finding = BadVideo("decoder_error", f"the process that decodes it gave an impossible answer: {error!r}")
            raise _SilentChildError(finding) from error
        self._give_back(end)
        return kind, reply

    def cpu_seconds(self) -> float:
        """Used so far; 0 once it has ended."""
        clock = ~self._process.pid << 3 | PROCESS_CLOCK
        try:
            return time.clock_gettime(clock)
        except OSError:
            return 0.0

    def wait(self) -> int:
        """Take the exit status of a child that has ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may have closed its socket and live on
            self._process.wait(LOOK_SECONDS)
        return self.kill()

    def kill(self) -> int:
        """End it, if it has not ended, and return its exit status."""
        self._end()
        return self._process.wait()

    def _wait(self, limits: SandboxLimits) -> None:
        """Wait until there is something to read, or raise _SilentChildError with the limit that was passed.

        A wait in which this process was itself paused counts for no more than it was meant to take.
        """
        waited, before = 0.0, None
        while not self._poll.poll(LOOK_SECONDS * 1000):
            waited += LOOK_SECONDS
            used = self.cpu_seconds()
            before = used - LOOK_SECONDS if before is None else before
            if used - before > limits.cpu_seconds:
                message = f"it takes more than {limits.cpu_seconds} s of CPU time"
                raise _SilentChildError(BadVideo("timeout", message))
            if waited > limits.wall_seconds:
                raise _SilentChildError(BadVideo("timeout", f"no reply within {limits.wall_seconds:g} s"))

    def _received(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self._socket.recv(size - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise _SilentChildError
            data += piece
        return data

    def _give_back(self, used: int) -> None:
        if used > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE)
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


# --- what goes through the shared memory


def _packed(value: Any, memory: mmap.mmap, at: int) -> tuple[Any, int]:
    """What stands for a value in JSON, its arrays and bytes being written to the memory from `at`, and where they end.

    Raises MemoryError where the memory is full.
    """
    if isinstance(value, np.ndarray | bytes):
        array = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
        if at + array.nbytes > len(memory):
            raise MemoryError
        target = np.frombuffer(memory, dtype=array.dtype, count=array.size, offset=at).reshape(array.shape)
        np.copyto(target, array)
        kind = "bytes" if isinstance(value, bytes) else "array"
        return {kind: [array.dtype.str, array.shape, at]}, at + array.nbytes + -array.nbytes % 16
    if isinstance(value, dict):
        packed, at = _packed(list(value.values()), memory, at)
        return {"dict": [list(value), packed]}, at
    if isinstance(value, list | tuple):
        if not any(isinstance(one, np.ndarray | bytes | dict | list | tuple) for one in value):
            return list(value), at
        made = []
        for one in value:
            packed, at = _packed(one, memory, at)
            made.append(packed)
        return made, at
    return value, at


def _unpacked(packed: Any, memory: memoryview) -> Any:
    """The value again, out of what may come from anybody: numpy looks at neither the sign of an offset nor the end."""
    if isinstance(packed, list):
        return [_unpacked(one, memory) for one in packed] if any(isinstance(o, dict | list) for o in packed) else packed
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "dict":
        return dict(zip(content[0], _unpacked(content[1], memory), strict=True))
    name, shape, begin = content
    dtype = np.dtype(name)
    if dtype.kind not in "biuf" or not all(type(number) is int and number >= 0 for number in (*shape, begin)):
        raise ValueError(f"no array of {name!r} and {shape!r} at {begin!r}")
    part = memory[begin : begin + math.prod(shape) * dtype.itemsize]
    return bytes(part) if kind == "bytes" else np.frombuffer(part, dtype).reshape(shape).copy()


# --- in the child


def serve() -> None:
    """Live the child's whole life: import, be confined, and answer requests until the socket is closed.

    A confined process imports nothing. What libraries put off until it is needed is loaded by a module's `rehearse()`.
    """
    parent, (channel, requests, replies), limits, modules = json.loads(sys.argv[1])
    for module in modules:
        getattr(import_module(module), "rehearse", lambda: None)()
    _Server(parent, channel, requests, replies, SandboxLimits(**limits)).run()


class _Server:
    def __init__(self, parent: int, channel: int, requests: int, replies: int, limits: SandboxLimits) -> None:
        self._socket, self._requests, self._limits = socket.socket(fileno=channel), requests, limits
        self._memory = mmap.mmap(replies, SHARED_BYTES)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._most = self._address_space("VmSize") + int(limits.memory_gb * 1024**3)
        resource.setrlimit(resource.RLIMIT_AS, (self._most, self._most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        held = confine(parent=parent, keep=(channel, requests, replies, self._status))
        self._send(RESULT, held.as_dict())

    def run(self) -> None:
        while True:
            head, files, _, _ = socket.recv_fds(self._socket, REQUEST.size, 1)
            if not head:
                return
            call_bytes, video_bytes, _ = REQUEST.unpack(head)
            function, arguments = pickle.loads(os.pread(self._requests, call_bytes, 0))  # noqa: S301 - the parent's
            try:
                if files:
                    with os.fdopen(files[0], "rb") as file:
                        self._answer(function, file, arguments)
                else:
                    self._answer(function, self._read(call_bytes, video_bytes), arguments)
            except Exception as error:  # whatever a file can make of the libraries ends that file alone
                self._send(REFUSED, self._refusal(error))

    def _read(self, begin: int, size: int) -> bytes:
        data = os.pread(self._requests, size, begin)
        while len(data) < size:  # a single read stops at 2 GB
            data += os.pread(self._requests, size - len(data), begin + len(data))
        return data

    def _answer(self, function: Function, video: bytes | BinaryIO, arguments: tuple[Any, ...]) -> None:
        result = function(video, *arguments)
        if not inspect.isgenerator(result):
            self._send(RESULT, result)
            return
        for item in result:
            self._send(ITEM, item)
            if not self._socket.recv(1):
                return
        self._send(END, None)

    def _send(self, kind: bytes, value: Any) -> None:
        packed, begin = _packed(value, self._memory, 0)
        text = json.dumps({"value": packed, "near_limit": self._is_near_limit()}).encode()
        if begin + len(text) > SHARED_BYTES:
            raise MemoryError
        self._memory[begin : begin + len(text)] = text
        self._socket.sendall(REPLY.pack(kind, begin, begin + len(text)))

    def _refusal(self, error: Exception) -> dict[str, str]:
        """Decoders call it damage when they get no memory; the peak tells the two apart."""
        bad = error if isinstance(error, BadVideo) else unforeseen(error)
        no_memory = any(isinstance(one, MemoryError) for one in (error, error.__cause__))
        if no_memory or (self._is_near_limit() and bad.reason in ("damaged", "decoder_error")):
            return {"reason": "too_large", "message": f"it takes more than {self._limits.memory_gb:g} GB of memory"}
        return {"reason": bad.reason, "message": str(bad)}

    def _is_near_limit(self) -> bool:
        """Whether this process ever used more than three quarters of its address space."""
        return self._most - self._address_space("VmPeak") < self._limits.memory_gb * 1024**3 / 4

    def _address_space(self, name: str) -> int:
        status = os.pread(self._status, 4096, 0).decode()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024


@contextlib.contextmanager
def findings() -> Iterator[None]:
    """Turn whatever is raised inside because of a video into a BadVideo.

    Nobody knows everything that a hostile file can make of the libraries. It ends its own video, not the job; should it
    be a fault of this code, the budget for bad videos stops a job in which every video ends so.
    """
    try:
        yield
    except TpnRayError:
        raise
    except Exception as error:
        raise unforeseen(error) from error


def unforeseen(error: Exception) -> BadVideo:
    """Return the finding for an exception that reading a video should not have raised."""
    return BadVideo("decoder_error", f"{type(error).__name__}: {packets.said(error) or 'no message'}")
