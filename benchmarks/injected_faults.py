"""Faults injected into published models, and corrected twins: detections and false alarms.

    python benchmarks/injected_faults.py             print the tables
    python benchmarks/injected_faults.py --write     and write docs/doctor/injected.json, which
                                                     docs/write_doctor.py shows
    python benchmarks/injected_faults.py --kept FILE --minutes 10      in several runs

Hosts are small models of timm, torchvision and transformers and one of this file, with random
weights and trained for some steps to see a patch in noise. A fault replaces one step of the host:
the attention function, the gate, the residual, the patches, the head. Its mended twin has the same
replacement without the fault. Exit code 1 if less than 90 % are found or a twin has an error.
Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attnviz.diagnosis import SEVERITIES, diagnose  # noqa: E402
from attnviz.diagnosis.outputs import flat_output  # noqa: E402
from attnviz.patches import inject_patch  # noqa: E402
from benchmarks.isolated import isolated  # noqa: E402
from benchmarks.other_spellings import CORRECT, FAULTS, SIDE  # noqa: E402

STEPS = 15
LEAST = 0.9
SPELLED = "networks in other spellings"

Attend = Callable[..., Tensor]


# --- attention: one function, and its faults -----------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Scaled dot-product attention, written out."""
    return weights_of(q, k, mask, scale) @ v


