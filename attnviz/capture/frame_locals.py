"""Local variables of running functions, read without a trace.

Until Python 3.12, `frame.f_locals` copies all locals of a function into a dict that stays with its
frame. Tensors that the function goes on to overwrite would live until it returns; and a debugger
that has stopped there writes that dict back, so that it would undo its user's changes. Here one
variable is read from where the interpreter keeps it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import CellType, FrameType
from typing import Any

Read = Callable[[FrameType, str], Any]


def from_proxy(frame: FrameType, name: str) -> Any:
    """Python 3.13 and later: `f_locals` is a view of the frame."""
    return frame.f_locals.get(name)


def from_interface(frame: FrameType, name: str) -> Any:
    """Python 3.12: the C function that reads one variable."""
    try:
        return _get_var(frame, name)
    except NameError:
        return None


def from_memory(frame: FrameType, name: str) -> Any:
    """Python 3.11: the frame's own array of locals, in the order of the code's names."""
    code = frame.f_code
    try:
        index = code.co_varnames.index(name)
    except ValueError:
        return None
    data = _pointer(id(frame) + _FRAME).value
    if not data or _pointer(data + _CODE).value != id(code):
        return frame.f_locals.get(name)  # another interpreter
    value = data + _LOCALS + index * _WORD
    if not _pointer(value).value:
        return None  # not assigned yet
    found = ctypes.py_object.from_address(value).value
    if not isinstance(found, CellType) or name not in code.co_cellvars:
        return found
    try:
        return found.cell_contents
    except ValueError:
        return None  # not assigned yet


_pointer = ctypes.c_void_p.from_address
_WORD = ctypes.sizeof(ctypes.c_void_p)
_FRAME = object.__basicsize__ + _WORD  # `f_frame`, after `f_back`
_CODE, _LOCALS = 4 * _WORD, 9 * _WORD  # `f_code` and `localsplus` of the interpreter's frame

_get_var: Any = getattr(ctypes.pythonapi, "PyFrame_GetVar", None)
if _get_var is not None:
    _get_var.argtypes, _get_var.restype = (ctypes.py_object, ctypes.py_object), ctypes.py_object

read: Read = (
    from_proxy
    if sys.version_info >= (3, 13) or sys.implementation.name != "cpython"
    else from_memory
    if _get_var is None
    else from_interface
)
"""The value of a local variable of a running function; None if it has none of this name yet."""
