"""Images of any data set with a patch laid into them, whose place is then known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from attnviz.data.samples import Sample, Samples
from attnviz.data.sources import samples_of
from attnviz.patches import inject_patch


def patched(
    data: Any, *, size: int = 16, seed: int = 0, transform: Any = None, **options: Any
) -> Samples:
    """A data set with a patch in each image: where a model should look is known.

    Args:
        data: Whatever `samples_of` reads; masks that it has are replaced by the patch.
        size: Side of the patch in pixels of the transformed image.
        seed: Of the places; an image's place depends on its number alone.
        transform: As in `samples_of`.
        **options: Further arguments of `attnviz.inject_patch`, such as `fraction=.5` for images
            without a patch. `fill` is in the units of the transformed image.

    Returns:
        Samples with the patch's mask; `label` stays what it was.
    """
    return _Patched(samples_of(data, transform=transform), size, seed, options)


class _Patched:
    def __init__(self, data: Samples, size: int, seed: int, options: dict[str, Any]) -> None:
        self.data, self.size, self.seed, self.options = data, size, seed, options

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        images, masks, boxes = inject_patch(
            sample.image[None], size=self.size, seed=self.seed, indices=torch.tensor([index]),
            **self.options,
        )  # fmt: skip
        single = bool(masks.any()) and self.options.get("count", 1) == 1
        found = boxes if single else None
        return replace(
            sample, image=images[0], mask=masks[0], boxes=found, ignore=None, pixels=None
        )
