"""`attnviz dashboard RUNS`: browse runs in a browser, on this machine alone.

The dashboard is no part of the package's namespace. In a checkout it is beside `attnviz/`; in an
installed wheel below `attnviz/app/`. Either way the folder that holds it goes onto the
path of the process that runs it, and nothing but `attnviz` lands in site-packages.

A page of another site must not read the runs. Streamlit refuses connections whose `Origin` is
foreign (CORS) and uploads without its token (XSRF), whatever the user's own settings say; and those
whose `Host` is none of this machine's names, since a foreign name may be made to resolve to it (DNS
rebinding). A proxy's name is allowed by `--allow-host`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from attnviz.cli.argument_types import whole, word
from attnviz.cli.pairs import pairs
from attnviz.errors import RunError, UnsupportedError

_OWN = ("localhost", "127.0.0.1", "::1")
_EVERY = ("0.0.0.0", "::")
_PACKAGE = Path(__file__).resolve().parent.parent


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("runs", nargs="?", default="runs", help="a folder of runs (default: runs)")
    server_arguments(parser)


def server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server: port, host, names, browser."""
    parser.add_argument("--port", type=whole(1, 65535), default=8501, help="default: 8501")
    parser.add_argument(
        "--host",
        type=word,
        default="127.0.0.1",
        help="address to listen on: this machine alone (the default), or 0.0.0.0 for all",
    )
    parser.add_argument(
        "--allow-host",
        type=word,
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which browsers reach it, such as a proxy's; may be repeated",
    )
    parser.add_argument(
        "--model", type=word, metavar="FACTORY",
        help="how to build the model of these runs for Try it, such as package.module:callable",
    )  # fmt: skip
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE",
        help="an argument of that factory, such as num_classes=10; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--allow-changes", action="store_true",
        help="let those who reach it from elsewhere tag, rename and delete runs",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(args: argparse.Namespace) -> int:
    """Run Streamlit until it is stopped."""
    if "://" not in args.runs and not (args.runs and os.path.isdir(args.runs)):
        raise RunError(
            f"dashboard: no folder {args.runs[:200]!r}; `attnviz demo` shows finished runs"
        )
    if find_spec("streamlit") is None:
        raise UnsupportedError(
            "dashboard: expected streamlit to be installed; pip install streamlit"
        )
    if args.host not in _OWN:
        print(f"attnviz: {open_to_others(args)}", file=sys.stderr)
    words, environment = command(app(), args)
    print(f"attnviz: the dashboard is at {address(args)}; Ctrl-C stops it", flush=True)
    if os.name == "posix":  # becomes Streamlit, so that every signal reaches it
        os.execve(words[0], words, environment)
    return 2 if subprocess.run(words, env=environment).returncode else 0


def address(args: argparse.Namespace) -> str:
    """Where a browser on this machine reaches the pages."""
    host = "localhost" if args.host in _EVERY else args.host
    return f"http://{f'[{host}]' if ':' in host else host}:{args.port}"


def open_to_others(args: argparse.Namespace) -> str:
    """The warning to print before other machines can reach the pages."""
    names = ", ".join(allowed_hosts(args.host, args.allow_host))
    return (
        f"everyone who reaches port {args.port} can read these runs and use this machine: there is "
        "no log-in unless Streamlit's OIDC is set up (docs/sharing.md); reached by the names "
        f"{names}, others by --allow-host"
    )


def allowed_hosts(host: str, others: Sequence[str] = ()) -> list[str]:
    """The names by which browsers may address the server, without ports.

    Args:
        host: The address that the server listens on.
        others: Names that the user allows.
    """
    names = [*_OWN]
    if host not in (*_OWN, *_EVERY):
        names.append(host)
    elif host in _EVERY:
        names += _names_of_this_machine()
    return list(dict.fromkeys([*names, *others]))


def _names_of_this_machine() -> list[str]:
    """This machine's host name and addresses, as far as the system lists them."""
    name = socket.gethostname()
    found = [name, f"{name.partition('.')[0]}.local"]
    with suppress(OSError):
        found += [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(name, None)]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the outgoing address
        found.append(probe.getsockname()[0])
    return found


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
    """The command line and environment of the server process."""
    words = [
        *(sys.executable, "-m", "streamlit", "run", str(page)),
        *("--server.address", args.host, "--server.port", str(args.port)),
        *("--server.headless", "true" if args.no_browser else "false"),
        *("--server.showEmailPrompt", "false", "--browser.gatherUsageStats", "false"),
        *("--logger.hideWelcomeMessage", "true"),  # and Streamlit's card that advertises its own
        *("--server.enableCORS", "true", "--server.enableXsrfProtection", "true"),
    ]
    for name in allowed_hosts(args.host, args.allow_host):
        words += ["--server.allowedHosts", name]
    own = os.getcwd() if args.model else None  # where a user's module is imported from
    parts = (str(page.parent.parent), own, os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, parts))}
    environment["ATTNVIZ_RUNS"] = args.runs
    environment["ATTNVIZ_CHANGES"] = "1" if args.host in _OWN or args.allow_changes else "0"
    environment.pop("ATTNVIZ_MODEL", None)
    if args.model:
        model = {"factory": args.model, "settings": pairs("--setting", args.setting)}
        environment["ATTNVIZ_MODEL"] = json.dumps(model)
    return words, environment
