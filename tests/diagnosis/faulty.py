"""Attention layers with the faults of published tutorials, each beside its repaired twin.

Written anew from what those layers do. All sit in the same small network, between a convolution
and the mean over places; `repaired=True` builds the twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 24  # channels: neither a square nor the number of places
HEADS = 4
SIDE = 8  # places in a row
SIZE = 4 * SIDE


class Net(nn.Module):
    """Two convolutions, the layer in question, the mean over places, two logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, C, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.layer = layer
        self.head = nn.Linear(C, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(self.stem(images))
        return self.head(x.mean((2, 3)) if x.dim() == 4 else x.mean(1))


class Attention(nn.Module):
    """Multi-head attention over places, each step a method that a fault replaces."""

    def __init__(self, repaired: bool = False, *, heads: int = HEADS, width: int = C) -> None:
        super().__init__()
        self.repaired, self.heads = repaired, heads
        self.query, self.key, self.value = (nn.Linear(width, C) for _ in range(3))
        self.project = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        q, k, v = (self.split(f(tokens)) for f in (self.query, self.key, self.value))
        out = self.apply_to(self.weights(q, k), v)
        return x + self.places(self.project(self.merge(out)), x)

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def split(self, t: Tensor) -> Tensor:
        b, n, c = t.shape
        return t.view(b, n, self.heads, c // self.heads).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)

    def apply_to(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v

    def merge(self, out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(2)

    def places(self, t: Tensor, x: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(x.shape)


class ReshapedTokens(Attention):
    """`(b, c, h, w)` read as `(b, h·w, c)`: runs of one channel instead of places."""

    def tokens(self, x: Tensor) -> Tensor:
        if self.repaired:
            return super().tokens(x)
        b, c, h, w = x.shape
        return x.reshape(b, h * w, c)


class ViewedHeads(Attention):
    """Heads split off by a view alone: a head holds a run of places instead of features."""

    def split(self, t: Tensor) -> Tensor:
        if self.repaired:
            return super().split(t)
        b, n, c = t.shape
        return t.reshape(b, self.heads, n, c // self.heads)


class ReshapedOutput(Attention):
    """Right attention, and its output `(b, h·w, c)` read as `(b, c, h, w)`."""

    def places(self, t: Tensor, x: Tensor) -> Tensor:
        return super().places(t, x) if self.repaired else t.reshape(x.shape)


class MergedHeads(Attention):
    """Heads put back without a transpose."""

    def merge(self, out: Tensor) -> Tensor:
        b, _, n, _ = out.shape
        return super().merge(out) if self.repaired else out.reshape(b, n, C)


class ConvolvedAttention(nn.Module):
    """1 × 1 convolutions make q, k and v; scores between channels, where the text says places."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__()
        self.repaired = repaired
        self.query, self.key, self.value = (nn.Conv2d(C, C, 1) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        if self.repaired:
            weights = (q.transpose(1, 2) @ k * C**-0.5).softmax(-1)
            out = v @ weights.transpose(1, 2)
        else:
            weights = (q @ k.transpose(1, 2) * k.shape[-1] ** -0.5).softmax(-1)
            out = weights @ v
        return x + self.gamma * out.view(x.shape)


class SwappedLinear(nn.Module):
    """Linear layers over `(b, c, h·w)`: they mix places, and channels attend to channels."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__()
        self.repaired = repaired
        width = C if repaired else SIDE * SIDE
        self.query, self.key, self.value = (nn.Linear(width, 16) for _ in range(3))
        self.out = nn.Linear(16, C)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2)
        if self.repaired:
            t = t.transpose(1, 2)
        q, k, v = self.query(t), self.key(t), self.value(t)
        weights = (q @ k.transpose(1, 2) / 16**0.5).softmax(-1)
        return self.out(weights @ v)


class SequenceFirst(nn.Module):
    """`nn.MultiheadAttention` expects the sequence first, and is given the batch first."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(C, HEADS, batch_first=repaired)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        return t + self.attend(t, t, t, need_weights=False)[0]


class NoSoftmax(Attention):
    """q · k meets the values as it is."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        if self.repaired:
            return super().weights(q, k)
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


class OverQueries(Attention):
    """The softmax runs over the queries."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1 if self.repaired else -2)


class OverHeads(Attention):
    """The softmax runs over axis 1, which was the keys' before there were heads."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1 if self.repaired else 1)


class OverBatch(Attention):
    """The softmax runs over the images of the batch, as `nn.Softmax()` does for three axes."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1 if self.repaired else 0)


class TwoSoftmaxes(Attention):
    """A softmax on the result of a softmax."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        weights = super().weights(q, k)
        return weights if self.repaired else weights.softmax(-1)


class FullWidth(Attention):
    """Scaled by the width of all heads together."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        width = q.shape[-1] * (1 if self.repaired else self.heads)
        return (q @ k.transpose(-2, -1) / width**0.5).softmax(-1)


class NoTemperature(Attention):
    """Not scaled at all."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        if self.repaired:
            return super().weights(q, k)
        return (q @ k.transpose(-2, -1)).softmax(-1)


class ScaledAfter(Attention):
    """The scale comes after the softmax."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        if self.repaired:
            return super().weights(q, k)
        return (q @ k.transpose(-2, -1)).softmax(-1) * q.shape[-1] ** -0.5


class MaskedAfter(Attention):
    """Keys far away are set to zero after the softmax, and rows no longer sum to one."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[-2]
        near = (torch.arange(n)[:, None] - torch.arange(n)).abs() < n // 2
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if self.repaired:
            return scores.masked_fill(~near, -torch.inf).softmax(-1)
        return scores.softmax(-1) * near


class AllMasked(Attention):
    """A mask leaves the first queries no key at all: 0 / 0."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[-2]
        seen = torch.ones(n, n, dtype=torch.bool).tril(0 if self.repaired else -1)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)


class ThrownAway(Attention):
    """Weights are computed, and the values go on without them."""

    def apply_to(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v if self.repaired else v


class NotReturned(Attention):
    """What attention found is not what the layer returns."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.repaired else x


class MeanValues(Attention):
    """The values are their own mean: whatever the weights are, the sum is the same."""

    def apply_to(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ (v if self.repaired else v.mean(-2, keepdim=True).expand_as(v))


class DropoutInEval(Attention):
    """`F.dropout` is on unless it is told not to be."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        weights = super().weights(q, k)
        if self.repaired:
            return F.dropout(weights, 0.1, training=self.training)
        return F.dropout(weights, 0.1)


class BatchStatistics(Attention):
    """Batch norm without running statistics: an image depends on its neighbours."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__(repaired)
        self.norm = nn.BatchNorm2d(C, track_running_stats=repaired)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class NormByHand(Attention):
    """A variance as E[x²] − E[x]², which bfloat16 makes negative."""

    def tokens(self, x: Tensor) -> Tensor:
        t = self.project(super().tokens(x)) + 30
        if self.repaired:
            return F.layer_norm(t.float(), t.shape[-1:])
        mean, square = t.mean(-1, keepdim=True), t.square().mean(-1, keepdim=True)
        return (t - mean) / (square - mean.square()).sqrt()


class Padded(Attention):
    """Images are filled up with black on the right, and nobody masks it."""

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.arange(x.shape[-1]) >= x.shape[-1] * 3 // 4
        self.filled = columns.expand(x.shape[-2:]).flatten()
        return super().forward(x)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if self.repaired:
            scores = scores.masked_fill(self.filled, -torch.inf)
        return scores.softmax(-1)


class Scaled(Attention):
    """Trained weights of a kind, by a factor on queries and keys."""

    def __init__(self, repaired: bool = False, *, factor: float) -> None:
        super().__init__(repaired)
        with torch.no_grad():
            for layer in (self.query, self.key):
                layer.weight.mul_(12.0 if repaired else factor)
                layer.bias.zero_()


class OneKey(Scaled):
    """A key that every query prefers, in every image."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__(repaired, factor=12.0)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if not self.repaired:
            scores[..., 0] += 30
        return scores.softmax(-1)


class SameHeads(Scaled):
    """Two heads that were initialised alike and never parted."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__(repaired, factor=12.0)
        if not repaired:
            d = C // HEADS
            for layer in (self.query, self.key):
                layer.weight.data[:d] = layer.weight.data[d : 2 * d]


class ClassToken(nn.Module):
    """A class token that all places look at, and nothing else."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__()
        self.attend = OneKey(repaired)
        self.token = nn.Parameter(torch.randn(1, 1, C))

    def forward(self, x: Tensor) -> Tensor:
        a = self.attend
        t = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        q, k, v = (a.split(f(t)) for f in (a.query, a.key, a.value))
        return t + a.project(a.merge(a.weights(q, k) @ v))


class ChannelGate(nn.Module):
    """Squeeze and excitation with another function in the place of the sigmoid."""

    def __init__(self, repaired: bool, gate: nn.Module, *, bias: float = 0.0) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(C, 6), nn.Linear(6, C)
        self.gate = nn.Sigmoid() if repaired else gate
        with torch.no_grad():
            self.excite.bias += 0.0 if repaired else bias
            self.excite.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.squeeze(x.mean((2, 3))).relu()))
        return x * scale[:, :, None, None]


class DeadGate(ChannelGate):
    """A gate whose last layer is zero: ½ for everything."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__(repaired, nn.Sigmoid())
        if not repaired:
            nn.init.zeros_(self.excite.weight)
            nn.init.zeros_(self.excite.bias)


class BlindGate(ChannelGate):
    """A gate that reads a constant."""

    def forward(self, x: Tensor) -> Tensor:
        if self.repaired:
            return super().forward(x)
        return (
            x
            * self.gate(self.excite(self.squeeze(torch.ones_like(x[:, :, 0, 0])).relu()))[
                ..., None, None
            ]
        )

    def __init__(self, repaired: bool = False) -> None:
        super().__init__(repaired, nn.Sigmoid())
        self.repaired = repaired


class GateNotReturned(ChannelGate):
    """A gate that is computed and multiplied, and the features go on without it."""

    def __init__(self, repaired: bool = False) -> None:
        super().__init__(repaired, nn.Sigmoid())
        self.repaired = repaired

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.repaired else x


class CBAM(nn.Module):
    """A channel gate and a spatial gate, the second switched off by its default."""

    def __init__(self, repaired: bool = False, no_spatial: bool = True) -> None:
        super().__init__()
        self.no_spatial = no_spatial and not repaired
        self.channel = ChannelGate(True, nn.Sigmoid())
        if not self.no_spatial:
            self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel(x)
        if self.no_spatial:
            return x
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * self.conv(pooled).sigmoid()


@dataclass(frozen=True)
class Case:
    """A faulty layer, what must be found, and how to ask.

    Attributes:
        code: The finding that it must raise.
        severity: Of that finding.
        layer: Builds the layer, faulty or repaired.
        ask: Options of `diagnose`.
        padded: Whether images are filled up on the right.
    """

    code: str
    severity: str
    layer: Callable[[bool], nn.Module]
    ask: dict[str, Any] = field(default_factory=dict)
    padded: bool = False

    def model(self, repaired: bool) -> Net:
        torch.manual_seed(3)
        return Net(self.layer(repaired)).eval()

    def images(self, n: int = 8) -> Tensor:
        images = torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        images = images.clamp(-1, 1)
        if self.padded:
            images[..., SIZE * 3 // 4 :] = 0
        return images


_TRAINED = {"trained": True}

CASES: dict[str, Case] = {
    "reshaped tokens": Case("scrambled-tokens", "error", ReshapedTokens),
    "heads by view": Case("scrambled-tokens", "error", ViewedHeads),
    "reshaped output": Case("scrambled-output", "error", ReshapedOutput),
    "heads merged without transpose": Case("scrambled-output", "error", MergedHeads),
    "scores between channels": Case("channel-attention", "warning", ConvolvedAttention),
    "linear over places": Case("swapped-axes", "error", SwappedLinear),
    "sequence first": Case("batch-attention", "error", SequenceFirst),
    "no softmax": Case("no-softmax", "error", NoSoftmax),
    "softmax over queries": Case("wrong-axis", "error", OverQueries),
    "softmax over heads": Case("wrong-axis", "error", OverHeads),
    "softmax over the batch": Case("wrong-axis", "error", OverBatch),
    "softmax twice": Case("double-softmax", "error", TwoSoftmaxes),
    "scaled by all heads' width": Case("temperature", "warning", FullWidth),
    "not scaled": Case("temperature", "warning", NoTemperature),
    "scaled after the softmax": Case("scaled-after-softmax", "warning", ScaledAfter),
    "masked after the softmax": Case("rows-not-one", "error", MaskedAfter),
    "all keys masked": Case("not-finite", "error", AllMasked),
    "weights thrown away": Case("not-applied", "error", ThrownAway),
    "attention not returned": Case("no-effect", "error", NotReturned),
    "values are their mean": Case("no-effect", "error", MeanValues),
    "dropout in eval": Case("random-in-eval", "error", DropoutInEval),
    "batch statistics in eval": Case("batch-leak", "error", BatchStatistics),
    "variance by subtraction": Case("half-precision", "warning", NormByHand),
    "padding not masked": Case("padding-attention", "note", Padded, padded=True),
    "no learning in queries": Case(
        "near-uniform", "warning", lambda r: Scaled(r, factor=0.01), _TRAINED
    ),
    "saturated": Case("saturated-heads", "warning", lambda r: Scaled(r, factor=300), _TRAINED),
    "one key for all": Case("collapsed-heads", "warning", OneKey, _TRAINED),
    "twin heads": Case("duplicate-heads", "warning", SameHeads, _TRAINED),
    "class token only": Case("class-token-only", "warning", ClassToken, _TRAINED),
    "gate not returned": Case("no-effect", "error", GateNotReturned),
    "spatial half off": Case("nothing-spatial", "warning", CBAM),
    "softmax over the batch as gate": Case(
        "gate-over-batch", "error", lambda r: ChannelGate(r, nn.Softmax(0))
    ),
    "softmax as channel gate": Case(
        "softmax-gate", "warning", lambda r: ChannelGate(r, nn.Softmax(1))
    ),
    "gate of zeros": Case("gate-constant", "warning", DeadGate, _TRAINED),
    "gate shut": Case(
        "gate-closed", "warning", lambda r: ChannelGate(r, nn.Sigmoid(), bias=-12), _TRAINED
    ),
    "gate open": Case(
        "gate-open", "warning", lambda r: ChannelGate(r, nn.Sigmoid(), bias=12), _TRAINED
    ),
    "blind gate": Case("gate-blind", "warning", BlindGate, _TRAINED),
}
"""Every faulty layer, by what is wrong with it."""
