"""Permanently removes every privilege that decoding does not need. Runs in the child that reads untrusted videos.

A hostile video that takes over the decoder is then left with the processor, its own memory, and the descriptors it
holds: it can open, create, connect to, start, and signal nothing. Two layers of the kernel enforce this: seccomp, with
the list of system calls in confinement_filter.py, and Landlock, with no exception to its rule against files. The system
calls are made here because libseccomp is not on every image, its Python bindings (pyseccomp) were last released in
2021, and the packages for Landlock are alpha versions by single authors.
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
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av

from tpn_ray.sandbox.confinement_filter import ARCHITECTURES, program

ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH")
"""Variables passed to a child unchanged; none of them is a secret."""

HEAP_BYTES = 32 * 1024**2
"""Free memory that a child keeps (glibc allows no more than this)."""

LAYERS = ("no_capabilities", "dies_with_parent", "no_dump", "no_new_privileges", "landlock", "seccomp")


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Which layers hold, each read back or tried after it was set. `Confinement(**record)` restores `as_dict()`."""

    no_capabilities: bool = False
    """Whether no capability is left, even to root."""

    dies_with_parent: bool = False
    """Whether the kernel kills this process when the thread that started it ends."""

    no_dump: bool = False
    """Whether processes of the same user cannot trace this one or read its memory, and it leaves no core file."""

    no_new_privileges: bool = False
    """Whether no set-user-ID program or file capability can raise this process's privileges."""

    landlock: bool = False
    """Whether all files are out of reach; on newer kernels also TCP ports, abstract sockets, and signals to others."""

    seccomp: bool = False
    """Whether system calls that decoding does not need are refused: files, sockets, processes, threads, limits, new
    code."""

    landlock_abi: int = 0
    """Version of Landlock in use: 4 adds TCP ports, 6 abstract sockets and signals; 0 for none."""

    why_not: str = ""
    """The kernel's answers for the layers that do not hold."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Layers that do not hold."""
        return tuple(layer for layer in LAYERS if not getattr(self, layer))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict, ready for JSON."""
        return asdict(self)


def child_environment() -> dict[str, str]:
    """Return a child's environment: no secrets, this process's import path, and no threads besides the main one.

    glibc keeps what is freed up to `HEAP_BYTES`, instead of asking the kernel for the same pages for every video.
    """
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    heap = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(HEAP_BYTES))
    return {**kept, "PYTHONPATH": path, **threads, **heap}


def confine(*, parent: int, keep: Collection[int]) -> Confinement:
    """Permanently give up everything that the kernel lets this process give up.

    Call it once, from the only thread (start the process with `child_environment`), after all imports; those that PyAV
    defers are made here. Descriptors other than 0 to 2 and `keep` are closed. `parent` is the id that the process that
    started this one gave for itself: if it is already gone, this process ends here. For the kernel, the parent is a
    thread: the child is killed when the thread that called Popen ends.

    A layer that the kernel refuses is skipped and reported in the result. Raises ValueError for a kept socket that
    could reach others than its peer.

    Still allowed: reading and writing descriptors that are open or received by recvmsg, waiting on them, mapping
    memory, clocks, random numbers, getrusage. No longer allowed: open, stat, import, /proc, threads, setrlimit.
    """
    if sys.platform != "linux":
        return Confinement(why_not=f"{sys.platform} has neither seccomp nor Landlock")
    _import_all()
    _keep_only({0, 1, 2, *keep})
    libc, threads = ctypes.CDLL(None, use_errno=True), len(list(Path("/proc/self/task").iterdir()))
    layers: dict[str, Callable[[], int]] = {
        "no_capabilities": lambda: _drop_capabilities(libc, threads),  # first: it may reset the next two
        "dies_with_parent": lambda: _die_with(libc, parent),
        "no_dump": lambda: _set(libc, PR_SET_DUMPABLE, 0, PR_GET_DUMPABLE),
        "no_new_privileges": lambda: _set(libc, PR_SET_NO_NEW_PRIVS, 1, PR_GET_NO_NEW_PRIVS),
        "landlock": lambda: _install_landlock(libc, threads),
        "seccomp": lambda: _install_seccomp(libc),
    }
    answers, refusals = dict[str, int](), list[str]()
    for layer, act in layers.items():
        try:
            answers[layer] = act()
        except (OSError, AttributeError) as error:  # AttributeError: not in the C library
            refusals.append(f"{layer}: {error}")
    return Confinement(
        **dict.fromkeys(answers, True), landlock_abi=answers.get("landlock", 0), why_not="; ".join(refusals)
    )


def _import_all() -> None:
    """Import what the libraries would import on first use, such as PyAV's class for subtitle streams."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for encoding in ("ascii", "latin_1", "utf_8"):
        importlib.import_module(f"encodings.{encoding}")


def _keep_only(descriptors: set[int]) -> None:
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in descriptors:
            with contextlib.suppress(OSError):  # the one that listed the folder is already closed
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


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _prctl(libc: ctypes.CDLL, option: int, *arguments: int) -> int:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(libc.prctl(ctypes.c_int(option), *values))


def _must(held: bool, problem: str) -> int:
    """Return 1, or raise OSError for a layer that was accepted but does not hold."""
    if not held:
        raise OSError(problem)
    return 1


# --- the process

CAPABILITY_VERSION = 0x20080522
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE = 1, 3, 4
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39


def _drop_capabilities(libc: ctypes.CDLL, threads: int) -> int:
    header, data = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _checked(libc.capset(header, data))
    _checked(libc.capget(header, data))
    return _must(not any(data) and threads == 1, f"only for one of {threads} threads")


def _die_with(libc: ctypes.CDLL, parent: int) -> int:
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above, so no signal will come
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def _set(libc: ctypes.CDLL, option: int, value: int, readable_as: int) -> int:
    _prctl(libc, option, value)
    return _must(_prctl(libc, readable_as) == value, "accepted without effect")


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
"""All rights that versions 1 to 5 can remove, as bits; later versions add none."""
TCP_RIGHTS, SCOPES = 0b11, 0b11
"""Bind and connect, from version 4; abstract sockets and signals, from version 6."""


def _install_landlock(libc: ctypes.CDLL, threads: int) -> int:
    """Handle every right, grant none, and return Landlock's version."""
    create = partial(libc.syscall, ctypes.c_long(LANDLOCK_CREATE_RULESET))
    version = _checked(create(None, ctypes.c_size_t(0), LANDLOCK_VERSION))
    fields = [FILE_RIGHTS[min(version, len(FILE_RIGHTS)) - 1]]
    fields += [TCP_RIGHTS] * (version >= 4) + [SCOPES] * (version >= 6)
    handled = (ctypes.c_uint64 * len(fields))(*fields)
    ruleset = _checked(create(handled, ctypes.c_size_t(ctypes.sizeof(handled)), 0))
    try:
        _checked(libc.syscall(ctypes.c_long(LANDLOCK_RESTRICT_SELF), ruleset, 0))
    finally:
        os.close(ruleset)
    _must(_refuses_to_open(errno.EACCES), "accepted without effect")
    _must(threads == 1, f"only for one of {threads} threads")
    return version


# --- seccomp

SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}
SECCOMP_SET_MODE_FILTER = 1
ALL_THREADS, WITH_SPECULATION = 1, 4
"""Kernels before 5.16 slow down filtered processes to mitigate Spectre unless told not to."""


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
    return _checked(result)
