"""Break-out attempts, as by code that took over a decoder, in a real child process; records which the kernel refuses.

Runs anywhere: the doctor runs it on every node, the tests with and without confinement. The child starts as a decoding
one does. No attempt does harm: the files are made for it, signals have number 0, and addresses are the parent's own.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tpn_ray.errors import ResourceError
from tpn_ray.sandbox.confinement import Confinement, child_environment, confine

REFUSED, POSSIBLE = "refused", "possible"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the child needs to know, so that every attempt has something to attack."""

    parent: int
    folder: str
    """Folder that holds a file `secret` and a folder `inner`."""
    tcp_port: int
    """Port on the loopback address where the parent listens."""
    unix_address: str
    """Unix socket where the parent also listens."""

    @property
    def secret(self) -> Path:
        """A file that belongs to the parent's user."""
        return Path(self.folder) / "secret"


@dataclass(frozen=True, kw_only=True)
class BreakoutOutcome:
    """The outcome of all attempts."""

    confinement: Confinement
    outcomes: dict[str, str]
    """Name of the attempt -> REFUSED or POSSIBLE."""

    @property
    def possible(self) -> list[str]:
        """Names of the attempts that were not refused."""
        return [name for name, outcome in self.outcomes.items() if outcome != REFUSED]


# --- in the child: a refused attempt raises PermissionError; any other error means that the kernel processed the call


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _heard(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


SYSTEM_CALLS = {  # without a function in the C library: numbers on x86_64 and on aarch64
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "open_tree": (428, 428),
    "openat2": (437, 437),
    "clone3": (435, 435),
    "perf_event_open": (298, 241),
}


def _call(name: str, *arguments: int) -> None:
    number = SYSTEM_CALLS[name][platform.machine() == "aarch64"]
    _heard(_libc().syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _thread() -> None:
    try:
        threading.Thread(target=int).start()
    except RuntimeError as error:
        raise PermissionError(str(error)) from None


def _limit() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    except ValueError as error:  # what Python raises for EPERM
        raise PermissionError(str(error)) from None


def _shared_memory() -> None:
    segment = _libc().shmget(0, 4096, 0o600)
    _heard(segment)
    _libc().shmctl(segment, 0, None)


def _connect(family: int, address: object) -> None:
    with socket.socket(family) as one:
        one.connect(address)  # type: ignore[arg-type]


def _send_datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", port))


def _run_from_memory() -> None:
    with os.fdopen(os.memfd_create("program"), "wb") as program:
        os.execve(program.fileno(), ["program"], {})  # empty, and therefore not a program


def _new_code_in(memory: int) -> None:
    _heard(_libc().mprotect(ctypes.c_void_p(memory), ctypes.c_size_t(mmap.PAGESIZE), 7))


def _make_executable() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        view = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(view)
        del view
        _new_code_in(address)


ATTEMPTS: dict[str, Callable[[Target], object]] = {
    "read a file": lambda target: target.secret.read_bytes(),
    "overwrite a file": lambda target: target.secret.write_bytes(b"x"),
    "truncate a file": lambda target: os.truncate(target.secret, 0),
    "create a file": lambda target: Path(target.folder, "new").touch(),
    "create a link": lambda target: Path(target.folder, "link").symlink_to("/"),
    "create a hard link": lambda target: Path(target.folder, "hard").hardlink_to(target.secret),
    "create a folder": lambda target: Path(target.folder, "made").mkdir(),
    "create a pipe": lambda target: os.mkfifo(Path(target.folder, "pipe")),
    "change a file's mode": lambda target: target.secret.chmod(0o777),
    "change a file's times": lambda target: os.utime(target.secret),
    "rename a file": lambda target: target.secret.rename(target.secret.with_name("renamed")),
    "delete a file": lambda target: target.secret.with_name("renamed").unlink(),
    "list a folder": lambda target: os.listdir(target.folder),  # noqa: PTH208
    "see whether a file exists": lambda target: os.stat(target.secret),  # noqa: PTH116
    "see where it is": lambda _: Path.cwd(),
    "change its folder": lambda target: os.chdir(target.folder),
    "open a descriptor again": lambda _: Path("/proc/self/fd/0").open("rb").close(),
    "read its own memory map": lambda _: Path("/proc/self/maps").read_bytes(),
    "read the parent's environment": lambda target: Path(f"/proc/{target.parent}/environ").read_bytes(),
    "read the parent's command line": lambda target: Path(f"/proc/{target.parent}/cmdline").read_bytes(),
    "open the parent's memory": lambda target: Path(f"/proc/{target.parent}/mem").open("rb").close(),
    "read the parent's memory": lambda target: _heard(
        _libc().process_vm_readv(target.parent, None, ctypes.c_ulong(0), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
    ),
    "trace the parent": lambda target: _heard(_libc().ptrace(ctypes.c_long(0x4206), target.parent, None, None)),
    "signal the parent": lambda target: os.kill(target.parent, 0),
    "signal every process": lambda _: os.kill(-1, 0),
    "signal its group": lambda _: os.kill(0, 0),
    "hold the parent": lambda target: os.close(os.pidfd_open(target.parent)),
    "have the parent signaled": lambda target: fcntl.fcntl(0, fcntl.F_SETOWN, target.parent),
    "see the parent's limits": lambda target: resource.prlimit(target.parent, resource.RLIMIT_CPU),
    "set its own limits": lambda _: _limit(),
    "set its processors": lambda _: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "set its priority": lambda _: os.setpriority(os.PRIO_PROCESS, 0, 19),
    "connect by TCP": lambda target: _connect(socket.AF_INET, ("127.0.0.1", target.tcp_port)),
    "connect by IPv6": lambda _: socket.socket(socket.AF_INET6).close(),
    "connect by a Unix socket": lambda target: _connect(socket.AF_UNIX, target.unix_address),
    "send a datagram": lambda target: _send_datagram(target.tcp_port),
    "ask the kernel's network": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "make a pair of sockets": lambda _: socket.socketpair(),
    "make a pipe": lambda _: os.pipe(),
    "fork": lambda _: _fork(),
    "start a thread": lambda _: _thread(),
    "start a program": lambda _: os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "--version"], {}), 0),
    "become a program": lambda _: os.execv("/no/such/program", ["program"]),
    "run a program from memory": lambda _: _run_from_memory(),
    "map new machine code": lambda _: mmap.mmap(-1, mmap.PAGESIZE, prot=7).close(),
    "make memory machine code": lambda _: _make_executable(),
    "share memory with others": lambda _: _shared_memory(),
    "become traceable": lambda _: _heard(_libc().prctl(4, ctypes.c_ulong(1), 0, 0, 0)),
    "outlive the parent": lambda _: _heard(_libc().prctl(1, ctypes.c_ulong(0), 0, 0, 0)),
    "take another user": lambda _: os.setresuid(-1, -1, -1),
    "enter a namespace": lambda _: _heard(_libc().setns(0, 0)),
    "make a namespace": lambda _: _heard(_libc().unshare(0x10000000)),
    "mount": lambda target: _heard(_libc().mount(None, target.folder.encode(), b"tmpfs", ctypes.c_ulong(0), None)),
    "change the root": lambda target: os.chroot(target.folder),
    "use io_uring": lambda _: _call("io_uring_setup", 1, 0),
    "use bpf": lambda _: _call("bpf", 0, 0, 0),
    "use userfaultfd": lambda _: _call("userfaultfd", 1),
    "use the kernel's keys": lambda _: _call("keyctl", 0, -3, 0),
    "use performance counters": lambda _: _call("perf_event_open", 0, 0, -1, -1, 0),
    "use openat2": lambda _: _call("openat2", -100, 0, 0, 0),
    "use open_tree": lambda _: _call("open_tree", -100, 0, 0),
    "use clone3": lambda _: _call("clone3", 0, 0),
}
"""Name -> attempt, in order of execution."""

