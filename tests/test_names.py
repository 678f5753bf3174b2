"""Names from outside: what is taken, and that none leaves its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpn_ray import names, storage
from tpn_ray.errors import ConfigError

ESCAPES = [
    "/../../../escape",
    "..",
    ".",
    "../x",
    "a/b",
    "a\\b",
    ".hidden",
    "/etc/passwd",
    "",
    "s3://b/k",
    "a\x1b[2J",
    "a\n",
]


@pytest.mark.parametrize(
    "name", [*ESCAPES, "-rf", " a", "a ", "x" * 101, "a\u202eb", "a:b", "a'b", "%2e%2e%2f", None, 5]
)
def test_names_that_could_leave_their_folder_are_refused(name: object) -> None:
    assert names.problem(name)


@pytest.mark.parametrize(
    "name", ["k400", "toy-20261128-004000-ab12", "lr=0.1, wd=1e-4", "Größe 2", "動作", "_x", "1x1"]
)
def test_names_of_runs_and_label_sets_are_taken(name: str) -> None:
    assert names.problem(name) == ""
    assert names.checked("--name", name) == name


def test_a_refused_name_is_shown_without_what_it_does_to_a_terminal() -> None:
    with pytest.raises(ConfigError, match=r"--name 'a\\x1b\[2J' is not a valid name: it may hold only") as caught:
        names.checked("--name", "a\x1b[2J")
    assert "\x1b" not in str(caught.value)
    with pytest.raises(ConfigError, match="it has 5000 characters, more than 100") as caught:
        names.checked("--name", "x" * 5000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "classes", [("Pushing [something] off of [something]", "carry/hold (an object)", "100 $", "走る", "")]
)
def test_class_names_may_hold_what_can_be_seen(classes: tuple[str, ...]) -> None:
    assert names.label_sets_problem({"action": classes}) == ""


@pytest.mark.parametrize(
    ("label_sets", "said"),
    [
        ({"/../x": ("a",)}, "has a label set called '/../x', which may hold only letters"),
        (
            {"action": ("a\x1b]0;b\x07",)},
            r"has a class called 'a\x1b]0;b\x07' in 'action', which holds control characters",
        ),
        ({"action": ("x" * 501,)}, "has 501 characters, more than 500"),
        ({"action": (5,)}, "has a class called 5 in 'action', which is not text"),
        ({"action": "abc"}, "has 'abc' instead of the class names of 'action'"),
        ([], "has label sets of the type list"),
    ],
)
def test_what_is_wrong_with_label_sets_is_said(label_sets: object, said: str) -> None:
    assert said in names.label_sets_problem(label_sets)


@given(st.text(max_size=300))
@pytest.mark.parametrize("form", ["confusion_{}.png", "{}.png"])
def test_the_name_of_a_file_stays_in_its_folder(form: str, name: str) -> None:
    made = names.file_name(name)
    assert made
    assert "/" not in made
    assert not made.startswith(".")
    assert made.isascii()
    assert len(made) <= 100
    place = storage.join("/var/out", form.format(made))
    assert Path(place).resolve().parent == Path("/var/out").resolve()


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_names_make_different_files(one: str, other: str) -> None:
    assert (names.file_name(one) == names.file_name(other)) == (one == other)


def test_a_harmless_name_stays() -> None:
    assert [names.file_name(name) for name in ("action", "verb", "noun", "a b")] == ["action", "verb", "noun", "a b"]


def test_a_wrong_name_is_told_the_nearest_ones() -> None:
    few, many = ["toy", "toy_small", "k400"], [f"optim.field_{i}" for i in range(50)]
    said = names.no_such("recipe", "tony", few)
    assert said == "unknown recipe 'tony' (did you mean toy?); known: toy, toy_small, k400"
    assert names.no_such("recipe", "x", few) == "unknown recipe 'x'; known: toy, toy_small, k400"
    said = names.no_such("field", "optim.feild_7", many)
    assert "did you mean optim.field_7 or " in said
    assert "; known: " not in said
