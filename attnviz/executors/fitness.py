"""Check that a worker has the same package versions and can read the shared folders."""

from __future__ import annotations

import platform
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from attnviz.errors import RunError

SEEN_WITHIN = 10.0
"""Time within which a network folder shows a new file, in seconds."""

_ABANDONED = 7 * 86400.0  # longer than any work: late workers look for the file until it ends

_PACKAGES = ("attnviz", "torch", "numpy", "distributed")


def unfit(wanted: Mapping[str, str], signs: Sequence[Path], within: float) -> str:
    """The reason why this process is unfit, continuing "the worker …"; empty if it is fit.

    Args:
        wanted: The `versions` of the submitting process.
        signs: The marker files of `in_sight` in the shared folders.
        within: Time within which a network folder shows them, in seconds.
    """
    found = versions()
    other = [
        f"{name} {found.get(name, '(none)')} instead of {one}"
        for name, one in wanted.items()
        if found.get(name) != one
    ]
    if other:
        return f"has {', '.join(other)}; install the same versions everywhere"
    return next(filter(None, (sees(sign, within) for sign in signs)), "")


@contextmanager
def in_sight(folder: Path) -> Iterator[Path]:
    """Create a marker file, by which a worker verifies that it reads the same folder.

    Raises:
        RunError: Nothing can be written there.
    """
    sign = folder / f".{uuid.uuid4().hex[:8]}.seen"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".????????.seen"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink(missing_ok=True)
        sign.touch()
    except OSError as error:
        raise RunError(f"write {folder}: {error.strerror or error}") from error
    try:
        yield sign
    finally:
        with suppress(OSError):
            sign.unlink()


def sees(sign: Path, within: float = SEEN_WITHIN) -> str:
    """Empty if this process sees the file of `in_sight`, else what "the worker …" lacks."""
    end = time.monotonic() + within
    while not sign.exists():
        if time.monotonic() > end:
            return (
                f"on {socket.gethostname()} does not see the folder {sign.parent} that runs go to; "
                "use one that all workers share, under the same path"
            )
        time.sleep(0.1)
    return ""


def versions() -> dict[str, str]:
    """Package versions that must agree on all workers for equal numbers and formats."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
