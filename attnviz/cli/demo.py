"""`attnviz demo`: the dashboard over finished runs that come with the package.

The runs lie beside the dashboard: in a checkout in `demo/`, in an installed wheel below
`attnviz/app/`. They are read-only there. The dashboard keeps tags and notes beside the runs, so it
is given a copy, whole or not at all: in the user's cache folder, or in `--folder`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from attnviz.cli import dashboard
from attnviz.errors import RunError, UnsupportedError
from attnviz.runs.storage import partial_name

NOTE = "README.txt"
"""What the runs are, in words; the dashboard shows it beside the folder's name."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the runs are copied to (default: attnviz/demo-VERSION in the user's cache "
        "folder, $XDG_CACHE_HOME or ~/.cache)",
    )
    dashboard.server_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Copy the runs where they can be written to, and serve them until stopped."""
    folder = copied(bundled(), args.folder or cache_folder())
    print(f"{(folder / NOTE).read_text()}\nruns: {folder}", flush=True)
    args.runs = str(folder)
    return dashboard.run(args)


def bundled() -> Path:
    """The runs that come with the package, in the checkout or in the installed wheel.

    Raises:
        UnsupportedError: Neither is there.
    """
    found = dashboard.app().parents[1] / "demo"
    if (found / NOTE).is_file():
        return found
    raise UnsupportedError("demo: its runs are not installed; install attnviz from a wheel")


def cache_folder() -> Path:
    """The default folder of the copy; below the temporary folder where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = f"demo-{version('attnviz')}"
    above = _there(Path(home))
    if os.path.isabs(home) and above.is_dir() and os.access(above, os.W_OK):
        return Path(home) / "attnviz" / name
    return Path(tempfile.mkdtemp(prefix="attnviz-")) / name


def copied(source: Path, folder: Path) -> Path:
    """The folder with a copy of the runs in it; one that is there already is taken as it is.

    Raises:
        RunError: Something else is there, or it cannot be written.
    """
    if _is_copy(folder, source):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"demo: {folder} is there and holds something else; expected an empty or new folder"
        )
    aside = folder.with_name(partial_name(folder.name))
    try:
        shutil.copytree(source, aside, copy_function=shutil.copyfile)
        for part in (aside, *aside.rglob("*")):  # folders may be read-only where they come from
            part.chmod(0o755 if part.is_dir() else 0o644)
        aside.replace(folder)
    except OSError as error:
        if _is_copy(folder, source):  # another process made it at the same moment
            return folder
        reason = (error.strerror or "it cannot be written").lower()
        message = f"demo: copy the runs to {folder}: {reason}; --folder chooses another place"
        raise RunError(message) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _is_copy(folder: Path, source: Path) -> bool:
    try:
        return (folder / NOTE).read_bytes() == (source / NOTE).read_bytes()
    except OSError:
        return False


def _there(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