UP_TO_THE_MACHINE = frozenset(
    {
        "read the parent's memory", "trace the parent", "open the parent's memory", "connect by IPv6",
        "make a namespace", "mount", "change the root", "use io_uring", "use bpf", "use userfaultfd",
        "use the kernel's keys", "use performance counters", "use open_tree", "use clone3",
    }
)  # fmt: skip
"""Attempts that machines or containers may refuse to their users anyway."""


def child(target: str, *, confined: bool) -> None:
    """Make every attempt and print its outcome as a line of JSON; the first line lists the layers that hold."""
    told = Target(**json.loads(target))
    held = confine(parent=told.parent, keep=()) if confined else Confinement()
    os.write(1, json.dumps(held.as_dict()).encode() + b"\n")
    for name, attempt in ATTEMPTS.items():
        try:
            attempt(told)
            outcome = POSSIBLE
        except PermissionError:
            outcome = REFUSED
        except OSError:
            outcome = POSSIBLE  # failed for another reason: the kernel would have allowed it
        os.write(1, json.dumps([name, outcome]).encode() + b"\n")


# --- in the parent


def tried(*, confined: bool = True, seconds: float = 60.0) -> BreakoutOutcome:
    """Make every attempt in a child, confined or not. Raises ResourceError if the child does not end properly."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="breakout-")))
        (folder / "secret").write_text("secret")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(folder / "socket"))
        unix.listen()
        target = Target(
            parent=os.getpid(),
            folder=str(folder),
            tcp_port=tcp.getsockname()[1],
            unix_address=str(folder / "socket"),
        )
        program = (
            f"from tpn_ray.sandbox.breakout import child; child({json.dumps(asdict(target))!r}, confined={confined})"
        )
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
                env=child_environment(),
            )
        except subprocess.TimeoutExpired:
            raise ResourceError(f"the process that tries to break out did not end within {seconds:g} s") from None
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    if done.returncode or len(lines) != 1 + len(ATTEMPTS):
        last = lines[-1][0] if len(lines) > 1 else "none"
        said = " ".join(done.stderr.split())[-300:]
        raise ResourceError(
            f"the process that tries to break out ended early (status {done.returncode}, {last}): {said}"
        )
    return BreakoutOutcome(confinement=Confinement(**lines[0]), outcomes=dict(lines[1:]))
