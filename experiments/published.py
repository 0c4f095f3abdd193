"""The networks as a tutorial's code computes them, written anew, kept to measure against.

Each gives what ours gives with the same weights (a test holds it to 1e-5), by the published way:
attention weights written out in full, the 1 × 1-convolution form through a product over
`(b, channels, places, places)`, gates expanded to the feature map, a sigmoid before the loss, and
training in float32 with contiguous memory. So a difference in speed is one of computation alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnviz.layers import CBAM, ChannelGate, ConvAttention, MultiHeadAttention, SpatialGate
from attnviz.models import PatchNet, build_model


class WrittenOut(nn.Module):
    """Multi-head attention with its weights in memory."""

    def __init__(self, ours: MultiHeadAttention) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        """Scores, softmax, product, each a tensor of its own."""
        ours, (b, c, h, w) = self.ours, x.shape
        if ours.tokens == "reshaped":
            tokens = torch.reshape(x, (b, h * w, c))
        else:
            tokens = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        heads = [
            layer(tokens).view(b, h * w, ours.heads, -1).permute(0, 2, 1, 3)
            for layer in (ours.query, ours.key, ours.value)
        ]
        scores = torch.matmul(heads[0] / heads[0].shape[-1] ** 0.5, heads[1].transpose(2, 3))
        mixed = torch.matmul(torch.softmax(scores, dim=-1), heads[2])
        mixed = ours.project(mixed.permute(0, 2, 1, 3).reshape(b, h * w, -1))
        out: Tensor = ours.norm(ours.dropout(mixed) + tokens)
        if ours.tokens == "reshaped":
            return torch.reshape(out, (b, c, h, w))
        return out.reshape(b, h, w, c).permute(0, 3, 1, 2)


class SummedProduct(nn.Module):
    """Attention by 1 × 1 convolutions, head after head, through one great elementwise product."""

    def __init__(self, ours: ConvAttention) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        """The scores of a head are a sum over `(b, channels, queries, keys)`."""
        ours, places = self.ours, x.flatten(2)
        queries, keys, values = (
            layer(places).chunk(ours.heads, dim=1) for layer in (ours.query, ours.key, ours.value)
        )
        heads = []
        for q, k, v in zip(queries, keys, values, strict=True):
            scores = (q[:, :, :, None] * k[:, :, None, :]).sum(1) / q.shape[1] ** 0.5
            weights = torch.softmax(scores, dim=2)
            heads.append((weights[:, None] * v[:, :, None, :]).sum(3))
        mixed = ours.mix_heads(torch.cat(heads, dim=1))
        places = ours.norm_heads((places + mixed).transpose(1, 2)).transpose(1, 2)
        mixed = ours.mix_channels(nn.functional.leaky_relu(places))
        out: Tensor = ours.norm_channels((places + mixed).transpose(1, 2))
        return out.transpose(1, 2).reshape(x.shape)


class ExpandedGates(nn.Module):
    """CBAM with its channel scale expanded to the feature map."""

    def __init__(self, ours: CBAM) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        """The channel gate, then the spatial gate where there is one."""
        for layer in self.ours:
            x = self._channel(layer, x) if isinstance(layer, ChannelGate) else self._place(layer, x)
        return x

    @staticmethod
    def _channel(gate: ChannelGate, x: Tensor) -> Tensor:
        window = (x.shape[2], x.shape[3])
        total = gate.mlp(nn.functional.avg_pool2d(x, window).flatten(1))
        total = total + gate.mlp(nn.functional.max_pool2d(x, window).flatten(1))
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)

    @staticmethod
    def _place(gate: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(gate, SpatialGate)
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        scale: Tensor = torch.sigmoid(gate.norm(gate.conv(pooled)))
        return x * scale


class Probability(nn.Module):
    """A network that ends in a sigmoid, as published; its loss takes probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """The probability of a patch, `(b,)`."""
        return torch.sigmoid(self.net(images))


def published_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of probabilities, kept from log 0 by 1e-8, as published."""
    right = labels * torch.log(probability + 1e-8)
    return -torch.mean(right + (1 - labels) * torch.log(1 - probability + 1e-8))


def as_published(model: PatchNet) -> Probability:
    """The published form around a model's own weights; the model's layers are shared."""
    attention = getattr(model.features, "attention", None)
    forms = {
        MultiHeadAttention: WrittenOut,
        ConvAttention: SummedProduct,
        CBAM: ExpandedGates,
    }
    if attention is not None:
        model.features.attention = forms[type(attention)](attention)
    return Probability(model)


def build_published(variant: str) -> Probability:
    """A variant in its published form, untrained."""
    model = build_model(variant)
    assert isinstance(model, PatchNet)
    return as_published(model)
