"""Images and what is known about them: masks, boxes, labels, groups.

A `Sample` is one image as the model takes it. A data set of attnviz is any sequence of samples:
something with `len` and `[i]`, so that a piece of it can be computed alone, in any order, by any
process, and again after a kill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from attnviz.errors import InputError


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, and where the thing to be found is in it.

    Attributes:
        image: `(c, h, w)`, floating point, as the model takes it; of a volume `(c, d, h, w)`, of a
            video `(t, c, h, w)` or `(c, t, h, w)`, see `channel_axis`.
        mask: `(H, W)`, of volumes and videos `(D, H, W)`, True where the thing is; None where its
            place is unknown. All False where the image is known not to hold it. Scores are computed
            at this size.
        boxes: `(k, 4)` boxes `[x0, y0, x1, y1)` of the single objects, in the mask's
            pixels; None takes the boxes of the mask's components.
        ignore: As the mask, True where a pixel counts neither as inside nor as outside.
        label: The class's index, a `(classes,)` vector of several labels, a number for regression;
            None where there is none.
        group: What the image was cut from or belongs to (photograph, patient, video): images of
            one group are no independent samples.
        name: The file's name or another word for messages and tables.
        pixels: `(*mask, 3)` uint8, the image as people see it, at the mask's size; None makes it
            from `image` (see `displayed`).
        value_range: What black and white pixels become in each channel of `image`; None where that
            is not known.
        extra: Further columns for the table of samples.
    """

    image: Float[Tensor, "..."]
    mask: Bool[Tensor, "*places"] | None = None
    boxes: Int[Tensor, "k 4"] | None = None
    ignore: Bool[Tensor, "*places"] | None = None
    label: int | float | Tensor | None = None
    group: str | None = None
    name: str = ""
    pixels: UInt8[Tensor, "*places 3"] | None = None
    value_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Samples(Protocol):
    """A sequence of samples; `[i]` gives the same sample every time."""

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, index: int, /) -> Sample:
        """The image of this number."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        indices: Their numbers in the data set.
        images: `(b, c, h, w)`; of volumes and videos with an axis more.
        masks: `(b, *places)`; all False where a sample has none.
        known: `(b,)`, whether the sample has a mask.
        ignore: `(b, *places)`, or None where no sample has ignored pixels.
        samples: The samples themselves.
    """

    indices: tuple[int, ...]
    images: Float[Tensor, "b ..."]
    masks: Bool[Tensor, "b *places"]
    known: Bool[Tensor, "b"]
    ignore: Bool[Tensor, "b *places"] | None
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its images on a device; masks stay on the CPU."""
        return replace(self, images=self.images.to(device))


def batches(samples: Samples, indices: Sequence[int], size: int) -> Iterator[Batch]:
    """Batches of up to `size` samples, each of images and masks of one size.

    Args:
        samples: The data set.
        indices: Which of its images.
        size: Images per batch.

    Yields:
        Batches; where all sizes agree in the order of `indices`, else by size.

    Raises:
        InputError: A sample whose mask, boxes or values cannot be right; it is named.
    """
    waiting: dict[tuple[Any, ...], list[tuple[int, Sample]]] = {}
    for index in indices:
        sample = checked(samples[index], index)
        mask = None if sample.mask is None else tuple(sample.mask.shape)
        part = waiting.setdefault((tuple(sample.image.shape), mask), [])
        part.append((index, sample))
        if len(part) == size:
            yield _stacked(part)
            part.clear()
    for part in waiting.values():
        if part:
            yield _stacked(part)


def _stacked(part: Sequence[tuple[int, Sample]]) -> Batch:
    indices, samples = zip(*part, strict=True)
    first: Sample = samples[0]
    nothing = torch.zeros(scored_size(first), dtype=torch.bool)
    ignored = [sample.ignore for sample in samples]
    return Batch(
        indices=tuple(indices),
        images=torch.stack([sample.image for sample in samples]),
        masks=torch.stack([nothing if s.mask is None else s.mask for s in samples]),
        known=torch.tensor([sample.mask is not None for sample in samples]),
        ignore=None
        if all(one is None for one in ignored)
        else torch.stack([nothing if one is None else one for one in ignored]),
        samples=tuple(samples),
    )


def class_names(data: Any) -> tuple[str, ...]:
    """The names of a data set's classes by index, where it has an attribute `classes` of them."""
    found = getattr(data, "classes", ())
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        return ()
    return tuple(found)


def channel_axis(sample: Sample) -> int:
    """Which axis of the image holds channels: 0, or 1 of a video `(t, c, h, w)`.

    Of an image of four axes it is the one without which the others have the mask's size, else the
    only one of at most four.

    Raises:
        InputError: That is not clear.
    """
    shape, mask = tuple(sample.image.shape), sample.mask
    if len(shape) == 3:
        return 0
    fits = [axis for axis in (0, 1) if mask is not None and mask.shape == _without(shape, axis)]
    small = [axis for axis in (0, 1) if shape[axis] <= 4]
    found = fits if len(fits) == 1 else small
    if len(found) != 1:
        raise InputError(
            f"which axis of an image {shape} holds channels is not clear; give a mask of its size, "
            "(d, h, w)"
        )
    return found[0]


