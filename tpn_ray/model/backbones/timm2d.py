"""Any image network of timm over frames, apart (TSN) or with temporal shift (TSM). Runs anywhere; timm is optional.

`timm/<model>` sees every frame alone. `timm_tsm/<model>` also shifts channels between frames as in TSM: in networks of
residual blocks (with convolutions named conv1 and conv2, as in ResNets and RegNets) before the first convolution of
every block, where TSM itself does; in all others, whose blocks have no such place in common, before the module that
gives the output of a stage, which in most of them is the whole stage.

Names, channels, and strides of the stages are timm's (`features_only`). Its weights are not downloaded: a file of them
loads as any other file. Fresh weights are drawn by timm.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tpn_ray.errors import ConfigError
from tpn_ray.model.backbones.resnet2d import shift as shift_frames
from tpn_ray.model.backbones.spec import STEM, Backbone, BackboneSpec, Shift, Stage, Substitutions
from tpn_ray.model.frames import fold, unfold
from tpn_ray.model.layers import batch_norm

APART, SHIFTED = "timm/", "timm_tsm/"
FIRST_STAGE = 2  # a feature at half the size is the stem's

Indices = Mapping[int, int]
"""Which of timm's features is the output of each stage."""


class Norm(nn.BatchNorm2d):
    """Batch norm of timm's networks: ours, so that workers can share its statistics, and timm's activation after it."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in norm.named_children():  # drop and act, where timm has joined them
            self.add_module(name, child)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        shared = self.training and getattr(self, "shared", None) is not None
        y = batch_norm(self, x) if shared else super().forward(x)
        for after in self.children():
            y = after(y)
        return y


class Shifter:
    """Shifts the input of modules that it is hooked to; knows the number of frames of the clips under way."""

    def __init__(self, channels_last: bool) -> None:
        self.t = 1
        self.channels_last = channels_last

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = arguments
        if x.ndim == 3:  # tokens
            moved = shift_frames(x.transpose(1, 2).unsqueeze(-1), self.t).squeeze(-1).transpose(1, 2)
        elif self.channels_last:
            moved = shift_frames(x.permute(0, 3, 1, 2), self.t).permute(0, 2, 3, 1)
        else:
            moved = shift_frames(x, self.t)
        return moved, *others


class Timm(Backbone):
    """A network of timm over all frames of the clips."""

    def __init__(self, model: str, indices: Indices, top: int, placement: Shift | None = None) -> None:
        super().__init__()
        wanted = {stage: index for stage, index in indices.items() if stage <= top}
        self.net = features(model, tuple(wanted.values()))
        self.channels = dict(zip(wanted, self.net.feature_info.channels(), strict=True))
        self.channels_last = getattr(getattr(self.net, "output_fmt", None), "value", "NCHW") == "NHWC"
        known = default_cfg(model)
        self.px = tuple(known["input_size"][1:]) if known.get("fixed_input_size") else None
        prune(self.net)
        own_batch_norm(self.net)
        self.shifter = Shifter(self.channels_last)
        for module in shifted_modules(self.net, placement) if placement else ():
            module.register_forward_pre_hook(self.shifter)

    def initialise(self) -> None:
        """Keep the weights that timm drew."""

    def forward(self, clips: Float[Tensor, "n c t h w"]) -> dict[int, Float[Tensor, "n _ t _ _"]]:
        """Return the output of every stage by its number."""
        t, *px = clips.shape[2:]
        if self.px is not None and self.px != tuple(px):
            raise ConfigError(f"clips of {px[0]} x {px[1]} pixels: this network takes only {self.px[0]} x {self.px[1]}")
        self.shifter.t = t
        outputs = self.net(fold(clips))
        if self.channels_last:
            outputs = [output.permute(0, 3, 1, 2) for output in outputs]
        return {stage: unfold(output, t) for stage, output in zip(self.channels, outputs, strict=True)}


def import_timm() -> Any:
    """Return the module timm; raise ConfigError where it is not installed or does not work."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise ConfigError(f"{APART} and {SHIFTED} backbones need timm: pip install 'tpn_ray[timm]'") from None
        raise ConfigError(f"timm cannot be imported, which needs {error.name}: pip install 'tpn_ray[timm]'") from error
    except (ImportError, RuntimeError) as error:
        # timm imports torchvision, whose builds each fit one build of torch.
        raise ConfigError(
            f"timm cannot be imported: {error}; the torchvision that it needs must be built for torch "
            f"{torch.__version__}"
        ) from error


def features(model: str, indices: tuple[int, ...] | None = None) -> Any:
    """Build timm's network without its head and above the highest of the features; all of them by default."""
    chosen = {} if indices is None else {"out_indices": indices}
    return import_timm().create_model(model, pretrained=False, features_only=True, **chosen)


def default_cfg(model: str) -> dict[str, Any]:
    """Return what timm knows of the network's published weights."""
    found = importlib.import_module("timm.models").get_pretrained_cfg(model)
    return dict(found.to_dict()) if found is not None else {}


