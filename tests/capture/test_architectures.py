"""Models that others wrote: all is seen, nothing is invented, nothing is changed.

`benchmarks/architectures.py` does the same for eighty of them; here is one of each kind, small.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnviz.capture import Capture, stream, watch


def timm_model(name: str, **settings: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    model: nn.Module = timm.create_model(name, **settings)
    return model


def vision_model(name: str, **settings: Any) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, **settings)


def hf_model(kind: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    attention = settings.pop("attention", None)
    config = getattr(transformers, f"{kind}Config")(**settings)
    if attention is not None:
        config._attn_implementation = attention
    model: nn.Module = getattr(transformers, f"{kind}Model")(config)
    return model


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TENSORS = ("weights", "scale", "windows", "check")


def seen_in(model: nn.Module, size: int) -> Capture:
    """What a watch sees, and a stream; outputs must be equal bit for bit, and not be all zero."""
    torch.manual_seed(0)
    for parameter in model.eval().parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    x = torch.randn(2, 3, size, size)

    def read(out: Any) -> Tensor:
        found: Tensor = out if isinstance(out, Tensor) else out.last_hidden_state
        return found

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say to their own users
        before = read(model(x))
        with watch(model) as seen:
            after = read(model(x))
        streamed = [found for _, found in stream(model, [x] * 2, reduce=None)]
    assert torch.equal(before, after)
    assert before.any()
    for found in streamed:
        assert torch.equal(read(found.output), before)
        assert list(found) == list(seen)
        for one, other in zip(found.values(), seen.values(), strict=True):
            assert {k: v for k, v in vars(one).items() if k not in TENSORS} == {
                k: v for k, v in vars(other).items() if k not in TENSORS
            }
            for values, expected in ((one.weights, other.weights), (one.scale, other.scale)):
                assert (values is None) == (expected is None)
                assert values is None or expected is None or torch.equal(values, expected)
    return seen


@pytest.mark.parametrize(
    ("name", "settings", "size", "attention", "gates"),
    [
        ("vit_tiny_patch16_224", VIT, 32, {"fused": 2}, {}),
        ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}, 32, {"fused": 2}, {}),
        ("cait_xxs24_224", {**VIT, "depth": 2}, 32, {"qk": 2, "fused": 2}, {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 16,
         "depths": (2, 2), "num_heads": (2, 4)}, 64, {"qk": 4}, {}),
        ("xcit_nano_12_p16_224", {"img_size": 32, "depth": 2}, 32, {"qk": 2, "fused": 2}, {}),
        ("mobilevitv2_050", {}, 64, {"pooled": 9}, {}),
        ("efficientvit_b0", {}, 64, {"linear": 4}, {}),
        ("gcresnet33ts", {}, 64, {"pooled": 10}, {}),
        ("skresnet18", {}, 64, {}, {"branch": 8}),
        ("resnest14d", {}, 64, {}, {"branch": 4}),
        ("eca_resnet33ts", {}, 64, {}, {"channel": 10}),
        ("efficientnet_b0", {}, 64, {}, {"channel": 16}),
        ("mobilenetv3_small_050", {}, 64, {}, {"channel": 9}),
    ],
)  # fmt: skip
def test_models_of_timm(
    name: str, settings: dict[str, Any], size: int, attention: dict[str, int],
    gates: dict[str, int],
) -> None:  # fmt: skip
    seen = seen_in(timm_model(name, **settings), size)
    assert Counter(record.how for record in seen.attention.values()) == attention
    assert Counter(record.axis for record in seen.gates.values()) == gates
    assert not seen.unused
    for record in seen.attention.values():
        if record.weights is not None and not record.mixed:
            assert float((record.weights.sum(-1) - 1).abs().max()) < 1e-5
        assert record.check is None or record.check < 1e-5


def test_register_tokens_of_timm_are_leading_tokens() -> None:
    record = seen_in(timm_model("vit_tiny_patch16_224", **VIT, reg_tokens=4), 32)["blocks.0.attn"]
    assert (record.prefix, record.key_grid) == (5, (4, 4))


@pytest.mark.parametrize(
    ("name", "settings", "size", "attention", "gates"),
    [
        ("vit_b_16", {"image_size": 32}, 32, {"fused": 12}, {}),
        ("swin_t", {}, 64, {"qk": 12}, {}),
        ("efficientnet_b0", {}, 64, {}, {"channel": 16}),
        ("mobilenet_v3_small", {}, 64, {}, {"channel": 9}),
    ],
)
def test_models_of_torchvision(
    name: str, settings: dict[str, Any], size: int, attention: dict[str, int],
    gates: dict[str, int],
) -> None:  # fmt: skip
    seen = seen_in(vision_model(name, **settings), size)
    assert Counter(record.how for record in seen.attention.values()) == attention
    assert Counter(record.axis for record in seen.gates.values()) == gates


@pytest.mark.parametrize(
    ("kind", "settings", "how"),
    [
        ("ViT", SMALL, "fused"),
        ("ViT", {**SMALL, "attention": "eager"}, "qk"),
        ("DeiT", SMALL, "fused"),
        ("Beit", SMALL, "fused"),
        ("Dinov2", SMALL, "fused"),
        ("CLIPVision", SMALL, "fused"),
    ],
)
def test_models_of_transformers(kind: str, settings: dict[str, Any], how: str) -> None:
    seen = seen_in(hf_model(kind, **settings), 32)
    assert [record.how for record in seen.values()] == [how] * 2
    for record in seen.values():
        assert record.key_grid == (4, 4)
        assert record.prefix == (2 if kind == "DeiT" else 1)


def test_windows_of_torchvision_are_mapped_back() -> None:
    record = seen_in(vision_model("swin_t"), 64)["features.1.1.attn"]
    assert record.windows is not None
    assert record.windows.grid == (16, 16)
    assert record.windows.shift == (3, 3)
    kept = record.windows.cells[record.windows.cells >= 0]
    assert kept.sort().values.tolist() == list(range(256))


def test_nothing_is_seen_in_plain_convolutions() -> None:
    model = vision_model("resnet18").eval()
    with torch.no_grad(), watch(model, empty=True) as seen:
        model(torch.randn(1, 3, 32, 32))
    assert not len(seen)
    assert not seen.unused
