"""The network shared by all reference models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from attnviz.errors import InputError

LAST_PLACEMENT = 3


class PatchNet(nn.Module):
    """Three 5 × 5 convolutions, attention, the global mean, one logit.

    Each of the first two convolutions is followed by leaky ReLU, batch norm and a max pool, so a
    96 × 96 image ends on a 24 × 24 grid.

    Args:
        attention: Builds the attention layer for a number of channels; None for the plain CNN.
        placement: Where it sits: 0 before the first convolution, 1 and 2 after the first and second
            pool, 3 after the last convolution.
        width: Channels of each convolution.
    """

    def __init__(
        self,
        attention: Callable[[int], nn.Module] | None = None,
        *,
        placement: int = LAST_PLACEMENT,
        width: int = 32,
    ) -> None:
        super().__init__()
        if not 0 <= placement <= LAST_PLACEMENT:
            raise InputError(
                f"PatchNet: expected a placement from 0 to {LAST_PLACEMENT}, got {placement}"
            )
        if width < 1:
            raise InputError(f"PatchNet: expected a width of 1 or more, got {width}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for stage in range(LAST_PLACEMENT + 1):
            if stage:
                layers |= _stage(stage, 3 if stage == 1 else width, width)
            if attention is not None and stage == placement:
                layers["attention"] = attention(3 if stage == 0 else width)
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """The logit that there is a patch, one per image."""
        pooled = self.features(images).mean((2, 3))
        logits: Tensor = self.head(pooled)[:, 0]
        return logits


def _stage(number: int, channels: int, width: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"conv{number}"] = nn.Conv2d(channels, width, 5, padding=2)
    if number < LAST_PLACEMENT:
        layers[f"act{number}"] = nn.LeakyReLU()
        layers[f"norm{number}"] = nn.BatchNorm2d(width)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    return layers
