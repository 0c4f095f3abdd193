"""The table of data sets: a file of this folder registers its own with `@source`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

Reader = TypeVar("Reader", bound=Callable[..., Any])


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        name: What `--data` takes.
        read: `(split, count, *, seed, side)` and, for images on disk, `path` → `(n, side, side, 3)`
            uint8.
        on_disk: Whether it needs a folder, `--path`.
        how: What to do where the folder is missing.
        revision: Which images these are, where that changed; part of a run's name. 0 for images
            that were always the same.
        groups: `(split, count)` → the photograph that each image was cropped from; None where
            every image is a photograph of its own.
        about: The test set's origin, as metadata.
    """

    name: str
    read: Callable[..., Any]
    on_disk: bool = True
    how: str = ""
    revision: int = 0
    groups: Callable[[str, int], list[str]] | None = None
    about: Callable[[], Mapping[str, Any]] | None = None


_SOURCES: dict[str, Source] = {}


def source(name: str, **about: Any) -> Callable[[Reader], Reader]:
    """Register the function below as the reader of a data set; `about` are fields of `Source`."""

    def enter(read: Reader) -> Reader:
        _SOURCES[name] = Source(name, read, **about)
        return read

    return enter


@cache
def _imported() -> None:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("__init__", "registry"):
            import_module(f"experiments.data.{path.stem}")


def sources() -> dict[str, Source]:
    """Every data set by its name, the built-in photographs first."""
    _imported()
    return dict(sorted(_SOURCES.items(), key=lambda item: (item[1].on_disk, item[0])))
