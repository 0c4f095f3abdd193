"""Names of runs, arrays and files, and the file names that result from them.

Names come from users, settings and untrusted files, and become parts of paths. A run id and every
part of a file's path use ASCII letters, digits and `. _ - + = @ ,` and begin with a letter or a
digit: no `../`, no absolute path, no control character, no hidden file.

An array (a map, a gate, a layer's rows) may have any printable name, since modules may have any:
`blocks.0.attn#1`, `größe`, the empty name of the model itself. Its file is called by the same name
with every other character percent-encoded. A name is accepted if the longest file name that can
result from it (with its ending, a number after it is replaced, and the mark of a half-written
file) is valid, so what is accepted can be read back.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from attnviz.errors import InputError

NAME_LIMIT = 120
"""Characters of a name, and bytes of an array's encoded name."""

_PART_LIMIT = 180  # a name, ".safetensors", and a number; a partial file adds 18 to it
_DEPTH = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@,-]*")
_PART = re.compile(r"[A-Za-z0-9%][A-Za-z0-9._+=@,#%-]*")
_RESERVED = frozenset({"datasets"})
_ENDING = ".safetensors"
_EMPTY = "%"


def is_plain(name: object) -> bool:
    """Whether this is a valid run id or digest."""
    return _matches(_NAME, name, NAME_LIMIT)


def is_relative(path: object) -> bool:
    """Whether this is a `/`-separated path of valid file names, at most four deep."""
    if not isinstance(path, str) or path.count("/") >= _DEPTH:
        return False
    return all(_matches(_PART, part, _PART_LIMIT) for part in path.split("/"))


def checked(what: str, name: object) -> str:
    """The name itself, or an error that states the allowed form.

    Args:
        what: The kind of name, such as `"run id"`.
        name: What came.

    Raises:
        InputError: it is no valid name.
    """
    if not isinstance(name, str) or not is_plain(name):
        raise InputError(
            f"{what} {str(name)[:80]!r}: expected up to {NAME_LIMIT} of the characters A-Z a-z 0-9 "
            ". _ - + = @ , beginning with a letter or digit, not ending with a dot"
        )
    return name


def checked_id(run_id: object) -> str:
    """The id of a run: a valid name that is not taken by the layout of the runs folder."""
    name = checked("run id", run_id)
    if name in _RESERVED:
        raise InputError(f"run id {name!r}: that folder holds the test images; choose another")
    return name


def checked_file(name: object) -> str:
    """The name of a file in a run folder: valid names joined by `/`, below the run."""
    parts = name.split("/") if isinstance(name, str) else []
    if not isinstance(name, str) or len(parts) > _DEPTH or not all(map(is_plain, parts)):
        raise InputError(
            f"file name {str(name)[:80]!r}: expected plain names joined by '/', inside the run"
        )
    return name


def array_file(folder: str, name: object) -> str:
    """The path of an array's file in a run folder.

    Args:
        folder: `"maps"`, `"gates"` or `"rows"`.
        name: The array's name, such as a module's dotted name.

    Raises:
        InputError: the name is too long or has characters that cannot be printed.
    """
    encoded = _encoded(name)
    if encoded is None or len(encoded) > NAME_LIMIT:
        raise InputError(
            f"name of {folder} {str(name)[:80]!r}: expected printable text of up to {NAME_LIMIT} "
            "bytes, each character but A-Z a-z 0-9 . _ - + = @ , # counting as three or more"
        )
    return f"{folder}/{encoded}{_ENDING}"


def array_name(folder: str, path: str) -> str | None:
    """The name of the array that a file holds; None where the path is not of such a file."""
    start, end = len(folder) + 1, len(path) - len(_ENDING)
    if not path.startswith(f"{folder}/") or not path.endswith(_ENDING):
        return None
    encoded = path[start:end]
    name = "" if encoded == _EMPTY else unquote(encoded, errors="replace")
    return name if _encoded(name) == encoded else None


def _encoded(name: object) -> str | None:
    """A name as part of a path: unchanged where it is plain, else percent-encoded."""
    if not isinstance(name, str) or not name.isprintable():
        return None
    if not name:
        return _EMPTY
    try:
        encoded = quote(name, safe="._-+=@,#")
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    if not encoded[0].isalnum() and encoded[0] != "%":
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    return encoded.replace("~", "%7E")


def _matches(pattern: re.Pattern[str], name: object, most: int) -> bool:
    if not isinstance(name, str) or len(name) > most or name[-1:] == ".":
        return False
    return pattern.fullmatch(name) is not None
