"""What each attention head of a run does, over all images: score, spread, distance. No Streamlit.

Heads are read from the maps that a run kept head by head, `(n, heads, h, w)`, and from the full
attention of a few images where it kept that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnviz.figures import resized
from attnviz.runs.words import WORDS

SEPARATE = ".heads"
"""How the name of a map ends that was kept head by head beside its mean."""

STATISTICS = {
    "score": "energy pointing game, mean over images with a marked object",
    "spread": "entropy of the map over the logarithm of its places: 1 is the same everywhere",
    "entropy": "entropy of the attention rows over the logarithm of the keys: 1 is uniform",
    "distance": "mean distance from a place to where it attends, in places of the grid",
}
"""What the cells of a board of heads can show."""

_BLOCK = 256  # images that are read at once


@dataclass(frozen=True)
class LayerHeads:
    """The heads of one layer.

    Attributes:
        map: The map that they belong to, a key of the run.
        layer: The layer's dotted name.
        stored: The name under which the maps by head are kept, or None.
        rows: The name under which full attention of a few images is kept, or None.
        count: How many heads.
    """

    map: str
    layer: str
    stored: str | None
    rows: str | None
    count: int


def layers_of(run: Any, *, flat: bool = True) -> list[LayerHeads]:
    """The layers of a run whose heads were kept, in the order of the model's names.

    Args:
        run: The run.
        flat: Whether its test images are plain images; maps of volumes have an axis more.
    """
    axes = 4 if flat else 5
    found: dict[str, LayerHeads] = {}
    for name in run.map_names:
        shape = run.entry(f"maps/{name}").shape
        if shape is None or len(shape) != axes or shape[1] < 1 or "@" in name:
            continue
        if WORDS in run.about(f"maps/{name}"):
            continue
        base = name.removesuffix(SEPARATE)
        found[base] = LayerHeads(base, _layer(run, f"maps/{name}", base), name, None, shape[1])
    for name in run.row_names:
        shape = run.entry(f"rows/{name}").shape
        if shape is None or len(shape) != 4:
            continue
        before = found.get(name)
        layer = before.layer if before else _layer(run, f"rows/{name}", name)
        stored = before.stored if before and before.count == shape[1] else None
        found[name] = LayerHeads(name, layer, stored, name, shape[1])
    return sorted(found.values(), key=lambda one: _natural(one.layer))


def _layer(run: Any, name: str, base: str) -> str:
    about = run.entry(name).about
    layer = about.get("layer") or run.summary.get("layers", {}).get(base)
    return str(layer or base)


def _natural(text: str) -> list[tuple[int, int, str]]:
    """`blocks.2` before `blocks.10`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def map_statistics(maps: np.ndarray, masks: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score and spread of maps head by head: sums over images, and of how many.

    Args:
        maps: `(n, heads, h, w)`, not negative.
        masks: `(n, H, W)` bool.

    Returns:
        `score` and `spread`, each sums `(heads,)` and counts `(heads,)`.
    """
    n, heads, h, w = maps.shape
    values = np.maximum(maps.reshape(n, heads, h * w).astype(np.float64), 0)
    # the energy of an enlarged map is linear in the map: the mask is brought to the grid instead
    inside, whole = _transposed(masks, h, w), _transposed(np.ones_like(masks[:1]), h, w)
    total = values @ whole[0]
    good = (total > 0) & masks.any(axis=(1, 2))[:, None] & np.isfinite(total)
    share = np.divide(
        np.einsum("nhp,np->nh", values, inside), total, out=np.zeros_like(total), where=good
    )
    mass = values.sum(axis=-1, keepdims=True)
    known = (mass[..., 0] > 0) & np.isfinite(mass[..., 0])
    p = np.divide(values, mass, out=np.zeros_like(values), where=mass > 0)
    spread = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1) / max(
        np.log(h * w), 1e-12
    )
    return {
        "score": (share.sum(0), good.sum(0)),
        "spread": (np.where(known, spread, 0).sum(0), known.sum(0)),
    }


def _transposed(masks: np.ndarray, h: int, w: int) -> np.ndarray:
    """Weights on the grid with which a map's sum equals that of the enlarged map under a mask."""
    n, height, width = masks.shape
    rows = resized(np.eye(h), (height, h))
    columns = resized(np.eye(w), (width, w))
    return np.asarray((rows.T @ masks.astype(np.float64) @ columns).reshape(n, h * w))


def row_statistics(
    rows: np.ndarray, about: Mapping[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Entropy and distance of full attention: sums over images, and of how many.

    Args:
        rows: `(k, heads, q, keys)`.
        about: `query_grid`, `key_grid` and `prefix` where they are known.
    """
    k, heads, _, keys = rows.shape
    mass = rows.sum(-1, keepdims=True)
    p = np.divide(rows, mass, out=np.zeros_like(rows), where=mass > 0)
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1).mean(-1)
    counts = np.full(heads, k)
    found = {"entropy": (entropy.sum(0) / max(np.log(keys), 1e-12), counts)}
    apart = _apart(about, rows.shape)
    if apart is not None:
        prefix_q, prefix_k = rows.shape[2] - apart.shape[0], keys - apart.shape[1]
        inner = rows[..., prefix_q:, prefix_k:]
        total = inner.sum(-1)
        far = np.einsum("khij,ij->khi", inner, apart)
        mean = np.divide(far, total, out=np.zeros_like(far), where=total > 0).mean(-1)
        found["distance"] = (mean.sum(0), counts)
    return found


def _apart(about: Mapping[str, Any], shape: Sequence[int]) -> np.ndarray | None:
    """Distances between places; None where queries and keys are not known to lie on one grid."""
    grids = [about.get(name) for name in ("query_grid", "key_grid")]
    if any(not isinstance(one, list) or len(one) != 2 for one in grids) or grids[0] != grids[1]:
        return None
    h, w = (int(side) for side in grids[0] or ())
    if not (0 < h * w <= shape[2] and h * w <= shape[3]):
        return None
    y, x = np.divmod(np.arange(h * w), w)
    return np.asarray(np.hypot(y[:, None] - y, x[:, None] - x))


def means(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The mean of each head from sums and counts; NaN where nothing was counted."""
    total = np.sum([sums for sums, _ in parts], axis=0)
    count = np.sum([counts for _, counts in parts], axis=0)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def blocks(n: int) -> list[list[int]]:
    """The images in blocks that are read at once."""
    return [list(range(start, min(n, start + _BLOCK))) for start in range(0, n, _BLOCK)]
