"""The options of a watch, and the choice of modules by name, kind or function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import nn

from attnviz.capture.edits import Edit
from attnviz.capture.reductions import Reduction, reads_keys

Choice = str | Sequence[str] | Callable[[str, nn.Module], bool] | None
"""Which modules: a glob on the dotted name, a kind, several, or `(name, module) -> bool`."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a watch, checked. See `watch`."""

    where: Choice = None
    heads: tuple[int, ...] | None = None
    to: torch.device | None = None
    dtype: torch.dtype | None = None
    reduce: Mapping[str, Reduction] = field(default_factory=dict)
    edit: Mapping[str, Edit] = field(default_factory=dict)
    keep_graph: bool = False
    features: bool = False
    operands: bool = False

    @property
    def reads_operands(self) -> bool:
        """Whether queries and keys are needed, to be kept or by a reduction."""
        return self.operands or reads_keys(self.reduce.values())

    def wants(self, kind: str, names: Sequence[str], module: nn.Module) -> bool:
        """Whether `where` chooses a record of this kind under one of these names."""
        if self.where is None:
            return True
        if callable(self.where):
            return bool(self.where(names[0], module))
        given = [self.where] if isinstance(self.where, str) else self.where
        return any(choice == kind or matches(choice, names) for choice in given)

    def edit_of(self, names: Sequence[str]) -> tuple[str, Edit] | None:
        """The first edit whose name or glob means one of these names."""
        for pattern, edit in self.edit.items():
            if matches(pattern, names):
                return pattern, edit
        return None


def matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether a name or glob means one of these names, or the module that holds it."""
    return any(fnmatchcase(name, pattern) for name in names)
