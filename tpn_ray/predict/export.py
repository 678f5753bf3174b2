"""A checkpoint as a file that needs nothing of this project: torch.export or ONNX. Runs anywhere, without Ray.

The program takes clips as they are decoded and cut, uint8 (n, t, h, w, c), and gives float32 (n, k): the softmax of
each label set, or the sigmoid of each class where videos have several. Normalization is included, alpha and the clip's
shape are fixed, and the number of clips n is free. Averaging over views is left to the user: it is a mean.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from tpn_ray import storage
from tpn_ray.errors import ConfigError
from tpn_ray.metrics import probabilities
from tpn_ray.predict.predictor import Predictor

SUFFIXES = {".pt2": "torch.export", ".onnx": "ONNX"}
TOLERANCE = 1e-4
"""Tolerance between probabilities. Other kernels round differently; a wrong program is off by far more."""


class Program(nn.Module):
    """The exported network, from pixels to probabilities."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        model = predictor.recipe.model
        self.network, self.label_sets, self.multi_label = predictor.model.eval(), model.label_sets, model.multi_label
        self.normalise = predictor.normalise

    def forward(self, clips: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n k"]:
        return probabilities(self.network(self.normalise(clips)).action, self.label_sets, self.multi_label)


def check_out(out: str) -> None:
    """Refuse a file name with an unknown suffix, and ONNX without its packages. Raises ConfigError."""
    suffix = Path(out).suffix
    if suffix not in SUFFIXES:
        raise ConfigError(f"out is {out!r}; give a name that ends in {' or '.join(SUFFIXES)}")
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if suffix == ".onnx" and missing:
        raise ConfigError(f"ONNX needs {' and '.join(missing)}: pip install 'tpn_ray[export]'")


def export(
    predictor: Predictor, clips: NDArray[np.uint8], out: str, *, say: Callable[[str], None] = lambda line: None
) -> float:
    """Write the program, run the written file on real `clips` (n, t, h, w, c), n at least 2, and return its largest
    difference from the network's own probabilities. Raises ConfigError if that is above TOLERANCE.

    `say` is told each of the three steps as it begins.
    """
    program, example = Program(predictor).cpu(), torch.tensor(clips)
    n = torch.export.Dim("n", min=1, max=4096)
    say("1/3 tracing the network")
    with torch.no_grad(), _quietly():
        expected = program(example).numpy()
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: n},))
        say(f"2/3 writing the program as {SUFFIXES[Path(out).suffix]}")
        data = _onnx(exported) if out.endswith(".onnx") else _saved(exported)
    storage.write_bytes(storage.absolute(out), data)
    say(f"3/3 running what was written on {len(clips)} clips, together and one by one")
    run = run_onnx if out.endswith(".onnx") else run_saved
    # One by one as well, to catch a program with a fixed number of clips.
    found = [run(data, clips), np.concatenate([run(data, clips[i : i + 1]) for i in range(len(clips))])]
    difference = max(float(np.abs(one - expected).max()) for one in found)
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"{out} differs from the network by {difference:.2g} on real clips, more than {TOLERANCE:g}: do not use it"
        )
    return difference


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence torch's notes on its own code and on packages that no network here needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _saved(exported: Any) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def run_saved(data: bytes, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a torch.export program computes for some clips."""
    with torch.no_grad():
        found: NDArray[np.float32] = torch.export.load(io.BytesIO(data)).module()(torch.tensor(clips)).numpy()
    return found


def _onnx(exported: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program.onnx"
        made = torch.onnx.export(
            exported, (), dynamo=True, verbose=False, input_names=["clips"], output_names=["probabilities"]
        )
        assert made is not None
        made.save(str(file), external_data=False)
        return file.read_bytes()


def run_onnx(data: bytes, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what an ONNX program computes for some clips."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"clips": clips})
    return np.asarray(found, dtype=np.float32)
