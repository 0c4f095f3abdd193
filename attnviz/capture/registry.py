"""The table of rules: for the name of an op, the function that follows it.

A rule is a function `rule(session, func, args, kwargs)` that runs the op and returns its result:

    @rule("aten.relu.default", "aten.relu_.default")
    def rectify(session, func, args, kwargs):
        out = func(*args, **kwargs)
        ...
        return out

It must run the op exactly as it was called; only an edit may put something in the place of an
argument or a result. Ops that this version of torch does not have need no care: their names are
never looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from attnviz.capture.session import Session
from attnviz.errors import InputError

Rule = Callable[[Session, Any, Any, Any], Any]
R = TypeVar("R", bound=Rule)


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and what it accepts.

    Attributes:
        rule: The rule.
        nested: Whether its op may be given nested tensors, which have no shape.
        fixed: Whether it also reads ops on parameters alone, as those of learned queries.
    """

    rule: Rule
    nested: bool = False
    fixed: bool = False


RULES: dict[str, Entry] = {}
"""All rules by the names of ops, such as `"aten.bmm.default"`."""

FOUND: dict[Any, Any] = {}
"""What the dispatch has found out about each op; emptied when a rule is registered."""


def rule(*ops: str, nested: bool = False, fixed: bool = False) -> Callable[[R], R]:
    """Register the function below it as the rule of some ops, replacing the rule they had.

    Args:
        *ops: Names as torch prints them, `"namespace.op.overload"`; of a higher-order operator the
            name alone.
        nested: Whether the rule is to be called with nested tensors, too.
        fixed: Whether it is to be called with parameters alone, too, such as learned queries.

    Raises:
        InputError: No name, or one that is no op's.
    """
    wrong = [op for op in ops if not isinstance(op, str) or op.count(".") not in (0, 2)]
    if wrong or not ops:
        raise InputError(
            f"rule: expected names of ops such as 'aten.bmm.default', got {wrong[0]!r}"
            if wrong
            else "rule: expected the name of an op, got none"
        )

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(ops, Entry(function, nested, fixed)))
        FOUND.clear()
        return function

    return register