@cache  # a config is asked for its spec often
def timm_spec(name: str) -> BackboneSpec:
    """Return the spec of `timm/<model>` or `timm_tsm/<model>`; raise ConfigError if timm has no such features."""
    shifts = name.startswith(SHIFTED)
    model = name.removeprefix(SHIFTED if shifts else APART)
    timm = import_timm()
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=5)
        raise ConfigError(f"timm has no model {model!r}; nearest: {', '.join(near) or 'none'}")
    try:
        with torch.device("meta"):
            net = features(model)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{name}: timm cannot give features of {model}: {error}") from error
    info = net.feature_info
    # Where several features have one stride, the last is the richest.
    indices = {
        stride.bit_length() - 1: index
        for index, stride in zip(info.out_indices, info.reduction(), strict=True)
        if stride >= 2**FIRST_STAGE and stride & (stride - 1) == 0
    }
    if not indices:
        raise ConfigError(f"{name}: features have the strides {info.reduction()}, none of them 4, 8, 16, or 32")
    channels = dict(zip(info.out_indices, info.channels(), strict=True))
    return BackboneSpec(
        build=partial(Timm, model, indices),
        stages={stage: Stage(channels[index], space=2**stage) for stage, index in indices.items()},
        frames="shift" if shifts else "apart",
        sampling="segments",
        stage_of=stages_in_order(net, indices),
        names={"timm": names(net, model)},
        licence=licence(model),
    )


def stages_in_order(net: Any, indices: Indices) -> Callable[[str], int]:
    """Return a function from a parameter's name to its stage: the next whose output comes after it, else the last.

    Whatever comes before the module of the first stage is the stem. Raises ConfigError where timm names a stage that is
    no module.
    """

    @cache  # most recipes never ask
    def stages() -> dict[str, int]:
        modules = dict(zip(net.feature_info.out_indices, net.feature_info.module_name(), strict=True))
        places = {id(parameter): place for place, parameter in enumerate(net.parameters())}
        spans = []
        for stage, index in sorted(indices.items()):
            inside = [places[id(parameter)] for parameter in stage_of(net, modules[index]).parameters()]
            spans += [(stage, min(inside), max(inside))] if inside else []
        found = {}
        for place, (name, _) in enumerate(net.named_parameters()):
            following = next((stage for stage, _, end in spans if place <= end), spans[-1][0])
            found[name] = STEM if place < spans[0][1] else following
        return found

    return lambda name: stages()[name.removeprefix("net.")]


def names(net: nn.Module, model: str) -> Substitutions:
    """Return timm's names of the whole network, whose sequences `features_only` takes apart or which it wraps."""
    with torch.device("meta"):
        whole = import_timm().create_model(model, pretrained=False)
    parts = dict(whole.named_modules())
    pairs: list[tuple[str, str]] = []
    for name, _ in net.named_children():
        split = [name[: i.start()] + "." + name[i.end() :] for i in re.finditer("_", name)]
        found = next((part for part in (name, *split) if part in parts), None)
        # FeatureGetterNet and FeatureHookNet keep the network whole, as their only child.
        pairs.append((rf"^net\.{name}\.", f"{found}." if found is not None else ""))
    return (*pairs, (r"^net\.", ""))


def licence(model: str) -> str:
    """Return the licence of timm's weights, and where they are."""
    known = default_cfg(model)
    source = known.get("hf_hub_id") or known.get("url") or "no weights published"
    return f"{known.get('license') or 'licence not stated'} ({source}, by timm)"


def prune(net: Any) -> None:
    """Remove the blocks above the highest feature where timm leaves them in, as in EfficientNets."""
    last = re.fullmatch(r"blocks\.(\d+)", net.feature_info.module_name()[-1])
    if last and isinstance(getattr(net, "blocks", None), nn.Sequential):
        net.blocks = net.blocks[: int(last[1]) + 1]


def own_batch_norm(net: nn.Module) -> None:
    """Replace timm's batch norms by ours."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, Norm(child))


def shifted_modules(net: Any, placement: Shift) -> list[nn.Module]:
    """Return the modules before which to shift; `inplace` shifts what the shortcut of a residual block sees, too."""
    stages = list(dict.fromkeys(stage_of(net, name) for name in net.feature_info.module_name()))
    blocks = [module for name, module in net.named_modules() if is_residual(name, module)]
    if len(blocks) < len(stages):
        return stages
    return blocks if placement == "inplace" else [block.get_submodule("conv1") for block in blocks]


def is_residual(name: str, module: nn.Module) -> bool:
    """Return whether a module is the residual block of a ResNet's kind, and neither a stem nor the whole network."""
    children = {child for child, _ in module.named_children()}
    return "conv1" in children and bool(children & {"conv2", "convs"}) and "." in name and "stem" not in name


def stage_of(net: nn.Module, name: str) -> nn.Module:
    """Return the module that timm calls by this name in the whole network."""
    modules: dict[str, nn.Module] = dict(net.named_modules())
    candidates: Iterable[str] = (name, name.replace(".", "_", 1), f"model.{name}", f"body.{name}")
    for candidate in candidates:
        if candidate in modules:
            return modules[candidate]
    raise ConfigError(f"this network has no stage {name} of its own, and timm names it so")
