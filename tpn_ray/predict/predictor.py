"""Prediction from a checkpoint: `load(checkpoint).predict(path)`. Runs anywhere, without Ray.

Every video is computed by itself, in portions that depend on its views alone. A score therefore has the same bits
whatever other videos are scored, by however many processes, and whether by jobs/evaluate.py, jobs/predict.py, or here
(on the same kind of device, with as many threads, and in the same arithmetic).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tpn_ray import checkpoint as checkpoints
from tpn_ray import output, storage
from tpn_ray.clips.cut import cut
from tpn_ray.clips.transfer import upload
from tpn_ray.clips.views import ViewFrames, Views, Window, parse_views, squares
from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.metrics import average_views, probabilities
from tpn_ray.model.convolution_check import convolution_self_test
from tpn_ray.model.folding import fold_batch_norms
from tpn_ray.model.precision import Precision, computing
from tpn_ray.model.recognizer import Recognizer, build_model, normaliser, set_alpha
from tpn_ray.recipe import Recipe, from_plain

PIXELS_AT_ONCE = 32 * 8 * 224 * 224
"""Pixels per forward pass, over all views and frames: 32 of the published clips."""

MAX_VIDEO_BYTES = 2 * 1024**3

Item = TypeVar("Item")
Alpha = tuple[int, ...]
ViewScores = NDArray[np.float32]
"""(v, k): for each view, the softmax over the classes of each label set, or the sigmoid of each class where videos have
several."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How exactly a network is computed for scoring. Softmax and the mean over views are at least float32."""

    precision: Precision = "fp32"
    """Precision of scoring. tf32 and bf16 are faster on GPUs and may move a probability by about 0.001 and 0.01."""

    fold_norms: bool = False
    """Whether batch norm is folded into the convolutions before it: faster, and the same but for the last digits of
    float32 (probabilities within 0.00001)."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "tf32", "bf16"):
            raise ConfigError(f"precision={self.precision!r} must be fp32, tf32, or bf16")


EXACT = Arithmetic()


@dataclass(frozen=True)
class Prediction:
    """The network's scores for one video, or for one window of it."""

    scores: NDArray[np.float32]
    """(k,), on the scale of probabilities, with several label sets side by side."""
    label_sets: dict[str, tuple[str, ...]]
    window: Window | None = None

    def top(self, count: int = 5) -> dict[str, list[tuple[str, float]]]:
        """Return the best classes of each label set, best first."""
        return best_classes(self.scores, self.label_sets, count)

    def _repr_html_(self) -> str:
        """Show the best classes in a notebook."""
        return "".join(
            output.html_table([(label, f"{score:.1%}") for label, score in best], (name, "score"))
            for name, best in self.top().items()
        )


