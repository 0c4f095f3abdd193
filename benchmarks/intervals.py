"""How often a 95 % interval holds the truth, a false winner is named, and a true one is found.

    uv run python benchmarks/intervals.py [--studies 1000] [--quick]

Studies with known means are simulated and go through `attnviz.comparison`, for S = 1, 2, 3, 5, 10
seeds and V = 2, 6, 19 variants:

- coverage: share of the variants' intervals that hold the mean; of one seed that training's own.
- false winner: share of studies of equal variants that name a winner.
- some clear: share of them with any clear pair.
- power: share of studies with one better variant that name it.

Then what is demanded, and whether it is met; the exit status is 1 where it is not. Last the time
that a comparison takes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attnviz.comparison import compare
from attnviz.statistics.intervals import interval
from attnviz.statistics.pairs import FEWEST, adjusted, all_pairs
from attnviz.statistics.variance import sampled

SEEDS = (1, 2, 3, 5, 10)
VARIANTS = (2, 6, 19)
_DRAWS = 399


@dataclass(frozen=True)
class Study:
    """Scores of equal or unequal variants.

    Attributes:
        scores: (variants, seeds, images).
        trained: (variants, seeds) the mean of each training over all possible images.
        mean: (variants,) the mean over all possible trainings.
    """

    scores: np.ndarray
    trained: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class World:
    """A distribution of studies.

    Attributes:
        name: What it is called in the table.
        draw: (rng, variants, seeds, whether the first variant is better) → a study.
        groups: (images,) each image's group, or None.
        metric: Metric that bounds the scores.
        bell: Whether seeds spread like a bell.
        hits: Whether scores are hits near 1.
    """

    name: str
    draw: Callable[[np.random.Generator, int, int, bool], Study]
    groups: np.ndarray | None = None
    metric: str = "score"
    bell: bool = False
    hits: bool = False


def gaussian(
    rng: np.random.Generator, variants: int, seeds: int, better: bool, *,
    images: int, seed: float, image: float, noise: float, gain: float,
    group: float = 0.0, groups: np.ndarray | None = None,
) -> Study:  # fmt: skip
    """Normal spread of seeds, of images, of groups by variant and by training, and of the rest."""
    mean = np.full(variants, 0.5)
    mean[0] += gain * better
    trained = mean[:, None] + seed * rng.normal(size=(variants, seeds))
    scores = trained[..., None] + noise * rng.normal(size=(variants, seeds, images))
    scores += image * rng.normal(size=(1, 1, images)) + image / 2 * rng.normal(
        size=(variants, 1, images)
    )
    if groups is not None:
        count = int(groups.max()) + 1
        each = rng.normal(size=(1, 1, count)) + 0.5 * rng.normal(size=(variants, 1, count))
        scores += group * (each + 0.5 * rng.normal(size=(variants, seeds, count)))[..., groups]
    return Study(scores, trained, mean)


def hits(
    rng: np.random.Generator, variants: int, seeds: int, better: bool, *,
    images: int, groups: np.ndarray | None = None,
) -> Study:  # fmt: skip
    """Hits in 99 % of images; hard and easy groups where there are groups; the others' are 80 %."""
    mean = np.full(variants, 0.8 if better else 0.99)
    mean[0] = 0.99
    share = np.broadcast_to(mean[:, None, None], (variants, seeds, images))
    if groups is not None:
        count = int(groups.max()) + 1
        each = rng.beta(20 * mean[:, None], 20 * (1 - mean[:, None]), (variants, count))
        share = np.broadcast_to(each[:, None, groups], (variants, seeds, images))
    scores = (rng.random((variants, seeds, images)) < share) * 1.0
    return Study(scores, np.broadcast_to(mean[:, None], (variants, seeds)), mean)


