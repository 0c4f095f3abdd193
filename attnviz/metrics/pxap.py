"""PxAP: the average precision of the pooled pixels of a whole data set.

The pool holds four bytes a pixel: the scaled value as float32 in [0, 1] needs 30 bits, the label
one. Pools of several workers can be merged; nothing is binned.
"""

from __future__ import annotations

import numpy as np
import torch

from attnviz.inputs import AnyMaps, AnyMasks
from attnviz.metrics.batching import Batch, batches
from attnviz.metrics.reasons import UNSCORABLE, Reason

_ONE = 0x3F800000  # the bits of 1.0 in float32: non-negative floats have the order of their bits


def pxap(maps: AnyMaps, masks: AnyMasks) -> float:
    """The average precision over the pixels of all images together, each map min-max scaled.

    Scaled values are rounded to float32, the places of one value enter together. A constant map
    marks nothing: it is 0 everywhere. Images with an empty mask, NaN or Inf are left out.

    Source: J. Choe et al., "Evaluating weakly supervised object localization methods right", 2020,
    whose own code bins the values and prints 100 times this: `compat.wsol.pxap`.

    Args:
        maps: Raw maps, (b, *places).
        masks: Where the object is, (b, *places).

    Returns:
        A number in [0, 1], higher is better, chance is the share of places inside masks; NaN if no
        image can be scored. Takes about 8 bytes of memory a pixel.

    Raises:
        InputError: Wrong shapes, dtypes or devices.
    """
    pool = PixelPool()
    for batch in batches(maps, masks):
        pool.add(batch)
    return pool.average_precision()


class PixelPool:
    """The scaled values and labels of the pixels of many images, in no order.

    Attributes:
        images: How many images are in it.
    """

    def __init__(self) -> None:
        self.images = 0
        self._parts: list[np.ndarray] = []

    def add(self, batch: Batch) -> None:
        """Add the pixels of a batch, except of images that cannot be scored."""
        fit = (batch.flags & int(UNSCORABLE)) == 0
        flat = (batch.flags & int(Reason.CONSTANT)) != 0
        scaled = batch.scaled.masked_fill(flat[:, None], 0.0)[fit].float()
        keys = ((_ONE - scaled.view(torch.int32)) << 1) | batch.labels[fit]
        self._parts.append(keys.view(-1).cpu().numpy())
        self.images += int(fit.sum())

    def merge(self, other: PixelPool) -> None:
        """Add all pixels of another pool."""
        self._parts += other._parts
        self.images += other.images

    def average_precision(self) -> float:
        """The average precision of all pixels, NaN if there are none."""
        if not self.images:
            return float("nan")
        keys = np.sort(np.concatenate(self._parts))
        self._parts = [keys]
        places = np.flatnonzero(keys & 1)
        held = keys[places]
        last = np.flatnonzero(np.append(held[1:] != held[:-1], True))
        hits = last + 1
        gained = np.diff(hits, prepend=0)
        return float(np.sum(gained * (hits / (places[last] + 1))) / len(places))
