"""Whether `tests/capture` passes on every torch from the lowest allowed to the newest.

    uv run python benchmarks/torch_versions.py                 # 2.9 to 2.15: many gigabytes
    uv run python benchmarks/torch_versions.py 2.9 2.12 -- -x  # these, with options for pytest

Each version is installed by uv into an environment of its own, with the torchvision that belongs to
it, and the tests run there. Printed is a table of what passed and failed, with the processor; a
version that cannot be installed is named as not run. Exit code 1 if a test failed or a version did
not run.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

from attnviz.text import table

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("2.9", "2.10", "2.11", "2.12", "2.13", "2.14", "2.15")
FIRST = (9, 24)  # torch 2.9 came with torchvision 0.24, and so on
TOOLS = (
    "pytest>=8.4",
    "hypothesis>=6.120",
    "pytest-timeout",
    "beartype",
    "timm>=1.0.15",
    "transformers>=4.50",
)


def processor() -> str:
    """The processor's name, and whether it has matrix instructions (AMX)."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    amx = "with" if "amx_tile" in text else "without"
    return f"{name[1] if name else platform.processor() or platform.machine()}, {amx} AMX"


def ran(version: str, options: list[str]) -> tuple[str, str, str, str]:
    """One version's row: what was installed, how many tests passed, how many failed, and which."""
    minor = int(version.split(".")[1])
    vision = f"torchvision==0.{minor - FIRST[0] + FIRST[1]}.*"
    command = ["uv", "run", "--isolated", "--no-project", "--with-editable", str(ROOT)]
    for needed in (f"torch=={version}.*", vision, *TOOLS):
        command += ["--with", needed]
    command += [
        "python",
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "tests/capture",
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    if not counts:
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return version, "not run", "", output[-1][:80] if output else f"exit code {done.returncode}"
    which = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return version, str(counts.get("passed", 0)), str(failed), ", ".join(which[:8])


def main() -> int:
    """Try the versions that are named, or all."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    versions, options = words[:cut] or list(VERSIONS), words[cut + 1 :]
    print(f"{processor()}; Python {platform.python_version()}", flush=True)
    rows = []
    for version in versions:
        rows.append(ran(version, options))
        print("  ".join(rows[-1]), flush=True)
    print(f"\n{table(('torch', 'passed', 'failed', 'which'), rows)}")
    return int(any(row[2] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
