"""Who runs an op: the module of the watched model, and the line in its source.

Read off the Python stack when something was found, instead of from hooks: hooks would switch fast
paths off and travel along with a deepcopy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor, nn

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_SHAPES = str(Path(jaxtyping.__file__).parent)  # where shapes are checked at run time
_PASSED = (_TORCH, _HERE, _SHAPES, "<")
_CALL = nn.Module._call_impl.__code__


@dataclass(frozen=True, slots=True)
class Place:
    """One module of the model, and the source line from which an op ran.

    Attributes:
        name: The module's dotted name; `""` for the model itself.
        module: The module.
        source: `"file.py:123"`, the innermost line outside torch.
        path: The file in full.
    """

    name: str
    module: nn.Module
    source: str
    path: str


class Call(NamedTuple):
    """A module that is running, with the shapes of the tensors it was called with."""

    name: str
    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]


def place(names: dict[int, str]) -> Place | None:
    """Where the running op belongs in a model, or None if another model runs it."""
    line: tuple[str, int] | None = None
    torch_line: tuple[str, int] | None = None
    for frame in _frames():
        code = frame.f_code
        if not code.co_filename.startswith(_PASSED):
            line = line or (code.co_filename, frame.f_lineno)
        elif torch_line is None and code.co_filename.startswith(_TORCH):
            torch_line = (code.co_filename, frame.f_lineno)
        module = _module(frame, names)
        if module is not None:
            line = line or _caller(frame) or torch_line or ("?", 0)
            return Place(names[id(module)], module, f"{_base(line[0])}:{line[1]}", line[0])
    return None


@lru_cache
def _base(path: str) -> str:
    return Path(path).name


def calls(names: dict[int, str]) -> list[Call]:
    """The model's modules that are running, innermost first."""
    found: list[Call] = []
    others: list[FrameType] = []
    for frame in _frames():
        if frame.f_code is _CALL:
            local = frame.f_locals
            module = local["self"]
            name = names.get(id(module))
            if name is not None:
                shapes: list[tuple[int, ...]] = []
                _collect(local["args"], shapes, 2)
                _collect(local["kwargs"], shapes, 2)
                found.append(Call(name, module, tuple(shapes)))
                others.clear()
        elif frame.f_code.co_varnames[:1] == ("self",):
            others.append(frame)
    for frame in reversed(others):  # a forward or another method that was called by itself
        outer = _module(frame, names)
        if outer is not None:
            if not found or found[-1].module is not outer:
                found.append(Call(names[id(outer)], outer, _shapes(frame)))
            break
    return found


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HERE):
            yield frame
        frame = frame.f_back


def _module(frame: FrameType, names: dict[int, str]) -> nn.Module | None:
    code = frame.f_code
    if not code.co_argcount or "self" not in code.co_varnames[:1]:
        return None
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, nn.Module) and id(owner) in names else None


def _caller(frame: FrameType) -> tuple[str, int] | None:
    """The innermost line outside torch that leads to a frame."""
    back = frame.f_back
    while back is not None:
        name = back.f_code.co_filename
        if not name.startswith(_PASSED):
            return name, back.f_lineno
        back = back.f_back
    return None


def _shapes(frame: FrameType) -> tuple[tuple[int, ...], ...]:
    """The shapes of a running function's tensor arguments, lists of tensors looked into."""
    code, local = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    shapes: list[tuple[int, ...]] = []
    for name in code.co_varnames[1:count]:
        _collect(local.get(name), shapes, 2)
    return tuple(shapes)


def _collect(value: Any, shapes: list[tuple[int, ...]], depth: int) -> None:
    if isinstance(value, Tensor):
        shapes.append(tuple(value.shape))
    elif depth and isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, shapes, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            _collect(item, shapes, depth - 1)
