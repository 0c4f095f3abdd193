"""Time of the quickstart, beside that of an earlier commit or of its former settings.

    uv run python benchmarks/quickstart.py [--old COMMIT] [--repeats 1] [--workers N]

Runs `python -m experiments quickstart` with its own settings, with those of its first version
(96 px, 960 training images, 8 epochs, float32), and with `--old` that commit's own code in a work
tree of its own; each in a fresh process and folder, in turns. Prints wall seconds, processor
seconds and their ratios. Imports and the start of the workers count. On a machine with other work,
read the ratio of processor seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from attnviz.text import table

ROOT = Path(__file__).resolve().parent.parent
BEFORE = (  # noqa: SIM905 - reads as it would be typed
    "--side 96 --size 16 --train-images 960 --test-images 400 --epochs 8 --batch 32 "
    "--precision fp32"
).split()
CASES = {
    "before": BEFORE,
    "today": [],
    "today, float32": ["--precision", "fp32"],
}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A work tree of that commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit],
            cwd=ROOT, check=True,
        )  # fmt: skip
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT)


def seconds(words: list[str], tree: Path = ROOT) -> tuple[float, float]:
    """Wall and processor seconds of one quickstart of a checkout, its workers included."""
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), _processor_seconds()
        subprocess.run(
            [sys.executable, "-m", "experiments", "quickstart", *words, "--runs", folder],
            check=True, stdout=subprocess.DEVNULL, cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )  # fmt: skip
        return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(cases: dict[str, tuple[list[str], Path]], repeats: int) -> dict[str, list[float]]:
    """Case → median wall and processor seconds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (words, tree) in cases.items():
            taken[name].append(seconds(words, tree))
            print(f"{name}: {taken[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: [median(part) for part in zip(*found, strict=True)] for name, found in taken.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--old", metavar="COMMIT", help="its code instead of the former settings")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    extra = [] if args.workers is None else ["--workers", str(args.workers)]
    if args.old:
        with checkout(args.old) as tree:
            found = timed({args.old: (extra, tree), "today": (extra, ROOT)}, args.repeats)
    else:
        found = timed({name: ([*w, *extra], ROOT) for name, w in CASES.items()}, args.repeats)
    first = next(iter(found.values()))
    rows = [
        (
            name,
            *(f"{one:.0f}" for one in own),
            *(f"{a / b:.2f}" for a, b in zip(first, own, strict=True)),
        )
        for name, own in found.items()
    ]
    print(table(("quickstart", "wall s", "processor s", "times as quick, wall", "processor"), rows))


if __name__ == "__main__":
    main()
