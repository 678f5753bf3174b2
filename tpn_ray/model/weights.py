"""Imports and exports weights: our files, mmaction2, the official TPN code, 2D ImageNet ResNets. Runs anywhere.

A file's layout is detected from its keys. Every weight of the network must come from the file, and every weight of the
file must go into the network; `load_weights` lists the exceptions. A wrong file must not load by accident: a ResNet-101
would fit into a ResNet-50 if extra entries were ignored.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpn_ray.errors import CheckpointError, ConfigError
from tpn_ray.model.backbones.resnet2d import Bottleneck
from tpn_ray.model.layouts import OURS, detect, names_in
from tpn_ray.model.recognizer import RGB_CHANNELS, Recognizer

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class LoadReport:
    """The outcome of loading a file. `used` and `unused` hold the file's names, the others ours."""

    layout: str
    """Code base whose names the file uses; resnet2d is torchvision's and timm's."""

    used: tuple[str, ...]
    """Entries of the file that are now in the network."""

    unused: tuple[str, ...]
    """Entries of the file that the network has no place for."""

    missing: tuple[str, ...]
    """Entries of the network that the file does not have and that keep their previous value."""

    inflated: tuple[str, ...]
    """Convolutions made from those of an image network: repeated along time and divided by the number of frames."""

    replaced: tuple[str, ...]
    """Classifier entries that keep their fresh value on request."""

    notes: tuple[str, ...]
    """What the file does not record and its user should know."""

    crossed: tuple[str, ...] = ()
    """First convolutions of flow made from those of RGB: the mean over the colors, for every channel (TSN, ECCV 2016,
    section 3.2)."""

    def __str__(self) -> str:
        lines = [f"{self.layout} weights: {len(self.used)} entries used, {len(self.unused)} not"]
        lists = {"not used": self.unused, "missing": self.missing, "inflated": self.inflated}
        lists |= {"from RGB to flow": self.crossed, "fresh": self.replaced}
        lines += [f"  {name} ({len(entries)}): {abridge(entries)}" for name, entries in lists.items() if entries]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def load_weights(
    model: Recognizer,
    source: str | os.PathLike[str] | bytes | Mapping[str, Any],
    *,
    replace_classifier: bool = False,
    backbone_only: bool = False,
) -> LoadReport:
    """Load a path, a URI, the bytes of a file, or a loaded dict into the network, and report what happened.

    These may be left over: in the file, auxiliary heads, stages above the highest in use, and entries that are no part
    of a network here (a 2D ResNet's `fc`, mmaction2's stray `new_cls`); in the network, auxiliary heads. A 2D ResNet
    provides only the backbone, and so does any other file if `backbone_only` is set. `replace_classifier` keeps the
    fresh final layers, main and auxiliary. Nothing is changed unless everything fits.
    """
    state, layout = read_state(model, source)
    backbone_only = backbone_only or layout == "resnet2d"
    found = match(model, state, layout)
    replaced = [key for key in model.state_dict() if is_classifier(key)] if replace_classifier else []
    wanted = {
        key: name
        for key, name in found.items()
        if key not in replaced and not (backbone_only and not key.startswith("backbone."))
    }
    missing = [key for key in model.state_dict() if key not in wanted and key not in replaced]
    unused = [name for name in state if name not in set(wanted.values())]
    fitted = fit(model, state, wanted, inflate=layout == "resnet2d")
    refuse_leftovers(
        model, missing, [name for name in unused if name not in set(found.values())], layout, backbone_only
    )
    model.load_state_dict(fitted, strict=False)
    kernels = [(key, state[wanted[key]], value) for key, value in fitted.items() if value.ndim > 3]
    deepened = [key for key, given, made in kernels if given[:, 0].numel() < made[:, 0].numel()]
    crossed = [key for key, given, made in kernels if given.shape[1] != made.shape[1]]
    lists = (wanted.values(), unused, missing, deepened, replaced, notes_on(model, layout), crossed)
    return LoadReport(layout, *(tuple(entries) for entries in lists))


def load_what_fits(model: Recognizer, source: str | Mapping[str, Any]) -> LoadReport:
    """Load a file that may have a classifier for other classes, or belong to the backbone alone.

    Raises CheckpointError if not even the backbone fits. What stays fresh is in the report.
    """
    for replace_classifier in (False, True):
        with contextlib.suppress(CheckpointError):
            return load_weights(model, source, replace_classifier=replace_classifier)
    return load_weights(model, source, backbone_only=True)


