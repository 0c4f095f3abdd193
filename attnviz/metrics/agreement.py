"""Agreement of two maps of the same image, such as an attention map and an attribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attnviz.errors import InputError
from attnviz.inputs import AnyMaps, as_tensor, no_masks
from attnviz.metrics.batching import Batch, batches, joined
from attnviz.metrics.options import check_k, count_of
from attnviz.metrics.reasons import UNFIT, Reason
from attnviz.metrics.row_kernels import row_sum, sort_rows
from attnviz.metrics.sorted_curves import descending
from attnviz.shapes import Scores

_BLOCKED = int(UNFIT | Reason.CONSTANT)
_WINDOW = 7  # scikit-image's default
_INDEX = 31  # bits left beside the 32 of a value


def agreement(map_a: AnyMaps, map_b: AnyMaps, *, k: int | float = 0.1) -> dict[str, Scores]:
    """Agreement of two maps of each image: of order, structure, and highest places.

    - `spearman`: rank correlation, tied values sharing their mean rank; −1 to 1.
    - `ssim`: scikit-image's structural similarity at its defaults (a uniform window of 7 places
      along each axis, smaller for smaller maps) of the two maps, each min-max scaled to [0, 1],
      since an attention and a gradient have no common unit; −1 to 1.
    - `topk_iou`: |A ∩ B| / |A ∪ B| of the k highest places of either; 0 to 1. Under ties the
      intersection is its expectation when both break theirs fairly and apart from each other.

    Sources: C. Spearman, 1904; Z. Wang et al., 2004, by scikit-image; J. Adebayo et al., 2018, for
    their use on maps.

    Args:
        map_a: Raw maps, (b, *places).
        map_b: As many maps of the same size, on the same device.
        k: For `topk_iou`: an `int` number of places, or a `float` share of them.

    Returns:
        Three (b,) float64 scores by name; NaN where either map is constant or holds NaN or Inf,
        and for `ssim` where a side is shorter than 3.

    Raises:
        InputError: Different shapes or devices, wrong dtypes, or k out of range.
    """
    check_k(k)
    _check_pair(map_a, map_b)
    parts: dict[str, list[Tensor]] = {"spearman": [], "ssim": [], "topk_iou": []}
    pairs = zip(batches(map_a, no_masks(map_a)), batches(map_b, no_masks(map_b)), strict=True)
    for ours, theirs in pairs:
        unlike = ((ours.flags | theirs.flags) & _BLOCKED) != 0
        found = {
            "spearman": _spearman(ours, theirs),
            "ssim": _ssim(ours, theirs, ~unlike),
            "topk_iou": _topk_iou(ours, theirs, count_of(k, ours.pixels)),
        }
        for name, scores in found.items():
            parts[name].append(scores.masked_fill(unlike, torch.nan))
    return {name: joined(scores, torch.float64) for name, scores in parts.items()}


def _check_pair(map_a: AnyMaps, map_b: AnyMaps) -> None:
    ours, theirs = as_tensor(map_a, "map_a"), as_tensor(map_b, "map_b")
    if ours.shape != theirs.shape:
        raise InputError(
            f"map_b: expected the shape of map_a, {tuple(ours.shape)}, got {tuple(theirs.shape)}; "
            "bring both to one size first"
        )
    if ours.device != theirs.device:
        raise InputError(
            f"map_b: expected it on {ours.device} with map_a, got {theirs.device}; "
            "move one with .to(device)"
        )


def _spearman(ours: Batch, theirs: Batch) -> Tensor:
    middle = ours.pixels - 1.0
    a, b = _twice_ranks(ours.values) - middle, _twice_ranks(theirs.values) - middle
    return row_sum(a * b) / (row_sum(a * a) * row_sum(b * b)).sqrt()


def _twice_ranks(values: Tensor) -> Tensor:
    """Twice each place's mean rank, from 0 for the highest value, (b, D) float64."""
    place = torch.arange(values.shape[1], device=values.device)
    keys = sort_rows((descending(values) << _INDEX) | place)
    held = keys >> _INDEX
    new = torch.ones_like(held, dtype=torch.bool)
    new[:, 1:] = held[:, 1:] != held[:, :-1]
    ends = torch.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    first = torch.where(new, place, 0).cummax(1).values
    last = torch.where(ends, place, len(place)).flip(1).cummin(1).values.flip(1)
    ranks = torch.empty_like(held).scatter_(1, keys & (2**_INDEX - 1), first + last)
    return ranks.double()


def _ssim(ours: Batch, theirs: Batch, fit: Tensor) -> Tensor:
    from skimage import metrics as skimage_metrics

    similarity: Callable[..., float] = skimage_metrics.structural_similarity
    pairs = [batch.scaled.view(-1, *batch.places).cpu().numpy() for batch in (ours, theirs)]
    window = min(_WINDOW, (min(ours.places) - 1) // 2 * 2 + 1)
    scores = np.full(len(fit), np.nan)
    if window >= 3:
        for i in torch.nonzero(fit).view(-1).tolist():
            scores[i] = similarity(pairs[0][i], pairs[1][i], data_range=1.0, win_size=window)
    return torch.from_numpy(scores).to(ours.values.device)


def _topk_iou(ours: Batch, theirs: Batch, k: int) -> Tensor:
    both = row_sum(_chance_of_top(ours.values, k) * _chance_of_top(theirs.values, k))
    return both / (2 * k - both)


def _chance_of_top(values: Tensor, k: int) -> Tensor:
    """How likely each place is among the k highest under fair ties, (b, D) float64."""
    edge = values.kthvalue(values.shape[1] - k + 1, dim=1, keepdim=True).values
    above, tied = values > edge, values == edge
    share = (k - above.sum(1).double()) / tied.sum(1).double()
    return above.double() + tied * share[:, None]
