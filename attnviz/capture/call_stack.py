"""The module that runs an op, and the source line: read from the Python stack.

Forward hooks would give the module as well, but they switch torch's fast paths off and are copied
along with the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor, nn

from attnviz.capture.frame_locals import read

_TORCH, _HERE, _SHAPES = (
    f"{Path(str(file)).parent}{os.sep}"  # torchvision lies beside torch, and is no part of it
    for file in (torch.__file__, __file__, jaxtyping.__file__)  # which checks shapes at run time
)
_PASSED = (_TORCH, _HERE, _SHAPES, "<")
_CALL = nn.Module._call_impl.__code__
_OURS, _OF_TORCH, _PASS, _METHOD, _ENTRY = 1, 2, 4, 8, 16
_KINDS: dict[int, tuple[CodeType, int]] = {}
_MOST_KINDS = 4096
_DEEPEST = 5


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


class CallStack:
    """The modules of one model, and which of them are running in this thread.

    Attributes:
        model: The model.
        modules: Each module by its dotted name; `""` is the model itself.
        names: Each module's name, by the module's identity.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = named(model)
        self.names = {id(module): name for name, module in self.modules.items()}

    def place(self) -> Place | None:
        """The module and source line that run the current op; None if another model runs it."""
        line: tuple[str, int] | None = None
        torch_line: tuple[str, int] | None = None
        for frame in _frames():
            code, kind = frame.f_code, _kind(frame.f_code)
            if not kind & _PASS:
                line = line or (code.co_filename, frame.f_lineno)
            elif torch_line is None and kind & _OF_TORCH:
                torch_line = (code.co_filename, frame.f_lineno)
            module = self._module(frame) if kind & _METHOD else None
            if module is not None:
                line = line or _caller(frame) or torch_line or ("?", 0)
                name = self.names[id(module)]
                inner = _in_graph(module, frame)
                if inner is not None:
                    name = f"{name}.{inner}" if name else inner
                    module = self.modules.get(name, module)
                return Place(name, module, f"{_base(line[0])}:{line[1]}", line[0])
        return None

    def calls(self, *, ends: bool = False) -> list[Call]:
        """The running modules, innermost first.

        Args:
            ends: Read the argument shapes of the outermost module only.
        """
        found: list[Call] = []
        others: list[FrameType] = []
        outermost: FrameType | None = None
        for frame in _frames():
            if frame.f_code is _CALL:
                module = read(frame, "self")
                name = self.names.get(id(module))
                if name is not None:
                    found.append(Call(name, module, () if ends else _shapes(_given(frame))))
                    outermost = frame
                    others.clear()
            elif _kind(frame.f_code) & _METHOD:
                others.append(frame)
        if ends and outermost is not None:
            found[-1] = found[-1]._replace(shapes=_shapes(_given(outermost)))
        for frame in reversed(others):  # a forward or another method that was called by itself
            outer = self._module(frame)
            if outer is not None:
                if not found or found[-1].module is not outer:
                    found.append(Call(self.names[id(outer)], outer, _shapes(_arguments(frame))))
                break
        return found

    def given(self) -> list[Tensor]:
        """All tensors that the outermost running module was called with.

        Lists and mappings are looked into, such as a list of one mapping per image. Where a method
        of the model was called by itself, they are that method's arguments.
        """
        outermost: FrameType | None = None
        method: FrameType | None = None
        for frame in _frames():
            if frame.f_code is _CALL and id(read(frame, "self")) in self.names:
                outermost = frame
            elif _kind(frame.f_code) & _METHOD and self._module(frame) is not None:
                method = frame
        if outermost is not None:
            return _given(outermost, _DEEPEST)
        return [] if method is None else _arguments(method)

    def running(self) -> frozenset[str]:
        """The names of the running modules."""
        return frozenset(call.name for call in self.calls())

    def call(self) -> object:
        """An object that identifies the running call of the whole model; None within a part of it.

        It is the mapping of the call's keyword arguments: each call has its own, mostly empty.
        """
        found: object = None
        for frame in _frames():
            if frame.f_code is _CALL and self.names.get(id(read(frame, "self"))) == "":
                found = read(frame, "kwargs")
        return found

    def _module(self, frame: FrameType) -> nn.Module | None:
        owner = read(frame, "self")
        return owner if isinstance(owner, nn.Module) and id(owner) in self.names else None


def named(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by the dotted names they had before `torch.compile` wrapped any of them.

    Otherwise as `named_modules`, and several times faster, because every watch needs it.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, name: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        found.setdefault(name, module)
        for child, inner in module._modules.items():
            if inner is not None:
                own = name if child == "_orig_mod" else f"{name}.{child}" if name else child
                if child == "_orig_mod":
                    found[own] = inner
                visit(inner, own)

    visit(model, "")
    return found


def _in_graph(module: nn.Module, frame: FrameType) -> str | None:
    """The module that a line of an exported or traced graph was written for, by its dotted name."""
    graph, lines = getattr(module, "graph", None), getattr(module, "_lineno_map", None)
    if graph is None or not lines:
        return None
    number = lines.get(frame.f_lineno - frame.f_code.co_firstlineno)
    nodes = list(graph.nodes)
    if number is None or number >= len(nodes):
        return None
    stack = list((nodes[number].meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) or None if stack else None


@lru_cache
def _base(path: str) -> str:
    return Path(path).name


def _frames() -> Iterator[FrameType]:
    """The running functions, innermost first, without those that belong to the capture.

    Within the handling of an op they begin where the op was called, so that a rule from outside
    this package, and torch's parts of a composite op, are left out.
    """
    frame: FrameType | None = sys._getframe(1)
    inner: FrameType | None = frame
    entered = False
    while inner is not None:
        kind = _kind(inner.f_code)
        if kind & _ENTRY:
            frame, entered = inner, True
        elif entered and not kind & (_OURS | _OF_TORCH):
            break
        inner = inner.f_back
    while frame is not None:
        if not _kind(frame.f_code) & _OURS:
            yield frame
        frame = frame.f_back


def _kind(code: CodeType) -> int:
    """Facts of a function, read once, since reading them off its code is slow."""
    known = _KINDS.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    path = code.co_filename
    kind = (
        _OURS * path.startswith(_HERE)
        | _OF_TORCH * path.startswith(_TORCH)
        | _PASS * path.startswith(_PASSED)
        | _METHOD * (code.co_argcount > 0 and code.co_varnames[0] == "self")
        | _ENTRY * (code.co_name == "__torch_dispatch__" and path.startswith(_HERE))
    )
    if len(_KINDS) > _MOST_KINDS:
        _KINDS.clear()
    _KINDS[id(code)] = code, kind
    return kind


def _caller(frame: FrameType) -> tuple[str, int] | None:
    """The innermost line outside torch that leads to a frame."""
    back = frame.f_back
    while back is not None:
        if not _kind(back.f_code) & _PASS:
            return back.f_code.co_filename, back.f_lineno
        back = back.f_back
    return None


def _given(frame: FrameType, depth: int = 2) -> list[Tensor]:
    """The tensors that a module was called with."""
    found: list[Tensor] = []
    _collect(read(frame, "args"), found, depth)
    _collect(read(frame, "kwargs"), found, depth)
    return found


def _arguments(frame: FrameType) -> list[Tensor]:
    """A running function's tensor arguments, lists of tensors looked into."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    found: list[Tensor] = []
    for name in code.co_varnames[1:count]:
        _collect(read(frame, name), found, 2)
    return found


def _shapes(tensors: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _collect(value: Any, found: list[Tensor], depth: int) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif depth and isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, found, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            _collect(item, found, depth - 1)
