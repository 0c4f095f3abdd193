"""Exceptions of attnviz.

Every message states the failed operation, what it expected, what it got and the nearest remedy:
lower case, no exclamation mark. Each class also inherits from the matching built-in exception, so
`except ValueError` works.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 24  # names in a message: more than a screen of them hides the rest


class AttnvizError(Exception):
    """The root of all errors that attnviz raises on purpose."""


class InputError(AttnvizError, ValueError):
    """An argument has the wrong shape, type, range or name."""


class NothingSeenError(AttnvizError, LookupError):
    """A watch ended without recording any attention or gate."""


class UnsupportedError(AttnvizError, RuntimeError):
    """The model is in a form that cannot be watched or edited; the message names the remedy."""


class RunError(AttnvizError, OSError):
    """A run folder is missing, broken, newer than this version, or cannot be written."""


class CompletenessWarning(UserWarning):
    """Attributions do not add up to the change of the output; the message gives the error."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> InputError:
    """An error for a name that does not exist, with the nearest one that does.

    Args:
        what: The kind of name, such as `"variant"`.
        name: The unknown name.
        known: All valid names.

    Returns:
        The error, to be raised by the caller. Of many names it lists the nearest.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {name!r}: {hint}expected one of {_listed(name, names)}")


def _listed(name: str, names: list[str]) -> str:
    if len(names) <= _LISTED:
        return ", ".join(names)
    near = difflib.get_close_matches(name, names, n=_LISTED // 2, cutoff=0.0)
    return f"{len(names)}, such as {', '.join(near)}"
