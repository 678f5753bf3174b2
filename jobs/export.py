"""Export a checkpoint as a program. `python jobs/export.py --checkpoint C --out FILE.pt2|FILE.onnx --videos URI ...`"""

from __future__ import annotations

from tpn_ray.job import run_job

import sys
from dataclasses import dataclass

import numpy as np
import tyro

from tpn_ray import command_line, storage
from tpn_ray.clips.cut import all_views
from tpn_ray.clips.views import parse_views
from tpn_ray.datasets.reader import fetch
from tpn_ray.errors import ConfigError
from tpn_ray.model.recognizer import set_alpha
from tpn_ray.predict import export
from tpn_ray.predict.predictor import load, parse_alphas
from tpn_ray.predict.videos import find_videos

PROGRAM = "python jobs/export.py"
CLIPS = 4


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Export a checkpoint as a standalone program: uint8 clips (n, t, h, w, c) in, probabilities (n, k) out."""

    checkpoint: str
    """Folder of a checkpoint, or of a run for its best one; on disk or s3://."""

    out: str
    """FILE.pt2 for torch.export, FILE.onnx for ONNX (needs the extra `export`); on disk or s3://."""

    videos: tuple[str, ...]
    """Real videos, as for jobs/predict.py. The exported file must match the network on clips of the first ones."""

    views: tuple[str, ...] = ("1x1",)
    """Views, which decide the size of the program's clips: 1x1 crop_px, 1x3 the short side."""

    alpha: str = ""
    """Temporal rates to use instead of the checkpoint's, such as 4,8."""

    fold_norms: bool = False
    """Whether batch norm is folded into the convolutions before it, as for jobs/evaluate.py."""


def main() -> None:
    default = Arguments(checkpoint=tyro.MISSING, out=tyro.MISSING, videos=tyro.MISSING)
    flags = command_line.parse(default, sys.argv[1:], program=PROGRAM, description=Arguments.__doc__ or "")
    export.check_out(flags.out)
    predictor = load(flags.checkpoint, device="cpu", fold_norms=flags.fold_norms)
    views = parse_views(" ".join(flags.views))
    for alpha in parse_alphas([flags.alpha] if flags.alpha else [], predictor.recipe):
        set_alpha(predictor.model, alpha)
    print(f"{flags.checkpoint}: {predictor.recipe.model.backbone} with neck {predictor.recipe.model.neck}", flush=True)
    recipe, clips = predictor.recipe, []
    videos = find_videos(flags.videos, predictor.label_sets).showing(recipe.clip.modality)
    for video in range(min(CLIPS, len(videos))):
        clips += list(all_views(predictor.see_in(fetch(videos, video), views), views, recipe.augment))
    if len(clips) < 2:
        raise ConfigError("the check needs two clips: give two videos, or more views such as 2x1")
    difference = export.export(predictor, np.stack(clips[:CLIPS]), flags.out, say=lambda line: print(line, flush=True))
    shape = ", ".join(map(str, clips[0].shape))
    print(f"{storage.absolute(flags.out)}: takes uint8 (n, {shape}), gives float32 (n, {sum(recipe.model.label_sets)})")
    print(f"on {len(clips[:CLIPS])} clips of real videos it differs from the network by at most {difference:.2g}")


if __name__ == "__main__":
    run_job(main, leave=lambda: None)
    sys.exit(0)
