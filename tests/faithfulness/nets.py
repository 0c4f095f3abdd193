"""Models whose answer is known by arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """The sum of all pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sum((1, 2, 3))


class Corner(nn.Module):
    """Looks at the upper left quarter and at nothing else; two classes, the second is `there`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2] // 2, images.shape[-1] // 2
        there = 4 * self.weight * images[..., :h, :w].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(there), there], 1)


def corner_images(b: int = 3, side: tuple[int, int] = (8, 10)) -> Tensor:
    """Dark noise with a bright upper left quarter."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(b, 3, *side, generator=draw) * 0.4 - 0.9
    images[..., : side[0] // 2, : side[1] // 2] += 1.4
    return images


def corner_maps(b: int = 3, side: tuple[int, int] = (8, 10)) -> Tensor:
    """The truth about `Corner`: high in the upper left quarter, noise elsewhere."""
    maps = torch.rand(b, *side, generator=torch.Generator().manual_seed(1)) * 0.1
    maps[:, : side[0] // 2, : side[1] // 2] += 1
    return maps


class InPlace(nn.Module):
    """A model after a normalisation of its images, in place or not."""

    def __init__(self, model: nn.Module, *, inplace: bool) -> None:
        super().__init__()
        self.model, self.where = model, inplace

    def forward(self, images: Tensor) -> Tensor:
        if self.where:
            images.sub_(0.1).div_(0.5)
            return self.model(images)
        return self.model((images - 0.1) / 0.5)
