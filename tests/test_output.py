"""What a job prints: nothing secret, and nothing that commands a terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpn_ray import output
from tpn_ray.output import Protected, visible

PASSWORD = "s3cretpw9"


def printed(body: str, **environment: str) -> str:
    """Standard output and standard error of a job whose main function has this body."""
    job = f"""
import logging, sys, threading, traceback, warnings
from tpn_ray.job import run_job
early = logging.StreamHandler()
logging.getLogger("early").addHandler(early)
def job():
{body}
run_job(job, leave=lambda: None)
"""
    done = subprocess.run(
        [sys.executable, "-c", job],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


WAYS = {
    "print": "print('to http://alice:' + p + '@host failed')",
    "print in pieces": "print('AWS_SECRET_ACCESS_KEY', p, sep='=')",
    "standard error": "print('http://alice:' + p + '@host', file=sys.stderr)",
    "without a line end": "print('http://alice:' + p + '@host', end='')",
    "a logger made before": "logging.getLogger('early').error('http://alice:%s@host', p)",
    "a logger without handlers": "logging.getLogger('late').warning('http://alice:%s@host', p)",
    "a warning": "warnings.warn('http://alice:' + p + '@host')",
    "a thread that dies": "threading.Thread(target=lambda: 1 / ('http://alice:' + p + '@host')).start()",
    "a traceback": "raise RuntimeError('http://alice:' + p + '@host')",
    "a traceback of its own": "\n    try: raise OSError('Bearer ' + p)\n    except OSError: traceback.print_exc()",
    "a variable's value": "print('it said ' + p)",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_printing_shows_a_secret(way: str) -> None:
    variables = {"STORE_PASSWORD": PASSWORD} if "variable" in way else {}
    output = printed(f"    p = 's3cret' + 'pw9'\n    {WAYS[way]}", **variables)
    assert PASSWORD not in output
    assert "***" in output or way == "a thread that dies", output


def test_progress_and_results_are_printed_as_they_are() -> None:
    text = "epoch 1/2  loss 0.1\tx\r\nbest checkpoint  s3://bucket/runs/a@b/step-00000010 \u2713"
    assert printed(f"    print({text!r})") == text.replace("\r\n", "\n") + "\n"


def test_a_line_is_passed_on_when_it_ends_or_is_flushed() -> None:
    behind = io.StringIO()
    stream = Protected(behind)
    stream.write("half ")
    assert behind.getvalue() == ""
    stream.write("a line\n")
    assert behind.getvalue() == "half a line\n"
    print("loss 0.1", end="", flush=True, file=stream)
    assert behind.getvalue() == "half a line\nloss 0.1"
    assert not stream.isatty()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("clip\x1b]0;owned\x07.mp4", "clip\\x1b]0;owned\\x07.mp4"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("bad video\rall is well", "bad video\\rall is well"),
        ("x\x9b31my", "x\\x9b31my"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("no character: \udcff", "no character: \\udcff"),
        ("tab\tand line\n", "tab\tand line\n"),
        ("Kölsch, 日本 ✓", "Kölsch, 日本 ✓"),
    ],
)
def test_what_would_command_a_terminal_is_written_out(text: str, shown: str) -> None:
    behind = io.StringIO()
    print(text, end="", flush=True, file=Protected(behind))
    assert behind.getvalue() == visible(text) == shown


def test_lines_that_are_rewritten_and_colors_stay() -> None:
    behind = io.StringIO()
    for text in ("\r\x1b[Kstep 1", "\x1b[1;32mpass\x1b[0m", "dos\r\n"):
        print(text, end="", flush=True, file=Protected(behind))
    assert behind.getvalue() == "\r\x1b[Kstep 1\x1b[1;32mpass\x1b[0mdos\r\n"


def test_a_printed_command_is_one_that_the_shell_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = tmp_path / "my env" / "bin"
    environment.mkdir(parents=True)
    for name in ("python", "mlflow"):
        (environment / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    monkeypatch.setenv("PATH", "/bin")
    assert output.program("mlflow") == f"'{environment}/mlflow'"
    monkeypatch.chdir(tmp_path)
    assert output.program("python") == "'my env/bin/python'"
    monkeypatch.setenv("PATH", f"{environment}:/bin")
    assert [output.program(name) for name in ("python", "mlflow")] == ["python", "mlflow"]


def test_tables_and_pictures_of_notebooks_hold_no_markup_of_names() -> None:
    table = output.html_table([("<b>", "1 < 2")], ("", "a & b"))
    assert table == ("<table><tr><th></th><th>a &amp; b</th></tr><tr><th>&lt;b&gt;</th><td>1 &lt; 2</td></tr></table>")
    assert output.html_picture(b"png", 'a "b"') == '<img alt="a &quot;b&quot;" src="data:image/png;base64,cG5n">'


def test_streams_are_protected_once() -> None:
    body = "    from tpn_ray import output\n    one = sys.stdout\n    output.protect()\n    print(sys.stdout is one)"
    assert printed(body) == "True\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_shown_in_place_stays_below_filtered_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Protected(stream))
    with output.in_place() as show:
        assert show
        show("first")
        print("http://alice:s3cretpw9@host\x1b[2J")
        show("second")
    print("after")
    said = stream.getvalue()
    assert PASSWORD not in said
    assert "\x1b[2J" not in said, "what is printed commands no terminal"
    assert said.index("first") < said.index("@host") < said.index("second") < said.index("after")
    assert said.endswith("after\n")


def test_nothing_is_shown_in_place_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Protected(io.StringIO()))
    with output.in_place() as show:
        assert show is None
