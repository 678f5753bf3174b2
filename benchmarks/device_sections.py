"""The sections of `benchmarks.device`. Run each as `python -m benchmarks.device_sections SECTION DEVICE RESULTS SMALL`.

Baselines and the project's own networks run in turns, in one process; figures are medians of the rounds.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.device_bench import Bench, product_rate
from benchmarks.device_bits import bits, killed, rank, workers
from benchmarks.device_decode import decoding
from benchmarks.device_speed import inference, training, waits
from tests.model.vectors import noise, reference
from tpn_ray.clips.develop import develop
from tpn_ray.clips.notes import NO_CLIP, PLANES, Note
from tpn_ray.model.convolution_check import TOLERANCE, convolution_self_test
from tpn_ray.model.precision import use_tf32
from tpn_ray.model.recognizer import ModelConfig, Recognizer, build_model
from tpn_ray.model.weights import load_weights

CASES = {"slowonly_r50_k400_cascade": ModelConfig(dropout=0.0)}
CASES["tsm_r50_sthv1_cascade"] = ModelConfig(backbone="tsm_r50", classes=174, dropout=0.0)


def environment(bench: Bench) -> None:
    """Versions, and what this machine can do at best."""
    bench.tell("python, torch", f"{platform.python_version()}, {torch.__version__}")
    if bench.gpu:
        about = torch.cuda.get_device_properties(bench.device)
        bench.tell("card", f"{about.name}, {about.multi_processor_count} SMs, {about.total_memory / 2**30:.0f} GiB")
        bench.tell("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")  # type: ignore[no-untyped-call]
    for name in ("fp32", "tf32", "bf16"):
        bench.tell(f"matrix product, {name}", f"{product_rate(bench, name) / 1e12:.3g} TFLOP/s")
    size = 2**20 if bench.small else 2**30
    here, there = torch.empty(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8, device=bench.device)
    copies = {"from pageable memory": here, "on the device": torch.empty_like(there)}
    if bench.gpu:
        copies["from pinned memory"] = here.pin_memory()
    for name, source in copies.items():
        rate = size / min(bench.seconds(lambda source=source: there.copy_(source)) for _ in range(5))  # type: ignore[misc]
        bench.tell(f"copy {name}", f"{rate / 1e9:.3g} GB/s")


def parity(bench: Bench) -> None:
    """Scores and training steps against what mmaction2's code computed in double precision."""
    for case, config in list(CASES.items())[: 1 if bench.small else 2]:
        weights, recorded = reference(case)
        with torch.device("meta"):
            model = build_model(config)
        model = model.to_empty(device=bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_weights(model, weights)
        raw = noise(recorded["clips"])
        clips = (raw[:, 0] if raw.ndim == 6 else raw.transpose(1, 2)).to(bench.device)
        expected = torch.tensor(recorded["logits"], dtype=torch.float64)
        limits = {"fp32": 1e-4} if bench.small else {"fp32": 1e-4, "tf32": 2e-3, "bf16": 3e-2}
        for precision, limit in limits.items():
            use_tf32(precision == "tf32")
            model.eval()
            with torch.no_grad(), torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
                found = model(clips).action.double().cpu()
            error = ((found - expected).abs().max() / expected.abs().max()).item()
            bench.require(f"{case}, scores in {precision}", error, limit)
            same = bool((found.argmax(1) == expected.argmax(1)).all())
            bench.tell(f"{case}, top-1 in {precision}", "the same" if same else "another", "the same", passed=same)
        if not bench.small:
            bench.require(f"{case}, losses of three steps in fp32", loss_error(model, clips, recorded), 1e-3)


def loss_error(model: Recognizer, clips: Tensor, recorded: dict[str, Any]) -> float:
    """Return the largest relative error of the losses of three steps of SGD."""
    use_tf32(False)
    labels = torch.tensor(recorded["labels"], device=clips.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    errors = []
    model.train()
    for expected in recorded["train_steps"]:
        scores = model(clips)
        loss = F.cross_entropy(scores.action, labels) + 0.5 * F.cross_entropy(scores.auxiliary[0], labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 40)
        optimizer.step()
        errors.append(abs(loss.item() / float(expected["total"]) - 1))
    return max(errors[:2])  # by the third step, float32 runs of the published code differ from each other


def convolutions(bench: Bench) -> None:
    """One convolution of each kind in bf16 against float32, at the shapes of training."""
    frames, px = bench.clip
    model = build_model(bench.model).to(bench.device)
    report = convolution_self_test(model, (2 if bench.small else 8, 3, frames, px, px))
    # CPUs' bf16 convolutions are wrong on some machines; a run there falls back to float32.
    passed = report.trusted if bench.gpu else None
    bench.tell("bf16 convolutions", str(report), f"off by at most {TOLERANCE:.0%}", passed)


def develop_clips(bench: Bench) -> None:
    """Pixels developed on the device against those developed on the CPU, and their speed."""
    count, frames, px = (4, 4, 32) if bench.small else (64, 8, 224)
    notes, begin = list[Note](), 0
    for i in range(count):
        high, wide = px + 2 * (i % 20), px + 10 + 2 * (i % 7)
        notes.append(
            NO_CLIP._replace(
                kind=PLANES,
                begin=begin,
                frames=frames,
                height=high,
                width=wide,
                crop_height=high - i % 3,
                crop_width=wide - i % 5,
                mirrored=bool(i % 2),
                matrix=1,
                jitter=((1.0, 0.1, 0.0), (0.0, 0.9, 0.0), (0.05, 0.0, 1.0)),
                grey_share=0.1,
            )
        )
        begin += frames * (high * wide + 2 * ((high + 1) // 2) * ((wide + 1) // 2))
    stored = torch.randint(256, (begin,), dtype=torch.uint8)
    expected, there = develop(stored, notes, px), stored.to(bench.device)
    found = develop(there, notes, px).cpu()
    differing = int((found != expected).sum())
    bench.tell("pixels unlike the CPU's", str(differing), "0", passed=differing == 0)
    seconds = statistics.median(bench.seconds(lambda: develop(there, notes, px)) for _ in range(5))
    bench.tell(f"development of {count} clips", f"{seconds * 1000:.1f} ms")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "environment": environment,
    "parity": parity,
    "convolutions": convolutions,
    "bits": bits,
    "waits": waits,
    "training": training,
    "inference": inference,
    "develop": develop_clips,
    "workers": workers,
    "decoding": decoding,
}


def main() -> None:
    section, device, results, small, *rest = sys.argv[1:]
    bench = Bench(section, device, Path(results), small == "1")
    if not bench.gpu:
        torch.set_num_threads(1)
    if section == "killed":
        killed(bench, rest[0], rest[1] == "1")
    elif section == "rank":
        rank(bench, int(rest[0]))
    else:
        SECTIONS[section](bench)


if __name__ == "__main__":
    main()
