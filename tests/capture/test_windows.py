"""Windows are mapped back onto the image, place by place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.capture import Record, watch
from attnviz.errors import InputError
from tests.capture import nets


class Windowed(nn.Module):
    """Attention within 2 × 2 windows (Swin), shifted, padded, dilated or with channels first.

    The weight of each key is the softmax of the key's own number on the image, so that the weights
    themselves say which place is where.
    """

    def __init__(
        self, shift: int = 0, *, size: int = 2, channels_first: bool = False, dilated: bool = False,
        pad_first: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shift, self.size, self.channels_first = shift, size, channels_first
        self.dilated, self.pad_first = dilated, pad_first

    def pad(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        down, right = -h % self.size, -w % self.size
        return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x

    def roll(self, x: Tensor) -> Tensor:
        return torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        marks = torch.arange(h * w, dtype=x.dtype).view(1, h, w, 1).expand(b, h, w, 1)
        y = torch.cat([x.movedim(1, -1), marks + 1], -1)
        y = self.roll(self.pad(y)) if self.pad_first else self.pad(self.roll(y))
        windows = self.cut(y)
        logits = windows @ windows.mT * 0 + windows[..., -1][:, None]
        out = (logits.softmax(-1) @ windows).mean((1, 2)).view(b, -1).mean(1)
        return x + out[:, None, None, None]

    def cut(self, y: Tensor) -> Tensor:
        b, h, w, c = y.shape
        s = self.size
        if self.channels_first:
            y = y.permute(0, 3, 1, 2).contiguous().view(b, c, h // s, s, w // s, s)
            y = y.permute(0, 2, 4, 3, 5, 1)
        elif self.dilated:
            y = y.view(b, s, h // s, s, w // s, c).permute(0, 2, 4, 1, 3, 5)
        else:
            y = y.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5)
        return y.contiguous().view(-1, s * s, c)


def only(middle: nn.Module, h: int, w: int) -> Record:
    model = nets.around(middle)
    with torch.no_grad(), watch(model) as seen:
        model(nets.images(2, 4 * h, 4 * w))
    (record,) = seen.values()
    return record


@pytest.mark.parametrize(
    "middle",
    [
        Windowed(),
        Windowed(1),
        Windowed(channels_first=True),
        Windowed(1, channels_first=True),
        Windowed(dilated=True),
        Windowed(1, pad_first=False),
    ],
)
@pytest.mark.parametrize(("h", "w"), [(4, 6), (6, 4), (4, 4), (3, 5), (5, 5)])
def test_each_token_of_a_window_finds_its_place(middle: Windowed, h: int, w: int) -> None:
    record = only(middle, h, w)
    windows = record.windows
    assert windows is not None
    assert windows.grid == (h, w)
    assert windows.size == record.key_grid == record.query_grid == (2, 2)
    assert windows.shift == (middle.shift, middle.shift)
    assert record.weights is not None
    assert record.weights.shape == (2 * windows.count, 1, 4, 4)
    # each key's logit is its own number, plus one, on the image; padding has zero
    marks = record.weights[:, 0, 0].log()
    marks = marks - marks[:, :1]
    cells = windows.cells.repeat(2, 1)
    truth = torch.where(cells < 0, 0, cells + 1).float()
    truth = truth - truth[:, :1]
    torch.testing.assert_close(marks, truth, atol=1e-3, rtol=1e-4)
    kept = windows.cells[windows.cells >= 0]
    assert kept.sort().values.tolist() == list(range(h * w))


@pytest.mark.parametrize("middle", [Windowed(), Windowed(1), Windowed(dilated=True)])
def test_values_per_key_are_laid_onto_the_image(middle: Windowed) -> None:
    record = only(middle, 3, 5)
    windows = record.windows
    assert windows is not None
    values = windows.cells.repeat(2, 1)[:, None].float().expand(-1, 3, -1)
    laid = record.on_image(values)
    assert laid.shape == (2, 3, 3, 5)
    assert torch.equal(laid, torch.arange(15.0).view(3, 5).expand(2, 3, 3, 5))


def test_attention_over_the_whole_image_has_no_windows() -> None:
    record = only(nets.Attention(), 4, 4)
    assert record.windows is None
    with pytest.raises(InputError, match="has no windows"):
        record.on_image(torch.zeros(2, 1, 16))


def test_one_window_over_the_whole_image_is_no_window() -> None:
    record = only(Windowed(size=4), 4, 4)
    assert record.windows is None
    assert record.key_grid == (4, 4)


class WithToken(nn.Module):
    """A class token joins the places of each window."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(nets.WIDTH, 2, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, nets.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        windows = Windowed().cut(x.movedim(1, -1))
        tokens = torch.cat([self.token.expand(len(windows), -1, -1), windows], 1)
        out = self.attn(tokens, tokens, tokens, need_weights=False)[0]
        return out.mean(1).view(len(x), -1, nets.WIDTH).mT[..., None]


def test_tokens_that_join_a_window_are_no_places() -> None:
    record = only(WithToken(), 4, 6)
    assert record.windows is not None
    assert record.weights is not None
    assert (record.prefix, record.windows.size, record.key_grid) == (1, (2, 2), (2, 2))
    assert record.weights.shape[-1] == 5
    laid = record.on_image(record.weights.mean((1, 2)))
    assert laid.shape == (2, 4, 6)
    torch.testing.assert_close(laid, record.on_image(record.weights[..., 1:].mean((1, 2))))
