"""Binary tasks on images with injected patches: images, masks, boxes and labels.

- `patch`: is there one? Half of the images have one.
- `both`: there are always two patches, each a square or a ring; are both kinds there? A linear head
  on the global mean of local features cannot separate these: its output for `square + ring` is the
  mean of those for `square + square` and `ring + ring`. The model must combine both places.
- `larger`: there are a large and a small patch, one as bright as the other is dark; is the larger
  one the bright one? The mask is the larger patch alone.

A split's patches follow from `(data_seed, split)` and the image's number; training patches from the
training seed too, and, where they are redrawn, from the epoch. With `places="batch"` they lie where
a published tutorial put them: by the place in the batch, so that all splits share the few places
that one batch has.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attnviz.models.pixels import as_input
from attnviz.patches import Patched, inject_patch
from attnviz.shapes import Boxes, Images, Masks
from experiments.settings import Settings

_PATCH_SEEDS = {"train": 1, "val": 2, "test": 3}


class Asked(NamedTuple):
    """Images with their patches, the masks of what must be found, and the labels.

    Attributes:
        images: `(b, 3, h, w)` in [−1, 1].
        masks: `(b, h, w)`, the patch or patches that decide the label.
        boxes: `(b, 4)` `[x0, y0, x1, y1)` around the mask; zeros where it is empty.
        labels: `(b,)` float, 0 or 1.
    """

    images: Images
    masks: Masks
    boxes: Boxes
    labels: Tensor


def patch_seed(settings: Settings, split: str) -> int:
    """The seed of a split's patches; splits share one only with `places="batch"`, as published."""
    if settings.places == "batch":
        return settings.data_seed
    own = settings.seed + 1 if split == "train" else 0
    return (settings.data_seed * 4 + _PATCH_SEEDS[split]) * 1_000_003 + own


def ask(
    pixels: Tensor,
    indices: Tensor,
    settings: Settings,
    *,
    seed: int,
    order: Tensor | None = None,
) -> Asked:
    """Inject the patches of the task into clean images.

    Args:
        pixels: `(b, 3, h, w)` uint8, on the device of the result.
        indices: `(b,)`, each image's number in its split.
        settings: The task, and the shape of the patches.
        seed: From `patch_seed`.
        order: `(b,)`, each image's place in a batch, or in its split; it seeds the patches' places
            with `places="batch"`. Labels follow `indices` in any case.
    """
    images = as_input(pixels)
    places = indices
    if settings.places == "batch" and order is not None:
        places = order % settings.batch
    return _QUESTIONS[settings.question](images, indices, places, settings, seed)


def _patch(images: Tensor, indices: Tensor, places: Tensor, settings: Settings, seed: int) -> Asked:
    put = partial(
        inject_patch,
        images,
        size=settings.size,
        seed=seed,
        shape=settings.shape,
        fill=settings.fill,
        opacity=settings.opacity,
    )
    patched = put(indices=indices, fraction=0.5)
    there = patched.masks.flatten(1).any(1)
    if places is not indices:
        moved = put(indices=places)
        patched = Patched(
            torch.where(there[:, None, None, None], moved.images, images),
            moved.masks & there[:, None, None],
            moved.boxes * there[:, None],
        )
    return Asked(*patched, labels=there.float())


def _both(images: Tensor, indices: Tensor, places: Tensor, settings: Settings, seed: int) -> Asked:
    squares, rings = (_two(images, places, settings, seed, shape) for shape in ("square", "ring"))
    kinds = torch.stack([_coin(indices, seed, salt) for salt in (1, 2)], dim=1)
    first, second = (
        torch.where(kinds[:, n, None, None], squares.masks[n], rings.masks[n]) for n in (0, 1)
    )
    masks = first | second
    labels = (kinds[:, 0] != kinds[:, 1]).float()
    return Asked(_laid(images, masks, settings.fill, settings), masks, squares.boxes, labels)


def _larger(
    images: Tensor, indices: Tensor, places: Tensor, settings: Settings, seed: int
) -> Asked:
    pair = _two(images, places, settings, seed, settings.shape)
    large, small = pair.masks[0], _shrunk(pair.masks[1], settings.size // 4)
    bright = _coin(indices, seed, 1)[:, None, None]
    images = _laid(images, torch.where(bright, large, small), settings.fill, settings)
    images = _laid(images, torch.where(bright, small, large), -settings.fill, settings)
    boxes = inject_patch(images, size=settings.size, seed=seed, indices=places).boxes
    return Asked(images, large, boxes, bright.flatten().float())


class _Pair(NamedTuple):
    masks: tuple[Masks, Masks]
    boxes: Boxes


def _two(images: Tensor, indices: Tensor, settings: Settings, seed: int, shape: str) -> _Pair:
    """The masks of an image's first and second patch, which do not overlap."""
    one, two = (
        inject_patch(
            images, size=settings.size, seed=seed, shape=shape, count=count, indices=indices
        )
        for count in (1, 2)
    )
    return _Pair((one.masks, two.masks & ~one.masks), two.boxes)


def _coin(indices: Tensor, seed: int, salt: int) -> Tensor:
    """A fair coin for each image, drawn from the place that a patch of its own would take."""
    two_places = torch.zeros(len(indices), 1, 2, 1, device=indices.device)
    thrown = inject_patch(two_places, size=1, seed=seed * 31 + salt, indices=indices)
    return thrown.masks[:, 0, 0]


def _laid(images: Tensor, masks: Tensor, fill: float, settings: Settings) -> Tensor:
    covered = images * (1 - settings.opacity) + settings.opacity * fill
    return torch.where(masks[:, None], covered, images)


def _shrunk(masks: Tensor, margin: int) -> Tensor:
    """Masks with `margin` pixels taken off all around."""
    outside = F.pad((~masks).float()[:, None], [margin] * 4, value=1.0)
    grown = F.max_pool2d(outside, 2 * margin + 1, stride=1)
    return grown[:, 0] < 0.5


_QUESTIONS = {"patch": _patch, "both": _both, "larger": _larger}
