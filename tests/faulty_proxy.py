"""A TCP proxy before a real S3 server that spoils some requests: 503, slow, reset, truncated; reading and writing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from tests.servers import S3Server

FAULTS = ("503", "slow", "reset", "truncated")
SLOW_SECONDS = 1.0
METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER of no seconds: closing sends a reset."""


class FaultyProxy:
    """Hands connections on; of the requests that carry or fetch a body, those that `spoil` picks by number fail."""

    def __init__(self, target: tuple[str, int], fault: str, spoil: Callable[[int], bool]) -> None:
        self._target, self._fault, self._spoil = target, fault, spoil
        self._lock, self._requests, self.faults = threading.Lock(), 0, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as upstream:
            cut = threading.Event()
            """The next answer is to be truncated."""
            threading.Thread(target=self._answers, args=(upstream, client, cut), daemon=True).start()
            while part := client.recv(65536):
                if not (part.startswith(METHODS) and self._is_spoiled(part)):
                    upstream.sendall(part)
                elif self._fault == "slow":
                    time.sleep(SLOW_SECONDS)
                    upstream.sendall(part)
                elif self._fault == "503":
                    client.sendall(REFUSAL)
                    return
                elif self._fault == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                elif part.startswith(b"GET "):
                    cut.set()
                    upstream.sendall(part)
                else:  # the server sees a part of what was to be written
                    upstream.sendall(part[:-10])
                    return

    def _is_spoiled(self, request: bytes) -> bool:
        if not request.startswith((b"GET ", b"PUT ")):
            return False
        with self._lock:
            spoiled = self._spoil(self._requests)
            self._requests += 1
            self.faults += spoiled
        return spoiled

    def _answers(self, upstream: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while part := upstream.recv(65536):
                if cut.is_set():
                    client.sendall(part[: max(1, len(part) - 10)])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(part)
            client.shutdown(socket.SHUT_RDWR)


def faulty_proxy(server: S3Server, fault: str, spoil: Callable[[int], bool]) -> FaultyProxy:
    """A proxy before that server; used as a context manager."""
    host, _, port = server.endpoint_url.removeprefix("http://").partition(":")
    return FaultyProxy((host, int(port)), fault, spoil)
