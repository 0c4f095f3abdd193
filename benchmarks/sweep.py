"""The same sweep over one Dask worker and over two, one thread each.

    uv run python benchmarks/sweep.py [--variant cbam] [--seeds 8] [--epochs 2] [--rounds 1]

The workers are processes on loopback that have been started, and have imported what a run needs,
before the clock is; what is measured is their work: a plan of trainings that differ
in their seed, trained and measured into an empty folder. The runs of both must be the same to the
last bit. The exit code is 1 if two workers are less than 1.7 times as fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from distributed import Client

from attnviz.executors import Workers, cores
from attnviz.runs import open_run
from attnviz.text import table
from experiments.axes import Grid, grid
from experiments.running import try_training
from experiments.settings import Settings
from experiments.sweep import run_all
from tests.cluster import cluster

WANTED = 1.7
_SMALL = Settings(side=32, size=8, train_images=8, val_images=8, test_images=8, batch=8, epochs=1)


def warmed(root: str, settings: Settings) -> str:
    """A tiny run, in each worker a folder of its own."""
    return try_training(settings, Path(tempfile.mkdtemp(dir=root))).state


def timed(plan: Grid, workers: int) -> tuple[float, list[np.ndarray]]:
    """Seconds for a plan, and what its runs answered."""
    with tempfile.TemporaryDirectory() as name, cluster(Path(name), workers) as address:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers)
            states = client.run(warmed, name, dataclasses.replace(_SMALL, variant=plan[0].variant))
            assert set(states.values()) == {"done"}, states
        root = Path(name) / "runs"
        start = time.perf_counter()
        outcomes = run_all(plan, root, workers=Workers(scheduler=address))
        seconds = time.perf_counter() - start
        assert {one.state for one in outcomes} == {"done"}, outcomes
        return seconds, [open_run(root / s.run_id).samples()["logit"].to_numpy() for s in plan]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", default="cbam")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="of one worker, then two")
    args = parser.parse_args()
    base = Settings(
        variant=args.variant, epochs=args.epochs, side=48, size=8, threads=1, device="cpu",
        train_images=320, val_images=100, test_images=100,
    )  # fmt: skip
    plan = grid(base, {"seed": range(args.seeds)})
    rows, ratios = [], []
    for number in range(args.rounds):
        (one, answers), (two, others) = timed(plan, 1), timed(plan, 2)
        assert all(map(np.array_equal, answers, others)), "the answers differ"
        ratios.append(one / two)
        rows.append((number + 1, one, two, one / two))
    print(f"{len(plan)} runs of {base.variant}, {base.epochs} epochs each, on {cores()} cores\n")
    print(table(("round", "one worker, s", "two workers, s", "ratio"), rows))
    ratio = statistics.median(ratios)
    print(f"\ntwo workers are {ratio:.2f} times as fast as one (wanted: {WANTED})")
    return 0 if ratio >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
