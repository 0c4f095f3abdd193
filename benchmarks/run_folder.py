"""Cost of run folders: listing many, reading one map of many, writing one.

    uv run python benchmarks/run_folder.py [--runs 1000]

Each number stands beside the least that any way of doing it would take, in the same run: reading
and parsing the headers, the safetensors library's own slice, a plain write with fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors import safe_open

from attnviz.runs import list_runs, open_run, start_run
from attnviz.text import table
from tests.runs.made import make


def milliseconds(work: Callable[[], object], repeats: int = 15) -> float:
    """The median of some repetitions, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def listing(root: Path, count: int) -> tuple[object, ...]:
    """List many runs, against reading and parsing their headers."""
    make(root / "run-0")
    for number in range(1, count):
        shutil.copytree(root / "run-0", root / f"run-{number}", copy_function=os.link)
    headers = [run.path / "run.json" for run in list_runs(root)]
    ours = milliseconds(lambda: list_runs(root), 5)
    least = milliseconds(lambda: [json.loads(path.read_bytes()) for path in headers], 5)
    return f"list {count} runs", ours, "read and parse their headers", least


def one_map(root: Path) -> tuple[object, ...]:
    """Read one map of a thousand, header included, against the library's slice."""
    maps = np.random.default_rng(0).random((1000, 4, 24, 24), dtype=np.float32)
    run = make(root / "maps", maps={"m": maps})
    path = run.path / "maps" / "m.safetensors"

    def library() -> object:
        with safe_open(path, framework="numpy") as file:
            return file.get_slice("values")[500:501], file.get_slice("scale")[500:501]

    ours = milliseconds(lambda: run.maps("m", [500]), 200)
    return "read 1 of 1000 maps", ours, "safetensors slices, unscaled", milliseconds(library, 200)


def opening(root: Path) -> tuple[object, ...]:
    """Open one run, against reading and parsing its header."""
    path = root / "maps"
    ours = milliseconds(lambda: open_run(path), 200)
    least = milliseconds(lambda: json.loads((path / "run.json").read_bytes()), 200)
    return "open a run", ours, "read and parse its header", least


def curve(root: Path) -> tuple[object, ...]:
    """Append a row and beat, against appending a line with fsync."""
    writer = start_run(root, "curve", variant="mha", settings={}, seed=0)
    with (root / "plain").open("ab", buffering=0) as file:

        def plain() -> None:
            file.write(b'{"epoch": 1}\n')
            os.fsync(file.fileno())

        least = milliseconds(plain, 50)
    ours = milliseconds(lambda: writer.curve(epoch=1), 50)
    writer.stop("measured")
    return "append a row of curves", ours, "append a line, fsync", least


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    args = parser.parse_args()
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        rows = [listing(Path(one), args.runs)]
        rows += [measure(Path(two)) for measure in (one_map, opening, curve)]
    print(table(("what", "ms", "beside", "ms"), rows))


if __name__ == "__main__":
    main()
