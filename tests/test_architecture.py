"""Imports point down, and what runs remotely or knows a service stays in its place."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    ["jobs"],
    ["commands"],
    ["command_line"],
    ["planning"],
    ["tuning", "tempo", "reproduce", "doctor"],
    ["report"],
    ["progress", "session"],
    ["training", "predict", "prepare"],
    ["recipes"],
    ["data"],
    ["recipe", "datasets"],
    ["clips"],
    ["sandbox"],
    ["videos"],
    ["tracking"],
    ["checkpoint", "model", "metrics"],
    ["job", "mailbox", "budget", "resources"],
    ["lease", "sealed"],
    ["storage"],
    ["output", "meter"],
    ["redaction", "names", "score"],
    ["errors"],
]
"""A row imports only rows below it; parts on one row do not import each other."""

MODULES = sorted([*ROOT.glob("tpn_ray/**/*.py"), *ROOT.glob("jobs/*.py")])

MOST_LINES = 400

ONLY_IN = {
    "ray": [
        *("session.py", "mailbox.py", "data/dataset.py", "predict/scoring.py", "prepare/preparing.py"),
        *("training/run.py", "training/trainer.py", "training/placement.py", "training/worker.py"),
        "training/gauges.py",
        *("tuning/campaigns.py", "tuning/engine.py", "tuning/schedulers.py", "tuning/trial.py"),
        *("doctor/examination.py", "doctor/node_checks.py", "planning/ingest.py", "planning/measurement.py"),
    ],
    "mlflow": ["tracking/", "predict/served.py"],
    "av": ["videos/", "sandbox/confinement.py", "datasets/toy.py"],
    "cv2": ["videos/flow.py"],
    "boto3": ["storage/"],
    "botocore": ["storage/"],
    "optuna": ["tuning/"],
}


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def part_of(name: str) -> str | None:
    """The part (a row entry of LAYERS) that a module name belongs to."""
    pieces = name.split(".")
    if pieces[0] == "jobs":
        return "jobs"
    return pieces[1] if pieces[0] == "tpn_ray" and len(pieces) > 1 else None


def row(part: str) -> int | None:
    return next((i for i, parts in enumerate(LAYERS) if part in parts), None)


def test_every_module_has_a_layer() -> None:
    for path in MODULES:
        part = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert part == "__init__" or row(part or "") is not None, f"{path} is on no row of LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    mine = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if mine == "__init__":
        return
    for name in imports(path):
        other = part_of(name)
        if other in (None, mine) or row(other) is None:
            continue
        assert row(other) > row(mine), f"{path.relative_to(ROOT)} ({mine}) imports {name} ({other})"


def test_a_class_name_is_one_thing() -> None:
    """Every job has its own Arguments."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "Arguments":
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert "Recipe" in homes
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines, more than {MOST_LINES}: divide it"


def test_no_two_files_import_each_other() -> None:
    """Not even by way of others: a file can be understood after those that it imports."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    graph = {name: {other for other in imports(path) if other in names} - {name} for name, path in names.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_stay_in_their_place(package: str) -> None:
    for path in MODULES:
        place = str(path.relative_to(ROOT))
        if any(name.split(".")[0] == package for name in imports(path)):
            allowed = ONLY_IN[package]
            assert any(place.endswith(one) or (one.endswith("/") and f"/{one}" in place) for one in allowed), (
                f"{place} imports {package}, which belongs in {', '.join(allowed)}"
            )


def test_the_rules_are_alive() -> None:
    """The checks above see something: the rows exist and the packages are imported somewhere."""
    seen = {name.split(".")[0] for path in MODULES for name in imports(path)}
    assert {"ray", "mlflow", "av", "boto3"} <= seen
    assert "tpn_ray.data.plan" in imports(ROOT / "tpn_ray/training/run_plan.py")


def test_jobs_are_thin() -> None:
    for path in ROOT.glob("jobs/*.py"):
        tree = ast.parse(path.read_text())
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(tree))
        assert statements <= 96, f"{path.name} holds {statements} statements; move work into tpn_ray/"


UNPICKLING = {
    "pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "joblib": {"load"},
    "dill": {"load", "loads"},
    "shelve": {"open"},
    "pd": {"read_pickle"},
    "Tuner": {"restore", "can_restore"},
}
"""Calls that run what a file says."""


def calls(path: Path) -> list[tuple[str, str, ast.Call]]:
    """(what stands before the last dot, the name behind it, the call) of every call with a dot."""
    return [
        (ast.unparse(node.func.value).rpartition(".")[2], node.func.attr, node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(one.value) for one in call.keywords if one.arg == name), None)


HEARS_ITS_PARENT = "tpn_ray/sandbox/child.py"
"""There a child unpickles what the process that started it asks for; what comes back is JSON and arrays."""


def test_nothing_that_is_stored_is_unpickled() -> None:
    seen = {"torch": 0, "np": 0}
    for path in MODULES:
        for owner, name, call in calls(path):
            place = f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
            assert name not in UNPICKLING.get(owner, ()) or place.split(":")[0] == HEARS_ITS_PARENT, place
            if name == "load" and owner in seen:
                seen[owner] += 1
                asked = keyword(call, "weights_only") if owner == "torch" else keyword(call, "allow_pickle")
                assert asked == ("True" if owner == "torch" else "False"), place
        barred = {f"{owner}.{name}" for owner, names in UNPICKLING.items() for name in names}
        assert not imports(path) & barred, f"{path.relative_to(ROOT)} imports {imports(path) & barred}"
    assert all(seen.values()), f"no such call was found, so nothing was checked: {seen}"


def test_the_mailbox_begins_without_torch() -> None:
    """A process of its own in every run: seconds of each start, and of each trial's."""
    program = (
        "import sys, tpn_ray.mailbox, tpn_ray.training.events; sys.exit(bool({'torch', 'pyarrow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


WITHOUT = ("ray", "av", "mlflow", "tyro", "boto3", "botocore", "optuna", "plotly", "rich", "scipy")
PLAIN = (
    *("recipes", "checkpoint", "clips.develop", "clips.cut", "model.weights", "model.convolution_check"),
    *("training.step", "training.stream", "training.writer", "predict.predictor"),
)
WITHOUT_MORE = (*WITHOUT, "pyarrow", "pydantic", "safetensors", "filelock", "huggingface_hub", "psutil", "tqdm")


@pytest.mark.parametrize(
    ("absent", "modules"),
    [(WITHOUT, [f"tpn_ray.{name}" for name in PLAIN]), (WITHOUT_MORE, ["benchmarks.device_sections"])],
    ids=["training and prediction", "jobs/device.py"],
)
def test_what_needs_little_more_than_torch(absent: tuple[str, ...], modules: list[str]) -> None:
    """On a machine with a GPU and hardly anything else."""
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


OTHERS_OWN = {"_repr_html_", "_exploit", "_checkpoint_or_exploit"}
"""Names that are not ours: of notebooks, and of Ray's population-based training."""


def test_tests_reach_no_private_names() -> None:
    """What is worth a test is worth a name. What begins with an underscore in Ray or torch is another matter."""
    own = {
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.startswith("_") and node.name[1] != "_"
    }
    reached = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        used = {node.attr for node in attributes if not ast.unparse(node.value).startswith("self")}
        used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        reached += [f"{path.name}: {name}" for name in sorted((used & own) - defined - OTHERS_OWN)]
    assert reached == []
