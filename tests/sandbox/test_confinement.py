"""Confined processes: what they can no longer do, what they still can, and the filter itself on both architectures."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.videos import videos
from tpn_ray.sandbox import breakout, confinement, confinement_filter
from tpn_ray.sandbox.breakout import ATTEMPTS, POSSIBLE, REFUSED, UP_TO_THE_MACHINE, BreakoutOutcome
from tpn_ray.sandbox.confinement import LAYERS, Confinement, child_environment
from tpn_ray.sandbox.confinement_filter import ALLOW, ARCHITECTURES, KILL, REFUSE

linux = pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to confine with")
SECONDS = 120


@cache
def trial(*, confined: bool) -> BreakoutOutcome:
    return breakout.tried(confined=confined, seconds=SECONDS)


@linux
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_gets_out(attempt: str) -> None:
    unconfined = trial(confined=False).outcomes[attempt]
    assert trial(confined=True).outcomes[attempt] == REFUSED
    assert unconfined == POSSIBLE or attempt in UP_TO_THE_MACHINE, "it is refused anyway, so it shows nothing"


@linux
def test_all_layers_hold() -> None:
    held = trial(confined=True).confinement
    assert held.missing in ((), ("landlock",)), held
    assert held.missing == () or "landlock" in held.why_not
    assert Confinement(**json.loads(json.dumps(held.as_dict()))) == held
    assert trial(confined=False).confinement.missing == LAYERS


# --- programs that run in a confined child


BEGIN = """
import av, json, mmap, numpy, os, resource, select, signal, socket, sys, time
from tpn_ray.sandbox import confinement
from tpn_ray.sandbox.confinement import confine
"""


def start(program: str, *arguments: object, keep: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=keep,
        env=child_environment(),
    )


def said_by(program: str, *arguments: object, keep: tuple[int, ...] = ()) -> str:
    child = start(program, *arguments, keep=keep)
    output, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, errors
    return output.strip()


@linux
def test_what_decoding_needs_goes_on(tmp_path: Path) -> None:
    (tmp_path / "video").write_bytes(b"0123456789")
    memory = os.memfd_create("shared")
    os.truncate(memory, 4096)
    ours, theirs = socket.socketpair()
    program = """
parent, connection, memory = (int(text) for text in sys.argv[1:])
connection, shared = socket.socket(fileno=connection), mmap.mmap(memory, 4096)
status = os.open("/proc/self/status", os.O_RDONLY)
held = confine(parent=parent, keep=[connection.fileno(), memory, status])
message, (descriptor,), _, _ = socket.recv_fds(connection, 100, 1)
assert select.select([connection], [], [], 0)[0] == []
with os.fdopen(descriptor, "rb") as video:
    assert (video.read(4), video.seek(8), video.read()) == (b"0123", 8, b"89")
shared[:3] = b"abc"
assert mmap.mmap(memory, 4096)[:3] == b"abc", "what is open can be mapped again"
numpy.ones((3000, 3000)).sum(), time.sleep(0.01), os.urandom(3), os.getpid()
resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_AS)
assert b"VmPeak" in os.pread(status, 10000, 0)
connection.sendall(json.dumps(held.as_dict()).encode())
os.abort()
"""
    with ours, (tmp_path / "video").open("rb") as video:
        child = start(program, os.getpid(), theirs.fileno(), memory, keep=(theirs.fileno(), memory))
        theirs.close()
        socket.send_fds(ours, [b"x"], [video.fileno()])
        ours.settimeout(SECONDS)
        answer = ours.recv(10000)
        _, errors = child.communicate(timeout=SECONDS)
        assert answer, errors
        assert Confinement(**json.loads(answer)).seccomp
        assert os.pread(memory, 3, 0) == b"abc"
        assert child.returncode == -signal.SIGABRT, "a crash is still seen as one"
    os.close(memory)


@linux
def test_only_what_is_kept_stays_open(tmp_path: Path) -> None:
    program = """
kept, other = int(sys.argv[1]), int(sys.argv[2])
confine(parent=os.getppid(), keep=[kept])
print(os.read(kept, 4).decode())
try:
    os.read(other, 4)
except OSError as error:
    print(error.errno)
"""
    (tmp_path / "file").write_text("text")
    with (tmp_path / "file").open() as kept, (tmp_path / "file").open() as other:
        descriptors = kept.fileno(), other.fileno()
        assert said_by(program, *descriptors, keep=descriptors) == f"text\n{errno.EBADF}"


@linux
@pytest.mark.parametrize(
    ("family", "kind"), [("AF_INET", "SOCK_STREAM"), ("AF_INET", "SOCK_DGRAM"), ("AF_UNIX", "SOCK_DGRAM")]
)
def test_a_socket_that_reaches_others_is_not_kept(family: str, kind: str) -> None:
    program = f"""
