"""Small vision transformers with faults of masks, tokens, residuals and gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.diagnosis.twins.twin import HEADS, C, Twin


class Block(nn.Module):
    """Attention and an MLP, each with a residual; each step a method that a fault replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.query, self.key, self.value = (nn.Linear(C, C) for _ in range(3))
        self.project = nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(x, self.attend(self.norm1(x)))
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = self.weights(self.masked(q @ k.mT * q.shape[-1] ** -0.5))
        return self.project((weights @ v).transpose(1, 2).flatten(2))

    def masked(self, scores: Tensor) -> Tensor:
        return scores

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def residual(self, x: Tensor, out: Tensor) -> Tensor:
        return x + out


class CausalBlock(Block):
    """A block of a language model."""

    def masked(self, scores: Tensor) -> Tensor:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf)


class DetachedBlock(Block):
    """Weights without a gradient."""

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1).detach()


class ReversedBlock(Block):
    """A next-token mask the wrong way round: a query gives nothing to what came before."""

    def masked(self, scores: Tensor) -> Tensor:
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-1)
        return scores.masked_fill(earlier, -torch.inf)


class OneQueryBlock(Block):
    """The first query for all tokens."""

    def weights(self, scores: Tensor) -> Tensor:
        return scores[:, :, :1].softmax(-1).expand(-1, -1, scores.shape[2], -1)


class UnpaddedBlock(Block):
    """Keys behind the class token and 64 places are masked."""

    def masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-1]) > 64, -torch.inf)


class NoResidualBlock(Block):
    """The attention replaces its input."""

    def residual(self, x: Tensor, out: Tensor) -> Tensor:
        return out


class ViT(nn.Module):
    """Patches, a class token, two blocks, and a head on the class token."""

    block: type[Block] = Block

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, C, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, C))
        self.position = nn.Parameter(torch.randn(1, 65, C) * 0.1)
        self.blocks = nn.Sequential(self.block(), self.block())
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.logits(self.norm(self.blocks(x)))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, 0])


class CausalViT(ViT):
    """A class token in front, which a causal mask lets see itself only."""

    block = CausalBlock


class PooledViT(ViT):
    """The mean over places."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, 1:].mean(1))


class CausalPooledViT(PooledViT):
    """A causal mask, and the mean over places."""

    block = CausalBlock


class ReversedPooledViT(PooledViT):
    """A reversed causal mask, and the mean over places."""

    block = ReversedBlock


class OneQueryViT(PooledViT):
    """One query for all tokens."""

    block = OneQueryBlock


class PaddedViT(ViT):
    """Tokens padded to 80, which is masked and left out of the mean."""

    block = UnpaddedBlock

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.logits(self.norm(self.blocks(nn.functional.pad(x, (0, 0, 0, 15)))))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, 1:65].mean(1))


class PaddingPooledViT(PaddedViT):
    """The mean over all tokens, padding too."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x.mean(1))


class PaddingAttendedViT(PaddedViT):
    """Padding is not masked."""

    block = Block


class LastTokenViT(ViT):
    """The last token, as in a language model."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, -1])


class DetachedViT(ViT):
    """Blocks whose weights have no gradient."""

    block = DetachedBlock


class NoResidualViT(PooledViT):
    """Blocks without a residual around the attention."""

    block = NoResidualBlock


class ZeroHeadViT(ViT):
    """A head of zeros with a bias."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, 0] * 0)


class FrozenPatchesViT(ViT):
    """Patches under `torch.no_grad`."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.logits(self.norm(self.blocks(x)))


def _twin(
    code: str, severity: str, faulty: type[ViT], mended: type[ViT], shown: tuple[Any, Any],
    **ask: Any,
) -> Twin:  # fmt: skip
    return Twin(code, severity, partial(_eval, faulty), partial(_eval, mended), shown, ask=ask)


def _eval(model: type[ViT]) -> nn.Module:
    return model().eval()


TOKENS: dict[str, Twin] = {
    "causal mask before the class token": _twin(
        "class-token-blind", "error", CausalViT, ViT, (CausalBlock.masked, Block.masked)
    ),
    "causal mask": _twin(
        "causal-mask", "warning", CausalPooledViT, PooledViT, (CausalBlock.masked, Block.masked)
    ),
    "head on the last token": _twin(
        "head-token", "error", LastTokenViT, ViT, (LastTokenViT.logits, ViT.logits)
    ),
    "no residual": _twin(
        "no-residual", "warning", NoResidualViT, PooledViT,
        (NoResidualBlock.residual, Block.residual),
    ),
    "reversed causal mask": _twin(
        "causal-mask", "warning", ReversedPooledViT, PooledViT,
        (ReversedBlock.masked, Block.masked),
    ),
    "one query for all": _twin(
        "equal-rows", "warning", OneQueryViT, PooledViT, (OneQueryBlock.weights, Block.weights)
    ),
    "mean over padding": _twin(
        "pooled-padding", "warning", PaddingPooledViT, PaddedViT,
        (PaddingPooledViT.logits, PaddedViT.logits),
    ),
    "padding tokens not masked": _twin(
        "padding-attention", "warning", PaddingAttendedViT, PaddedViT,
        (Block.masked, UnpaddedBlock.masked),
    ),
    "features times zero": _twin(
        "output-constant", "error", ZeroHeadViT, ViT, (ZeroHeadViT.logits, ViT.logits)
    ),
    "weights detached": _twin(
        "detached", "error", DetachedViT, ViT, (DetachedBlock.weights, Block.weights)
    ),
    "weights detached, trained": _twin(
        "detached", "warning", DetachedViT, ViT, (DetachedBlock.weights, Block.weights),
        trained=True,
    ),
    "patches without a gradient": _twin(
        "no-gradient", "warning", FrozenPatchesViT, ViT, (FrozenPatchesViT.forward, ViT.forward)
    ),
}  # fmt: skip
