"""What a watch was asked to look for, and to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

Choose = str | Sequence[str] | Callable[[str, torch.nn.Module], bool] | None
"""Which modules: a glob on the dotted name, a kind, several of them, or a function."""


@dataclass(frozen=True, slots=True)
class Options:
    """A watch's options, as given to `watch`."""

    where: Choose = None
    heads: int | Sequence[int] | None = None
    to: torch.device | str | None = None
    dtype: torch.dtype | None = None
    reduce: Mapping[str, Callable[..., torch.Tensor]] | None = None
    edit: Mapping[str, object] | None = None
    keep_graph: bool = False
    features: bool = False
    operands: bool = False

    def wants(self, kind: str, names: Sequence[str], module: torch.nn.Module) -> bool:
        """Whether a record of this kind under one of these names is asked for."""
        if self.where is None:
            return True
        if callable(self.where):
            return bool(self.where(names[0], module))
        given = [self.where] if isinstance(self.where, str) else self.where
        return any(
            choice == kind or any(fnmatchcase(name, choice) for name in names) for choice in given
        )
