"""The published map is drawn of every training, whatever its tokens turn out to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from experiments.places import DRAWN, published_layout


class Mixed(nn.Module):
    """Attention between 4 × 4 tokens, each of which sees the whole image, or its own place."""

    def __init__(self, *, everywhere: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.mix = nn.Linear(16, 16) if everywhere else nn.Identity()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.stem(x).flatten(2)).mT
        y = y + (y @ y.mT).softmax(-1) @ y
        logits: Tensor = self.head(y.mean(1))
        return logits


@pytest.mark.parametrize("everywhere", [True, False])
def test_tokens_that_see_the_whole_image_are_drawn_as_the_author_drew_them(
    everywhere: bool,
) -> None:
    torch.manual_seed(0)
    model, image = Mixed(everywhere=everywhere).eval(), torch.randn(1, 3, 16, 16)
    (measured,) = av.locate(model, image).values()
    assert ("global" in measured.keys.role) is everywhere
    (places,) = published_layout(model, image).values()
    assert (places.keys.grid, places.keys.cell) == ((4, 4), tuple(range(16)))
    assert (places.keys.reason == DRAWN) is everywhere


def test_scrambled_tokens_are_drawn_as_the_author_drew_them() -> None:
    model, image = av.build_model("mha_reshape").eval(), torch.rand(1, 3, 64, 64) * 2 - 1
    (places,) = published_layout(model, image).values()
    assert (places.keys.grid, places.keys.reason) == ((16, 16), DRAWN)
