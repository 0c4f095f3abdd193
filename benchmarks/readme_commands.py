"""The README's first two commands, in a fresh clone and a fresh environment of each Python.

    uv run python benchmarks/readme_commands.py [--python 3.12 …] [--whole]

Clones the checkout, asks uv for the Python, and runs there what the README says: `attnviz demo`,
until its first page answers, and the quickstart. Without `--whole` the quickstart trains one epoch
on a few images, which takes the same way through the code in less time. A Python that this machine
has not, and that uv cannot install, is reported as not run. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from fresh_install import interpreter

from attnviz.text import table

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SMALL = ("--epochs", "1", "--train-images", "32", "--val-images", "20", "--test-images", "20",
         "--side", "32", "--faithful", "2", "--follow", "4")  # fmt: skip


def environment(python: str, home: Path) -> dict[str, str]:
    """This process's, with the Python chosen and nothing that leads back to the checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "UV_PYTHON": python, "XDG_CACHE_HOME": str(home), "UV_CACHE_DIR": uv_cache()}


def uv_cache() -> str:
    """The cache of uv: what is tried is the installation, not the download."""
    done = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def found(python: str) -> str | None:
    """That Python: one of this machine, or one that uv installs."""
    if here := interpreter(python):
        return here
    done = subprocess.run(["uv", "python", "install", python], capture_output=True)
    return python if done.returncode == 0 else None


def demo(clone: Path, env: dict[str, str]) -> str:
    """Seconds until the demo answers, its environment made before."""
    subprocess.run(["uv", "sync", "--quiet", "--no-dev"], cwd=clone, env=env, check=True)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    words = ["uv", "run", "--no-dev", "attnviz", "demo", "--no-browser", "--port", str(port)]
    start = time.monotonic()
    with subprocess.Popen(words, cwd=clone, env=env, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, start_new_session=True) as child:  # fmt: skip
        try:
            while child.poll() is None and time.monotonic() - start < 120:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        if answer.status == 200:
                            return f"{time.monotonic() - start:.1f} s"
                except OSError:
                    time.sleep(0.1)
        finally:
            os.killpg(child.pid, signal.SIGINT)
    return "NO"


def quickstart(clone: Path, env: dict[str, str], words: tuple[str, ...]) -> str:
    """Seconds that the quickstart took."""
    start = time.monotonic()
    command = ["uv", "run", "--no-dev", "python", "-m", "experiments", "quickstart", *words]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    if done.returncode or "The doctor on these trainings" not in done.stdout:
        print("\n".join(done.stderr.splitlines()[-3:]), file=sys.stderr)
        return "NO"
    return f"{time.monotonic() - start:.0f} s"


def tried(python: str, words: tuple[str, ...]) -> tuple[str, str, str]:
    """A line of the table."""
    chosen = found(python)
    if chosen is None:
        return python, "not run: no such Python here", ""
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "attnviz"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        env = environment(chosen, Path(scratch) / "cache")
        answered = demo(clone, env)
        print(f"{python}: the demo answers after {answered}", file=sys.stderr, flush=True)
        return python, answered, quickstart(clone, env, words)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS, help="may be repeated")
    parser.add_argument("--whole", action="store_true", help="the quickstart as a user runs it")
    args = parser.parse_args()
    lines = [tried(one, () if args.whole else SMALL) for one in args.python or PYTHONS]
    print(table(("Python", "demo answers", "quickstart"), lines))
    return 1 if any("NO" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
