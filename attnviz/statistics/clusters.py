"""Groups of images that come from one photograph, patient or video."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnviz.errors import InputError

GROUP = "group"
"""The column of samples, and the key of a table, that names each image's group."""


def clusters(labels: Any) -> np.ndarray | None:
    """Labels of groups, one per image, as whole numbers from 0; None for none and for a single one.

    An image without a label (None, NaN, an empty string) is a group of its own.
    """
    if labels is None:
        return None
    known: dict[Any, int] = {}
    found = [
        known.setdefault(("image", i) if _unnamed(label) else str(label), len(known))
        for i, label in enumerate(labels)
    ]
    return np.array(found) if len(known) > 1 else None


def _unnamed(label: Any) -> bool:
    return label is None or label == "" or label != label  # NaN is not itself


def labelled(labels: Any, what: str) -> tuple[Any, ...] | None:
    """Group labels of any kind as a tuple, None where no image has one.

    Raises:
        InputError: They are no list of one label per image.
    """
    if labels is None:
        return None
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    found = np.asarray(labels, dtype=object)
    if found.ndim != 1:
        raise InputError(f"{what}: expected groups with one label per image, got {found.shape}")
    plain = tuple(None if _unnamed(label) else label for label in found.tolist())
    return None if all(label is None for label in plain) else plain
