"""Who runs an op: the module of the watched model, and the line in its source.

Read off the Python stack when something was found, instead of from hooks: hooks would switch fast
paths off and travel along with a deepcopy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor, nn

_TORCH, _HERE, _SHAPES = (
    f"{Path(str(file)).parent}{os.sep}"  # torchvision lies beside torch, and is no part of it
    for file in (torch.__file__, __file__, jaxtyping.__file__)  # which checks shapes at run time
)
_PASSED = (_TORCH, _HERE, _SHAPES, "<")
_CALL = nn.Module._call_impl.__code__
_OURS, _OF_TORCH, _PASS, _METHOD = 1, 2, 4, 8
_KINDS: dict[int, tuple[CodeType, int]] = {}
_MOST_KINDS = 4096
_SNAPSHOTS = sys.version_info < (3, 13)


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
        code, kind = frame.f_code, _kind(frame.f_code)
        if not kind & _PASS:
            line = line or (code.co_filename, frame.f_lineno)
        elif torch_line is None and kind & _OF_TORCH:
            torch_line = (code.co_filename, frame.f_lineno)
        module = _module(frame, names) if kind & _METHOD else None
        if module is not None:
            line = line or _caller(frame) or torch_line or ("?", 0)
            return Place(names[id(module)], module, f"{_base(line[0])}:{line[1]}", line[0])
    return None


@lru_cache
def _base(path: str) -> str:
    return Path(path).name


def calls(names: dict[int, str], *, ends: bool = False) -> list[Call]:
    """The model's modules that are running, innermost first.

    Args:
        names: The model's modules by identity.
        ends: Whether the shapes of the outermost one's arguments are all that is needed.
    """
    found: list[Call] = []
    others: list[FrameType] = []
    outermost: FrameType | None = None
    for frame in _frames():
        if frame.f_code is _CALL:
            module = _local(frame, "self")
            name = names.get(id(module))
            if name is not None:
                found.append(Call(name, module, () if ends else _given(frame)))
                outermost = frame
                others.clear()
        elif _kind(frame.f_code) & _METHOD:
            others.append(frame)
    if ends and outermost is not None:
        found[-1] = found[-1]._replace(shapes=_given(outermost))
    for frame in reversed(others):  # a forward or another method that was called by itself
        outer = _module(frame, names)
        if outer is not None:
            if not found or found[-1].module is not outer:
                found.append(Call(names[id(outer)], outer, _shapes(frame)))
            break
    return found


def call(names: dict[int, str]) -> object:
    """What stands for the running call of the model as a whole; None if only a part was called.

    The mapping of its keyword arguments: each call has one of its own, usually an empty one.
    """
    found: object = None
    for frame in _frames():
        if frame.f_code is _CALL and names.get(id(_local(frame, "self"))) == "":
            found = _local(frame, "kwargs")
    return found


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _kind(frame.f_code) & _OURS:
            yield frame
        frame = frame.f_back


def _kind(code: CodeType) -> int:
    """What is needed to know of a function; read once, for reading it off its code is slow."""
    known = _KINDS.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    path = code.co_filename
    kind = (
        _OURS * path.startswith(_HERE)
        | _OF_TORCH * path.startswith(_TORCH)
        | _PASS * path.startswith(_PASSED)
        | _METHOD * (code.co_argcount > 0 and code.co_varnames[0] == "self")
    )
    if len(_KINDS) > _MOST_KINDS:
        _KINDS.clear()
    _KINDS[id(code)] = code, kind
    return kind


def _local(frame: FrameType, name: str) -> Any:
    """A local variable of a running function.

    Before Python 3.13, reading it leaves the frame with a second reference to each of its locals;
    tensors that the function goes on to overwrite would live until it returns.
    """
    local = frame.f_locals
    value = local.get(name)
    if _SNAPSHOTS:
        local.clear()  # a dict, as long as it is a snapshot
    return value


def _module(frame: FrameType, names: dict[int, str]) -> nn.Module | None:
    owner = _local(frame, "self")
    return owner if isinstance(owner, nn.Module) and id(owner) in names else None


def _caller(frame: FrameType) -> tuple[str, int] | None:
    """The innermost line outside torch that leads to a frame."""
    back = frame.f_back
    while back is not None:
        if not _kind(back.f_code) & _PASS:
            return back.f_code.co_filename, back.f_lineno
        back = back.f_back
    return None


def _given(frame: FrameType) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors that a module was called with."""
    shapes: list[tuple[int, ...]] = []
    _collect(_local(frame, "args"), shapes, 2)
    _collect(_local(frame, "kwargs"), shapes, 2)
    return tuple(shapes)


def _shapes(frame: FrameType) -> tuple[tuple[int, ...], ...]:
    """The shapes of a running function's tensor arguments, lists of tensors looked into."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    shapes: list[tuple[int, ...]] = []
    for name in code.co_varnames[1:count]:
        _collect(_local(frame, name), shapes, 2)
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
