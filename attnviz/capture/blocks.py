"""Memory for many small arrays that outlive a forward pass.

A model that generates frees and allocates its cache at each step. Whatever small is allocated in
between and kept, even the head of a tensor, breaks the heap into holes that the larger cache no
longer fits, and the process grows by many times the size of what is kept. So rows of a generation
are copied into blocks apart from the heap, and are made into tensors when they are read.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

import torch
from torch import Tensor

_SIZE = 1 << 22
_STEP = 64  # bytes, to which torch aligns its own tensors


class Held(NamedTuple):
    """A tensor in a block.

    Attributes:
        block: The block.
        offset: Where it begins, in bytes.
        shape: Its shape.
        dtype: Its type.
    """

    block: mmap.mmap
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """The tensor; it shares the block."""
        count = torch.Size(self.shape).numel()
        flat = torch.frombuffer(self.block, dtype=self.dtype, count=count, offset=self.offset)
        return flat.view(self.shape)


class Blocks:
    """Copies tensors into blocks; a block lives as long as something in it is held."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._used = self._size = 0

    def hold(self, tensor: Tensor) -> Held | Tensor:
        """A copy in a block; a tensor of another device, or an empty one, as it is."""
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or not size:
            return tensor
        if self._block is None or self._used + size > self._size:
            self._size, self._used = max(_SIZE, size), 0
            self._block = _new(self._size)
        held = Held(self._block, self._used, tuple(tensor.shape), tensor.dtype)
        held.tensor().copy_(tensor)
        self._used += -(-size // _STEP) * _STEP
        return held


def _new(size: int) -> mmap.mmap:
    private = getattr(mmap, "MAP_PRIVATE", None)  # not on Windows, where no process forks
    if private is None:
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=private | mmap.MAP_ANONYMOUS)
