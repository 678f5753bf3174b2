"""A TCP proxy before a real server that spoils some requests: 503, slow, reset, truncated; reading and writing.

It can also take the whole server away for a while: nothing listens any more, everything is refused, or nothing moves.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from tests.servers import S3Server

FAULTS = ("503", "slow", "reset", "truncated")
OUTAGES = ("refused", "503", "stalled")
SLOW_SECONDS = 1.0
METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REFUSAL_WITH_REASON = REFUSAL.replace(b"Length: 0", b"Length: %d" % len(SLOW_DOWN)) + SLOW_DOWN
RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER of no seconds: closing sends a reset."""


class FaultyProxy:
    """Hands connections on; of the requests that carry or fetch a body, those that `spoil` picks by number fail."""

    def __init__(self, target: tuple[str, int], fault: str, spoil: Callable[[int], bool]) -> None:
        self._target, self._fault, self._spoil = target, fault, spoil
        self._lock, self._requests, self.faults = threading.Lock(), 0, 0
        self._outage, self._moving, self._open = "", threading.Event(), set[socket.socket]()
        self._moving.set()
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def go_away(self, outage: str) -> None:
        """Make the server unreachable in one of the ways of OUTAGES, requests under way included."""
        self._outage = outage
        if outage == "stalled":
            self._moving.clear()
        if outage == "refused":
            self._stop_listening()
            with self._lock:
                connections = list(self._open)
            for connection in connections:
                _reset(connection)

    def come_back(self) -> None:
        """End the outage. What was stalled moves on."""
        before, self._outage = self._outage, ""
        self._moving.set()
        if before == "refused":
            self._listen(int(self.url.rpartition(":")[2]))

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end the wait for a connection
        self._listener.close()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_listening()
        self._moving.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(self._target) as upstream,
            self._tracked(client),
            self._tracked(upstream),
        ):
            cut = threading.Event()
            """The next answer is to be truncated."""
            threading.Thread(target=self._answers, args=(upstream, client, cut), daemon=True).start()
            while part := client.recv(65536):
                self._moving.wait()
                if self._outage == "503":
                    client.sendall(REFUSAL if part.startswith(b"HEAD ") else REFUSAL_WITH_REASON)
                    return
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

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

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
                self._moving.wait()
                if cut.is_set():
                    client.sendall(part[: max(1, len(part) - 10)])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(part)
            client.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.shutdown(socket.SHUT_RDWR)


def faulty_proxy(server: S3Server, fault: str = "", spoil: Callable[[int], bool] = lambda _: False) -> FaultyProxy:
    """A proxy before that server; used as a context manager. By default it spoils nothing."""
    host, _, port = server.endpoint_url.removeprefix("http://").partition(":")
    return FaultyProxy((host, int(port)), fault, spoil)