class Predictor:
    """A network in evaluation mode, with its recipe and class names."""

    def __init__(
        self,
        model: Recognizer,
        recipe: Recipe,
        label_sets: dict[str, tuple[str, ...]],
        threads: int,
        arithmetic: Arithmetic = EXACT,
    ) -> None:
        """Take over the network. Raises ConfigError if its bf16 convolutions give wrong numbers on this device."""
        self.model, self.recipe, self.label_sets = model.eval(), recipe, label_sets
        self.threads, self.precision = threads, arithmetic.precision
        if self.precision == "bf16":
            side = recipe.augment.test_short_side_px
            report = convolution_self_test(model, (2, recipe.clip.channels, recipe.clip.frames, side, side))
            if not report.trusted:
                raise ConfigError(f"precision='bf16' cannot be used here: {report}; use fp32, or tf32 on a GPU")
        if arithmetic.fold_norms:
            fold_batch_norms(model)
        self.device = next(model.parameters()).device
        self.normalise = normaliser(recipe.model).to(self.device)
        self.trained_alpha: Alpha = recipe.model.alpha

    def predict(self, path: str, views: str = "1x1") -> Prediction:
        """Score a video on disk or in object storage. Raises BadVideo with the reason."""
        chosen = parse_views(views)
        return Prediction(average_views(self.view_scores(self.see(path, chosen), chosen)), self.label_sets)

    def predict_windows(
        self, path: str, window_seconds: float, hop_seconds: float = 0.0, views: str = "1x1"
    ) -> Iterator[Prediction]:
        """Score each window of a long video as it is decoded. Windows follow each other without a gap unless
        `hop_seconds` is given."""
        from tpn_ray.clips import decoding

        data, chosen, recipe = self._read(path), parse_views(views), self.recipe
        settings = (chosen, recipe.clip, recipe.augment, window_seconds, hop_seconds or window_seconds)
        for seen, window in decoding.each_window(False, data, *settings):
            yield Prediction(average_views(self.view_scores(seen, chosen)), self.label_sets, window)

    def see(self, path: str, views: Views) -> ViewFrames:
        """Decode what all views of a video show. Raises BadVideo with the reason."""
        return self.see_in(self._read(path), views)

    def see_in(self, data: bytes, views: Views) -> ViewFrames:
        """Decode the same from the bytes of a video of the network's modality."""
        from tpn_ray.clips import decoding

        decode = decoding.decoder_of(prepared=False)
        *fields, _ = decode(decoding.seen, data, views, self.recipe.clip, self.recipe.augment)
        return ViewFrames(*fields)

    def view_scores(self, seen: ViewFrames, views: Views, alpha: Alpha = ()) -> ViewScores:
        """Score every view of the decoded frames, with another alpha than the trained one if given."""
        return self.launch(seen, views, alpha).cpu().numpy()

    @torch.inference_mode()
    def launch(self, seen: ViewFrames, views: Views, alpha: Alpha = ()) -> Float[Tensor, "v k"]:
        """Return `view_scores` on the device, which a GPU still computes: the next video can be sent to it already."""
        if self.model.neck is not None or alpha:
            set_alpha(self.model, alpha or self.trained_alpha)
        side, wanted = views.side_px(self.recipe.augment), squares(seen, views, self.recipe.augment)
        frames, places = (upload(array, str(self.device)) for array in (seen.frames, seen.places))
        portions = even_portions(wanted, PIXELS_AT_ONCE // (seen.places.shape[1] * side * side))
        with _threads(self.threads), computing(self.precision, self.device):
            outputs = [self.model(self.normalise(cut(frames, places, part, side))).action for part in portions]
            model = self.recipe.model
            return probabilities(torch.cat(outputs), model.label_sets, model.multi_label)

    def _read(self, path: str) -> bytes:
        if self.recipe.clip.modality == "flow":
            raise ConfigError(
                f"the network looks at optical flow, which {path} does not hold: prepare the videos with "
                "`python jobs/prepare.py --flow`, and give the folder that it makes to jobs/predict.py"
            )
        return storage.read_bytes(storage.absolute(path), max_bytes=MAX_VIDEO_BYTES)


def load(
    checkpoint_uri: str, device: str = "", threads: int = 1, precision: Precision = "fp32", fold_norms: bool = False
) -> Predictor:
    """Load the network of a checkpoint folder, on disk or in object storage, by default on a GPU if there is one. The
    folder of a run stands for its best checkpoint.

    `threads` is the number of torch threads for computing; a different number may change the last bits of a score. See
    `Arithmetic` for `precision` and `fold_norms`, which raise ConfigError where they cannot be used.
    """
    arithmetic = Arithmetic(precision=precision, fold_norms=fold_norms)
    saved = checkpoints.load(checkpoints.find(checkpoint_uri), parts=("weights",))
    recipe = from_plain(saved.recipe)
    model = build_model(recipe.model)
    try:
        model.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {checkpoint_uri} do not fit the network of its recipe ({recipe.model.backbone}, neck "
            f"{recipe.model.neck}); it was made by another version of tpn_ray"
        ) from error
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    label_sets = {name: tuple(classes) for name, classes in saved.label_sets.items()}
    return Predictor(model.to(place), recipe, label_sets, threads, arithmetic)


def even_portions(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """Split into as few portions of at most `most` (at least 1) as possible, whose sizes differ by at most 1."""
    count = -(-len(items) // max(1, most))
    return [items[i * len(items) // count : (i + 1) * len(items) // count] for i in range(count)]


def best_classes(
    scores: NDArray[np.float32], label_sets: dict[str, tuple[str, ...]], count: int
) -> dict[str, list[tuple[str, float]]]:
    """Return the best classes of each label set, best first; of equal scores, the first class."""
    best, start = dict[str, list[tuple[str, float]]](), 0
    for name, classes in label_sets.items():
        part, start = scores[start : start + len(classes)], start + len(classes)
        best[name] = [(classes[i], float(part[i])) for i in np.argsort(-part, kind="stable")[:count].tolist()]
    return best


def parse_alphas(texts: Sequence[str], recipe: Recipe) -> list[Alpha]:
    """Parse alphas: "4,8" is one, and "every" is all that the network can have, by powers of two up to the clip's
    frames."""
    if list(texts) == ["every"]:
        powers = [2**i for i in range(recipe.clip.frames.bit_length()) if 2**i <= recipe.clip.frames]
        depth = len(recipe.model.alpha) if recipe.model.neck == "tpn" else 0
        every = itertools.product(powers, repeat=depth)
        return [alpha for alpha in every if all(high >= low for low, high in pairwise(alpha))]
    try:
        alphas = [tuple(int(number) for number in text.split(",")) for text in texts]
    except ValueError as error:
        raise ConfigError(f"alpha {' '.join(texts)!r} is not known; write numbers such as 4,8, or every") from error
    for alpha in alphas:
        if recipe.model.neck == "none":
            raise ConfigError(f"alpha={alpha} cannot be set: the network has no pyramid (neck='none')")
        replace(recipe.model, alpha=alpha)  # refuses invalid values
    return alphas


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predicted_classes(
    scores: NDArray[np.float32], label_sets: dict[str, tuple[str, ...]], multi_label: bool = False
) -> list[str]:
    """Return the best class of each label set; with `multi_label`, all with a score of a half or more."""
    if multi_label:
        return [name for name, score in zip(*label_sets.values(), scores, strict=True) if score >= 0.5]
    return [best[0][0] for best in best_classes(scores, label_sets, 1).values()]
