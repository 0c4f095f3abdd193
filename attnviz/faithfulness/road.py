"""ROAD: removal of places by imputation from their surroundings.

The outline of a blanked square is itself visible to the model. ROAD fills removed places by noisy
linear imputation: each becomes the weighted mean of its eight neighbours, solved jointly, plus a
little noise, so that neither its content nor its shape stays (Rong et al. 2022, section 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from attnviz.definitions import DEFINITIONS
from attnviz.errors import InputError
from attnviz.faithfulness.confidence import ROWS, Output, confidence_of, fitting
from attnviz.faithfulness.deletion import removal_order
from attnviz.faithfulness.registry import metric
from attnviz.inputs import AnyMaps, maps_of_images
from attnviz.shapes import Images, Scores
from attnviz.targets import Target

PERCENTILES = (20, 40, 60, 80)
"""Default shares of the places that are removed, in percent."""

_NEIGHBOURS = [
    ((dy, dx), 1 / 6 if dy == 0 or dx == 0 else 1 / 12)
    for dy in (-1, 0, 1)
    for dx in (-1, 0, 1)
    if (dy, dx) != (0, 0)
]


def impute(
    images: Images, removed: Bool[Tensor, "b h w"], *, noise: int | float = 0.01, seed: int = 0
) -> Images:
    """Removed places filled from their surroundings, by noisy linear imputation.

    Each removed place solves `x = Σ_j w_j x_j / Σ_j w_j` over its neighbours in the image, with
    weight 1/6 for the four beside and 1/12 for the four across, per channel.

    Args:
        images: `(b, c, h, w)`.
        removed: `(b, h, w)`, the places to fill.
        noise: Standard deviation of what is added to them, in the images' unit.
        seed: Of the noise, the same for every image.

    Returns:
        `(b, c, h, w)`, a new tensor.

    Raises:
        InputError: Places that are not those of the images, or an image of which nothing is left
            to fill from.
    """
    if removed.dtype != torch.bool or removed.shape != images[:, 0].shape:
        raise InputError(
            f"impute: expected removed places as booleans {tuple(images[:, 0].shape)}, got "
            f"{removed.dtype} {tuple(removed.shape)}"
        )
    if bool(removed.flatten(1).all(1).any()):
        raise InputError("impute: expected at least one place left to fill from")
    values = images.detach().double().cpu().numpy()
    masks = removed.cpu().numpy()
    filled = np.empty_like(values)
    for i, (image, mask) in enumerate(zip(values, masks, strict=True)):
        filled[i] = _filled(image, mask)
    draw = torch.Generator().manual_seed(seed)
    noisy = (
        torch.from_numpy(filled) + noise * torch.randn(images.shape[1:], generator=draw).double()
    )
    return torch.where(removed[:, None], noisy.to(images), images)


def _filled(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """One image `(c, h, w)` with its removed places solved for."""
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    ys, xs = np.nonzero(removed)
    if not len(ys):
        return image
    # A frame around the image, so that a neighbour outside of it is a place like any other.
    number = np.full((image.shape[1] + 2, image.shape[2] + 2), -2)
    number[1:-1, 1:-1] = -1
    number[ys + 1, xs + 1] = np.arange(len(ys))
    framed = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    total, known = np.zeros(len(ys)), np.zeros((len(ys), len(image)))
    row, column, entry = [np.arange(len(ys))], [np.arange(len(ys))], [total]
    for (dy, dx), weight in _NEIGHBOURS:
        beside = number[ys + 1 + dy, xs + 1 + dx]
        total += weight * (beside > -2)
        there = beside == -1
        known[there] += weight * framed[:, ys[there] + 1 + dy, xs[there] + 1 + dx].T
        unknown = np.nonzero(beside >= 0)[0]
        row.append(unknown)
        column.append(beside[unknown])
        entry.append(np.full(len(unknown), -weight))
    where = np.concatenate(row), np.concatenate(column)
    entries = (np.concatenate(entry), where)
    system = csc_matrix(entries, (len(ys), len(ys)))
    # The system is symmetric and positive definite: no pivoting is needed.
    factors = splu(
        system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True}
    )
    out = image.copy()
    out[:, ys, xs] = factors.solve(known).T
    return out


@metric(DEFINITIONS["road_morf"])
def road_morf(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: int | float = 0.01,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> Scores:
    """Confidence left once the most relevant places are imputed, mean over percentiles; lower ↓.

    Arguments that are not listed are those of `faithfulness_scores`.

    Args:
        noise: Standard deviation of the imputation's noise, in the images' unit.

    Returns:
        `(b,)`, 0 to 1 for probabilities; NaN for a map that is not finite.

    Raises:
        InputError: Maps that do not fit, percentiles out of range, several outputs and no target.
    """
    return _road(model, images, maps, True, target, percentiles, noise, output, rows, seed)


@metric(DEFINITIONS["road_lerf"])
def road_lerf(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: int | float = 0.01,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> Scores:
    """Confidence left once the least relevant places are imputed, mean over percentiles; higher ↑.

    The arguments are those of `road_morf`.

    Returns:
        `(b,)`, 0 to 1 for probabilities; NaN for a map that is not finite.

    Raises:
        InputError: As `road_morf`.
    """
    return _road(model, images, maps, False, target, percentiles, noise, output, rows, seed)


@metric(
    DEFINITIONS["road_combined"],
    of=("road_lerf", "road_morf"),
    combine=lambda least, most: (least - most) / 2,
)
def road_combined(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    target: Target = None,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: int | float = 0.01,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> Scores:
    """How much more the most relevant places matter than the least: `(LeRF − MoRF) / 2`; higher ↑.

    The arguments are those of `road_morf`.

    Returns:
        `(b,)`, −0.5 to 0.5 for probabilities, 0 for a map without information; NaN for a map that
        is not finite.

    Raises:
        InputError: As `road_morf`.
    """
    least, most = (
        _road(model, images, maps, first, target, percentiles, noise, output, rows, seed)
        for first in (False, True)
    )
    return (least - most) / 2


def _road(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    most_relevant_first: bool,
    target: Target,
    percentiles: Sequence[int | float],
    noise: int | float,
    output: Output,
    rows: int,
    seed: int,
) -> Scores:
    maps = maps_of_images(images, maps)
    if not len(percentiles) or not all(0 < p < 100 for p in percentiles):
        raise InputError(f"percentiles: expected values between 0 and 100, got {percentiles}")
    order = removal_order(maps if most_relevant_first else -maps, seed=seed)
    with confidence_of(model, target, output, rows) as confidence:
        versions = (impute(images, mask, noise=noise, seed=seed)
                    for mask in _removed(order, images, percentiles))  # fmt: skip
        scores = confidence.of_versions(versions).mean(0).float()
    return scores.masked_fill(~fitting(maps), torch.nan)


def _removed(
    order: Tensor, images: Images, percentiles: Sequence[int | float]
) -> Iterator[Bool[Tensor, "b h w"]]:
    places = order.shape[1]
    for percentile in percentiles:
        count = min(places - 1, round(places * percentile / 100))
        mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
        mask.scatter_(1, order[:, :count], True)
        yield mask.reshape(len(images), *images.shape[-2:])
