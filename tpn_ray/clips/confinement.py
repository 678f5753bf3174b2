"""Takes from a process all that decoding does not need, for good. Runs in the child that reads untrusted videos.

A hostile video that takes over the decoder is then left with the processor, its own memory and the descriptors it
holds: it opens nothing, creates nothing, connects to nothing, starts nothing and signals nobody. Two layers of the
kernel see to that: a seccomp filter that lists the system calls decoding was seen to make and refuses all others (with
EPERM, so that libraries which only look around carry on), and Landlock with no exception to its rule against files.
The system calls are made here: libseccomp is not on every image, its bindings for Python (pyseccomp) were last released
in 2021, and the packages for Landlock are alpha versions by single authors.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import pkgutil
import platform
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH")
"""Variables that a child is given as they are; none of them is a secret."""

LAYERS = ("no_capabilities", "dies_with_parent", "no_dump", "no_new_privileges", "landlock", "seccomp")


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Which layers hold. Each was read back or tried after it was set. `Confinement(**record)` reads `as_dict()`."""

    no_capabilities: bool = False
    """No capability is left, even to root."""

    dies_with_parent: bool = False
    """The kernel kills this process when the thread that started it ends."""

    no_dump: bool = False
    """Processes of the same user cannot trace this one or read its memory, and it leaves no core file."""

    no_new_privileges: bool = False
    """No set-user-ID program or file capability can raise what this process may do."""

    landlock: bool = False
    """All files are out of reach; with newer kernels also TCP ports, abstract sockets and other processes' signals."""

    seccomp: bool = False
    """System calls that decoding does not need are refused: files, sockets, processes, threads, limits, new code."""

    landlock_abi: int = 0
    """Version of Landlock in use: 4 adds TCP ports, 6 abstract sockets and signals; 0 for none."""

    why_not: str = ""
    """What the kernel answered to the layers that do not hold."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the layers that do not hold."""
        return tuple(layer for layer in LAYERS if not getattr(self, layer))

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def child_environment() -> dict[str, str]:
    """What the child is started with: no secrets, this process's import path, and no thread beside the main one."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def confine(*, parent: int, keep: Collection[int]) -> Confinement:
    """Give up, for this process and for good, everything the kernel lets it give up.

    Call it once, from the only thread (start the process with `child_environment`), after all imports (those that PyAV
    puts off are made here). Descriptors other than 0 to 2 and `keep` are closed. `parent` is the process that started
    this one, as it told by itself: where it is already gone, this process ends here. The kernel means its thread: the
    child is killed when the thread that called Popen ends.

    A layer that the kernel refuses is left out, and the answer says so. Raises ValueError for a kept socket that could
    reach others than its peer.

    What still works: reading and writing open descriptors and those that come by recvmsg, waiting on them, mapping
    memory, clocks, random numbers, getrusage. What no longer does: open, stat, import, /proc, threads, setrlimit.
    """
    if sys.platform != "linux":
        return Confinement(why_not=f"{sys.platform} has neither seccomp nor Landlock")
    _import_all()
    _keep_only({0, 1, 2, *keep})
    libc, threads = ctypes.CDLL(None, use_errno=True), len(list(Path("/proc/self/task").iterdir()))
    layers: dict[str, Callable[[], int]] = {
        "no_capabilities": lambda: _drop_capabilities(libc, threads),  # may reset the next two
        "dies_with_parent": lambda: _die_with(libc, parent),
        "no_dump": lambda: _forbid_dumps(libc),
        "no_new_privileges": lambda: _forbid_new_privileges(libc),
        "landlock": lambda: _install_landlock(libc, threads),
        "seccomp": lambda: _install_seccomp(libc),
    }
    answers, refusals = dict[str, int](), list[str]()
    for layer, act in layers.items():
        try:
            answers[layer] = act()
        except (OSError, AttributeError) as error:  # AttributeError: the C library does not have it
            refusals.append(f"{layer}: {error}")
    return Confinement(
        **dict.fromkeys(answers, True), landlock_abi=answers.get("landlock", 0), why_not="; ".join(refusals)
    )


def _import_all() -> None:
    """What the libraries would import on first use, such as PyAV its class for a stream of subtitles."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for encoding in ("ascii", "latin_1", "utf_8"):
        importlib.import_module(f"encodings.{encoding}")


def _keep_only(descriptors: set[int]) -> None:
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in descriptors:
            with contextlib.suppress(OSError):  # the one that listed the folder is closed already
                os.close(descriptor)
    for descriptor in descriptors:
        try:
            is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        except OSError:
            continue  # not open
        if is_socket:
            with socket.socket(fileno=os.dup(descriptor)) as one:
                if one.family != socket.AF_UNIX or one.type == socket.SOCK_DGRAM:
                    raise ValueError(f"descriptor {descriptor} is a socket of {one.family.name}, {one.type.name}")


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _prctl(libc: ctypes.CDLL, option: int, *arguments: int) -> int:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = libc.prctl(ctypes.c_int(option), *values)
    if result < 0:
        _check(result)
    return result


