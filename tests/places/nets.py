"""Small models whose tokens lie where their construction says, each in another way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, HEADS = 48, 3


class Block(nn.Module):
    """Attention with a residual connection, then a layer on each token by itself."""

    def __init__(self, width: int = WIDTH, *, residual: bool = True) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.proj, self.mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.residual = residual

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        mixed = self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + mixed if self.residual else mixed
        return x + self.mlp(x).tanh()


class Cross(nn.Module):
    """Attention from one sequence to another one."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(other).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return x + (weights @ v).transpose(1, 2).flatten(2)


class Plain(nn.Module):
    """A vision transformer with any number of tokens before and after the patches.

    Args:
        before: Leading tokens of parameters.
        after: Trailing tokens.
        read: What the head reads: one token's number, or None for the mean of the patches.
        order: In which order the patches lie; row by row if not given.
        axes: How many axes the image has.
    """

    def __init__(
        self, before: int = 1, after: int = 0, read: int | None = 0,
        order: Tensor | None = None, axes: int = 2, patch: int = 8, channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.stem = conv(channels, WIDTH, patch, patch)
        self.leading = nn.Parameter(torch.randn(1, before, WIDTH))
        self.trailing = nn.Parameter(torch.randn(1, after, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head, self.read, self.order = nn.Linear(WIDTH, 4), read, order
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        patches = self.stem(x).flatten(2).mT
        if self.order is not None:
            patches = patches[:, self.order]
        ends = (tokens.expand(len(x), -1, -1) for tokens in (self.leading, self.trailing))
        leading, trailing = ends
        tokens = torch.cat([leading, patches, trailing], 1)
        for block in self.blocks:
            tokens = block(tokens)
        if self.read is not None:
            return self.head(tokens[:, self.read])
        return self.head(tokens[:, self.before : tokens.shape[1] - self.after].mean(1))


class Windowed(nn.Module):
    """Attention within windows of 4 × 4, shifted by 2, the last ones padded."""

    def __init__(self, shift: int = 2) -> None:
        super().__init__()
        self.stem, self.block, self.shift = nn.Conv2d(3, WIDTH, 4, 4), Block(), shift
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = maps.shape
        maps = nn.functional.pad(maps, (0, 0, 0, -w % 4, 0, -h % 4))
        maps = maps.roll((-self.shift, -self.shift), (1, 2))
        high, wide = maps.shape[1] // 4, maps.shape[2] // 4
        windows = maps.view(b, high, 4, wide, 4, c).transpose(2, 3).reshape(-1, 16, c)
        tokens = self.block(windows).view(b, -1, c)
        return self.head(tokens.mean(1))

    def cells(self, h: int, w: int) -> list[int]:
        """The true cell of each token of each window."""
        found = []
        height, width = h + -h % 4, w + -w % 4
        for top in range(0, height, 4):
            for left in range(0, width, 4):
                for y in range(top, top + 4):
                    for x in range(left, left + 4):
                        row, column = (y + self.shift) % height, (x + self.shift) % width
                        found.append(row * w + column if row < h and column < w else -1)
        return found


class Masked(nn.Module):
    """The encoder of a masked autoencoder: a quarter of the patches, drawn for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.kept = nn.Conv2d(3, WIDTH, 8, 8), Block(), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.stem(x).flatten(2).mT
        n = patches.shape[1]
        self.kept = torch.rand(len(x), n).argsort(1)[:, : n // 4]
        chosen = patches.gather(1, self.kept[..., None].expand(-1, -1, WIDTH))
        return self.block(chosen).mean(1)


class Prompt(nn.Module):
    """Words with images between them, one sequence for all images: as in a language model."""

    def __init__(self, slots: tuple[int, ...] = (2,), words: int = 7) -> None:
        super().__init__()
        self.stem, self.words = nn.Conv2d(3, WIDTH, 8, 8), nn.Embedding(20, WIDTH)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, 20)
        self.slots, self.count = slots, words

    def forward(self, ids: Tensor, images: Tensor) -> Tensor:
        words, patches = self.words(ids), self.stem(images).flatten(2).mT
        parts, last = [], 0
        for slot, patch in zip(self.slots, patches, strict=True):
            parts += [words[:, last:slot], patch[None]]
            last = slot
        tokens = torch.cat([*parts, words[:, last:]], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens)


class Decoder(nn.Module):
    """An encoder over patches and a decoder with as many learned queries as there are patches."""

    def __init__(self, queries: int = 16) -> None:
        super().__init__()
        self.stem, self.queries = (
            nn.Conv2d(3, WIDTH, 8, 8),
            nn.Parameter(torch.randn(1, queries, WIDTH)),
        )
        self.encoder, self.own, self.cross = Block(), Block(), Cross()
        self.last = Block()

    def forward(self, x: Tensor) -> Tensor:
        patches = self.encoder(self.stem(x).flatten(2).mT)
        queries = self.own(self.queries.expand(len(x), -1, -1))
        return self.last(self.cross(queries, patches))


class Hybrid(nn.Module):
    """Convolutions with a wide view and normalisation over the batch, then attention."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.GELU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(64, 96, 3, 1, 1))
        self.block, self.head = Block(96), nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).flatten(2).mT).mean(1))


class Halving(nn.Module):
    """Attention without a residual connection that leaves a quarter of the tokens, as LeViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = nn.Conv2d(3, WIDTH, 4, 4), Block(), Block()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        h, w = maps.shape[2:]
        tokens = self.first(maps.flatten(2).mT)
        fewer = tokens.view(len(x), h, w, WIDTH)[:, ::2, ::2].flatten(1, 2)
        q = self.q(fewer).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.last(mixed).mean(1)


class Channels(nn.Module):
    """Attention from channels to channels, and patches that stay apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.last = (
            nn.Conv2d(3, WIDTH, 8, 8),
            nn.Linear(WIDTH, 3 * WIDTH),
            Block(),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).mT
        q, k, v = self.qkv(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 4, 1)
        mixed = ((q @ k.mT).softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2)
        return self.last(tokens + mixed)


class Pyramid(nn.Module):
    """Keys from two grids, one twice as fine as the other: they form no single grid."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, WIDTH, 8, 8), nn.Conv2d(3, WIDTH, 16, 16)
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        tokens = [stem(x).flatten(2).mT for stem in (self.fine, self.coarse)]
        return self.block(torch.cat(tokens, 1))


class Mirrored(nn.Module):
    """Tokens made of a place and the one opposite: the mean of both is where neither lies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, WIDTH, 8, 8), Block()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        return self.block((maps + maps.flip(-1)).flatten(2).mT)


class Padded(nn.Module):
    """Images of two sizes in one batch, the smaller one's tokens filled up and masked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, WIDTH, 8, 8), Block()

    def forward(self, images: list[Tensor]) -> Tensor:
        tokens = [self.stem(image[None]).flatten(2).mT[0] for image in images]
        longest = max(map(len, tokens))
        whole = torch.stack([nn.functional.pad(x, (0, 0, 0, longest - len(x))) for x in tokens])
        mask = torch.stack([torch.arange(longest) < len(x) for x in tokens])
        return self.block(whole, mask)
