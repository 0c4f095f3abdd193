"""Every metric again: one map at a time, in loops that read like the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product

import numpy as np


def rows(values: np.ndarray, mask: np.ndarray) -> tuple[list[float], list[bool]]:
    return [float(v) for v in values.astype(np.float64).ravel()], [bool(m) for m in mask.ravel()]


def pointing_game(values: np.ndarray, mask: np.ndarray, tolerance: float = 0) -> float:
    height, width = values.shape
    places = list(product(range(height), range(width)))
    goal = [p for p in places if mask[p]]
    peaks = [p for p in places if values[p] == values.max()]
    near = [any(math.dist(p, q) <= tolerance for q in goal) for p in peaks]
    return sum(near) / len(peaks)


def pointing_game_anywhere(values: np.ndarray, mask: np.ndarray, tolerance: float = 0) -> float:
    """The same for any number of place axes."""
    goal = np.argwhere(mask)
    peaks = np.argwhere(values == values.max())
    near = [min(math.dist(p, q) for q in goal) <= tolerance for p in peaks]
    return sum(near) / len(near)


def energy_pointing_game(values: np.ndarray, mask: np.ndarray, sign: str = "positive") -> float:
    a, g = rows(values, mask)
    mass = [{"positive": max(v, 0.0), "abs": abs(v), "signed": v}[sign] for v in a]
    scale = max(abs(v) for v in mass)
    if scale == 0:
        return math.nan
    mass = [v / scale for v in mass]
    total = math.fsum(mass)
    return math.fsum(v for v, inside in zip(mass, g, strict=True) if inside) / total


def mass_lift(values: np.ndarray, mask: np.ndarray) -> float:
    return energy_pointing_game(values, mask) / (mask.sum() / mask.size)


def chances_of_top(a: list[float], k: int) -> list[Fraction]:
    """How likely each place is among the k highest when ties are broken by lot."""
    chances = []
    for v in a:
        above = sum(w > v for w in a)
        tied = sum(w == v for w in a)
        chances.append(Fraction(min(max(k - above, 0), tied), tied))
    return chances


def topk_intersection(values: np.ndarray, mask: np.ndarray, k: int) -> float:
    a, g = rows(values, mask)
    inside = sum(c for c, m in zip(chances_of_top(a, k), g, strict=True) if m)
    return float(Fraction(inside) / k)


def relevance_rank_accuracy(values: np.ndarray, mask: np.ndarray) -> float:
    return topk_intersection(values, mask, int(mask.sum()))


def iou_at_area(values: np.ndarray, mask: np.ndarray) -> float:
    r = relevance_rank_accuracy(values, mask)
    return r / (2 - r)


def pixel_auroc(values: np.ndarray, mask: np.ndarray) -> float:
    a, g = rows(values, mask)
    inside = [v for v, m in zip(a, g, strict=True) if m]
    outside = [v for v, m in zip(a, g, strict=True) if not m]
    if not outside:
        return math.nan
    wins = sum((p > n) + 0.5 * (p == n) for p, n in product(inside, outside))
    return wins / (len(inside) * len(outside))


def pixel_ap(values: np.ndarray, mask: np.ndarray) -> float:
    a, g = rows(values, mask)
    total, recall = 0.0, 0.0
    for t in sorted(set(a), reverse=True):
        seen = [m for v, m in zip(a, g, strict=True) if v >= t]
        reached = sum(seen) / sum(g)
        total += (reached - recall) * (sum(seen) / len(seen))
        recall = reached
    return total


def overlap(chosen: list[bool], g: list[bool]) -> float:
    both = sum(c and m for c, m in zip(chosen, g, strict=True))
    either = sum(c or m for c, m in zip(chosen, g, strict=True))
    return both / either


def scaled(values: np.ndarray) -> list[float]:
    # in sixteenths where the range of a float64 would overflow; powers of two are exact
    a = [float(v) for v in values.astype(np.float64).ravel()]
    a = [v / 16 for v in a] if max(map(abs, a)) > 1e300 else a
    return [(v - min(a)) / (max(a) - min(a)) for v in a]


def iou(values: np.ndarray, mask: np.ndarray, threshold: float) -> float:
    if values.min() == values.max():
        return math.nan
    return overlap([v >= threshold for v in scaled(values)], rows(values, mask)[1])


def oracle_iou(values: np.ndarray, mask: np.ndarray) -> float:
    a, g = rows(values, mask)
    return max(overlap([v >= t for v in a], g) for t in a)


def best_mean_iou(maps: np.ndarray, masks: np.ndarray) -> float:
    """The mean IoU at the best of all thresholds that tell any two sets of places apart."""
    tried = sorted({v for values in maps for v in scaled(values)})
    return max(
        float(np.mean([iou(v, m, t) for v, m in zip(maps, masks, strict=True)])) for t in tried
    )


def sparseness(values: np.ndarray, mask: np.ndarray | None = None) -> float:
    """The Gini index as the mean difference of all pairs."""
    a = [abs(float(v)) for v in values.astype(np.float64).ravel()]
    if max(a) == 0:
        return math.nan
    a = [v / max(a) for v in a]
    return math.fsum(abs(v - w) for v in a for w in a) / (2 * len(a) * math.fsum(a))


def complexity(values: np.ndarray, mask: np.ndarray | None = None) -> float:
    a = [abs(float(v)) for v in values.astype(np.float64).ravel()]
    if max(a) == 0:
        return math.nan
    shares = [v / max(a) for v in a]
    total = math.fsum(shares)
    return -math.fsum(v / total * math.log(v / total) for v in shares if v / total > 0)


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The 8-connected components, in order of their first place by rows."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    while left:
        group, edge = set(), [min(left)]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                group.add((y, x))
                edge += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        found.append(group)
    return found


def box(group: set[tuple[int, int]]) -> tuple[int, int, int, int]:
    ys, xs = zip(*group, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def box_overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    places = [{(x, y) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in (a, b)]
    return len(places[0] & places[1]) / len(places[0] | places[1])


def max_box_acc(
    values: np.ndarray, mask: np.ndarray, threshold: float, levels: tuple[float, ...] = (0.5,)
) -> float:
    if values.min() == values.max():
        return math.nan
    chosen = np.reshape([v >= threshold for v in scaled(values)], values.shape)
    ours = box(max(components(chosen), key=len))  # of equals `max` takes the first
    fit = max(box_overlap(ours, box(goal)) for goal in components(mask))
    return sum(fit >= level for level in levels) / len(levels)


def pxap(maps: np.ndarray, masks: np.ndarray) -> float:
    pixels, labels = [], []
    for values, mask in zip(maps, masks, strict=True):
        flat = values.min() == values.max()
        one = [0.0] * values.size if flat else scaled(values)
        pixels += [np.float32(v) for v in one]
        labels += list(mask.ravel())
    return pixel_ap(np.array(pixels)[None], np.array(labels)[None])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    def ranks(values: np.ndarray) -> list[float]:
        flat = list(values.astype(np.float64).ravel())
        return [sum(w < v for w in flat) + (sum(w == v for w in flat) - 1) / 2 for v in flat]

    x, y = np.array(ranks(a)), np.array(ranks(b))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def topk_iou(a: np.ndarray, b: np.ndarray, k: int) -> float:
    pairs = zip(
        chances_of_top(rows(a, a > 0)[0], k), chances_of_top(rows(b, b > 0)[0], k), strict=True
    )
    both = sum(p * q for p, q in pairs)
    return float(Fraction(both) / (2 * k - both))


def descends(numbers: list[float]) -> bool:
    return all(a >= b for a, b in pairwise(numbers))


BY_KEY: dict[str, Callable[..., float]] = {
    "pointing_game": pointing_game,
    "energy_pointing_game": energy_pointing_game,
    "mass_lift": mass_lift,
    "relevance_rank_accuracy": relevance_rank_accuracy,
    "topk_intersection": lambda a, g: topk_intersection(a, g, max(1, round(0.3 * a.size))),
    "pixel_auroc": pixel_auroc,
    "pixel_ap": pixel_ap,
    "iou": lambda a, g: iou(a, g, 0.4),
    "iou_at_area": iou_at_area,
    "max_iou": lambda a, g: iou(a, g, 0.7),
    "oracle_iou": oracle_iou,
    "max_box_acc": lambda a, g: max_box_acc(a, g, 0.5),
    "max_box_acc_v2": lambda a, g: max_box_acc(a, g, 0.6, (0.3, 0.5, 0.7)),
    "sparseness": sparseness,
    "complexity": complexity,
}
"""The metrics of `localization(..., k=0.3, threshold=THRESHOLDS)`."""

THRESHOLDS = {"iou": 0.4, "max_iou": 0.7, "max_box_acc": 0.5, "max_box_acc_v2": 0.6}
