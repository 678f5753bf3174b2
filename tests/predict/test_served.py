"""The registered model: it needs its own folder and other people's packages, and nothing of ours that is installed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.models import Model
from mlflow.types import DataType

from tests.checkpoints import save_untrained
from tests.servers import free_port
from tests.test_architecture import imports
from tpn_ray import tracking

IMPORTED_AS = {"PIL": "pillow", "botocore": "boto3"}
LOAD = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])  # without its .pth files, which lead to our code where it is installed for development
assert importlib.util.find_spec("tpn_ray") is None, "our code is here without the model"
import mlflow.pyfunc
(answer,) = mlflow.pyfunc.load_model(sys.argv[2]).predict([sys.argv[3]])
own = sorted({sys.modules[name].__file__ for name in sys.modules if name.startswith("tpn_ray.")})
print(json.dumps({"answer": answer, "own": own}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registered model."""
    folder = tmp_path_factory.mktemp("model")
    run = tracking.begin(tracking.local_uri(str(folder / "store")), "e", "n", parameters={}, tags={})
    checkpoint = save_untrained(folder / "checkpoint")
    assert run.register_model("toy_actions", checkpoint, {}) == "1", run.last_reason
    client = MlflowClient(run.tracking_uri)
    source = client.get_model_version_download_uri("toy_actions", "1")
    return Path(
        mlflow.artifacts.download_artifacts(source, dst_path=str(folder / "got"), tracking_uri=run.tracking_uri)
    )


def test_requirements_name_no_package_that_could_be_somebody_elses(model: Path) -> None:
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        assert not re.search(r"tpn[-_.]?ray", (model / name).read_text(), re.IGNORECASE)
    lines = (model / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == set(tracking.MODEL_NEEDS)
    assert all(re.fullmatch(r"[a-z0-9]+==[0-9][0-9.]*[0-9]", line) for line in lines)


def test_it_holds_code_and_no_leftovers(model: Path) -> None:
    stored = {path.relative_to(model / "code").as_posix() for path in (model / "code").rglob("*") if path.is_file()}
    assert "tpn_ray/predict/served.py" in stored
    assert all(path.endswith(".py") for path in stored), sorted(stored)


def test_it_holds_nothing_that_only_training_needs(model: Path) -> None:
    files = {path.name for path in (model / "artifacts" / "checkpoint").iterdir()}
    assert files == {"weights.pt", "checkpoint.json", "manifest.json"}


def test_it_says_what_to_send(model: Path) -> None:
    about = Model.load(str(model))
    assert about.signature is not None
    assert [column.type for column in about.signature.inputs.inputs] == [DataType.string]
    assert about.load_input_example(str(model)) == ["s3://bucket/video.mp4"]
    assert json.loads((model / "serving_input_example.json").read_text()) == {"inputs": ["s3://bucket/video.mp4"]}


def test_a_process_with_the_model_alone_predicts(model: Path, toy_folder: Path, tmp_path: Path) -> None:
    video = next((toy_folder / "val" / "period_10").iterdir())
    # -I: no PYTHONPATH and no working directory, -S: no .pth files.
    command = [sys.executable, "-I", "-S", "-c", LOAD, sysconfig.get_path("purelib"), str(model), str(video)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert sum(said["answer"]["action"].values()) == pytest.approx(1, abs=1e-5)
    assert all(file.startswith(str(model / "code")) for file in said["own"])
    assert len(said["own"]) > 10
    found = {name.partition(".")[0] for file in said["own"] for name in imports(Path(file))}
    others = found - sys.stdlib_module_names - {"tpn_ray"}
    assert {IMPORTED_AS.get(name, name) for name in others} <= set(tracking.MODEL_NEEDS)


@pytest.mark.long
def test_it_answers_over_http(model: Path, toy_folder: Path, tmp_path: Path) -> None:
    """As `mlflow models serve` runs it, on the packages that are installed: nothing is fetched from an index."""
    video, port = next((toy_folder / "val" / "period_10").iterdir()), free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        answer = ask_server(f"http://127.0.0.1:{port}/invocations", {"inputs": [str(video)]}, tmp_path / "log")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    (scores,) = answer["predictions"]
    assert sum(scores["action"].values()) == pytest.approx(1, abs=1e-5)


def ask_server(url: str, content: object, log: Path) -> dict[str, Any]:
    """The answer to a request, once the server is up."""
    deadline = time.monotonic() + 200
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError as error:
            assert time.monotonic() < deadline, f"{error}\n{log.read_text()}"
            time.sleep(1)