def _must(held: bool, problem: str) -> int:
    """1, or OSError where a layer was accepted and does not hold."""
    if not held:
        raise OSError(problem)
    return 1


# --- the process

CAPABILITY_VERSION = 0x20080522
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NAME, PR_GET_NAME = 1, 3, 4, 15, 16
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39


def _drop_capabilities(libc: ctypes.CDLL, threads: int) -> int:
    header, data = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _check(libc.capset(header, data))
    _check(libc.capget(header, data))
    return _must(not any(data) and threads == 1, f"only for one of {threads} threads")


def _die_with(libc: ctypes.CDLL, parent: int) -> int:
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above: no signal will come
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def _forbid_dumps(libc: ctypes.CDLL) -> int:
    _prctl(libc, PR_SET_DUMPABLE, 0)
    return _must(_prctl(libc, PR_GET_DUMPABLE) == 0, "accepted without effect")


def _forbid_new_privileges(libc: ctypes.CDLL) -> int:
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    return _must(_prctl(libc, PR_GET_NO_NEW_PRIVS) == 1, "accepted without effect")


def _refuses_to_open(expected: int) -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == expected
    return False


# --- Landlock

LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # on all architectures
LANDLOCK_VERSION = 1
FILE_RIGHTS = (0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF)
"""All that versions 1 to 5 can take away, as bits; later ones add none."""
TCP_RIGHTS, SCOPES = 0b11, 0b11
"""Bind and connect, from version 4; abstract sockets and signals, from version 6."""


