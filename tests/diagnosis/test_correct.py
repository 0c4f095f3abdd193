"""Models that are right raise no error; the table is benchmarks/doctor.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attnviz.diagnosis import diagnose
from attnviz.models import build_model


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, 32, 8, 8)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(self.cut(images).flatten(2).mT).mean(1)

    return Patches()


def timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return pytest.importorskip("timm").create_model(name, num_classes=10)

    return make


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 8, 2, 2, 32, 64, num_classes=10)


def swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def segformer() -> nn.Module:
    hf = pytest.importorskip("transformers")
    return hf.SegformerModel(hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2],
        sr_ratios=[4, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
    ))  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "our ViT": (lambda: build_model("vit"), 96),
    "encoder": (encoder, 64),
    "torchvision ViT": (vision_transformer, 64),
    "torchvision Swin": (swin, 64),
    "timm class and register tokens": (timm("test_vit3"), 160),
    "timm channel attention": (timm("edgenext_xx_small"), 64),
    "timm pooled attention": (timm("gcresnet33ts"), 64),
    "timm gates": (timm("mobilenetv3_small_050"), 64),
    "transformers Segformer": (segformer, 64),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_correct_model_has_no_error(name: str) -> None:
    make, side = MODELS[name]
    torch.manual_seed(0)
    model = make()
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = diagnose(model, images.clamp(-1, 1))
    assert not found.errors, found
    assert sum(found.checked.values()) > 0
