"""Anything that yields images with masks, boxes or labels, as samples."""

from __future__ import annotations

from typing import Any

from attnviz.data.samples import Sample, Samples
from attnviz.errors import InputError


def samples_of(data: Any) -> Samples:
    """A data set as samples.

    Raises:
        InputError: It is none.
    """
    indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if indexed and len(data) and isinstance(data[0], Sample):
        found: Samples = data
        return found
    raise InputError(f"evaluate: expected a sequence of samples, got {type(data).__name__}")
