"""Attention layers with the faults of published tutorials, each beside its mended twin.

Written anew from what those layers do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.diagnosis.twins.twin import HEADS, SIDE, C, Twin, layer_twin, noise


class Attention(nn.Module):
    """Multi-head attention over places, each step a method that a fault replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, C) for _ in range(3))
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
        return t.view(b, n, HEADS, c // HEADS).transpose(1, 2)

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
        b, c, h, w = x.shape
        return x.reshape(b, h * w, c)


class ViewedHeads(Attention):
    """Heads split off by a view alone: a head holds a run of places instead of features."""

    def split(self, t: Tensor) -> Tensor:
        b, n, c = t.shape
        return t.reshape(b, HEADS, n, c // HEADS)


class ReshapedOutput(Attention):
    """Right attention, and its output `(b, h·w, c)` read as `(b, c, h, w)`."""

    def places(self, t: Tensor, x: Tensor) -> Tensor:
        return t.reshape(x.shape)


class MergedHeads(Attention):
    """Heads put back without a transpose."""

    def merge(self, out: Tensor) -> Tensor:
        b, _, n, _ = out.shape
        return out.reshape(b, n, C)


class ConvolvedAttention(nn.Module):
    """1 × 1 convolutions make q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(C, C, 1) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        return x + self.gamma * self.attend(q, k, v).view(x.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q.transpose(1, 2) @ k * C**-0.5).softmax(-1)
        return v @ weights.transpose(1, 2)


class ConvolvedChannels(ConvolvedAttention):
    """Scores between channels, where the text says places."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.transpose(1, 2) * k.shape[-1] ** -0.5).softmax(-1)
        return weights @ v


class LinearProjections(nn.Module):
    """Linear layers over the features of each place."""

    width = C

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(self.width, 16) for _ in range(3))
        self.out = nn.Linear(16, C)

    def forward(self, x: Tensor) -> Tensor:
        t = self.tokens(x)
        weights = (self.query(t) @ self.key(t).transpose(1, 2) / 16**0.5).softmax(-1)
        return self.out(weights @ self.value(t))

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class SwappedLinear(LinearProjections):
    """Linear layers over `(b, c, h·w)`: they mix places, and channels attend to channels."""

    width = SIDE * SIDE

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2)


class BatchFirst(nn.Module):
    """`nn.MultiheadAttention` with the batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(C, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        return t + self.attend(t, t, t, need_weights=False)[0]


class SequenceFirst(BatchFirst):
    """`nn.MultiheadAttention` expects the sequence first, and gets the batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(C, HEADS)


class NoSoftmax(Attention):
    """q · k meets the values as it is."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


class SigmoidScores(Attention):
    """A sigmoid in the softmax's place: a design, of which a reader of maps should know."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return torch.sigmoid(scores - math.log(k.shape[-2]))


class KeysMeetValues(Attention):
    """Linear attention: no weights between places exist."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        q, k, v = (self.split(f(tokens)) for f in (self.query, self.key, self.value))
        out = q.relu() @ (k.relu().transpose(-2, -1) @ v)
        return x + self.places(self.project(self.merge(out)), x)


class OverQueries(Attention):
    """The softmax runs over the queries."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-2)


class OverHeads(Attention):
    """The softmax runs over axis 1, which was the keys' before there were heads."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(1)


class OverBatch(Attention):
    """The softmax runs over the images of the batch, as `nn.Softmax()` does for three axes."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(0)


class TwoSoftmaxes(Attention):
    """A softmax on the result of a softmax."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).softmax(-1)


class FullWidth(Attention):
    """Scaled by the width of all heads together."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * C**-0.5).softmax(-1)


class NoTemperature(Attention):
    """Not scaled at all."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1)


class ScaledAfter(Attention):
    """The scale comes after the softmax."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) * q.shape[-1] ** -0.5


