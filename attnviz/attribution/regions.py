"""Superpixels to remove at once, and the regression of KernelSHAP over their removal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attnviz.errors import InputError
from attnviz.shapes import Images


def superpixels(
    images: Images, *, segments: int = 50, compactness: float = 10.0
) -> Int[Tensor, "b 1 h w"]:
    """Each image cut into regions of like colour by scikit-image's SLIC (Achanta et al. 2012).

    Each image is stretched to 0 … 1 by its own minimum and maximum before; images of three
    channels are compared in Lab.

    Args:
        images: `(b, c, h, w)`.
        segments: About how many regions.
        compactness: How much nearness counts against likeness of colour; raised tenfold, and again,
            for an image that would stay in one piece.

    Returns:
        `(b, 1, h, w)` int64 on the images' device: region numbers from 0 without gaps.

    Raises:
        InputError: Fewer than two segments.
    """
    if segments < 2:
        raise InputError(f"superpixels: expected segments of at least 2, got {segments}")
    arrays = images.detach().double().cpu().numpy()
    regions = np.stack([_regions(image, segments, compactness) for image in arrays])
    return torch.from_numpy(regions).to(images.device)[:, None]


def _regions(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    from skimage.segmentation import slic

    low, high = image.min(), image.max()
    stretched = (image.transpose(1, 2, 0) - low) / (high - low if high > low else 1.0)
    labels = slic(
        stretched,
        n_segments=segments,
        compactness=compactness,
        channel_axis=-1,
        start_label=0,
    )
    if labels.max() < 1 and compactness < 1e6:
        # Noise is cut into specks, which SLIC then joins to a single region: nearness must count.
        return _regions(image, segments, 10 * compactness)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


class LeastSquares:
    """Weighted linear regression with an intercept, in the form that Captum's KernelShap takes.

    In place of Captum's own wrapper of scikit-learn, which attnviz does not depend on; the same
    coefficients, of least norm where there are fewer samples than features.
    """

    def __init__(self) -> None:
        self.coefficients = torch.empty(0)

    def fit(self, train_data: Iterable[Any], **_: Any) -> dict[str, float]:
        """Fit to `(x, y, weight)` batches."""
        x, y, weight = (torch.cat(parts).double().cpu() for parts in zip(*train_data, strict=True))
        share = weight / weight.sum()
        x, y = x - share @ x, y - share @ y
        root = weight.sqrt()
        solved = torch.linalg.lstsq(root[:, None] * x, (root * y)[:, None], driver="gelsd")
        self.coefficients = solved.solution[:, 0]
        return {}

    def representation(self) -> Tensor:
        """The coefficients, `(1, features)`."""
        return self.coefficients[None].float()
