"""What may be the name of a run, a map or a file: never a way out of the run folder.

Names come from users, from settings and from files written by strangers, and end up in paths, in
columns and in pages. So they are plain: ASCII letters, digits and `. _ - + = @ ,`, beginning with
a letter or a digit. That leaves no `../`, no absolute path, no control character, no hidden file.
"""

from __future__ import annotations

import re

from attnviz.errors import InputError

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@,-]{0,119}")
_RESERVED = frozenset({"datasets"})


def is_plain(name: object) -> bool:
    """Whether this is a name that can be one part of a path."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and name[-1] != "."


def is_relative(path: object) -> bool:
    """Whether this is a `/`-separated path of plain names, at most four deep."""
    return isinstance(path, str) and path.count("/") < 4 and all(map(is_plain, path.split("/")))


def checked(what: str, name: object) -> str:
    """The name itself, or an error that says what a name may look like.

    Args:
        what: What the name stands for, such as `"run id"`.
        name: What came.

    Raises:
        InputError: it is no plain name.
    """
    if not isinstance(name, str) or not is_plain(name):
        raise InputError(
            f"{what} {str(name)[:80]!r}: expected up to 120 of the characters A-Z a-z 0-9 . _ - + "
            "= @ , beginning with a letter or digit, not ending with a dot"
        )
    return name


def checked_id(run_id: object) -> str:
    """The id of a run: a plain name that is not taken by the layout of the runs folder."""
    name = checked("run id", run_id)
    if name in _RESERVED:
        raise InputError(f"run id {name!r}: that folder holds the test images; choose another")
    return name


def checked_file(name: object) -> str:
    """The name of a file in a run folder: plain names joined by `/`, below the run."""
    if not isinstance(name, str) or not is_relative(name):
        raise InputError(
            f"file name {str(name)[:80]!r}: expected plain names joined by '/', inside the run"
        )
    return name
