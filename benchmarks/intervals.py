"""How often a 95 % interval holds the truth, and how long a comparison takes.

    uv run python benchmarks/intervals.py [--studies 1000] [--images 2048] [--metrics 12]

Coverage: studies are simulated with a mean of 0 and normal spread of seeds, images and their
interaction, all of them alike. Ours is mean ± t·SE as `attnviz.compare` has it; beside it stand the
percentiles of a plain two-way bootstrap (as many seeds drawn as there are) on the same studies.
Time: one variant of one seed, then six variants of five seeds with all their pairs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from attnviz.comparison import compare
from attnviz.comparison.resampling import half_width, image_draws, seed_weights


def ours(scores: np.ndarray, rng: np.random.Generator) -> bool:
    centres, draws = image_draws(scores, resamples=1000, rng=rng)
    weights = seed_weights(len(scores), resamples=1000, rng=rng)
    width = half_width(scores, ((draws + centres) * weights).sum(1), 0.95)
    return bool(abs(scores.mean()) <= width)


def percentiles(scores: np.ndarray, rng: np.random.Generator) -> bool:
    centres, draws = image_draws(scores, resamples=1000, rng=rng)
    seeds = len(scores)
    picks = rng.integers(0, seeds, (1000, seeds))
    means = np.take_along_axis(draws + centres, picks, axis=1).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return bool(low <= 0 <= high)


def coverage(seeds: int, studies: int, *, of_seeds: float, images: int = 40) -> tuple[float, float]:
    held = np.zeros(2)
    for study in range(studies):
        rng = np.random.default_rng([seeds, study])
        scores = (
            of_seeds * rng.normal(size=(seeds, 1))
            + rng.normal(size=(1, images))
            + rng.normal(size=(seeds, images))
        )
        held += ours(scores, rng), percentiles(scores, rng)
    return float(held[0] / studies), float(held[1] / studies)


def seconds(variants: int, seeds: int, images: int, metrics: int) -> float:
    rng = np.random.default_rng(0)
    tables = {
        f"v{v}": [{f"m{m}": rng.random(images) for m in range(metrics)} for _ in range(seeds)]
        for v in range(variants)
    }
    start = time.perf_counter()
    compare(tables, primary="m0")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--metrics", type=int, default=12)
    args = parser.parse_args()
    print("seeds  spread of seeds  ours   percentiles")
    for seeds, spread in ((1, 0.0), (2, 1.0), (3, 1.0), (5, 1.0), (10, 1.0), (5, 0.0), (5, 0.2)):
        mine, plain = coverage(seeds, args.studies, of_seeds=spread)
        print(f"{seeds:5}  {spread:15}  {mine:.3f}  {plain:.3f}")
    compare({"a": [0.1, 0.2]}, resamples=10)  # imports are not what is measured
    for variants, seeds in ((1, 1), (6, 1), (6, 5)):
        took = min(seconds(variants, seeds, args.images, args.metrics) for _ in range(3))
        print(
            f"{variants} variants × {seeds} seeds × {args.images} images × {args.metrics} metrics, "
            f"10,000 resamples: {took:.2f} s"
        )


if __name__ == "__main__":
    main()
