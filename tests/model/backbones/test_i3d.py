from __future__ import annotations

import pytest
import torch

from tests.model.backbones.comparison import check
from tpn_ray.model.backbones.i3d import R50, R101, TOY, NonLocal, ResNet3d, first_of_two, i3d, second_of_two


@pytest.mark.parametrize("name", ["i3d_r50", "nonlocal_r50"])
def test_features_are_the_published(name: str) -> None:
    check(name, name)


def blocks(net: ResNet3d) -> dict[str, list[torch.nn.Module]]:
    return {name: list(stage) for name, stage in net.stages.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "deep"), [(R50, "+-" * 3), (R101, "+-" * 11 + "+")])
def test_blocks_that_look_along_time(size, deep) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        stages = blocks(i3d(size, 5))
    kernels = {
        name: "".join("+" if block.branch.conv1.conv.kernel_size == (3, 1) else "-" for block in stage)  # type: ignore[union-attr]
        for name, stage in stages.items()
    }
    assert kernels == {"res2": "+++", "res3": "+-+-", "res4": deep, "res5": "-+-"}


@pytest.mark.parametrize(
    ("size", "attends", "res3", "res4"),
    [
        (R50, first_of_two, [0, 2], [0, 2, 4]),
        (R50, second_of_two, [1, 3], [1, 3, 5]),
        (R101, first_of_two, [0, 2], list(range(0, 23, 2))),
    ],
)
def test_places_of_non_local_blocks(size, attends, res3, res4) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        stages = blocks(i3d(size, 5, "gaussian", attends))
    found = {name: [i for i, block in enumerate(stage) if block.attention] for name, stage in stages.items()}
    assert found == {"res2": [], "res3": res3, "res4": res4, "res5": []}


def test_a_non_local_block_starts_as_the_identity() -> None:
    clips = torch.randn(2, 8, 3, 4, 4)
    assert torch.equal(NonLocal(8, "embedded_gaussian")(clips), clips)


@pytest.mark.parametrize("affinity", ["embedded_gaussian", "gaussian", "dot_product"])
def test_positions_are_weighed_as_defined(affinity) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    block = NonLocal(8, affinity).eval()
    torch.nn.init.uniform_(block.out.norm.weight)  # type: ignore[union-attr]
    clips = torch.randn(1, 8, 2, 4, 4)

    def embed(layer: torch.nn.Module | None) -> torch.Tensor:
        return (
            clips
            if layer is None
            else torch.einsum("ncthw,kc->nkthw", clips, layer.weight[:, :, 0, 0])
            + (  # type: ignore[index]
                layer.bias.view(-1, 1, 1, 1)  # type: ignore[operator]
            )
        )

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0).flatten(2)

    products = torch.einsum("ncp,ncq->npq", embed(block.query).flatten(2), pooled(embed(block.key)))
    weights = products / 8 if affinity == "dot_product" else products.exp() / products.exp().sum(2, keepdim=True)
    means = torch.einsum("npq,ncq->ncp", weights, pooled(embed(block.value))).unflatten(2, (2, 4, 4))
    torch.testing.assert_close(block(clips), clips + block.out(means))


def test_an_eighth_of_the_frames_is_left_before_res3() -> None:
    net = i3d(TOY, 3)
    assert {stage: x.shape[2] for stage, x in net(torch.randn(1, 3, 24, 32, 32)).items()} == {2: 3, 3: 3}
    assert net(torch.randn(1, 3, 5, 32, 32))[2].shape[2] == 1