one = socket.socket(socket.{family}, socket.{kind})
try:
    confine(parent=os.getppid(), keep=[one.fileno()])
except ValueError as error:
    print(error)
"""
    assert f"is a socket of {family}, {kind}" in said_by(program)


@linux
def test_a_layer_that_the_kernel_refuses_is_named_and_the_others_hold(tmp_path: Path) -> None:
    program = """
confinement.SECCOMP_NUMBERS = dict.fromkeys(confinement.SECCOMP_NUMBERS, 100000)
held = confine(parent=os.getppid(), keep=[])
try:
    open(sys.argv[1])
    opened = True
except PermissionError:
    opened = False
print(json.dumps([held.as_dict(), opened]))
"""
    (tmp_path / "file").touch()
    record, opened = json.loads(said_by(program, tmp_path / "file"))
    held = Confinement(**record)
    assert "seccomp" in held.missing
    assert "seccomp: [Errno 38] Function not implemented" in held.why_not
    assert held.no_new_privileges
    assert opened is not held.landlock, "Landlock alone keeps files out of reach"


@linux
def test_threads_that_are_there_already_are_told_of() -> None:
    program = """
import threading
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
held = confine(parent=os.getppid(), keep=[])
stop.set()
thread.join()
print(json.dumps(held.as_dict()))
"""
    held = Confinement(**json.loads(said_by(program)))
    assert held.missing == ("no_capabilities", "landlock")
    assert held.seccomp, "seccomp takes hold of all threads"
    assert "only for one of 2 threads" in held.why_not or "landlock: [Errno" in held.why_not


def test_elsewhere_nothing_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement.sys, "platform", "darwin")
    held = confinement.confine(parent=os.getppid(), keep=())
    assert held.missing == LAYERS
    assert held.why_not == "darwin has neither seccomp nor Landlock"


# --- the parent


def is_there(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@linux
@pytest.mark.parametrize("confined", [True, False])
def test_it_dies_with_its_parent(confined: bool) -> None:
    act = "confine(parent=int(sys.argv[1]), keep=[])" if confined else ""
    grandchild = f"{BEGIN}\n{act}\nos.write(1, str(os.getpid()).encode() + b'\\n')\ntime.sleep({SECONDS})"
    parent = f"""
import subprocess
subprocess.run([sys.executable, "-c", {grandchild!r}, str(os.getpid())])
"""
    child = start(parent)
    assert child.stdout
    line = child.stdout.readline()
    assert line, child.communicate()
    try:
        assert is_there(int(line))
        child.kill()
        child.wait()
        end = time.monotonic() + (SECONDS if confined else 0.5)
        while is_there(int(line)) and time.monotonic() < end:
            time.sleep(0.02)
        assert is_there(int(line)) is not confined
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)
        child.communicate()


@linux
def test_it_ends_where_the_parent_is_gone_before() -> None:
    child = start("confine(parent=os.getppid() + 1, keep=[])")
    child.communicate(timeout=SECONDS)
    assert child.returncode == -signal.SIGKILL


# --- decoding


FORMATS = (
    "h264", "h264 mkv", "h264 ts", "h264 flv", "h264 10 bit", "hevc", "vp8", "vp9", "av1", "mpeg4 avi B",
    "mpeg2 program stream", "wmv2 asf", "mjpeg avi", "ffv1 mkv", "gif",
)  # fmt: skip
"""Every decoder and container once; all of them in the long form."""

DECODE = """
import hashlib, io
from pathlib import Path
from tpn_ray.videos.decode import open_video
from tpn_ray.videos.encode import EncodeConfig, prepare_video
from tpn_ray.videos.packets import DecodeLimits
from tpn_ray.videos.source_frames import Segment
from tpn_ray.errors import BadVideo

def digest(data):
    return hashlib.sha256(data).hexdigest()

def whole(data, **fields):
    return digest(prepare_video(io.BytesIO(data), None, EncodeConfig(short_side_px=32, **fields), DecodeLimits()).video)

def part(data):
    return digest(prepare_video(io.BytesIO(data), Segment(0.4, 0.8), EncodeConfig(), DecodeLimits()).video)