def _install_landlock(libc: ctypes.CDLL, threads: int) -> int:
    """Handle every right and grant none. Returns the version."""
    version: int = libc.syscall(ctypes.c_long(LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 0:
        _check(version)
    fields = [FILE_RIGHTS[min(version, len(FILE_RIGHTS)) - 1]]
    fields += [TCP_RIGHTS] * (version >= 4) + [SCOPES] * (version >= 6)
    handled = (ctypes.c_uint64 * len(fields))(*fields)
    ruleset: int = libc.syscall(
        ctypes.c_long(LANDLOCK_CREATE_RULESET), handled, ctypes.c_size_t(ctypes.sizeof(handled)), 0
    )
    if ruleset < 0:
        _check(ruleset)
    try:
        _check(libc.syscall(ctypes.c_long(LANDLOCK_RESTRICT_SELF), ruleset, 0))
    finally:
        os.close(ruleset)
    _must(_refuses_to_open(errno.EACCES), "accepted without effect")
    _must(threads == 1, f"only for one of {threads} threads")
    return version


# --- seccomp


@dataclass(frozen=True)
class Only:
    """A condition on a system call: half of an argument, under `mask`, is one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    upper: bool = False
    """The upper 32 bits; what the kernel takes as an int is in the lower."""


@dataclass(frozen=True)
class Call:
    """A system call that is allowed where all its conditions hold, with its numbers."""

    name: str
    x86_64: int | None
    aarch64: int | None
    only: tuple[Only, ...] = ()


PROT_EXEC = 4
MESSAGE_FLAGS = 0x2 | 0x20 | 0x40 | 0x100 | 0x4000 | 0x40000000
"""MSG_PEEK, TRUNC, DONTWAIT, WAITALL, NOSIGNAL, CMSG_CLOEXEC. Out-of-band data are a source of kernel bugs."""
PLAIN_FUTEX = (0, 1, 3, 4, 5, 9, 10)
"""Waiting, waking and requeueing; none that inherits priorities."""
FUTEX_MODIFIERS = 128 | 256
READ_DESCRIPTOR_FLAGS = (0, 1, 2, 3, 1030)
"""F_DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC. F_SETOWN and F_SETSIG would send signals to anybody."""


def _no_other(argument: int, bits: int) -> Only:
    """No bit but these is set."""
    return Only(argument, (0,), 0xFFFFFFFF & ~bits)


def _is_null(argument: int) -> tuple[Only, Only]:
    return Only(argument, (0,)), Only(argument, (0,), upper=True)


def allowed_calls(pid: int) -> list[Call]:
    """All that process `pid` may still ask of the kernel; the most frequent first."""
    itself, no_code = Only(0, (pid,)), Only(2, (0,), PROT_EXEC)
    return [
        # Descriptors that are open. No fstat by path, no ioctl, nothing that makes a new one but copies and recvmsg.
        Call("read", 0, 63),
        Call("write", 1, 64),
        Call("lseek", 8, 62),
        Call("pread64", 17, 67),
        Call("pwrite64", 18, 68),
        Call("readv", 19, 65),
        Call("writev", 20, 66),
        Call("preadv", 295, 69),
        Call("close", 3, 57),
        Call("dup", 32, 23),
        Call("fstat", 5, 80),
        Call("fcntl", 72, 25, (Only(1, READ_DESCRIPTOR_FLAGS),)),
        Call("poll", 7, None),
        Call("ppoll", 271, 73),
        Call("select", 23, None),
        Call("pselect6", 270, 72),
        Call("recvfrom", 45, 207, (_no_other(3, MESSAGE_FLAGS),)),
        Call("recvmsg", 47, 212, (_no_other(2, MESSAGE_FLAGS),)),
        Call("sendto", 44, 206, (_no_other(3, MESSAGE_FLAGS), *_is_null(4))),
        Call("sendmsg", 46, 211, (_no_other(2, MESSAGE_FLAGS),)),
        # Memory, without new machine code.
        Call("brk", 12, 214),
        Call("mmap", 9, 222, (no_code,)),
        Call("mprotect", 10, 226, (no_code,)),
        Call("munmap", 11, 215),
        Call("mremap", 25, 216),
        Call("madvise", 28, 233),
        # Locks, the clock, chance.
        Call("futex", 202, 98, (Only(1, PLAIN_FUTEX, 0xFFFFFFFF & ~FUTEX_MODIFIERS),)),
        Call("sched_yield", 24, 124),
        Call("sched_getaffinity", 204, 123),
        Call("clock_gettime", 228, 113),
        Call("clock_getres", 229, 114),
        Call("clock_nanosleep", 230, 115),
        Call("nanosleep", 35, 101),
        Call("gettimeofday", 96, 169),
        Call("time", 201, None),
        Call("getrandom", 318, 278),
        Call("restart_syscall", 219, 128),
        # The process itself.
        Call("getpid", 39, 172),
        Call("gettid", 186, 178),
        Call("getrusage", 98, 165),
        Call("prlimit64", 302, 261, (Only(0, (0, pid)), *_is_null(2))),
        Call("prctl", 157, 167, (Only(0, (PR_SET_NAME, PR_GET_NAME)),)),
        Call("rt_sigaction", 13, 134),
        Call("rt_sigprocmask", 14, 135),
        Call("rt_sigreturn", 15, 139),
        Call("sigaltstack", 131, 132),
        Call("kill", 62, 129, (itself,)),
        Call("tgkill", 234, 131, (itself,)),
        Call("exit", 60, 93),
        Call("exit_group", 231, 94),
    ]


LOAD, AND, IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}

Instruction = tuple[int, int, int, int]
"""Code, how far to jump if true, if false, operand."""


def program(machine: str, pid: int) -> bytes:
    """The filter for process `pid`: classic BPF, as the kernel takes it. Calls of another architecture kill."""
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (IF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    for call in allowed_calls(pid):
        number: int | None = getattr(call, machine)
        if number is not None:
            block = [instruction for condition in call.only for instruction in _tested(condition)]
            block.append((RETURN, 0, 0, ALLOW))
            code += [(IF_EQUAL, 0, len(block), number), *block]
    code.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _tested(condition: Only) -> Iterator[Instruction]:
    """Refuse the call unless the condition holds, then go on behind."""
    yield LOAD, 0, 0, ARGUMENTS_AT + 8 * condition.argument + 4 * condition.upper
    yield AND, 0, 0, condition.mask
    for left, value in reversed(list(enumerate(reversed(condition.values)))):
        yield IF_EQUAL, left + 1, 0, value
    yield RETURN, 0, 0, REFUSE


SECCOMP_SET_MODE_FILTER = 1
ALL_THREADS, WITH_SPECULATION = 1, 4
"""Kernels before 5.16 slow filtered processes down against Spectre unless told not to."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def _install_seccomp(libc: ctypes.CDLL) -> int:
    machine = platform.machine()
    if machine not in ARCHITECTURES or sys.maxsize < 2**32:
        raise OSError(f"there is no list of system calls for {machine}")
    code = program(machine, os.getpid())
    for flags in (ALL_THREADS | WITH_SPECULATION, ALL_THREADS):  # the second for kernels before 4.17
        result: int = libc.syscall(
            ctypes.c_long(SECCOMP_NUMBERS[machine]),
            SECCOMP_SET_MODE_FILTER,
            flags,
            ctypes.byref(_Program(len(code) // 8, code)),
        )
        if result == 0:
            return _must(_refuses_to_open(errno.EPERM), "accepted without effect")
        if result > 0:
            raise OSError(f"thread {result} has another filter")
        if ctypes.get_errno() != errno.EINVAL:
            break
    _check(result)
    return 1