def save_mmaction2(model: Recognizer, uri: str) -> None:
    """Write the network's weights in the layout that mmaction2 (0.x and 1.x) loads."""
    from tpn_ray import storage  # imported here: weights are loaded where there is no pyarrow

    buffer = io.BytesIO()
    torch.save({"meta": {}, "state_dict": mmaction2_state(model)}, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def mmaction2_state(model: Recognizer) -> dict[str, Tensor]:
    """Return the network's weights under mmaction2's names and in its shapes.

    Auxiliary heads below the second-highest level are omitted: mmaction2 has none, and inference does not need them.
    """
    config = model.config
    pyramid = config.neck == "tpn"
    if pyramid and (config.flow not in ("cascade", "parallel") or config.rates or not config.spatial_modulation):
        raise ConfigError(
            f"mmaction2 cannot express flow={config.flow!r}, rates={config.rates!r}, spatial_modulation="
            f"{config.spatial_modulation!r}: it has the flows cascade and parallel over several stages"
        )
    if config.shift == "inplace" or not config.temporal_modulation:
        raise ConfigError("mmaction2 has neither shift='inplace' nor temporal_modulation=False")
    if "mmaction2" not in config.spec.names:
        raise ConfigError(f"mmaction2 has no {config.backbone}")
    flat_backbone = config.spec.frames != "convolve"
    shifted = {
        f"{name}.conv1.conv.weight"
        for name, module in model.named_modules()
        if isinstance(module, Bottleneck) and module.time == "shift"
    }
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("auxiliary.") and not key.startswith(f"auxiliary.{config.auxiliary_count - 1}."):
            continue
        names = names_in("mmaction2", config.spec, key, top_auxiliary=config.auxiliary_count - 1)
        flat = value.ndim != 4 or (flat_backbone and key.startswith("backbone."))
        # A kernel that is not square is (3, 1): time and height. Any other is height and width.
        deep = value if flat else value.unsqueeze(2 if value.shape[2] == value.shape[3] else 4)
        state[names[-1] if key in shifted else names[0]] = deep.contiguous()
    return state


def read_state(model: Recognizer, source: str | os.PathLike[str] | bytes | Mapping[str, Any]) -> tuple[State, str]:
    """Return a file's tensors by name, without wrappers' prefixes, and its layout."""
    content = source if isinstance(source, Mapping) else read_file(source)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{label(source)} holds a {type(content).__name__}, not named weights")
    state = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    layout = detect(model.config.spec, model.state_dict(), state)
    if layout is None:
        known = ", ".join((OURS, *model.config.spec.names))
        raise CheckpointError(
            f"{label(source)} is in no known layout of {model.config.backbone} ({known}); its entries: "
            f"{abridge(tuple(state)) or 'no tensors'}"
        )
    return state, layout


def read_file(source: str | os.PathLike[str] | bytes) -> object:
    """Read a file of torch or of safetensors."""
    if isinstance(source, bytes):
        data = source
    else:
        from tpn_ray.model.sources import local_file  # imported here: bytes are read where there is no pyarrow

        data = local_file(os.fspath(source)).read_bytes()
    if data[8:9] != b"{":  # safetensors: eight bytes of length, then JSON
        return unpickle(data, label(source))
    from safetensors import SafetensorError
    from safetensors.torch import load as load_safetensors

    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{label(source)} cannot be read as a file of safetensors: {error}") from None


def unpickle(data: bytes, label: str) -> object:
    """Read only tensors. Any other class that a file names (training logs, for example) becomes an inert `Ignored`."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        foreign = []  # files from before torch 1.6 cannot be inspected; they must hold only tensors
    try:
        with torch.serialization.safe_globals([(Ignored, name) for name in foreign]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "Weights only load failed" in reason:
            reason = (
                f"it refers to {abridge(tuple(foreign)) or 'objects'}, which are not read; save its state_dict alone"
            )
        raise CheckpointError(f"{label} cannot be read as a torch file of tensors: {reason}") from None


class Ignored:
    """Stands in for an object of a class that is not read."""

    def __new__(cls, *_: object, **__: object) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Discard the state."""


def match(model: Recognizer, state: State, layout: str) -> dict[str, str]:
    """Map our entries to the file's names for them, for those that the file has."""
    found = {}
    for key in model.state_dict():
        names = names_in(layout, model.config.spec, key, top_auxiliary=model.config.auxiliary_count - 1)
        name = next((name for name in names if name in state), None)
        if name is not None:
            found[key] = name
    return found


def fit(model: Recognizer, state: State, wanted: Mapping[str, str], *, inflate: bool) -> dict[str, Tensor]:
    """Reshape the file's tensors to ours. Kernels of 1xkxk and 3x1x1 are two-dimensional here (see frames.py)."""
    ours = model.state_dict()
    fitted, misfits = {}, {}
    for key, name in wanted.items():
        shape = ours[key].shape
        value = across_modality(state[name], shape, model.config.in_channels)
        if same_but_for_ones(value.shape, shape):
            fitted[key] = value.reshape(shape)
        elif inflate and (deep := inflated(value, shape)) is not None:
            fitted[key] = deep
        else:
            misfits[key] = f"{name} {tuple(value.shape)}, here {tuple(shape)}"
    if misfits and all(is_classifier(key) for key in misfits):
        raise CheckpointError(
            f"the file was trained for another number of classes: {abridge(tuple(misfits.values()))}; "
            "set `classes` to the file's number, or ask for replace_classifier=True"
        )
    if misfits:
        raise CheckpointError(f"{len(misfits)} entries have another shape: {abridge(tuple(misfits.values()))}")
    return fitted


def across_modality(kernel: Tensor, shape: torch.Size, channels: int) -> Tensor:
    """Return a first convolution of RGB as one of `channels` channels, with the mean over the colors for each; any
    other tensor as it is."""
    if channels == RGB_CHANNELS or kernel.ndim < 4 or (kernel.shape[1], shape[1]) != (RGB_CHANNELS, channels):
        return kernel
    return kernel.mean(dim=1, keepdim=True).expand(-1, channels, *kernel.shape[2:])


def inflated(kernel: Tensor, shape: torch.Size) -> Tensor | None:
    """Return an image network's kernel repeated along time and divided by the number of repetitions (paper, section
    4); None if it does not have this shape but for time."""
    if kernel.ndim != 4:
        return None
    if len(shape) == 5 and kernel.shape == (*shape[:2], *shape[3:]):
        return kernel[:, :, None].expand(shape) / shape[2]
    if len(shape) == 4 and shape[3] == 1 and kernel.shape == (*shape[:2], 1, 1):
        return kernel.expand(shape) / shape[2]
    return None


def same_but_for_ones(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Return whether shapes are equal, or those of kernels that differ only in dimensions of size 1.

    A linear layer equals a 1x1x1 convolution of its features.
    """
    if theirs == ours:
        return True
    kernels = ([size for size in shape[2:] if size != 1] for shape in (theirs, ours))
    return min(len(theirs), len(ours)) >= 2 and theirs[:2] == ours[:2] and next(kernels) == next(kernels)


def refuse_leftovers(
    model: Recognizer, missing: list[str], unused: list[str], layout: str, backbone_only: bool
) -> None:
    """Raise CheckpointError for a file of another network. `load_weights` states the rules."""
    lacking = [
        key
        for key in missing
        if not key.endswith("num_batches_tracked")  # missing in files from before torch 0.4.1
        and not key.startswith("auxiliary.")
        and not (layout == "resnet2d" and model.config.spec.added and re.search(model.config.spec.added, key))
        and (key.startswith("backbone.") or not backbone_only)
    ]
    if lacking:
        raise CheckpointError(
            f"the {layout} file lacks {len(lacking)} entries of this network ({model.config.backbone}, "
            f"neck={model.config.neck!r}): {abridge(tuple(lacking))}"
            + ("" if backbone_only or lacking[0].startswith("backbone.") else "; backbone_only=True takes the rest")
        )
    places = whole_backbone(model, layout)
    foreign = [
        name
        for name in unused
        if re.match(r"(backbone|necks?|layer\d)\.", name)
        and not re.match(r"necks?\.aux_head\.", name)
        and name not in places
        and not (backbone_only and name.startswith("neck"))
    ]
    if foreign:
        raise CheckpointError(
            f"the {layout} file is of another network than {model.config.backbone}, neck={model.config.neck!r}: "
            f"no place for {len(foreign)} of its entries: {abridge(tuple(foreign))}"
        )


def whole_backbone(model: Recognizer, layout: str) -> set[str]:
    """Return a layout's names for the entries of all the backbone's stages, also those above this network's highest."""
    config = model.config
    with torch.device("meta"):
        whole = config.backbone_up_to(max(config.spec.stages))
    keys = (f"backbone.{key}" for key in whole.state_dict())
    return {name for key in keys for name in names_in(layout, config.spec, key, top_auxiliary=0)}


def is_classifier(key: str) -> bool:
    """Return whether our entry `key` belongs to a final linear layer."""
    return re.search(r"head\.(relations\.\d\.)?linear\.", key) is not None


def notes_on(model: Recognizer, layout: str) -> list[str]:
    """List choices that change what the network computes and that no file records."""
    config, notes = model.config, []
    if layout in ("official", "mmaction2") and config.neck == "tpn" and config.flow == "parallel":
        notes.append("published TPN weights were trained with flow='cascade', this network has 'parallel'")
    if layout == "official" and config.spec.frames == "shift" and config.shift == "residual":
        notes.append("the official code shifts in place by default, this network has shift='residual'")
    if layout == "mmaction2" and config.shift == "inplace":
        notes.append("mmaction2 shifts in the residual branch, this network has shift='inplace'")
    return notes


def label(source: object) -> str:
    """Describe the source for a message."""
    return str(source) if isinstance(source, str | os.PathLike) else f"the given {type(source).__name__}"


def abridge(entries: tuple[str, ...], most: int = 6) -> str:
    """List the first few entries and count the rest."""
    rest = len(entries) - most
    return ", ".join(entries[:most]) + (f" and {rest} more" if rest > 0 else "")