def bimodal(
    rng: np.random.Generator, variants: int, seeds: int, better: bool, *,
    images: int, failing: float, groups: np.ndarray | None = None,
) -> Study:  # fmt: skip
    """Trainings that score .9 or, having failed, .1; the better variant never fails."""
    share = np.full(variants, failing)
    share[0] *= not better
    failed = rng.random((variants, seeds)) < share[:, None]
    trained = np.where(failed, 0.1, 0.9) + 0.02 * rng.normal(size=(variants, seeds))
    scores = trained[..., None] + 0.03 * rng.normal(size=(variants, seeds, images))
    scores += 0.03 * rng.normal(size=(1, 1, images))
    if groups is not None:
        count = int(groups.max()) + 1
        scores += 0.03 * rng.normal(size=(variants, 1, count))[..., groups]
    return Study(scores, trained, 0.9 - 0.8 * share)


def worlds() -> list[World]:
    """All that is simulated."""
    eight, ten = np.arange(80) % 8, np.arange(80) % 10

    def normal(name: str, grouped: np.ndarray | None = None, **spread: float) -> World:
        images = 80 if grouped is not None else 40
        return World(
            name,
            lambda rng, v, s, better: gaussian(
                rng, v, s, better, images=images, groups=grouped, **spread
            ),
            grouped,
            bell=True,
        )

    return [
        normal("Gaussian", seed=0.05, image=0.15, noise=0.1, gain=0.2),
        normal("Gaussian, seeds", seed=0.17, image=0.0, noise=0.1, gain=0.5),
        normal("Gaussian, images", seed=0.02, image=0.2, noise=0.1, gain=0.2),
        normal("Gaussian, 8 groups", eight, seed=0.05, image=0.1, noise=0.1, group=0.1, gain=0.2),
        World(
            "hits near 1",
            lambda rng, v, s, better: hits(rng, v, s, better, images=50),
            metric="pointing_game",
            hits=True,
        ),
        World(
            "hits near 1, 10 groups",
            lambda rng, v, s, better: hits(rng, v, s, better, images=80, groups=ten),
            ten,
            metric="pointing_game",
            hits=True,
        ),
        World(
            "bimodal, 3 of 10 fail",
            lambda rng, v, s, better: bimodal(rng, v, s, better, images=40, failing=0.3),
        ),
        World(
            "bimodal, 8 groups",
            lambda rng, v, s, better: bimodal(
                rng, v, s, better, images=80, failing=0.5, groups=eight
            ),
            eight,
        ),
    ]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison: the winner's number, and whether any pair is clear."""

    winner: int | None
    clear: bool


def verdict(scores: np.ndarray, groups: np.ndarray | None, seed: int = 0) -> Verdict:
    """The same outcome as `compare`, without its tables."""
    count = len(scores)
    if scores.shape[1] < FEWEST:
        return Verdict(None, False)
    order = np.argsort(-scores.mean((1, 2)), kind="stable")
    pairs = all_pairs(list(scores[order]), [range(scores.shape[1])] * count, groups)
    clear = adjusted(pairs, level=0.05, resamples=_DRAWS, seed=seed).p <= 0.05
    wins = clear & (pairs.difference > 0)
    return Verdict(int(order[0]) if wins[pairs.one == 0].all() else None, bool(clear.any()))


def covered(world: World, study: Study) -> int:
    """How many of the variants' intervals hold their mean."""
    truth = study.trained[:, 0] if study.trained.shape[1] == 1 else study.mean
    held = 0
    for scores, mean in zip(study.scores, truth, strict=True):
        sample = sampled(scores, world.groups)
        found = interval(world.metric, scores, groups=world.groups, sample=sample)
        held += found.low <= mean <= found.high
    return held


@dataclass(frozen=True)
class Row:
    """The rates of one world, number of seeds and number of variants."""

    world: World
    seeds: int
    variants: int
    coverage: float
    false_winner: float
    some_clear: float
    power: float

    def __str__(self) -> str:
        return (
            f"{self.world.name:24} {self.seeds:5} {self.variants:8}  {self.coverage:8.3f}  "
            f"{self.false_winner:12.3f}  {self.some_clear:10.3f}  {self.power:5.2f}"
        )


