"""Gates: scales between 0 and 1 that multiply a feature map (Woo et al. 2018, CBAM)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelGate(nn.Module):
    """One scale per channel, from the channel's mean and maximum over all places.

    Args:
        channels: Of the feature map.
        reduction: How many channels share one hidden unit.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = _bottleneck(channels, reduction)
        self.gate = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale each channel."""
        logits = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        scale: Tensor = self.gate(logits)
        return x * scale[:, :, None, None]


class SpatialGate(nn.Module):
    """One scale per place, from the maximum and mean over the channels there.

    Args:
        kernel_size: Of the convolution that reads the two; odd.
    """

    def __init__(self, *, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        self.gate = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale each place."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        scale: Tensor = self.gate(self.norm(self.conv(pooled)))
        return x * scale


class CBAM(nn.Sequential):
    """The channel gate, then the spatial gate.

    Args:
        channels: Of the feature map.
        reduction: Of the channel gate.
        spatial: Whether there is a spatial gate. Published code leaves it out by default
            (`no_spatial=True`), which removes all spatial selection.
    """

    def __init__(self, channels: int, *, reduction: int = 16, spatial: bool = True) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction=reduction)
        if spatial:
            self.spatial = SpatialGate()


class SqueezeExcite(nn.Module):
    """One scale per channel, from the channels' means (Hu et al. 2018, SENet).

    Args:
        channels: Of the feature map.
        reduction: How many channels share one hidden unit.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = _bottleneck(channels, reduction)
        self.gate = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale each channel."""
        scale: Tensor = self.gate(self.mlp(x.mean((2, 3))))
        return x * scale[:, :, None, None]


class EfficientChannelGate(nn.Module):
    """One scale per channel, from neighbouring channels' means (Wang et al. 2020, ECA).

    Args:
        channels: Of the feature map; they decide the kernel's size as in the paper (γ = 2, b = 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reach = int(abs((math.log2(channels) + 1) / 2))
        kernel = reach if reach % 2 else reach + 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale each channel."""
        scale: Tensor = self.gate(self.conv(x.mean((2, 3))[:, None])[:, 0])
        return x * scale[:, :, None, None]


class BottleneckGate(nn.Module):
    """One scale per channel and place, the sum of both kinds of evidence (Park et al. 2018, BAM).

    The feature map is multiplied by `1 + gate`.

    Args:
        channels: Of the feature map.
        reduction: How many channels share one hidden unit.
        dilation: Of the spatial branch's convolutions.
    """

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel = _bottleneck(channels, reduction)
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 1),
        )
        self.gate = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Multiply by 1 plus the gate of channel and place."""
        evidence = self.channel(x.mean((2, 3)))[:, :, None, None] + self.spatial(x)
        scale: Tensor = 1 + self.gate(evidence)
        return x * scale


def _bottleneck(channels: int, reduction: int) -> nn.Sequential:
    """Channels to a few hidden units and back."""
    hidden = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