def some(data):
    with open_video(data) as video:
        indices = [1, video.frame_count // 2, video.frame_count - 1]
        planes = video.planes(indices) or ()
        return [digest(array.tobytes()) for array in (video.frames(indices), *planes[:3])]

sources = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
if sys.argv[2] == "True":
    assert confine(parent=os.getppid(), keep=[]).seccomp
answers = []
for source in sources:
    for act in (whole, lambda data: whole(data, copy=True), part, some):
        try:
            answers.append(act(source))
        except BadVideo as error:
            answers.append(str(error))
print(json.dumps(answers))
"""


def compare(folder: Path, formats: Iterator[str] | tuple[str, ...]) -> None:
    for name in formats:
        (folder / name.replace(":", "")).write_bytes(videos.MADE[name]())
    large = videos.encode(frames=4, size=(1080, 1920), options={"preset": "ultrafast"})
    (folder / "large").write_bytes(large)  # work that a library might share among threads
    confined, free = json.loads(said_by(DECODE, folder, True)), json.loads(said_by(DECODE, folder, False))
    assert confined == free
    assert sum(isinstance(one, list) for one in free) == len(list(folder.iterdir())), "every video gave frames"


@linux
def test_every_decoder_and_the_encoder_give_the_same_bytes(tmp_path: Path) -> None:
    compare(tmp_path, FORMATS)


@linux
@pytest.mark.long
def test_every_made_video_gives_the_same_bytes(tmp_path: Path) -> None:
    compare(tmp_path, iter(videos.MADE))


# --- the filter


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None, pid: int = 77) -> int:
    """What the filter says: a reading of the kernel's classic BPF."""
    numbers = [value & 0xFFFFFFFFFFFFFFFF for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<iIQ6Q", number, architecture or ARCHITECTURES[machine], 0, *numbers)
    code = [struct.unpack("<HBBI", one) for one in re.findall(rb"(?s).{8}", confinement_filter.program(machine, pid))]
    at, value = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == confinement_filter.LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
        elif operation == confinement_filter.AND:
            value &= operand
        elif operation == confinement_filter.IF_EQUAL:
            at += if_true if value == operand else if_false
        else:
            assert operation == confinement_filter.RETURN
            return int(operand)


NUMBERS = {
    machine: {call.name: getattr(call, machine) for call in confinement_filter.allowed_calls(77)}
    for machine in ARCHITECTURES
}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_is_not_on_the_list_is_refused(machine: str) -> None:
    allowed = set(NUMBERS[machine].values())
    for number in [*range(1024), -1, 2**30, 2**30 + 1, 2**31 - 1]:
        if number not in allowed:
            assert verdict(machine, number) == REFUSE
    assert verdict(machine, 0, architecture=0x40000003) == KILL, "the 32-bit calls have other numbers"


NULL, A_POINTER = 0, 0x7F0000000000
CASES = [
    ("mmap", (0, 4096, 3, 0x22), True),
    ("mmap", (0, 4096, 7, 0x22), False),
    ("mprotect", (A_POINTER, 4096, 1), True),
    ("mprotect", (A_POINTER, 4096, 5), False),
    ("kill", (77, 6), True),
    ("kill", (78, 6), False),
    ("kill", (-1, 9), False),
    ("kill", (0, 9), False),
    ("kill", (2**32 + 77, 6), True),  # the kernel takes the lower half
    ("tgkill", (77, 80, 6), True),
    ("tgkill", (78, 78, 6), False),
    ("prlimit64", (0, 9, NULL, A_POINTER), True),
    ("prlimit64", (77, 9, NULL, A_POINTER), True),
    ("prlimit64", (0, 9, A_POINTER, NULL), False),
    ("prlimit64", (0, 9, 0x1000, NULL), False),
    ("prlimit64", (1, 9, NULL, A_POINTER), False),
    ("sendto", (3, A_POINTER, 5, 0x4000, NULL, 0), True),
    ("sendto", (3, A_POINTER, 5, 0, A_POINTER, 16), False),
    ("sendto", (3, A_POINTER, 5, 1, NULL, 0), False),  # out of band
    ("recvmsg", (3, A_POINTER, 0x40000000), True),
    ("recvmsg", (3, A_POINTER, 0x40000001), False),
    ("fcntl", (3, 1030, 0), True),
    ("fcntl", (3, 8, 1), False),  # F_SETOWN
    ("fcntl", (3, 10, 9), False),  # F_SETSIG
    ("prctl", (15, A_POINTER), True),
    ("prctl", (1, 0), False),
    ("prctl", (4, 1), False),
    ("futex", (A_POINTER, 128 | 9), True),
    ("futex", (A_POINTER, 128 | 256 | 0), True),
    ("futex", (A_POINTER, 6), False),  # with inherited priority
]


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(("name", "arguments", "allowed"), CASES)
def test_arguments(machine: str, name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    assert verdict(machine, NUMBERS[machine][name], *arguments) == (ALLOW if allowed else REFUSE)


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    numbers = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    known = {name: int(number) for name, number in numbers}
    assert {name: known.get(name) for name in NUMBERS[machine]} == NUMBERS[machine]
    assert known["seccomp"] == confinement.SECCOMP_NUMBERS[machine]
    column = list(ARCHITECTURES).index(machine)
    for name, pair in breakout.SYSTEM_CALLS.items():
        assert known[name] == pair[column]


def test_the_record_has_every_layer() -> None:
    flags = {field.name for field in dataclasses.fields(Confinement) if field.type in (bool, "bool")}
    assert flags == set(LAYERS)
