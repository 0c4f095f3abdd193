"""Argument types for argparse, checked before any work begins.

The extension of an output file sets its format; an unsupported extension is an error. An empty
argument, as an unset shell variable leaves, is an error too.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from attnviz.errors import InputError
from attnviz.runs.outputs import outside_runs
from attnviz.runs.storage import cause_of


def word(text: str) -> str:
    """A string that is not empty."""
    if not text:
        raise ArgumentTypeError("expected a word, got an empty one")
    return text


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """A whole number between two, both included."""

    def checked(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if number < least:
            raise ArgumentTypeError(f"expected {least} or more, got {text}")
        if number > most:
            raise ArgumentTypeError(f"expected at most {most}, got {text}")
        return number

    return checked


def target(text: str) -> str | int:
    """An output that is explained: `label`, `predicted`, an index or the name of a class."""
    return whole(0)(text) if text.isdecimal() else word(text)


LARGEST = 4096
"""The largest side: eight images of it take 1.6 GB before any layer has seen them."""


def size(text: str) -> tuple[int, int]:
    """A size of images: `224`, or height × width as `80x112`."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ArgumentTypeError(f"expected a size in pixels, 224 or 80x112, got {text!r}")
    height, *width = (whole(1, LARGEST)(side) for side in sides)
    return height, *(width or [height])  # type: ignore[return-value]  # two, as checked above


seed = whole(0, 2**32 - 1)
"""The seeds that the generators of numpy, torch and Captum all accept."""


def file(*endings: str) -> Callable[[str], Path]:
    """An output file with one of these extensions."""

    def checked(text: str) -> Path:
        path = _inside_folders(text)
        if path.suffix.lower() not in endings:
            *others, last = endings
            wanted = f"{', '.join(others)} or {last}" if others else last
            raise ArgumentTypeError(f"expected a name that ends in {wanted}, got {text!r}")
        if path.is_dir():
            raise ArgumentTypeError(f"expected a file, got the folder {text!r}")
        return path

    return checked


def folder(text: str) -> Path:
    """A folder to write into; made when there is something to write."""
    path = _inside_folders(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"expected a folder, got the file {text!r}")
    return path


def _inside_folders(text: str) -> Path:
    if not text:
        raise ArgumentTypeError("expected a path, got an empty word")
    path = Path(text)
    try:
        above = next(parent for parent in path.absolute().parents if parent.exists())
        path.exists()
        if above.is_dir():
            return outside_runs(path)
    except InputError as error:
        raise ArgumentTypeError(str(error).partition(": ")[2]) from error
    except (OSError, ValueError) as error:  # too long, a loop of links, a null character
        raise ArgumentTypeError(f"expected a path, got {text[:80]!r} ({cause_of(error)})") from (
            error
        )
    raise ArgumentTypeError(f"expected folders above {text!r}, {above.name!r} is a file")
