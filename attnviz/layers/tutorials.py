"""Attention layers of other tutorials, between or before convolutions.

Where a tutorial's text and code differ, a setting selects one of them:
`over="places"` is the text, `over="channels"` the code.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from attnviz.errors import unknown_name
from attnviz.layers.attention import Attend

OVER = ("places", "channels")


class EarlyAttention(nn.Module):
    """`nn.MultiheadAttention` over the pixels, before the first convolution.

    Args:
        channels: Of the input. Up to seven have a head each; more are a multiple of 4 and share
            four.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, channels if channels < 8 else 4,
                                            batch_first=True)  # fmt: skip

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply self-attention over the pixels."""
        tokens = x.flatten(2).mT
        mixed: Tensor = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.mT.reshape(x.shape)


class PointwiseAttention(nn.Module):
    """Queries, keys and values by 1 × 1 convolutions, one head, a learned residual.

    Args:
        channels: Of the feature map.
        over: `"places"` weighs places, as in the text; `"channels"` weighs channels, as the
            published code does: its product contracts the places.
    """

    def __init__(self, channels: int, *, over: str = "places") -> None:
        super().__init__()
        if over not in OVER:
            raise unknown_name("axis", over, OVER)
        self.over = over
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.attend = Attend()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix places by places, or channels by channels."""
        q, k, v = (layer(x).flatten(2)[:, None] for layer in (self.query, self.key, self.value))
        places = self.over == "places"
        mixed: Tensor = self.attend(q.mT, k.mT, v.mT).mT if places else self.attend(q, k, v)
        return x + mixed.reshape(x.shape)


class LinearTokens(nn.Module):
    """A linear query, key and value layer on the tokens after batch norm.

    Args:
        channels: Of the feature map.
        tokens: `"places"`, or `"channels"`, which swaps tokens and features before the linear
            layers, as published; it then works for one size of the feature map only.
        places: Height × width of the feature map, needed where tokens are channels.
    """

    def __init__(self, channels: int, *, tokens: str = "places", places: int = 576) -> None:
        super().__init__()
        if tokens not in OVER:
            raise unknown_name("kind of tokens", tokens, OVER)
        self.tokens = tokens
        width = channels if tokens == "places" else places
        self.norm = nn.BatchNorm2d(channels)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attend = Attend()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix the tokens."""
        flat = self.norm(x).flatten(2)
        tokens = (flat.mT if self.tokens == "places" else flat)[:, None]
        mixed: Tensor = self.attend(self.query(tokens), self.key(tokens), self.value(tokens))
        return (mixed.mT if self.tokens == "places" else mixed).reshape(x.shape)


class RawScores(nn.Module):
    """The smallest self-attention, `(q kᵀ / √d) v`, with residual and layer norm.

    Args:
        channels: Of the feature map.
        softmax: Without it, as a tutorial leaves it, a row's weights have any sign and any sum, and
            the sum over places is divided by their number to stay in bounds.
    """

    def __init__(self, channels: int, *, softmax: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.softmax = nn.Softmax(dim=-1) if softmax else None
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix the places."""
        tokens = x.flatten(2).mT
        scores = self.query(tokens) @ self.key(tokens).mT * x.shape[1] ** -0.5
        weights = scores / scores.shape[-1] if self.softmax is None else self.softmax(scores)
        out: Tensor = self.norm(tokens + weights @ self.value(tokens))
        return out.mT.reshape(x.shape)
