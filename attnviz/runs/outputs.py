"""Files that commands and functions write beside runs, never into one."""

from __future__ import annotations

from pathlib import Path

from attnviz.errors import InputError
from attnviz.runs.layout import DATASET_HEADER, HEADER
from attnviz.runs.storage import write_whole

_FIRST = 4096


def write_output(path: Path, content: bytes) -> None:
    """Write a table, a figure or a page: whole or not at all, and not into a run.

    Raises:
        InputError: the path is inside a run or a set of test images.
        RunError: it cannot be written.
    """
    write_whole(outside_runs(path), content)


def outside_runs(path: Path) -> Path:
    """The path itself, unless a file there would become part of a run, or replace one of its own.

    Raises:
        InputError: the path is that of a run or of test images, lies in one, or has the name of
            a run's header.
    """
    if path.name in (HEADER, DATASET_HEADER):
        raise InputError(f"write {path}: {path.name} is the header of a run; choose another name")
    whole = path.parent.resolve() / path.name
    for folder in (whole, *whole.parents):
        for name in (HEADER, DATASET_HEADER):
            if _is_header(folder / name):
                raise InputError(
                    f"write {path}: {folder} is a run (it has a {name}), and only its own files "
                    "belong there; choose a place outside"
                )
    return path


def _is_header(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return b'"schema"' in file.read(_FIRST)
    except OSError:
        return False