class MaskedBefore(Attention):
    """Keys far away are masked before the softmax."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[-2]
        near = (torch.arange(n)[:, None] - torch.arange(n)).abs() < n // 2
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(~near, -torch.inf).softmax(-1)


class MaskedAfter(Attention):
    """Keys far away are set to zero after the softmax, and rows no longer sum to one."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[-2]
        near = (torch.arange(n)[:, None] - torch.arange(n)).abs() < n // 2
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1) * near


class NearKept(Attention):
    """Each query may attend to itself and to keys near it."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[-2]
        allowed = (torch.arange(n)[:, None] - torch.arange(n)).abs() < 9
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1)


class AllMasked(Attention):
    """A mask leaves the first query no key at all: 0 / 0."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[-2]
        allowed = (torch.arange(n)[:, None] - torch.arange(n)).abs() < torch.arange(n)[:, None]
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1)


class ZeroRows(Attention):
    """The fused kernel gets a mask that leaves the first query no key: its row is zero."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        q, k, v = (self.split(f(tokens)) for f in (self.query, self.key, self.value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.allowed(q.shape[-2]))
        return x + self.places(self.project(self.merge(out)), x)

    def allowed(self, n: int) -> Tensor:
        return (torch.arange(n)[:, None] - torch.arange(n)).abs() < torch.arange(n)[:, None]


class NoZeroRows(ZeroRows):
    """Each query may attend to itself."""

    def allowed(self, n: int) -> Tensor:
        return (torch.arange(n)[:, None] - torch.arange(n)).abs() < 9


class ThrownAway(Attention):
    """Weights are computed, and the values go on without them."""

    def apply_to(self, weights: Tensor, v: Tensor) -> Tensor:
        return v


class NotReturned(Attention):
    """The output of the attention is not what the layer returns."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        q, k, v = (self.split(f(tokens)) for f in (self.query, self.key, self.value))
        out = self.apply_to(self.weights(q, k), v)
        self.places(self.project(self.merge(out)), x)
        return x


class MeanValues(Attention):
    """The values are their own mean: whatever the weights are, the sum is the same."""

    def apply_to(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v.mean(-2, keepdim=True).expand_as(v)


class Dropout(Attention):
    """Dropout that is off in evaluation mode."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return F.dropout(super().weights(q, k), 0.1, training=self.training)


class DropoutInEval(Attention):
    """`F.dropout` is on unless its argument says otherwise."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return F.dropout(super().weights(q, k), 0.1)


class RunningStatistics(Attention):
    """Batch norm with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class BatchStatistics(RunningStatistics):
    """Batch norm without running statistics: an image depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C, track_running_stats=False)


class LayerNorm(Attention):
    """Layer norm in float32."""

    def tokens(self, x: Tensor) -> Tensor:
        t = self.project(super().tokens(x)) + 30
        return F.layer_norm(t.float(), t.shape[-1:])


class NormByHand(Attention):
    """A variance as E[x²] − E[x]², which bfloat16 makes negative."""

    def tokens(self, x: Tensor) -> Tensor:
        t = self.project(super().tokens(x)) + 30
        mean, square = t.mean(-1, keepdim=True), t.square().mean(-1, keepdim=True)
        return (t - mean) / (square - mean.square()).sqrt()


class PaddingMasked(Attention):
    """Images are padded on the right, and the padding is masked."""

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.arange(x.shape[-1]) >= x.shape[-1] * 3 // 4
        self.padding = columns.expand(x.shape[-2:]).flatten()
        return super().forward(x)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.masked_fill(self.padding, -torch.inf).softmax(-1)


