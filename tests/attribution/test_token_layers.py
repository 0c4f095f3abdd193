"""Grad-CAM of a transformer explains the normed tokens of its last block, without being told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import attnviz as av
from attnviz.attribution import attribute, default_layer
from attnviz.attribution.layer_layout import _at_home
from attnviz.errors import InputError
from attnviz.models import build_model
from tests.evaluation.made import Attending, Patches, convolutions
from tests.evaluation.test_evaluation import ClassLast


def images(b: int = 2, side: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.rand(b, 3, *side, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Block(nn.Module):
    """Pre-norm attention that is written out, its projections apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.attend = nn.Softmax(-1)

    def forward(self, t: Tensor) -> Tensor:
        y = self.norm(t)
        parts = (self.q, self.k, self.v)
        q, k, v = (part(y).unflatten(2, (2, -1)).transpose(1, 2) for part in parts)
        z = self.attend(q @ k.mT / 3) @ v
        return t + self.out(z.transpose(1, 2).flatten(2))


class Own(nn.Module):
    """A vision transformer of one's own: a class token and blocks, which the caller gives."""

    def __init__(self, blocks: nn.Module, *, stride: int = 8, kernel: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 24, kernel, stride, (kernel - stride) // 2)
        self.token, self.blocks, self.head = nn.Parameter(torch.randn(24)), blocks, nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.stem(x).flatten(2).mT
        t = torch.cat([self.token.expand(len(x), 1, 24), t], 1)
        return self.head(self.blocks(t)[:, 0])


class Inline(Own):
    """The same, with the attention of two blocks in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        t = self.stem(x).flatten(2).mT
        for linear in self.blocks:
            t = t + torch.softmax(t @ linear(t).mT / 5, -1) @ t
        return self.head(t.mean(1))


def encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def written_out() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(24), Block(24))


def of_timm(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    made: nn.Module = timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3,
        **options,
    )  # fmt: skip
    return made


def by_hand(model: nn.Module, layer: str, x: Tensor, target: int, lead: int = 1) -> Tensor:
    """Grad-CAM of tokens as its formula reads: mean gradients weigh the channels, cut at zero."""
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda *all_: kept.append(all_[2]))
    output = model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(output[:, target].sum(), kept[0])
    weights = gradient[:, lead:].mean(1)
    map_ = torch.einsum("bnc,bc->bn", kept[0][:, lead:], weights).clamp(min=0)
    return map_.view(len(x), 4, 6).detach()


@pytest.mark.parametrize(
    ("model", "layer", "lead"),
    [
        (lambda: of_timm(), "blocks.1.norm1", 1),
        (lambda: of_timm(class_token=False, global_pool="avg"), "blocks.1.norm1", 0),
        (lambda: of_timm(reg_tokens=2), "blocks.1.norm1", 3),
        (lambda: Own(written_out()), "blocks.1.norm", 1),
        (lambda: Own(encoder(norm_first=True)), "blocks.layers.2.norm1", 1),
        (lambda: Own(encoder(norm_first=False)), "blocks.layers.1", 1),
        (lambda: Own(written_out(), kernel=12), "blocks.1.norm", 1),
    ],
    ids=["timm", "no class token", "registers", "written out", "pre-norm", "post-norm", "overlap"],
)
def test_the_default_is_the_input_of_the_last_block(model: Any, layer: str, lead: int) -> None:
    net, x = model().eval(), images()
    assert default_layer(net, x) == layer
    drawn = attribute(net, x, target=1, size="own")
    assert drawn.shape == (2, 4, 6)
    assert bool(drawn.any())
    assert_close(drawn, by_hand(net, layer, x, 1, lead), atol=1e-6, rtol=1e-3)


def test_layers_of_windows_and_of_the_reference_model_are_found() -> None:
    timm = pytest.importorskip("timm")
    swin = timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2),
        num_classes=2,
    )  # fmt: skip
    assert default_layer(swin.eval(), images(1, (32, 32))) == "layers.1.blocks.1.norm1"
    net = build_model("vit", width=16, depth=2)
    assert default_layer(net.eval(), images(1, (96, 96))) == "blocks.1.norm_attention"


def test_other_models_keep_their_last_convolution() -> None:
    for net, layer in ((Attending(), "stem"), (ClassLast(), "stem"), (convolutions(), "2")):
        assert default_layer(net.eval(), images(1, (32, 32))) == layer
    mha = build_model("mha", width=8, placement=2).eval()
    assert default_layer(mha, images(1, (32, 32))) == "features.conv3"


def test_attention_in_the_model_s_own_forward_belongs_to_no_layer() -> None:
    net = Inline(nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 24)])).eval()
    with pytest.raises(InputError, match="written out in the model's own forward"):
        attribute(net, images(), target=1)


def test_an_evaluation_names_the_layer_that_it_explains() -> None:
    data = Patches(2, classes=3)
    net = Own(written_out())
    result = av.evaluate(net, data, attributions=["layer_gradcam"], findings=False)
    assert result.layers["layer_gradcam"] == "blocks.1.norm"
    assert result.raw("layer_gradcam").shape == (2, 4, 4)


class TestAtHome:
    def moved(self, dy: int, dx: int, spread: float = 0.0) -> tuple[Tensor, list[int]]:
        """Responses of a 5 × 6 grid, greatest so far from the changed place."""
        chosen = [7, 8, 9, 10, 13, 14, 15, 16, 19, 20]
        found = torch.zeros(len(chosen), 5, 6)
        for one, cell in zip(found, chosen, strict=True):
            y, x = divmod(cell, 6)
            one[y + dy, x + dx] = 1.0
            one[y, x] = max(spread, float(one[y, x]))
        return found, chosen

    def test_own_pixels_move_a_place_most(self) -> None:
        assert _at_home(*self.moved(0, 0))

    @pytest.mark.parametrize(("dy", "dx"), [(0, 1), (0, -1), (1, 0), (-1, 1)])
    def test_a_shift_is_seen_though_places_overlap(self, dy: int, dx: int) -> None:
        assert not _at_home(*self.moved(dy, dx, spread=0.6))

    def test_neighbours_may_move_more_now_and_then(self) -> None:
        found, chosen = self.moved(0, 0)
        for one, cell in list(zip(found, chosen, strict=True))[:4]:
            y, x = divmod(cell, 6)
            one[y, x], one[y, x + 1] = 0.9, 1.0
        assert _at_home(found, chosen)
