"""`attnviz dashboard RUNS`: the reading room in a browser, on this machine alone.

The dashboard is no part of the package's namespace. In a checkout it lies beside `attnviz/`; in an
installed wheel below `attnviz/app/`. Either way the folder that holds it goes onto the
path of the process that runs it, and nothing but `attnviz` lands in site-packages.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from attnviz.cli.argument_types import whole, word
from attnviz.errors import RunError, UnsupportedError

_PACKAGE = Path(__file__).resolve().parent.parent


def arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("runs", nargs="?", default="runs", help="a folder of runs (default: runs)")
    parser.add_argument("--port", type=whole(1, 65535), default=8501, help="default: 8501")
    parser.add_argument(
        "--host",
        type=word,
        default="127.0.0.1",
        help="who may look: this machine alone (the default), or 0.0.0.0 for all",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(args: argparse.Namespace) -> int:
    """Run Streamlit until it is stopped."""
    if "://" not in args.runs and not (args.runs and Path(args.runs).is_dir()):
        raise RunError(
            f"dashboard: no folder {args.runs!r}; "
            "`uv run python -m experiments quickstart` makes one"
        )
    if find_spec("streamlit") is None:
        raise UnsupportedError(
            "dashboard: expected streamlit to be installed; pip install streamlit"
        )
    words, environment = command(app(), args)
    if os.name == "posix":  # becomes Streamlit, so that every signal reaches it
        os.execve(words[0], words, environment)
    return 2 if subprocess.run(words, env=environment).returncode else 0


def app() -> Path:
    """The dashboard's page, in the checkout or in the installed package.

    Raises:
        UnsupportedError: neither is there.
    """
    for folder in (_PACKAGE.parent, _PACKAGE / "app"):
        page = folder / "dashboard" / "app.py"
        if page.is_file() and (page.parent / "run_cache.py").is_file():
            return page
    raise UnsupportedError("dashboard: its pages are not installed; install attnviz from a wheel")


def command(page: Path, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of the process that serves the pages."""
    words = [
        *(sys.executable, "-m", "streamlit", "run", str(page)),
        *("--server.address", args.host, "--server.port", str(args.port)),
        *("--server.headless", "true" if args.no_browser else "false"),
        *("--server.showEmailPrompt", "false", "--browser.gatherUsageStats", "false"),
    ]
    path = os.pathsep.join(filter(None, (str(page.parent.parent), os.environ.get("PYTHONPATH"))))
    return words, {**os.environ, "PYTHONPATH": path, "ATTNVIZ_RUNS": args.runs}
