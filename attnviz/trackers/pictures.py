"""A map over its image, as trackers take it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnviz.figures import overlay
from attnviz.figures.overlays import boxes as as_boxes

_SIDE = 256  # pixels that a picture has at least


@dataclass(frozen=True, eq=False)
class Picture:
    """One image with a map, and what is known of the object's place.

    Attributes:
        image: `(h, w, 3)` uint8.
        map: `(h', w')` raw values.
        mask: `(h, w)` bool, or None.
        boxes: `(k, 4)` boxes `[x0, y0, x1, y1)` in pixels; empty where there is none.
        caption: The image's name, and its score where it has one.
        thing: What mask and boxes show.
    """

    image: np.ndarray = field(repr=False)
    map: np.ndarray = field(repr=False)
    mask: np.ndarray | None = field(default=None, repr=False)
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)), repr=False)
    caption: str = ""
    thing: str = "object"

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        map: np.ndarray,
        *,
        mask: np.ndarray | None = None,
        boxes: Any = None,
        caption: str = "",
        thing: str = "object",
    ) -> Picture:
        """A picture; empty masks and boxes are left out."""
        found = np.zeros((0, 4)) if boxes is None else as_boxes(boxes)
        sized = found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]
        shown = None if mask is None or not mask.any() else np.asarray(mask, dtype=bool)
        return cls(np.asarray(image), np.asarray(map), shown, sized, caption, thing)

    @property
    def scale(self) -> int:
        """How many pixels a pixel of the image takes in `drawn`."""
        return max(1, round(_SIDE / float(max(self.image.shape[:2]))))

    def drawn(self, *, outlines: bool = True) -> np.ndarray:
        """The map over its image as uint8 `(h, w, 3)`, enlarged by `scale`.

        A map that is not finite leaves the image bare.

        Args:
            outlines: Draw the mask's edge, or the boxes where there is no mask.
        """
        values = np.nan_to_num(self.map, nan=0.0, posinf=0.0, neginf=0.0)
        box = self.boxes if outlines and self.mask is None and len(self.boxes) else None
        mask = self.mask if outlines else None
        return np.asarray(overlay(self.image, values, box, mask, scale=self.scale))
