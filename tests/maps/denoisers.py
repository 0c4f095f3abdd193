"""Small denoisers that take words: a U-Net with cross-attention, and joint attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.places.nets import WIDTH, Block, Cross


class UNet(nn.Module):
    """Self- and cross-attention on a grid and on one of half its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(4, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, WIDTH, 2, 2)
        self.attn1 = nn.ModuleList([Block(), Block()])
        self.attn2 = nn.ModuleList([Cross(), Cross()])
        self.out = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, sample: Tensor, text: Tensor) -> Tensor:
        maps = self.stem(sample)
        for i in (0, 1):
            h, w = maps.shape[2:]
            tokens = self.attn1[i](maps.flatten(2).mT)
            maps = self.attn2[i](tokens, text).mT.unflatten(2, (h, w))
            maps = self.down(maps) if i == 0 else maps
        return self.out(F.interpolate(maps, scale_factor=2))


class Joint(nn.Module):
    """Patches of 2 × 2, then words, in one sequence."""

    def __init__(self, words_first: bool = False) -> None:
        super().__init__()
        self.stem, self.words_first = nn.Conv2d(4, WIDTH, 2, 2), words_first
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, sample: Tensor, text: Tensor) -> Tensor:
        patches = self.stem(sample).flatten(2).mT
        parts = (text, patches) if self.words_first else (patches, text)
        tokens = torch.cat(parts, 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def by_hand(model: nn.Module, sample: Tensor, text: Tensor) -> dict[str, Tensor]:
    """`softmax(q kᵀ / √d)`, `(b, heads, q, k)`, of every attention, from its module's own input."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if isinstance(module, Cross):
                q = module.q(args[0]).unflatten(-1, (3, -1)).transpose(1, 2)
                k, _v = module.kv(args[1]).unflatten(-1, (2, 3, -1)).permute(2, 0, 3, 1, 4)
            else:
                qkv = module.get_submodule("qkv")(module.get_submodule("norm")(args[0]))
                q, k, _v = qkv.unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
            found[name] = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, (Cross, Block)):
            keep(name, module)
    with torch.no_grad():
        model(sample, text)
    for module in model.modules():
        module._forward_hooks.clear()
    return found
