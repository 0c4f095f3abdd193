"""Small networks whose attention and gates are spelled in many ways, rightly and wrongly.

`FAULTS` holds faults with the findings of which one is right; `CORRECT` the same steps without a
fault, and designs that look like one. `injected_faults.py` examines both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 48  # of the images
WIDTH, HEADS = 24, 3
_NAN = float("-inf")

Attend = Callable[["Heads", Tensor, Tensor, Tensor], Tensor]
Apply = Callable[["Gated", Tensor, Tensor], Tensor]


class Heads(nn.Module):
    """Multi-head attention whose step from q, k, v `(b, heads, n, d)` to the output is given."""

    def __init__(self, attend: Attend, wide: int = 3) -> None:
        super().__init__()
        self.attend = attend
        self.qkv, self.out = nn.Linear(WIDTH, wide * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), (WIDTH // HEADS) ** -0.5))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(self, q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP with residuals; `joined` replaces the way that they are joined."""

    def __init__(self, attention: nn.Module, joined: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.joined = attention, joined
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.joined is not None:
            return self.joined(self, x)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """Patches of 8, a class token, two blocks, and a head that reads the class token.

    Args:
        block: Makes a block.
        read: From `(b, 1 + places, c)` to what the head reads.
        add: Appends to the tokens.
    """

    def __init__(
        self,
        block: Callable[[], nn.Module],
        read: Callable[[Tensor], Tensor] = lambda x: x[:, 0],
        add: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.5)
        self.position = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2 + 1, WIDTH) * 0.2)
        self.blocks = nn.Sequential(block(), block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)
        self.read, self.add = read, add

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.read(self.norm(self.blocks(self.add(x)))))


class Gated(nn.Module):
    """A convolutional network with one gate; `apply` multiplies x by it.

    Args:
        kind: `"channel"`, `"spatial"`, or `"rows"` for a gate per row and one per column.
        apply: From the logits and x to the gated x.
    """

    def __init__(self, kind: str, apply: Apply) -> None:
        super().__init__()
        self.kind, self.apply_gate = kind, apply
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTH, 4, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.squeeze, self.excite = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.conv = nn.Conv2d(WIDTH, 1, 3, padding=1)
        self.rows, self.columns = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.tail = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        x = self.stem(images)
        x = self.apply_gate(self, self.logits(x), x)
        return self.head(self.tail(x).mean((2, 3)))

    def logits(self, x: Tensor) -> Tensor:
        """The gate before its sigmoid."""
        if self.kind == "spatial":
            return self.conv(x)
        if self.kind == "rows":
            return torch.cat([self.rows(x.mean(3)), self.columns(x.mean(2))], 2)
        return self.excite(self.squeeze(x.mean((2, 3))).relu())[:, :, None, None]


# --- attention -----------------------------------------------------------------------------------


def scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)