def image_size(sample: Sample) -> tuple[int, ...]:
    """Height and width of the image; of volumes and videos depth or time before them."""
    return _without(tuple(sample.image.shape), channel_axis(sample))


def scored_size(sample: Sample) -> tuple[int, ...]:
    """The size at which a sample is scored and kept: the mask's, the image's where it has none."""
    return image_size(sample) if sample.mask is None else tuple(sample.mask.shape)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def displayed(sample: Sample) -> UInt8[Tensor, "*places 3"]:
    """The image as people see it.

    Without `pixels` it is what `value_range` says, and without that the values decide: within
    [0, 1] they are shades, within [−1, 1] they are shades around grey, and anything else is
    stretched from its lowest to its highest value.
    """
    if sample.pixels is not None:
        return sample.pixels
    image = sample.image.detach().cpu().float().movedim(channel_axis(sample), 0)
    if sample.value_range is not None:
        low, high = (
            torch.as_tensor(level, dtype=torch.float32).reshape(-1, *[1] * (image.ndim - 1))
            for level in sample.value_range
        )
    else:
        low, high = image.min(), image.max()
        if low >= 0 and high <= 1:
            low, high = torch.tensor(0.0), torch.tensor(1.0)
        elif low >= -1 and high <= 1:
            low, high = torch.tensor(-1.0), torch.tensor(1.0)
    span = (high - low).abs().clamp_min(1e-12)
    shades = ((image - low) / span).clamp(0, 1).mul(255).round().to(torch.uint8)
    colours = shades.expand(3, *shades.shape[1:]) if len(shades) == 1 else shades[:3]
    if len(colours) == 2:
        colours = torch.cat([colours, torch.zeros_like(colours[:1])])
    return colours.movedim(0, -1).contiguous()


def called(sample: Sample, index: int) -> str:
    """How a message names a sample: its number, and its name where it has one."""
    return f"item {index}" + (f" ({sample.name})" if sample.name else "")


def checked(sample: Sample, index: int) -> Sample:
    """The sample, once nothing in it contradicts the rest.

    Raises:
        InputError: It is no sample; its image is no `(c, h, w)` of finite floating point numbers;
            its mask, ignored pixels or boxes do not fit.
    """
    if not isinstance(sample, Sample):
        raise InputError(
            f"item {index}: expected an attnviz.data.Sample, got {type(sample).__name__}; "
            "wrap the data set in attnviz.data.samples_of"
        )
    name = called(sample, index)
    image = sample.image
    if image.ndim not in (3, 4) or not image.dtype.is_floating_point:
        raise InputError(
            f"{name}: expected an image (c, h, w) of floating point numbers as the model takes "
            f"it, got {image.dtype} {tuple(image.shape)}; give a transform="
        )
    if not bool(image.isfinite().all()):
        raise InputError(f"{name}: the image holds NaN or infinite values")
    _check_mask(sample, name)
    if sample.boxes is not None:
        _check_boxes(sample, name)
    return sample


def _check_mask(sample: Sample, name: str) -> None:
    mask, ignore = sample.mask, sample.ignore
    if mask is None:
        if ignore is not None:
            raise InputError(f"{name}: ignored pixels without a mask")
        return
    axes = sample.image.ndim - 1
    if mask.ndim != axes or mask.dtype != torch.bool:
        raise InputError(
            f"{name}: expected a mask ({'d, ' * (axes == 3)}h, w) of booleans, got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    try:
        sides = list(zip(image_size(sample), mask.shape, strict=True))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    for (h, height), (w, width) in pairwise(sides):
        if abs(h * width - w * height) > max(h, w, height, width):
            raise InputError(
                f"{name}: expected a mask with the image's proportions, "
                f"{' × '.join(str(side) for side, _ in sides)}, got "
                f"{' × '.join(str(side) for _, side in sides)}; image and mask must go through "
                "the same transform"
            )
    if ignore is not None and ignore.shape != mask.shape:
        raise InputError(
            f"{name}: expected ignored pixels of the mask's size {tuple(mask.shape)}, "
            f"got {tuple(ignore.shape)}"
        )


def _check_boxes(sample: Sample, name: str) -> None:
    boxes = sample.boxes
    assert boxes is not None
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.is_floating_point:
        raise InputError(
            f"{name}: expected boxes (k, 4) of whole pixels [x0, y0, x1, y1), got "
            f"{boxes.dtype} {tuple(boxes.shape)}"
        )
    h, w = scored_size(sample)[-2:]
    x0, y0, x1, y1 = boxes.unbind(1)
    wrong = (x0 < 0) | (y0 < 0) | (x1 > w) | (y1 > h) | (x0 >= x1) | (y0 >= y1)
    if bool(wrong.any()):
        raise InputError(
            f"{name}: expected boxes [x0, y0, x1, y1) inside the {h} × {w} image, "
            f"got {boxes[wrong][0].tolist()}"
        )
