"""Time of the quickstart, beside its former settings.

    uv run python benchmarks/quickstart.py [--repeats 1] [--workers N]

Runs `python -m experiments quickstart` with its own settings and with those of its first version
(96 px, 960 training images, 8 epochs, float32), each in a fresh process and folder, in turns, and
prints wall seconds, processor seconds and their ratios. Imports and the start of the workers count.
On a machine with other work, read the ratio of processor seconds.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

from attnviz.text import table

BEFORE = (  # noqa: SIM905 - reads as it would be typed
    "--side 96 --size 16 --train-images 960 --test-images 400 --epochs 8 --batch 32 "
    "--precision fp32"
).split()
CASES = {
    "before": BEFORE,
    "today": [],
    "today, float32": ["--precision", "fp32"],
}


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one quickstart, its workers included."""
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), _processor_seconds()
        subprocess.run(
            [sys.executable, "-m", "experiments", "quickstart", *words, "--runs", folder],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    extra = [] if args.workers is None else ["--workers", str(args.workers)]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(args.repeats):
        for name, words in CASES.items():
            taken[name].append(seconds([*words, *extra]))
            print(f"{name}: {taken[name][-1]}", file=sys.stderr, flush=True)
    wall, work = ({name: median(one[n] for one in found) for name, found in taken.items()}
                  for n in (0, 1))  # fmt: skip
    rows = [
        (name, f"{wall[name]:.0f}", f"{work[name]:.0f}", f"{wall['before'] / wall[name]:.2f}",
         f"{work['before'] / work[name]:.2f}")
        for name in CASES
    ]  # fmt: skip
    head = ("quickstart", "wall s", "processor s", "times as quick, wall", "processor")
    print(table(head, rows))


if __name__ == "__main__":
    main()
