"""The sandbox's child: it imports, is confined, and calls functions with videos. Runs in its own process."""

from __future__ import annotations

import inspect
import json
import mmap
import os
import pickle
import resource
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

from tpn_ray.errors import BadVideo
from tpn_ray.sandbox.channel import END, ITEM, REFUSED, REPLY, REQUEST, RESULT, SHARED_BYTES, Pixels, pack
from tpn_ray.sandbox.confinement import confine
from tpn_ray.videos import packets, pixels


def serve() -> None:
    """Run the child from start to end: import, get confined, and answer requests until the socket is closed.

    A confined process cannot import. What libraries load lazily is loaded by a module's `rehearse()`.
    """
    parent, (channel, requests, replies), memory_gb, modules = json.loads(sys.argv[1])
    for module in modules:
        getattr(import_module(module), "rehearse", lambda: None)()
    _Server(parent, channel, requests, replies, memory_gb).run()


def unforeseen(error: Exception) -> BadVideo:
    """Return the finding for an unexpected exception while reading a video."""
    return BadVideo("decoder_error", f"{type(error).__name__}: {packets.said(error) or 'no message'}")


class _Server:
    def __init__(self, parent: int, channel: int, requests: int, replies: int, memory_gb: float) -> None:
        self._socket, self._requests, self._memory_gb = socket.socket(fileno=channel), requests, memory_gb
        self._memory = mmap.mmap(replies, SHARED_BYTES)
        self._pixels = Pixels(self._memory)
        pixels.allocate_with(self._pixels.empty)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._most = self._address_space("VmSize") + int(memory_gb * 1024**3)
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
            call_bytes, video_bytes, free, limit, _ = REQUEST.unpack(head)
            self._pixels.begin(free, limit)
            function, arguments = pickle.loads(os.pread(self._requests, call_bytes, 0))  # noqa: S301 - the parent's
            try:
                if files:
                    with os.fdopen(files[0], "rb") as file:
                        self._answer(function, file, arguments)
                else:
                    self._answer(function, self._read(call_bytes, video_bytes), arguments)
            except Exception as error:  # a file may trigger any error in the libraries; it ends that file only
                self._send(REFUSED, self._refusal(error))

    def _read(self, begin: int, size: int) -> bytes:
        data = os.pread(self._requests, size, begin)
        while len(data) < size:  # a single read stops at 2 GB
            data += os.pread(self._requests, size - len(data), begin + len(data))
        return data

    def _answer(self, function: Callable[..., Any], video: bytes | BinaryIO, arguments: tuple[Any, ...]) -> None:
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
        packed, begin = pack(value, self._memory, self._pixels)
        text = json.dumps({"value": packed, "near_limit": self._is_near_limit()}).encode()
        if begin + len(text) > SHARED_BYTES:
            raise MemoryError
        self._memory[begin : begin + len(text)] = text
        self._socket.sendall(REPLY.pack(kind, begin, begin + len(text)))

    def _refusal(self, error: Exception) -> dict[str, str]:
        """Return the reason and message for an error.

        Decoders report damage when they run out of memory; the peak memory use tells the two apart.
        """
        bad = error if isinstance(error, BadVideo) else unforeseen(error)
        no_memory = any(isinstance(one, MemoryError) for one in (error, error.__cause__))
        if no_memory or (self._is_near_limit() and bad.reason in ("damaged", "decoder_error")):
            return {"reason": "too_large", "message": f"it takes more than {self._memory_gb:g} GB of memory"}
        return {"reason": bad.reason, "message": str(bad)}

    def _is_near_limit(self) -> bool:
        """Return whether this process has ever used more than three quarters of its address space."""
        return self._most - self._address_space("VmPeak") < self._memory_gb * 1024**3 / 4

    def _address_space(self, name: str) -> int:
        status = os.pread(self._status, 4096, 0).decode()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024
