"""cluster/README.md as a new user takes it: its folders are made and rendered, its commands and flags are real."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster import job_flags, rules, schemas
from tests.cluster.manifests import FOLDERS, JOBS, ROOT, container, groups, of_kind, pod_specs, render
from tests.cluster.operator_rules import operator_rules

TEXT = (ROOT / "cluster" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.sub(r"\\\n", " ", "".join(text for language, text in BLOCKS if not language)).splitlines()
SNIPPETS = re.findall(r"`my/(\w+)`[^`]*```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
"""Name and kustomization of the folders that the user makes."""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A clone beside which the user made the README's folders."""
    shutil.copytree(ROOT / "cluster" / "kuberay", tmp_path / "cluster" / "kuberay")
    for folder, text in SNIPPETS:
        (tmp_path / "my" / folder).mkdir(parents=True)
        (tmp_path / "my" / folder / "kustomization.yaml").write_text(text)
    return tmp_path / "my"


def test_my_settings(mine: Path) -> None:
    documents = list(render(mine / "settings"))
    assert of_kind(documents, "ConfigMap")[0]["data"]["TPN_RAY_BUCKET"] == "s3://BUCKET"
    accounts = of_kind(documents, "ServiceAccount")
    roles = [one["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] for one in accounts]
    assert roles == ["arn:aws:iam::ACCOUNT:role/tpn-ray-head", "arn:aws:iam::ACCOUNT:role/tpn-ray-worker"]
    assert schemas.core_problems(documents) == []


def test_my_job(mine: Path) -> None:
    documents = list(render(mine / "train"))
    (job,) = documents
    assert "sthv2_tsm_r50" in job["spec"]["entrypoint"]
    images = [container(group)["image"] for group in groups(job["spec"]["rayClusterSpec"])]
    images += [job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["image"]]
    assert set(images) == {"REGISTRY/tpn-ray@sha256:CPU", "REGISTRY/tpn-ray@sha256:CUDA"}
    assert list(operator_rules(documents)) == []
    assert [line for rule in rules.RULES for line in rule(documents)] == []


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder not in ("settings", "kueue")])
def test_every_image_can_be_pinned_by_its_digest(folder: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "cluster" / "kuberay", tmp_path / "cluster")
    (tmp_path / "my").mkdir()
    pins = [{"name": name, "digest": f"sha256:{name}"} for name in ("tpn-ray-cpu", "tpn-ray-cuda", "redis")]
    (tmp_path / "my" / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [f"../cluster/{folder}"], "images": pins})
    )
    used = {one["image"] for _, pod in pod_specs(list(render(tmp_path / "my"))) for one in pod["containers"]}
    assert used <= {f"{one['name']}@{one['digest']}" for one in pins}


def test_the_backup_is_a_whole_database(tmp_path: Path) -> None:
    """The command's own code, on a database that is in use."""
    (code,) = re.findall(r'python -c "(import sqlite3; .*backup.*)"$', TEXT, re.MULTILINE)
    used = sqlite3.connect(tmp_path / "mlflow.db")
    used.execute("create table runs (name text)")
    used.execute("insert into runs values ('k400')")
    used.commit()
    subprocess.run([sys.executable, "-c", code.replace("/data", str(tmp_path))], check=True, timeout=60)
    assert sqlite3.connect(tmp_path / "backup.db").execute("select name from runs").fetchall() == [("k400",)]


def test_folders_that_are_applied() -> None:
    applied = re.findall(r"kubectl apply -k my/(\w+)", "\n".join(COMMANDS))
    assert {*JOBS, "settings", "mlflow", "cluster"} == set(applied) <= set(FOLDERS)


def test_jobs_that_are_submitted_take_their_flags() -> None:
    submitted = [line.partition(" -- ")[2].split("#")[0] for line in COMMANDS if line.startswith("ray job submit")]
    assert len(submitted) >= 4
    for words in map(shlex.split, submitted):
        if "--help" not in words and job_flags.job_file(words[1]).exists():
            job_flags.parse(*words)


def test_flags_of_the_remedies_exist() -> None:
    known: set[str] = set()
    for job in ("train.py k400_r50_8x8", "tune.py k400_r50_8x8"):
        with pytest.raises(ValueError, match="--help") as shown:
            job_flags.parse("python", *f"{job_flags.IMAGE_FOLDER}jobs/{job}".split(), "--help")
        known |= set(re.findall(r"--[a-z][a-z0-9.-]*", str(shown.value)))
    table = TEXT[TEXT.index("## When it is slow") :]
    named = set(re.findall(r"`(--[a-z][a-z0-9.-]*)", table))
    assert len(named) > 8
    assert named <= known


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"cluster/[a-z_]+\.(?:yaml|md|py)|cluster/Dockerfile", TEXT):
        assert (ROOT / path).is_file()