class PaddingSeen(PaddingMasked):
    """The padding is not masked."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


def padded() -> Tensor:
    """Images with black on the right quarter."""
    images = noise()
    images[..., images.shape[-1] * 3 // 4 :] = 0
    return images


class ScaledBefore(Attention):
    """Large queries and keys, scaled before their product."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = q * 3e4, k * 3e4
        return ((q / 3e4) @ (k / 3e4).transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


class LargeLogits(Attention):
    """Large queries and keys, scaled after their product."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = q * 3e4, k * 3e4
        return (q @ k.transpose(-2, -1) / 9e8 * q.shape[-1] ** -0.5).softmax(-1)


class Trained(Attention):
    """Weights as a training leaves them: queries and keys of some size."""

    def __init__(self) -> None:
        super().__init__()
        enlarge(self, 12)


class HardlyTrained(Attention):
    """Queries and keys that are next to zero."""

    def __init__(self) -> None:
        super().__init__()
        enlarge(self, 0.01)


class TooLarge(Attention):
    """Queries and keys that have grown without bound."""

    def __init__(self) -> None:
        super().__init__()
        enlarge(self, 300)


def enlarge(layer: Attention, factor: float) -> None:
    """Multiply queries and keys by a factor."""
    with torch.no_grad():
        for part in (layer.query, layer.key):
            part.weight.mul_(factor)
            part.bias.zero_()


class OneKey(Trained):
    """A key that every query prefers, in every image."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores[..., 0] += 30
        return scores.softmax(-1)


class SameHeads(Trained):
    """Two heads that were initialised alike and never parted."""

    def __init__(self) -> None:
        super().__init__()
        d = C // HEADS
        for part in (self.query, self.key):
            part.weight.data[:d] = part.weight.data[d : 2 * d]


class Sink(Trained):
    """One place that all queries prefer."""

    length = 1.0

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        preferred = torch.zeros(k.shape[-2])
        preferred[20] = 6
        return (0.1 * scores + preferred).softmax(-1)

    def apply_to(self, weights: Tensor, v: Tensor) -> Tensor:
        scale = torch.ones(v.shape[-2], 1)
        scale[20] = self.length
        return weights @ (v * scale)


class NullSink(Sink):
    """The place has a value of next to nothing."""

    length = 0.01


class NoSink(Sink):
    """No place is preferred."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


class LongTokens(Trained):
    """One place whose token is long."""

    def tokens(self, x: Tensor) -> Tensor:
        t = super().tokens(x)
        scale = torch.ones(t.shape[1], 1)
        scale[20] = 40
        return t * scale


class SmallBranch(Trained):
    """A residual so large that the attention's own output does not count."""

    def places(self, t: Tensor, x: Tensor) -> Tensor:
        return 1e-4 * t.transpose(1, 2).reshape(x.shape)


class ClassToken(nn.Module):
    """A class token in front of the places."""

    attend: type[Attention] = Trained

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.attend()
        self.token = nn.Parameter(torch.randn(1, 1, C))

    def forward(self, x: Tensor) -> Tensor:
        a = self.attention
        t = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        q, k, v = (a.split(f(t)) for f in (a.query, a.key, a.value))
        return t + a.project(a.merge(a.weights(q, k) @ v))


class ClassTokenOnly(ClassToken):
    """All places attend to the class token, and to nothing else."""

    attend = OneKey


class Plain(nn.Module):
    """A convolution: nothing to capture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


ATTENTION: dict[str, Twin] = {
    "reshaped tokens": layer_twin("scrambled-tokens", "error", ReshapedTokens, Attention, "tokens"),
    "heads by view": layer_twin("scrambled-tokens", "error", ViewedHeads, Attention, "split"),
    "reshaped output": layer_twin("scrambled-output", "error", ReshapedOutput, Attention, "places"),
    "heads merged without transpose": layer_twin(
        "scrambled-output", "error", MergedHeads, Attention, "merge"
    ),
    "scores between channels": layer_twin(
        "channel-attention", "warning", ConvolvedChannels, ConvolvedAttention, "attend"
    ),
    "linear over places": layer_twin(
        "swapped-axes", "error", SwappedLinear, LinearProjections, "tokens"
    ),
    "sequence first": layer_twin("batch-attention", "error", SequenceFirst, BatchFirst, "__init__"),
    "no softmax": layer_twin("no-softmax", "error", NoSoftmax, Attention, "weights"),
    "sigmoid for the softmax": layer_twin(
        "not-a-distribution", "note", SigmoidScores, Attention, "weights"
    ),
    "keys meet values": layer_twin("linear-attention", "note", KeysMeetValues, Attention),
    "softmax over queries": layer_twin("wrong-axis", "error", OverQueries, Attention, "weights"),
    "softmax over heads": layer_twin("wrong-axis", "error", OverHeads, Attention, "weights"),
    "softmax over the batch": layer_twin("wrong-axis", "error", OverBatch, Attention, "weights"),
    "softmax twice": layer_twin("double-softmax", "error", TwoSoftmaxes, Attention, "weights"),
    "scaled by all heads' width": layer_twin(
        "temperature", "warning", FullWidth, Attention, "weights"
    ),
    "not scaled": layer_twin("temperature", "warning", NoTemperature, Attention, "weights"),
    "scaled after the softmax": layer_twin(
        "scaled-after-softmax", "warning", ScaledAfter, Attention, "weights"
    ),
    "masked after the softmax": layer_twin(
        "rows-not-one", "error", MaskedAfter, MaskedBefore, "weights"
    ),
    "all keys masked": layer_twin("not-finite", "error", AllMasked, NearKept, "weights"),
    "rows of zeros": layer_twin("empty-rows", "warning", ZeroRows, NoZeroRows, "allowed"),
    "weights not used": layer_twin("not-applied", "error", ThrownAway, Attention, "apply_to"),
    "attention not returned": layer_twin("not-applied", "error", NotReturned, Attention),
    "values are their mean": layer_twin("no-effect", "error", MeanValues, Attention, "apply_to"),
    "dropout in eval": layer_twin("random-in-eval", "error", DropoutInEval, Dropout, "weights"),
    "batch statistics in eval": layer_twin(
        "batch-leak", "error", BatchStatistics, RunningStatistics, "__init__"
    ),
    "variance by subtraction": layer_twin(
        "half-precision", "warning", NormByHand, LayerNorm, "tokens"
    ),
    "scaled after the product": layer_twin(
        "float16-overflow", "note", LargeLogits, ScaledBefore, "weights"
    ),
    "padding not masked": layer_twin(
        "padding-attention", "note", PaddingSeen, PaddingMasked, "weights", images=padded
    ),
    "queries and keys hardly trained": layer_twin(
        "near-uniform", "warning", HardlyTrained, Trained, "__init__", trained=True
    ),
    "queries and keys too large": layer_twin(
        "saturated-heads", "warning", TooLarge, Trained, "__init__", trained=True
    ),
    "one key for all": layer_twin(
        "collapsed-heads", "warning", OneKey, Attention, "weights", trained=True
    ),
    "equal heads": layer_twin(
        "duplicate-heads", "warning", SameHeads, Trained, "__init__", trained=True
    ),
    "attention outweighed": layer_twin(
        "unfaithful", "warning", SmallBranch, Trained, "places", trained=True
    ),
    "attention sink, broadcast": layer_twin(
        "attention-sink", "note", Sink, NoSink, "weights", trained=True
    ),
    "attention sink, null operation": layer_twin(
        "attention-sink", "note", NullSink, NoSink, "weights", trained=True
    ),
    "long tokens": layer_twin(
        "high-norm-tokens", "note", LongTokens, Trained, "tokens", trained=True
    ),
    "class token only": Twin(
        "class-token-only", "warning", layer_twin("", "", ClassTokenOnly, ClassToken).faulty,
        layer_twin("", "", ClassToken, ClassToken).faulty, (OneKey.weights, Attention.weights),
        ask={"trained": True},
    ),
    "nothing to capture": layer_twin("nothing-seen", "note", Plain, Attention),
}  # fmt: skip
