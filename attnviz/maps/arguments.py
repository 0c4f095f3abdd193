"""Arguments of maps, checked: sides, whole numbers, tensors of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

import torch
from torch import Tensor

from attnviz.errors import InputError


def whole_numbers(value: Any, what: str) -> list[int]:
    """One whole number or several, as a list.

    Args:
        value: What the caller passed.
        what: What it is, for the error: `"key_map: numbers of words"`.

    Raises:
        InputError: Anything else.
    """
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    try:
        return [index(one) for one in (value if several else [value]) if not _is_flag(one)]
    except (TypeError, RuntimeError):
        raise InputError(f"{what}: expected a whole number or several, got {value!r}") from None


def _is_flag(value: Any) -> bool:
    if isinstance(value, bool):
        raise TypeError
    return False


def sides(value: Any, what: str) -> tuple[int, ...]:
    """The sides of a grid or the size of a map.

    Raises:
        InputError: Not two or three whole numbers of at least 1.
    """
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    try:
        found = tuple(whole_numbers(value, what)) if several else ()
    except InputError:
        found = ()
    if len(found) not in (1, 2, 3) or min(found) < 1:
        raise InputError(
            f"{what}: expected (h, w) of at least 1, or (d, h, w) of volumes, got {value!r}"
        )
    return found


def number_tensor(value: Any, what: str) -> Tensor:
    """Whole numbers as a tensor on the CPU.

    Raises:
        InputError: Values that are no whole numbers.
    """
    try:
        found = torch.as_tensor(value).cpu()
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_floating_point() or found.is_complex():
        raise InputError(f"{what}: expected whole numbers, got {value!r}")
    return found
