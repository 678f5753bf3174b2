"""Hosts with addresses of their own on one machine: network namespaces behind a switch that is one too.

Needs root on Linux. Nothing of it can be reached from outside, or reaches out.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NET = 0x40000000
"""CLONE_NEWNET."""


@dataclass(frozen=True)
class Host:
    """A network namespace, its name on the network and its address there."""

    namespace: str
    name: str
    address: str
    switch: str

    def command(self, *arguments: str) -> list[str]:
        """A command that runs `arguments` on this host, under its name."""
        named = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", named, "sh", *arguments]

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This thread, and all processes that it starts, are on this host for a while."""
        with Path("/proc/thread-self/ns/net").open() as before, Path(f"/run/netns/{self.namespace}").open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def cut_off(self) -> None:
        """Its cable is pulled: nothing reaches it any more, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.name, "down")


@contextlib.contextmanager
def connected_hosts(count: int) -> Iterator[list[Host]]:
    """Hosts that reach each other by address and by name."""
    tag = f"tpn{os.getpid()}"
    switch = f"{tag}-switch"
    made = [Host(f"{tag}-{n}", f"host{n}", f"10.77.0.{n}", switch) for n in range(1, count + 1)]
    known = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in made)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in made:
            files = Path("/etc/netns") / host.namespace  # stands in for /etc/hosts there
            files.mkdir(parents=True)
            (files / "hosts").write_text(known)
            _ip("netns", "add", host.namespace)
            _ip("-n", switch, "link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("-n", switch, "link", "set", host.name, "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", device, "up")
        yield made
    finally:
        for host in made:
            shutil.rmtree(Path("/etc/netns") / host.namespace, ignore_errors=True)
        for namespace in (*(host.namespace for host in made), switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", namespace)


@functools.cache
def why_not() -> str:
    """Why this machine cannot make such hosts; empty if it can."""
    try:
        with connected_hosts(1) as (host,):
            subprocess.run(host.command("true"), check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip() or str(error)
    except OSError as error:
        return str(error)
    return ""


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, NET):
        raise OSError(ctypes.get_errno(), "setns failed")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=60)