def einsums(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", scores(q, k).softmax(-1), v)


def by_exponentials(_: Heads, q: Tensor, k: Tensor, v: Tensor, axis: int = -1) -> Tensor:
    z = scores(q, k)
    e = (z - z.amax(-1, keepdim=True)).exp()
    return e / e.sum(axis, keepdim=True) @ v


def softmax_of_log_softmax(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).log_softmax(-1).softmax(-1) @ v


def exp_of_log_softmax(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).log_softmax(-1).exp() @ v


def softmax_twice(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(scores(q, k).softmax(-1) * 1.0, -1) @ v


def transposed_weights(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhqd->bhkd", scores(q, k).softmax(-1), v)


def batched(_: Heads, q: Tensor, k: Tensor, v: Tensor, power: float = -0.5) -> Tensor:
    b, _h, n, d = q.shape
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    logits = torch.baddbmm(q.new_zeros(1, n, n), q, k.mT, alpha=d**power)
    return torch.bmm(logits.softmax(-1), v).unflatten(0, (b, -1))


def learned_temperature(of: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * of.temperature).softmax(-1) @ v


def kernel(_: Heads, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **how)


def value_detached(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        weights = scores(q, k).softmax(-1)
    return weights @ v


def hard(_: Heads, q: Tensor, k: Tensor, v: Tensor, straight: bool = False) -> Tensor:
    soft = scores(q, k).softmax(-1)
    one = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return (one + soft - soft.detach() if straight else one) @ v


def transposed_values(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = scores(q, k).softmax(-1) @ v
    return out.flatten(2).reshape(*out.shape[:2], out.shape[-1], -1).mT


def class_token_dropped(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = k.shape[-2]
    allowed = torch.ones(n, n, dtype=torch.bool)
    allowed[0, 1:] = False  # the mask of the class token the wrong way round
    return scores(q, k).masked_fill(~allowed, _NAN).softmax(-1) @ v


def first_query_for_all(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q[:, :, :1], k).softmax(-1).expand(-1, -1, q.shape[2], -1) @ v


class Functional(nn.Module):
    """`F.multi_head_attention_forward` with a mask."""

    def __init__(self, mask: Callable[[int], Tensor | None]) -> None:
        super().__init__()
        self.inner, self.mask = nn.MultiheadAttention(WIDTH, HEADS), mask

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        one, x = self.inner, x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, one.in_proj_weight, one.in_proj_bias, None, None, False, 0.0,
            one.out_proj.weight, one.out_proj.bias, training=self.training,
            attn_mask=self.mask(len(x)), need_weights=True,
        )  # fmt: skip
        return out.transpose(0, 1)


def causal_mask(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def only_later(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril(-1)


def only_in_training(of: Block, x: Tensor) -> Tensor:
    if of.training:
        x = x + of.attention(of.norm1(x))
    return x + of.mlp(of.norm2(x))


def result_overwritten(of: Block, x: Tensor) -> Tensor:
    x, y = x, x + of.attention(of.norm1(x))
    y = x + of.mlp(of.norm2(x))
    return y * 1.0


def in_parallel(of: Block, x: Tensor) -> Tensor:
    return x + of.attention(of.norm1(x)) + of.mlp(of.norm2(x))


def padded(x: Tensor, to: int = 64) -> Tensor:
    return F.pad(x, (0, 0, 0, to - x.shape[1]))


# --- gates ---------------------------------------------------------------------------------------


def product(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.sigmoid()


def where_gate(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > 0, x * z.sigmoid(), x)


def where_hard(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.where(z.sigmoid() > 0.5, x, torch.zeros_like(x))


def addcmul(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.addcmul(x, x, 1 - z.sigmoid(), value=-1)


def addcmul_inverted(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.addcmul(x, x, z.sigmoid(), value=-1)


def lerp_inverted(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.lerp(x, torch.zeros_like(x), z.sigmoid())


def detached(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bchw,bcij->bchw", x, z.sigmoid().detach())


def other_image(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.sigmoid().roll(1, 0)


def softmax_of_one(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.softmax(1)


def softmax_places(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.flatten(2).softmax(-1).view(z.shape) * z[0].numel()


def over_rows(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.sigmoid().transpose(1, 2)  # 24 channels on 24 rows


def rows_and_columns(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    rows, columns = z.sigmoid().split(x.shape[2], 2)
    return x * rows[:, :, :, None] * columns[:, :, None, :]


def rows_for_columns(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    rows, columns = z.sigmoid().split(x.shape[2], 2)
    return x * rows[:, :, None, :] * columns[:, :, :, None]


def rotated(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.sigmoid().rot90(1, (2, 3))


def reshaped_gate(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.sigmoid().flatten(2).unflatten(2, (4, 6, 24)).permute(0, 1, 3, 2, 4).reshape(
        z.shape
    )


def tanh_half(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * (0.5 * (1 + torch.tanh(z / 2)))


def sigmoid_of_hard_sigmoid(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * torch.sigmoid(F.hardsigmoid(z))


def no_sigmoid(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bchw,bcij->bchw", x, z)


def dropped(_: Gated, z: Tensor, x: Tensor) -> Tensor:
    torch.addcmul(x, x, z.sigmoid())
    return x


def only_when_training(of: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x * z.sigmoid() if of.training else x


def gate_of_shortcut(of: Gated, z: Tensor, x: Tensor) -> Tensor:
    return x + of.tail[0](F.interpolate(x, scale_factor=2)) * z.sigmoid()


def gated_shortcut(of: Gated, z: Tensor, x: Tensor) -> Tensor:
    y = of.tail[0](F.interpolate(x, scale_factor=2))
    return x * of.logits(y).sigmoid() + y


def _tokens(attend: Attend, **how: Any) -> Callable[[], nn.Module]:
    return lambda: Tokens(lambda: Block(Heads(attend)), **how)


def _functional(mask: Callable[[int], Tensor | None], **how: Any) -> Callable[[], nn.Module]:
    return lambda: Tokens(lambda: Block(Functional(mask)), **how)


def _joined(joined: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: Tokens(lambda: Block(Heads(einsums), joined))


def _gated(kind: str, apply: Apply) -> Callable[[], nn.Module]:
    return lambda: Gated(kind, apply)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1)


def _mean_of_places(x: Tensor) -> Tensor:
    return x[:, 1 : (SIDE // 8) ** 2 + 1].mean(1)


def _padding_masked(_: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    allowed = torch.arange(k.shape[-2]) <= (SIDE // 8) ** 2
    return scores(q, k).masked_fill(~allowed, _NAN).softmax(-1) @ v


FAULTS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "softmax twice, spelled out": (_tokens(softmax_twice), {"double-softmax"}),
    "exponentials over queries": (_tokens(partial(by_exponentials, axis=-2)), {"wrong-axis"}),
    "weights transposed in einsum": (_tokens(transposed_weights), {"wrong-axis"}),
    "baddbmm scaled by 1/d": (_tokens(partial(batched, power=-1.0)), {"temperature"}),
    "baddbmm not scaled": (_tokens(partial(batched, power=0.0)), {"temperature"}),
    "kernel with scale 1": (_tokens(partial(kernel, scale=1.0)), {"temperature"}),
    "kernel causal, class token": (
        _tokens(partial(kernel, is_causal=True)), {"class-token-blind"}
    ),
    "kernel causal, mean": (
        _tokens(partial(kernel, is_causal=True), read=_mean), {"causal-mask"}
    ),
    "functional, causal": (_functional(causal_mask), {"class-token-blind"}),
    "functional, only later keys": (
        _functional(only_later, read=_mean), {"causal-mask"}
    ),
    "weights under no_grad": (_tokens(value_detached), {"detached"}),
    "arg-max attention": (_tokens(hard), {"detached"}),
    "output transposed": (_tokens(transposed_values), {"scrambled-output"}),
    "class token sees itself": (_tokens(class_token_dropped), {"class-token-blind"}),
    "one query for all": (_tokens(first_query_for_all), {"equal-rows"}),
    "attention in training only": (_joined(only_in_training), {"skipped-in-eval"}),
    "attention overwritten": (_joined(result_overwritten), {"not-applied"}),
    "head reads token 1": (_tokens(einsums, read=lambda x: x[:, 1]), {"head-token"}),
    "head reads the last token": (
        _tokens(einsums, read=lambda x: x.select(1, -1)), {"head-token"}
    ),
    "mean over padding": (
        _tokens(_padding_masked, read=_mean, add=padded), {"pooled-padding"}
    ),
    "padding attended": (
        _tokens(einsums, read=_mean_of_places, add=padded), {"padding-attention"}
    ),
    "where, hard gate": (_gated("channel", where_hard), {"detached"}),
    "where, hard spatial gate": (_gated("spatial", where_hard), {"detached"}),
    "addcmul inverted": (_gated("channel", addcmul_inverted), {"gate-inverted"}),
    "lerp inverted": (_gated("spatial", lerp_inverted), {"gate-inverted"}),
    "einsum with detached gate": (_gated("channel", detached), {"detached"}),
    "gate of another image": (_gated("channel", other_image), {"batch-leak"}),
    "softmax over one channel": (_gated("spatial", softmax_of_one), {"softmax-of-one"}),
    "channel gate on rows": (_gated("channel", over_rows), {"gate-swapped-axes"}),
    "gates of rows and columns swapped": (
        _gated("rows", rows_for_columns), {"gate-swapped-axes"}
    ),
    "gate rotated": (_gated("spatial", rotated), {"gate-misplaced", "not-followed"}),
    "gate's rows reordered": (_gated("spatial", reshaped_gate), {"gate-scrambled"}),
    "sigmoid of hard sigmoid": (_gated("channel", sigmoid_of_hard_sigmoid), {"double-sigmoid"}),
    "einsum without sigmoid": (_gated("channel", no_sigmoid), {"missing-sigmoid"}),
    "addcmul dropped": (_gated("spatial", dropped), {"not-applied"}),
    "gate in training only": (_gated("channel", only_when_training), {"skipped-in-eval"}),
    "gate of the branch on the shortcut": (
        _gated("channel", gated_shortcut), {"gate-of-other-features"}
    ),
}  # fmt: skip
"""From a name to a model and the findings of which one is right."""

CORRECT: dict[str, Callable[[], nn.Module]] = {
    "einsum": _tokens(einsums),
    "exponentials": _tokens(by_exponentials),
    "softmax of log-softmax": _tokens(softmax_of_log_softmax),
    "exp of log-softmax": _tokens(exp_of_log_softmax),
    "baddbmm": _tokens(batched),
    "learned temperature": _tokens(learned_temperature),
    "kernel": _tokens(kernel),
    "kernel, mean over all tokens": _tokens(kernel, read=_mean),
    "functional": _functional(lambda _: None),
    "arg-max, straight through": _tokens(partial(hard, straight=True)),
    "attention and MLP in parallel": _joined(in_parallel),
    "padding masked and left out": _tokens(_padding_masked, read=_mean_of_places, add=padded),
    "channel product": _gated("channel", product),
    "spatial product": _gated("spatial", product),
    "where": _gated("spatial", where_gate),
    "addcmul": _gated("channel", addcmul),
    "softmax over places": _gated("spatial", softmax_places),
    "rows and columns": _gated("rows", rows_and_columns),
    "tanh as sigmoid": _gated("channel", tanh_half),
    "gate on the branch": _gated("channel", gate_of_shortcut),
}
"""From a name to a model without a fault."""
