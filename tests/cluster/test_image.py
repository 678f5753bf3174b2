"""The Dockerfile, as far as it can be read: no image is built here."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import pytest

from tests.cluster import job_flags
from tests.cluster.manifests import JOBS, ROOT, constrained, rendered

DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "cluster" / "Dockerfile").read_text())
LINES = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2].strip() for line in LINES if line.split()[0] == name]


def copied() -> list[str]:
    return [source for line in instructions("COPY") for source in line.split()[:-1]]


def ignored(path: str) -> bool:
    """By .dockerignore, whose last matching line decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and (fnmatch(path, pattern) or path.startswith(f"{pattern}/")):
            verdict = not line.startswith("!")
    return verdict


@pytest.mark.parametrize("source", copied())
def test_what_it_copies_is_there_and_reaches_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    assert not ignored(source)


def test_nothing_else_reaches_the_builder() -> None:
    for path in (".git/config", ".env", "runs/key", "tests/conftest.py", "cluster/aws.yaml", ".venv/bin/python"):
        assert ignored(path)
    assert not ignored("tpn_ray/errors.py")


def test_it_holds_all_that_the_package_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], "LICENSE", "pyproject.toml", "constraints.txt", "tpn_ray", "jobs"} <= set(copied())


def test_versions_are_those_of_the_constraints() -> None:
    """Python of the project; packages by the constraints alone, torch and Ray the very ones the project names."""
    assert instructions("FROM") == ["${BASE}"]  # to be pinned by digest: --build-arg BASE=...@sha256:...
    (base,) = [line.partition("=")[2] for line in instructions("ARG") if line.startswith("BASE=")]
    assert base.startswith("python:3.11-slim")
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    assert not re.search(r"\b(torch|ray)==", DOCKERFILE)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"torch=={constrained('torch')}" in dependencies
    assert f"ray[default,data,train,tune]=={constrained('ray')}" in dependencies
    assert f"tpn-ray:{constrained('ray')}-cuda" in (ROOT / "cluster" / "Dockerfile").read_text()


def test_it_does_not_run_as_root() -> None:
    """By number: Kubernetes cannot tell from a name. The pods' user is this one, who owns the home."""
    assert instructions("USER") == ["1000:1000"]
    assert LINES.index("USER 1000:1000") > max(i for i, line in enumerate(LINES) if line.startswith("COPY"))
    assert any("useradd --uid 1000" in line for line in instructions("RUN"))
    assert "HOME=/home/ray" in instructions("ENV")[0]  # `ray up` mounts the token below it


def test_jobs_are_where_the_manifests_look_for_them() -> None:
    assert f"{instructions('WORKDIR')[0]}/" == job_flags.IMAGE_FOLDER
    assert "jobs ./jobs" in instructions("COPY")
    for folder in JOBS:
        (document,) = rendered(folder)
        assert document["spec"]["entrypoint"].split()[1].startswith(f"{job_flags.IMAGE_FOLDER}jobs/")


def test_it_has_what_probes_and_the_launcher_call() -> None:
    packages = next(line for line in instructions("RUN") if "apt-get install" in line)
    assert {"wget", "rsync", "openssh-client"} <= set(packages.split())
