"""Where a command writes, checked before it does any work: types for argparse.

A name's ending says the format; one that promises another is refused rather than given a PNG.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def file(*endings: str) -> Callable[[str], Path]:
    """A file to be written, whose name ends in one of these."""

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
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ArgumentTypeError(f"expected folders above {text!r}, {above.name!r} is a file")
    return path
