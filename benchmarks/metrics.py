"""How long the localisation metrics take beside Quantus, torchmetrics and scikit-learn.

One run measures all: maps of 96 × 96, the same arrays for all packages, one thread, each package by
its documented call. Peers that are not installed are named and left out.

    uv run --group benchmarks python benchmarks/metrics.py            # minutes: Quantus is slow
    uv run --group benchmarks python benchmarks/metrics.py --n 64     # a smoke run

The demands are meant for a machine that does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attnviz import metrics as av
from attnviz.metrics.compat import quantus as quantus_conventions

SIZE, SIDE = 96, 16
DEMANDED = {
    ("pointing_game", "quantus"): 500,
    ("energy_pointing_game", "quantus"): 500,
    ("relevance_rank_accuracy", "quantus"): 100,
    ("topk_intersection", "quantus"): 100,
    ("pixel_auroc", "scikit-learn"): 12,
}
SUITE_LIMIT = 400.0  # µs a map
LINEAR = 1.25  # how much dearer a map or a pixel may be among more of them
CURVES = (
    "pixel_auroc",
    "pixel_ap",
    "oracle_iou",
    "relevance_rank_accuracy",
    "topk_intersection",
)
TOP = 1000


@dataclass(frozen=True)
class Timed:
    """How long one call took for a map, in µs, and its result."""

    micros: float
    values: np.ndarray


def data(count: int, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth noise with a brighter patch, as an attention upsampled from a quarter of the size.

    Values lie in [0, 1]: beyond it torchmetrics would take their sigmoid (`differences`).
    """
    generator = torch.Generator().manual_seed(count)
    cells = torch.rand(count, 1, size // 4, size // 4, generator=generator)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    corners = torch.randint(0, size - SIDE + 1, (count, 2), generator=generator)
    for mask, (y, x) in zip(masks, corners.tolist(), strict=True):
        mask[y : y + SIDE, x : x + SIDE] = True
    maps = F.interpolate(cells, size=size, mode="bilinear")[:, 0] + 0.3 * masks
    return (maps / 1.3).contiguous(), masks


def timed(call: Callable[[], Any], count: int, repeats: int = 1) -> Timed:
    """The fastest of some repeats: what else runs on a machine only ever adds.

    What takes a few milliseconds is repeated more often, for a tenth of a second.
    """
    best, values, begun, done = math.inf, None, time.perf_counter(), 0
    while done < repeats or (repeats > 1 and time.perf_counter() - begun < 0.1):
        start = time.perf_counter()
        values = call()
        best = min(best, time.perf_counter() - start)
        done += 1
    return Timed(best / count * 1e6, np.asarray(values, dtype=np.float64).ravel())


def installed(name: str) -> ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: not installed here ({error}); left out")
        return None


def ours(maps: torch.Tensor, masks: torch.Tensor, repeats: int) -> dict[str, Timed]:
    calls: dict[str, Callable[[], Any]] = {
        "pointing_game": lambda: av.pointing_game(maps, masks),
        "energy_pointing_game": lambda: av.energy_pointing_game(maps, masks),
        "relevance_rank_accuracy": lambda: av.relevance_rank_accuracy(maps, masks),
        "topk_intersection": lambda: av.topk_intersection(maps, masks, k=TOP),
        "pixel_auroc": lambda: av.pixel_auroc(maps, masks),
        "pixel_ap": lambda: av.pixel_ap(maps, masks),
        "sparseness": lambda: av.sparseness(maps),
        "complexity": lambda: av.complexity(maps),
    }
    return {key: timed(call, len(maps), repeats) for key, call in calls.items()}


def quantus(package: ModuleType, maps: torch.Tensor, masks: torch.Tensor) -> dict[str, Timed]:
    kinds = {
        "pointing_game": package.PointingGame,
        "energy_pointing_game": package.RelevanceMassAccuracy,
        "relevance_rank_accuracy": package.RelevanceRankAccuracy,
        "topk_intersection": package.TopKIntersection,
        "pixel_auroc": package.AUC,
        "sparseness": package.Sparseness,
        "complexity": package.Complexity,
    }
    batch = {
        "x_batch": np.zeros((len(maps), 3, *maps.shape[1:]), dtype=np.float32),
        "y_batch": np.zeros(len(maps), dtype=np.int64),
        "s_batch": masks[:, None].numpy(),
    }
    found = {}
    for key, kind in kinds.items():
        metric = kind(disable_warnings=True, display_progressbar=False)
        copied = maps[:, None].numpy().copy()  # it writes into what it is given

        def call(metric: Any = metric, copied: np.ndarray = copied) -> Any:
            return metric(model=torch.nn.Identity(), a_batch=copied, **batch)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[key] = timed(call, len(maps))
    return found


def torchmetrics(package: ModuleType, maps: torch.Tensor, masks: torch.Tensor) -> dict[str, Timed]:
    functional = importlib.import_module("torchmetrics.functional")
    kinds = {
        "pixel_auroc": functional.classification.binary_auroc,
        "pixel_ap": functional.classification.binary_average_precision,
        "relevance_rank_accuracy": functional.retrieval.retrieval_r_precision,
    }
    pairs = [(a, g) for a, g in zip(maps.flatten(1), masks.flatten(1).long(), strict=True)]
    return {
        key: timed(lambda kind=kind: [kind(*pair) for pair in pairs], len(maps))
        for key, kind in kinds.items()
    }


def scikit_learn(package: ModuleType, maps: torch.Tensor, masks: torch.Tensor) -> dict[str, Timed]:
    sklearn_metrics = importlib.import_module("sklearn.metrics")
    kinds = {
        "pixel_auroc": sklearn_metrics.roc_auc_score,
        "pixel_ap": sklearn_metrics.average_precision_score,
    }
    pairs = list(zip(masks.flatten(1).numpy(), maps.flatten(1).numpy(), strict=True))
    return {
        key: timed(lambda kind=kind: [kind(*pair) for pair in pairs], len(maps))
        for key, kind in kinds.items()
    }


PEERS = {"quantus": quantus, "torchmetrics": torchmetrics, "scikit-learn": scikit_learn}
MODULES = {"scikit-learn": "sklearn"}


def compare(count: int, peers: dict[str, ModuleType], repeats: int) -> bool:
    """Print the table of one N; whether every demanded ratio was reached."""
    maps, masks = data(count)
    mine = ours(maps, masks, repeats)
    print(f"\nN = {count:,}: µs a map, ratio to attnviz, largest difference of a score")
    print(f"{'metric':<26}{'attnviz':>9}" + "".join(f"{name:>32}" for name in peers))
    found = {name: PEERS[name](package, maps, masks) for name, package in peers.items()}
    met = True
    for key, own in mine.items():
        cells = ""
        for name, theirs in found.items():
            if key not in theirs:
                cells += f"{'':>32}"
                continue
            ratio = theirs[key].micros / own.micros
            apart = np.abs(theirs[key].values - own.values).max()
            wanted = DEMANDED.get((key, name))
            mark = "" if wanted is None else (" ✓" if ratio >= wanted else f" <{wanted}!")
            met &= wanted is None or ratio >= wanted
            cells += f"{theirs[key].micros:>11,.0f} {ratio:>8,.0f}×{mark:<5}{apart:>6.0e}"
        print(f"{key:<26}{own.micros:>9.1f}{cells}")
    passes(maps, masks, repeats)
    return suite(maps, masks, repeats) and met


def passes(maps: torch.Tensor, masks: torch.Tensor, repeats: int) -> None:
    """Print the cost of reading each map alone: a lower bound for any score here."""
    rows, marks = maps.flatten(1).numpy(), masks.flatten(1).numpy()
    parts = [(rows[i : i + 28], marks[i : i + 28]) for i in range(0, len(rows), 28)]

    def energy() -> None:
        for near, marked in parts:
            np.einsum("ij->i", near, dtype=np.float64)
            np.minimum.reduce(near, axis=1)
            marked.view(np.uint64).any()

    def pointing() -> None:
        for near, marked in parts:
            np.flatnonzero(near == np.maximum.reduce(near, axis=1)[:, None])
            np.minimum.reduce(near, axis=1)
            marked.view(np.uint64).any()

    for name, call in (("energy", energy), ("pointing", pointing)):
        found = timed(lambda call=call: call() or 0, len(maps), repeats).micros
        print(f"bare looks that {name:<18} needs {found:8.1f} µs a map")


def suite(maps: torch.Tensor, masks: torch.Tensor, repeats: int) -> bool:
    """Print what all metrics together cost; whether that is within the limit."""
    count = len(maps)
    tau = av.calibrate_threshold(maps, masks)
    curves = timed(lambda: len(av.localization(maps, masks, CURVES)), count, repeats).micros
    plain = timed(lambda: len(av.localization(maps, masks)), count, repeats).micros
    whole = timed(lambda: len(av.localization(maps, masks, threshold=tau)), count, repeats).micros
    print(f"the five curves from one sort      {curves:8.1f} µs a map")
    print(f"all {len(av.DEFAULT) - 4} that need no threshold        {plain:8.1f} µs a map")
    mark = "✓" if whole <= SUITE_LIMIT else "!"
    print(f"all {len(av.DEFAULT)} localisation metrics        {whole:8.1f} µs a map", end="")
    print(f"   (limit {SUITE_LIMIT:.0f} {mark})")
    pooled = timed(lambda: av.pxap(maps, masks), count).micros
    print(f"PxAP of all pixels                 {pooled:8.1f} µs a map")
    calibrated = timed(lambda: av.calibrate_threshold(maps, masks), count).micros
    print(f"the exact calibrated threshold     {calibrated:8.1f} µs a map")
    return whole <= SUITE_LIMIT


def growth(repeats: int) -> bool:
    """Print how the time grows with N and with the pixels; whether that is linear or better."""
    print("\nall metrics: µs a map by N (linear: the same), ns a pixel by size (linear: the same)")
    by_count, by_size = [], []
    for count in (64, 256, 1024):
        maps, masks = data(count)
        each = timed(
            lambda m=maps, g=masks: len(av.localization(m, g, threshold=0.6)), count, repeats
        )
        by_count.append(each.micros)
        print(f"  N {count:>6,}   {each.micros:8.1f} µs")
    for size in (48, 96, 192, 384):
        count = 256 * SIZE**2 // size**2
        maps, masks = data(count, size)
        each = timed(
            lambda m=maps, g=masks: len(av.localization(m, g, threshold=0.6)), count, repeats
        )
        by_size.append(each.micros / size**2 * 1000)
        print(f"  {size:>3} × {size:<3}   {by_size[-1]:8.1f} ns")
    worst = max(max(row) / row[0] for row in (by_count, by_size))
    print(f"the dearest map or pixel costs {worst:.2f} × the first", end="")
    print(f"   (limit {LINEAR} {'✓' if worst <= LINEAR else '!'})")
    return worst <= LINEAR


def differences(peers: dict[str, ModuleType]) -> None:
    """Print each package's values on special cases, and why they differ."""
    maps, masks = data(4)
    empty, flat = torch.zeros_like(masks), torch.ones_like(maps)
    logits, far = (maps - 0.5) * 200, masks
    rows = [
        ("constant map, pointing game", "pointing_game", flat, masks, "any maximum hits | share"),
        ("empty mask, pointing game", "pointing_game", maps, empty, "NaN put into a bool | NaN"),
        ("empty mask, AUROC", "pixel_auroc", maps, empty, "0 for no positives | NaN"),
        ("values beyond [0, 1], AUROC", "pixel_auroc", logits, far, "a sigmoid ties them | order"),
        ("a little beyond 1, AP", "pixel_ap", maps * 1.3, masks, "float32 sigmoids tie | order"),
        ("negative values, energy", "energy_pointing_game", maps - 0.5, masks, "summed | cut"),
        ("constant map, rank accuracy", "relevance_rank_accuracy", flat, masks, "argsort | fair"),
    ]
    print("\nwhere conventions differ: the first score of each (why: theirs | ours)")
    for title, key, values, labels, why in rows:
        values_text = f"attnviz {getattr(av, key)(values, labels)[0].item():.5f}"
        for name, package in peers.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    theirs = PEERS[name](package, values, labels)
                values_text += f", {name} {theirs[key].values[0]:.5f}" if key in theirs else ""
            except Exception as error:
                values_text += f", {name} raises {type(error).__name__}"
        print(f"  {title:<30} {values_text}   ({why})")
    if "quantus" in peers:
        faithful(peers["quantus"])


def faithful(package: ModuleType) -> None:
    """Print how far `metrics.compat.quantus` is from Quantus itself, ties and signs included."""
    smooth, masks = data(16)
    kinds = {"smooth": smooth, "signed": smooth - 0.6, "quantised": smooth.round(decimals=1)}
    for title, maps in kinds.items():
        theirs = quantus(package, maps, masks)
        arrays = maps.numpy(), masks.numpy()
        mine = {
            "pointing_game": quantus_conventions.pointing_game(*arrays),
            "energy_pointing_game": quantus_conventions.relevance_mass_accuracy(*arrays),
            "relevance_rank_accuracy": quantus_conventions.relevance_rank_accuracy(*arrays),
            "topk_intersection": quantus_conventions.top_k_intersection(*arrays, k=TOP),
            "sparseness": quantus_conventions.sparseness(arrays[0]),
            "complexity": quantus_conventions.complexity(arrays[0]),
        }
        apart = max(float(np.abs(theirs[key].values - own).max()) for key, own in mine.items())
        print(f"  compat.quantus, {title} maps: at most {apart:.1e} off in {len(mine)} metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, nargs="+", default=[256, 2048], help="numbers of maps")
    parser.add_argument("--repeats", type=int, default=5, help="of our own calls; the best counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.reconfigure(line_buffering=True)  # it takes minutes
    print(f"torch {torch.__version__}, numpy {np.__version__}, one thread, maps {SIZE} × {SIZE}")
    packages = {name: installed(MODULES.get(name, name)) for name in PEERS}
    peers = {name: package for name, package in packages.items() if package is not None}
    met = [compare(count, peers, args.repeats) for count in args.n]
    met.append(growth(args.repeats))
    differences(peers)
    print(
        "\nevery demand that could be measured here was met"
        if all(met)
        else "\nsome demand was missed"
    )


if __name__ == "__main__":
    main()