def weights_of(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    return logits_of(q, k, mask, scale).softmax(-1)


def logits_of(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -1e4) if mask.dtype == torch.bool else logits + mask


def no_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return logits_of(q, k, mask, scale) @ v


def over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return logits_of(q, k, mask, scale).softmax(-2) @ v


def over_heads(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return logits_of(q, k, mask, scale).softmax(1) @ v


def over_batch(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return logits_of(q, k, mask, scale).softmax(0) @ v


def softmax_twice(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return weights_of(q, k, mask, scale).softmax(-1) @ v


def not_scaled(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return weights_of(q, k, mask, 1.0) @ v


def scaled_after(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return (weights_of(q, k, mask, 1.0) * q.shape[-1] ** -0.5) @ v


def thresholded(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    weights = weights_of(q, k, mask, scale)
    return (weights * (weights > 1 / weights.shape[-1])) @ v


def not_used(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    weights_of(q, k, mask, scale)
    return v if v.shape == q.shape else v.mean(-2, keepdim=True).expand_as(q)


def product_unused(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    attend(q, k, v, mask, scale)
    return v if v.shape == q.shape else v.mean(-2, keepdim=True).expand_as(q)


def mean_values(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return weights_of(q, k, mask, scale) @ v.mean(-2, keepdim=True).expand_as(v)


def weights_detached(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return weights_of(q, k, mask, scale).detach() @ v


def queries_detached(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return weights_of(q.detach(), k.detach(), mask, scale) @ v


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    n, m = q.shape[-2], k.shape[-2]
    later = torch.ones(n, m, dtype=torch.bool).triu(1)
    return logits_of(q, k, mask, scale).masked_fill(later, -torch.inf).softmax(-1) @ v


def dropout_in_eval(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    return F.dropout(weights_of(q, k, mask, scale), 0.1) @ v


def heads_not_merged(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    out = attend(q, k, v, mask, scale)
    b, heads, n, d = out.shape
    return out.reshape(b, n, heads, d).transpose(1, 2)


def heads_by_view(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    def scrambled(t: Tensor) -> Tensor:
        b, heads, n, d = t.shape
        return t.transpose(1, 2).reshape(b, heads, n, d)

    return attend(scrambled(q), scrambled(k), scrambled(v), mask, scale)


def first_row_masked(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any) -> Tensor:
    gone = torch.zeros(q.shape[-2], k.shape[-2], dtype=torch.bool)
    gone[0] = True
    return logits_of(q, k, mask, scale).masked_fill(gone, -torch.inf).softmax(-1) @ v


ATTENTION: dict[str, tuple[Attend, set[str]]] = {
    "no softmax": (no_softmax, {"no-softmax"}),
    "softmax over queries": (over_queries, {"wrong-axis"}),
    "softmax over heads": (over_heads, {"wrong-axis"}),
    "softmax over the batch": (over_batch, {"wrong-axis"}),
    "softmax twice": (softmax_twice, {"double-softmax"}),
    "not scaled": (not_scaled, {"temperature"}),
    "scaled after the softmax": (scaled_after, {"scaled-after-softmax"}),
    "thresholded, not normalised": (thresholded, {"rows-not-one"}),
    "weights not used": (not_used, {"not-applied"}),
    "product not used": (product_unused, {"not-applied"}),
    "values are their mean": (mean_values, {"no-effect"}),
    "weights detached": (weights_detached, {"detached"}),
    "queries and keys detached": (queries_detached, {"detached"}),
    "causal mask": (causal, {"causal-mask", "class-token-blind"}),
    "dropout in eval": (dropout_in_eval, {"random-in-eval"}),
    "heads merged without transpose": (heads_not_merged, {"scrambled-output"}),
    "heads split by view": (heads_by_view, {"scrambled-tokens"}),
    "a row without keys": (first_row_masked, {"not-finite", "empty-rows"}),
}


class WithAttention(nn.Module):
    """A host whose `F.scaled_dot_product_attention` is another function while it runs."""

    def __init__(self, host: nn.Module, function: Attend) -> None:
        super().__init__()
        self.host, self.function = host, function

    def forward(self, images: Tensor) -> Any:  # noqa: D102
        with _instead(self.function):
            return self.host(images)


@contextmanager
def _instead(function: Attend) -> Iterator[None]:
    def kernel(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        return function(q, k, v, attn_mask, scale)

    real = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = kernel  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


# --- gates: one module, and its faults -----------------------------------------------------------


class Gate(nn.Module):
    """A sigmoid, and what a fault makes of it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor) -> Tensor:  # noqa: D102
        return self.function(logits)


_DEAD = {"gate-closed"}  # what training makes of some: every factor is 0
GATES: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "sigmoid twice": (lambda x: x.sigmoid().sigmoid(), {"double-sigmoid"}),
    "gate inverted": (lambda x: 1 - x.sigmoid(), {"gate-inverted"}),
    "no sigmoid": (lambda x: x, {"missing-sigmoid", *_DEAD}),
    "gate detached": (lambda x: x.sigmoid().detach(), {"detached"}),
    "gate under no_grad": (torch.no_grad()(lambda x: x.sigmoid()), {"detached"}),
    "gate by threshold": (lambda x: (x.sigmoid() > 0.5).to(x), {"detached", *_DEAD}),
    "softmax over the batch as gate": (lambda x: x.softmax(0), {"gate-over-batch"}),
    "gate computed and dropped": (
        lambda x: (x.sigmoid(), torch.ones_like(x))[1], {"not-applied"}
    ),
}  # fmt: skip
CHANNEL_GATES: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "softmax as channel gate": (lambda x: x.softmax(1), {"softmax-gate"}),
}
SPATIAL_GATES: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "gate transposed": (lambda x: x.sigmoid().transpose(2, 3), {"gate-misplaced"}),
    "gate flipped": (lambda x: x.sigmoid().flip(-1), {"gate-misplaced"}),
    "gate upside down": (lambda x: x.sigmoid().flip(-2), {"gate-misplaced"}),
    "gate shifted": (
        lambda x: x.sigmoid().roll((x.shape[2] // 3, x.shape[3] // 3), (2, 3)), {"gate-misplaced"}
    ),
}  # fmt: skip
TRAINED_GATES: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "gate closed": (lambda x: (x - 30).sigmoid(), {"gate-closed"}),
    "gate open": (lambda x: (x + 30).sigmoid(), {"gate-open"}),
    "gate computed, ones used": (lambda x: x.sigmoid() * 0 + 1, {"gate-open", "not-applied"}),
    "gate constant": (lambda x: (x * 0).sigmoid(), {"gate-constant", "not-applied"}),
}


def with_gates(name: str, function: Callable[[Tensor], Tensor], host: nn.Module) -> nn.Module:
    """Replace every submodule of this name."""
    found = [path for path, _ in host.named_modules() if path.rpartition(".")[2] == name]
    for path in found:
        parent = host.get_submodule(path.rpartition(".")[0])
        setattr(parent, name, Gate(function))
    assert found
    return host


# --- other faults of whole models ----------------------------------------------------------------


def no_residual(host: nn.Module) -> nn.Module:
    """Blocks `x = attention(norm(x))` of timm, torchvision and this file."""
    for module in host.modules():
        if type(module).__name__ == "Block" and hasattr(module, "norm1"):

            def forward(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
                x = self.attn(self.norm1(x))
                return x + self.mlp(self.norm2(x))

            module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]
        elif type(module).__name__ == "EncoderBlock":

            def encode(self: Any, x: Tensor) -> Tensor:
                y = self.ln_1(x)
                y = self.self_attention(y, y, y, need_weights=False)[0]
                return y + self.mlp(self.ln_2(y))

            module.forward = types.MethodType(encode, module)  # type: ignore[method-assign]
    return host


def last_token(host: nn.Module) -> nn.Module:
    """The head reads `x[:, -1]`."""
    head = host.get_submodule("head")
    host.forward_head = lambda x, **_: head(x[:, -1])  # type: ignore[assignment]
    return host


def zero_head(host: nn.Module) -> nn.Module:
    for module in host.modules():
        if isinstance(module, nn.Linear) and module.out_features == 2:
            module.register_forward_pre_hook(lambda _module, args: (args[0] * 0,))
    return host


def reshaped_patches(host: nn.Module) -> nn.Module:
    """Tokens as a reshape of the feature map."""

    def forward(self: Any, images: Tensor) -> Tensor:
        x = self.proj(images)
        return x.reshape(len(x), -1, x.shape[1])

    patches = host.get_submodule("patch_embed")
    patches.forward = types.MethodType(forward, patches)  # type: ignore[method-assign]
    return host


def first_layer_detached(host: nn.Module) -> nn.Module:
    conv = next(one for one in host.modules() if isinstance(one, nn.Conv2d))
    conv.register_forward_hook(lambda _module, _args, out: out.detach())
    return host


def attention_frozen(host: nn.Module) -> nn.Module:
    for name, parameter in host.named_parameters():
        if "qkv" in name or "in_proj" in name or ".query" in name or "q_proj" in name:
            parameter.requires_grad_(False)
    return host


def batch_statistics(host: nn.Module) -> nn.Module:
    norm = [one for one in host.modules() if isinstance(one, nn.BatchNorm2d)][-1]
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return host


MODELS: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "no residual": (no_residual, {"no-residual"}),
    "head on the last token": (last_token, {"head-token"}),
    "head of zeros": (zero_head, {"output-constant"}),
    "patches reshaped": (reshaped_patches, {"scrambled-tokens"}),
    "first layer detached": (first_layer_detached, {"no-gradient"}),
    "attention frozen": (attention_frozen, {"no-gradient"}),
    "batch statistics in eval": (batch_statistics, {"batch-leak"}),
}


# --- hosts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """A model that faults are injected into.

    Attributes:
        make: Builds it, with two outputs.
        side: Of its images.
        gates: Names of its submodules that end a gate, with what they range over.
        attention: Faults of attention that it can have; all if True.
        models: Faults of whole models that it can have.
    """

    make: Callable[[], nn.Module]
    side: int
    gates: tuple[tuple[str, str], ...] = ()
    attention: bool | tuple[str, ...] = False
    models: tuple[str, ...] = ()


class Attention(nn.Module):
    """Multi-head attention over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, 4)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Own(nn.Module):
    """A small network with convolutions, a channel gate, a spatial gate and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1)
        )
        self.norm = nn.BatchNorm2d(24)
        self.squeeze, self.excite = nn.Linear(24, 8), nn.Linear(8, 24)
        self.conv = nn.Conv2d(24, 1, 3, padding=1)
        self.channel_gate, self.spatial_gate = nn.Sigmoid(), nn.Sigmoid()
        self.blocks = nn.Sequential(Block(24), Block(24))
        self.head = nn.Linear(24, 2)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        x = self.norm(self.stem(images))
        scale = self.channel_gate(self.excite(self.squeeze(x.mean((2, 3))).relu()))
        x = x * scale[:, :, None, None]
        x = x * self.spatial_gate(self.conv(x))
        return self.head(self.blocks(x.flatten(2).transpose(1, 2)).mean(1))


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(64, 8, embed_dim=48, depth=3, num_heads=4, num_classes=2)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        64, 4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=2
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # the path through F.scaled_dot_product_attention
    return model


def timm_coatnet() -> nn.Module:
    import timm

    return timm.create_model("test_coatnet", num_classes=2, img_size=96)


def timm_resnet(attention: str) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(
        BasicBlock, [1, 1, 1, 1], num_classes=2, channels=(16, 32, 48, 64),
        block_args={"attn_layer": attention}, stem_width=16,
    )  # fmt: skip


class LikeMultihead(Attention):
    """Attention with the call of `nn.MultiheadAttention`, whose own kernel hides its steps."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:  # noqa: D102
        return super().forward(x), None


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, 3, 4, 48, 96, num_classes=2)
    for module in model.modules():
        if type(module).__name__ == "EncoderBlock":
            module.self_attention = LikeMultihead(48, 4)
    return model


def detr() -> nn.Module:
    import transformers as hf

    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage3"],
    )  # fmt: skip
    model = hf.DetrForObjectDetection(
        hf.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
            backbone_config=backbone, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
            decoder_ffn_dim=64, num_queries=6, num_labels=2, attn_implementation="eager",
        )
    )  # fmt: skip
    model.config._attn_implementation = "sdpa"  # the backbone has none
    return model


_NO_HEADS = tuple(  # shapes of windows or of cross-attention do not allow the others
    name for name in ATTENTION
    if name not in ("heads split by view", "heads merged without transpose", "a row without keys",
                    "causal mask")
)  # fmt: skip
HOSTS: dict[str, Host] = {
    "timm ViT": Host(
        timm_vit, 64, attention=True,
        models=("no residual", "head on the last token", "head of zeros", "patches reshaped",
                "first layer detached", "attention frozen"),
    ),
    "torchvision ViT": Host(
        torchvision_vit, 64, attention=True,
        models=("no residual", "first layer detached", "attention frozen"),
    ),
    "timm Swin": Host(
        timm_swin, 64, attention=_NO_HEADS, models=("head of zeros", "attention frozen")
    ),
    "timm CoAtNet": Host(
        timm_coatnet, 96, attention=_NO_HEADS,
        models=("head of zeros", "batch statistics in eval"),
    ),
    "timm SE-ResNet": Host(
        partial(timm_resnet, "se"), 96, gates=(("gate", "channel"),),
        models=("first layer detached", "batch statistics in eval"),
    ),
    "timm CBAM-ResNet": Host(
        partial(timm_resnet, "cbam"), 96, gates=(("gate", "both"),), models=("head of zeros",)
    ),
    "transformers DETR": Host(detr, 96, attention=_NO_HEADS, models=("attention frozen",)),
    "own network": Host(
        Own, 64, attention=True,
        gates=(("channel_gate", "channel"), ("spatial_gate", "spatial")),
        models=("no residual", "head of zeros", "first layer detached", "attention frozen",
                "batch statistics in eval"),
    ),
}  # fmt: skip


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Injection:
    """One fault in one host.

    Attributes:
        host: Name of the host.
        fault: Name of the fault; empty for a mended twin.
        codes: Any of these is right.
        make: Builds the model.
        trained: Whether it must be trained to be judged.
    """

    host: str
    fault: str
    codes: frozenset[str]
    make: Callable[[], nn.Module]
    trained: bool = False


def injections() -> Iterator[Injection]:
    """Every fault in every host that can have it, and the mended twins."""
    for name, host in HOSTS.items():
        yield Injection(name, "", frozenset(), host.make)
        if host.attention:
            names = ATTENTION if host.attention is True else host.attention
            yield Injection(name, "", frozenset(), partial(_attending, host, attend))
            for fault in names:
                function, codes = ATTENTION[fault]
                yield Injection(name, fault, frozenset(codes), partial(_attending, host, function))
        for attribute, kind in host.gates:
            yield Injection(name, "", frozenset(), partial(_gated, host, attribute, torch.sigmoid))
            for fault, (function, codes) in _gate_faults(kind).items():
                trained = fault in TRAINED_GATES
                yield Injection(
                    name, fault, frozenset(codes), partial(_gated, host, attribute, function),
                    trained,
                )  # fmt: skip
        for fault in host.models:
            change, codes = MODELS[fault]
            yield Injection(name, fault, frozenset(codes), partial(_changed, host, change))
    for fault, (make, codes) in FAULTS.items():
        yield Injection(SPELLED, fault, frozenset(codes), make)
    for make in CORRECT.values():
        yield Injection(SPELLED, "", frozenset(), make)


def _attending(host: Host, function: Attend) -> nn.Module:
    return WithAttention(host.make(), function)


def _gated(host: Host, attribute: str, function: Callable[[Tensor], Tensor]) -> nn.Module:
    return with_gates(attribute, function, host.make())


def _changed(host: Host, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return change(host.make())


def _gate_faults(kind: str) -> dict[str, tuple[Callable[[Tensor], Tensor], set[str]]]:
    faults = GATES | TRAINED_GATES
    if kind == "channel":
        faults = faults | CHANNEL_GATES
    return faults | SPATIAL_GATES if kind == "spatial" else faults


def patched(n: int, seed: int, side: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    numbers = torch.arange(n) + n * seed
    images, masks, _ = inject_patch(
        noise.mul(0.3).clamp(-1, 1), size=side // 4, seed=7, fraction=0.5, indices=numbers
    )
    return images, masks.flatten(1).any(1).float()


def train(model: nn.Module, side: int, steps: int = STEPS) -> None:
    """Some steps towards seeing a patch in noise; a fault may make it impossible."""
    model.train()
    trainable = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=2e-3)
    for step in range(steps):
        images, labels = patched(8, step, side)
        outputs = flat_output(model(images), len(images))[:, :1].mean(1)
        if not outputs.requires_grad:
            break
        loss = F.binary_cross_entropy_with_logits(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            break
    model.eval()


def examine(one: Injection, trained: bool) -> dict[str, Any]:
    """The codes found, by severity."""
    torch.manual_seed(0)
    model, side = one.make(), _side(one.host)
    if trained:
        train(model, side)
    found = diagnose(model.eval(), patched(8, 100, side)[0], trained=trained)
    return {severity: list(found.of(severity).codes) for severity in SEVERITIES}


def _in_turn(every: Iterable[Injection]) -> list[Injection]:
    """One of each host, then the next of each, so that a part of the list has all of them."""
    by_host: dict[str, list[Injection]] = {}
    for one in every:
        by_host.setdefault(one.host, []).append(one)
    return [one for row in zip_longest(*by_host.values()) for one in row if one is not None]


def _side(host: str) -> int:
    return HOSTS[host].side if host in HOSTS else SIDE


def measurements(host: str | None) -> Iterator[tuple[str, Injection, bool]]:
    """Every injection and twin by name, untrained and trained; the hosts take turns."""
    names: Counter[str] = Counter()
    for one in _in_turn(injections()):
        if host not in (None, one.host):
            continue
        names[start := f"{one.host}: {one.fault or 'twin'}"] += 1
        number = "" if names[start] == 1 else f" {names[start]}"
        for trained in (True,) if one.trained else (False, True):
            yield f"{start}{number}, {'trained' if trained else 'untrained'}", one, trained


def summary(results: Iterable[tuple[Injection, dict[str, Any]]]) -> dict[str, Any]:
    """Faults injected and found, and the findings on twins, as docs/doctor/injected.json."""
    faults: dict[str, list[int]] = {}
    hosts, twins = dict[str, None](), 0
    accused = {severity: Counter[str]() for severity in SEVERITIES}
    for one, found in results:
        if "failure" in found:
            continue
        codes = {code for severity in SEVERITIES for code in found.get(severity, ())}
        hosts[one.host] = None
        if one.fault:
            counts = faults.setdefault(one.fault, [0, 0])
            counts[0] += 1
            counts[1] += bool(one.codes & codes)
            continue
        twins += 1
        for severity in SEVERITIES:
            accused[severity].update(found.get(severity, ()))
    return {"hosts": list(hosts), "twins": twins, "faults": faults, "accused": accused}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--host", help="one host only")
    parser.add_argument("--kept", type=Path, help="file of results, to continue from")
    parser.add_argument("--minutes", type=float, help="after which to stop, with exit code 3")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # foreign libraries' deprecations
    wanted = {name: (one, trained) for name, one, trained in measurements(args.host)}
    todo = [(name, partial(examine, one, trained)) for name, (one, trained) in wanted.items()]
    results, start = [], time.perf_counter()
    for name, found in isolated(todo, args.kept, args.minutes):
        one, _ = wanted[name]
        results.append((one, found))
        _complain(name, one, found)
    left = len(wanted) - len(results)
    made = summary(results) | {"left": left}
    total, hits = (sum(pair[i] for pair in made["faults"].values()) for i in (0, 1))
    print("\n| fault | injected | found |\n| --- | --- | --- |")
    for fault, (count, found) in made["faults"].items():
        print(f"| {fault} | {count} | {found} |")
    errors, seconds = made["accused"]["error"].total(), time.perf_counter() - start
    print(
        f"\n{hits} of {total} found ({hits / max(total, 1):.1%}), {len(made['faults'])} kinds of "
        f"faults in {len(made['hosts'])}\nhosts; {made['twins']} mended twins, {errors} errors on "
        f"them, {seconds:.0f} s\n"
    )
    if args.write:
        path = ROOT / "docs" / "doctor" / "injected.json"
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    if left:
        print(f"{left} are left; run again with the same --kept to continue")
        return 3
    return 0 if total and hits >= LEAST * total and not errors else 1


def _complain(name: str, one: Injection, found: dict[str, Any]) -> None:
    """Print what was missed, what was accused, and what could not be examined."""
    wrong = [*found.get("error", ()), *found.get("warning", ())]
    codes = {*wrong, *found.get("note", ())}
    if "failure" in found:
        print(f"failed: {name}: {found['failure']}", flush=True)
    elif one.fault and not one.codes & codes:
        print(f"missed: {name}: {sorted(codes)}", flush=True)
    elif not one.fault and wrong:
        print(f"twin: {name}: {wrong}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
