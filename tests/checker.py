"""The run-time checks of the tests: beartype, on functions and classes that name an array's shape.

Types without a shape are mypy's; jaxtyping would bind and check every call of them, which took more
than half of the time of tests that call much. An int is welcome where a float is asked for: PEP 484
says so, and mypy reads annotations that way too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

T = TypeVar("T")

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def shapes_only(*, typechecker: Any) -> Callable[[T], T]:
    """What jaxtyping's import hook puts above everything, for what names a shape."""
    checked: Callable[[T], T] = _jaxtyped(typechecker=typechecker)
    return lambda one: checked(one) if names_a_shape(one) else one


def names_a_shape(one: Any) -> bool:
    """Whether an annotation of a function or class is an array with its axes, or an alias."""
    home = getattr(one, "__globals__", None) or vars(sys.modules[one.__module__])
    return any(_shaped(each, home) for each in getattr(one, "__annotations__", {}).values())


def _shaped(annotation: Any, names: Mapping[str, Any]) -> bool:
    if isinstance(annotation, str):
        found = (names.get(word) for word in re.findall(r"\w+", annotation))
        return '"' in annotation or "'" in annotation or any(_shaped(each, {}) for each in found)
    if isinstance(annotation, type):
        return issubclass(annotation, jaxtyping.AbstractArray)
    return any(_shaped(each, {}) for each in get_args(annotation))


jaxtyping.jaxtyped = shapes_only
