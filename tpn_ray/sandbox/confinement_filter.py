"""The system calls that a confined process may still make, as a kernel filter. Pure; runs anywhere.

The list holds the calls that decoding was observed to make. All others are refused with EPERM, so that libraries that
merely probe carry on.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PR_SET_NAME, PR_GET_NAME = 15, 16


@dataclass(frozen=True)
class Only:
    """A condition on a system call: half of an argument, under `mask`, is one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    upper: bool = False
    """Whether to test the upper 32 bits; what the kernel takes as an int is in the lower."""


@dataclass(frozen=True)
class Call:
    """A system call that is allowed if all its conditions hold, with its numbers."""

    name: str
    x86_64: int | None
    aarch64: int | None
    only: tuple[Only, ...] = ()


PROT_EXEC = 4
MESSAGE_FLAGS = 0x2 | 0x20 | 0x40 | 0x100 | 0x4000 | 0x40000000
"""MSG_PEEK, TRUNC, DONTWAIT, WAITALL, NOSIGNAL, CMSG_CLOEXEC. Out-of-band data is a source of kernel bugs."""
PLAIN_FUTEX = (0, 1, 3, 4, 5, 9, 10)
"""Waiting, waking, and requeueing, but no operation that inherits priorities."""
FUTEX_MODIFIERS = 128 | 256
READ_DESCRIPTOR_FLAGS = (0, 1, 2, 3, 1030)
"""F_DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC. F_SETOWN and F_SETSIG would send signals to any process."""


def _no_other(argument: int, bits: int) -> Only:
    """Require that no bits but these are set."""
    return Only(argument, (0,), 0xFFFFFFFF & ~bits)


def _is_null(argument: int) -> tuple[Only, Only]:
    return Only(argument, (0,)), Only(argument, (0,), upper=True)


def allowed_calls(pid: int) -> list[Call]:
    """List all system calls that process `pid` may still make, the most frequent first."""
    itself, no_code = Only(0, (pid,)), Only(2, (0,), PROT_EXEC)
    return [
        # Open descriptors. No fstat by path, no ioctl, and no new descriptors except copies and those from recvmsg.
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
        # Locks, the clock, random numbers.
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

Instruction = tuple[int, int, int, int]
"""Code, jump distance if true, jump distance if false, operand."""


def program(machine: str, pid: int) -> bytes:
    """Build the filter for process `pid` as classic BPF. Calls of another architecture kill the process."""
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
    """Refuse the call unless the condition holds; otherwise continue after this block."""
    yield LOAD, 0, 0, ARGUMENTS_AT + 8 * condition.argument + 4 * condition.upper
    yield AND, 0, 0, condition.mask
    for left, value in reversed(list(enumerate(reversed(condition.values)))):
        yield IF_EQUAL, left + 1, 0, value
    yield RETURN, 0, 0, REFUSE