HEAD = (
    f"{'world':24} {'seeds':>5} {'variants':>8}  {'coverage':>8}  {'false winner':>12}  "
    f"{'some clear':>10}  {'power':>5}"
)


def measured(world: World, seeds: int, variants: int, studies: int) -> Row:
    """Simulate studies of one kind; the same numbers each time."""
    key = [sum(map(ord, world.name)), seeds, variants]
    rng = np.random.default_rng(key)
    held = winners = clear = right = 0
    for k in range(studies):
        study = world.draw(rng, variants, seeds, False)
        held += covered(world, study)
        found = verdict(study.scores, world.groups, k)
        winners, clear = winners + (found.winner is not None), clear + found.clear
    few = max(studies // 4, 1) if seeds >= FEWEST else 1
    for k in range(few):
        study = world.draw(rng, variants, seeds, True)
        right += verdict(study.scores, world.groups, k).winner == 0
    return Row(
        world, seeds, variants, held / (studies * variants), winners / studies, clear / studies,
        right / few,
    )  # fmt: skip


def demands(rows: Sequence[Row]) -> Iterable[tuple[str, bool]]:
    """What is demanded of the rates, and whether it is met."""
    bells = [row.coverage for row in rows if row.world.bell and row.seeds >= 3]
    near = [row.coverage for row in rows if row.world.hits and row.seeds == 1]
    several = [row.coverage for row in rows if row.world.hits and row.seeds >= 3]
    false = [row.false_winner for row in rows]
    clear = [row.some_clear for row in rows if row.seeds >= 3]
    yield (
        f"bell-shaped seeds, 3 or more: coverage {min(bells):.3f} to {max(bells):.3f} (.92 to .98)",
        min(bells) >= 0.92 and max(bells) <= 0.98,
    )
    yield f"hits near 1, one seed: coverage {min(near):.3f} or more (.90)", min(near) >= 0.90
    yield (
        f"hits near 1, 3 seeds or more: coverage {min(several):.3f} to {max(several):.3f} "
        "(.92 or more)",
        min(several) >= 0.92,
    )
    yield f"false winner: {max(false):.3f} at most (.05)", max(false) <= 0.05
    yield f"some clear pair among equals: {max(clear):.3f} at most (.07)", max(clear) <= 0.07


def seconds(variants: int, seeds: int, images: int, metrics: int) -> float:
    rng = np.random.default_rng(0)
    tables = {
        f"v{v}": [{f"m{m}": rng.random(images) for m in range(metrics)} for _ in range(seeds)]
        for v in range(variants)
    }
    start = time.perf_counter()
    compare(tables, primary="m0")
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="of two and six variants each")
    parser.add_argument("--quick", action="store_true", help="few studies, S = 1, 3 and V = 2, 6")
    args = parser.parse_args(argv)
    print(HEAD)
    rows = []
    for world in worlds():
        for seeds in (1, 3) if args.quick else SEEDS:
            for variants in VARIANTS[:2] if args.quick else VARIANTS:
                studies = 40 if args.quick else args.studies // (2 if variants > 6 else 1)
                rows.append(measured(world, seeds, variants, studies))
                print(rows[-1], flush=True)
    met = True
    for words, holds in demands(rows):
        print(f"{'met   ' if holds else 'MISSED'}  {words}")
        met &= holds
    if not args.quick:
        compare({"a": [0.1, 0.2]}, resamples=10)  # imports are not what is measured
        for variants, seeds in ((1, 1), (6, 1), (6, 5), (19, 5)):
            print(
                f"{variants} variants × {seeds} seeds × 2,048 images × 12 metrics, "
                f"10,000 resamples: {seconds(variants, seeds, 2048, 12):.2f} s"
            )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
