"""Anything that yields images with masks, boxes or labels, as samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnviz.data.coco import objects_of
from attnviz.data.items import axes_of, corners_of, fields_of, picture_of
from attnviz.data.mask_values import (
    Inside,
    chosen_values,
    refuse_absent,
    values_of_image,
    whole,
)
from attnviz.data.preprocessing import Preprocessing, preprocessing
from attnviz.data.samples import Sample, Samples, class_names
from attnviz.data.scenes import Scene, box_of, filled_box
from attnviz.errors import InputError

_KNOWN: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...]]] = {
    "VOCSegmentation": (None, (255,)),
    "OxfordIIITPet": ((1,), (3,)),
    "SBDataset": (None, (255,)),
}
"""Data sets of torchvision whose label maps have a meaning: values of the thing (None: all but 0
and the ignored ones), and ignored values."""


def samples_of(
    data: Any,
    *,
    transform: Any = None,
    inside: Inside = None,
    ignore: int | Sequence[int] = (),
    group: Callable[[int, Any], str] | Sequence[str] | None = None,
    seed: int = 0,
) -> Samples:
    """A data set as samples.

    Read are samples; a DataLoader (its data set); and any sequence of

    - `(image, mask)`, `(image, label)`, `(image, mask, label)`, or `(image, (label, mask))`,
    - `(image, target)` with a mapping of `masks`, `mask`, `boxes`, `labels` or `label` (detection
      targets and tv_tensors of torchvision), a list of COCO annotations (`CocoDetection`), or the
      annotation of `VOCDetection`, whose objects' boxes are read,
    - mappings with `image` and any of `mask`, `masks`, `boxes`, `annotations`, `label`, `group`,
      `name`, `ignore`.

    `boxes` are corners, `[x0, y0, x1, y1)` in the image's pixels, or `tv_tensors.BoundingBoxes` of
    any format; `bbox`, which means corners to some and a width and height to others, is taken from
    COCO's annotations alone. Keys that look like a place and are none of these are refused, where
    an item has no other. A label is a class's index, or its name where the data set lists
    `classes`.

    Volumes `(c, d, h, w)` and videos `(t, c, h, w)` are read the same way, as tensors that the
    model takes with masks `(d, h, w)`.

    A mask is boolean, or a label map of whole numbers. Of a label map `inside` says which values
    are the thing; it may be left out where there is only one value beside 0, and for data sets of
    torchvision that are known (VOCSegmentation, OxfordIIITPet, SBDataset).

    Args:
        data: The data set: something with `len` and `[i]`.
        transform: From a PIL image to the tensor that the model takes; masks and boxes follow it.
            None where the data set gives tensors as the model takes them.
        inside: Values of label maps that are the thing.
        ignore: Values of label maps that count neither way.
        group: What an image belongs to: a name per image, or a function of its number and item.
        seed: Of a random transform.

    Raises:
        InputError: It is no such data set, or no label map holds a value of `inside` (they are read
            until one does). Other items are read, and named, when they are needed.
    """
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        data = data.dataset
    fit = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not fit or isinstance(data, (str, bytes, Mapping)):
        raise InputError(
            f"data: expected a sequence of images with len and [i], got {type(data).__name__}; of "
            "an iterator make a list, of a folder attnviz.data.mask_folder"
        )
    if isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data):
        raise InputError(
            f"data: expected a sequence of items, got a tuple of {len(data)} tensors; of stacked "
            "images and masks make torch.utils.data.TensorDataset(images, masks)"
        )
    plain = transform is None and group is None and inside is None
    if plain and len(data) and isinstance(data[0], Sample):
        found: Samples = data
        return found
    values, void = _KNOWN.get(type(data).__name__, (None, ()))
    chosen = chosen_values(inside, "inside")
    left_out = (*(chosen_values(ignore, "ignore") or ()), *void)
    known = type(data).__name__ in _KNOWN
    moved = None if transform is None else preprocessing(transform, seed)
    read = _Read(data, moved, values if chosen is None else chosen, left_out, known, group)
    if chosen is not None:
        refuse_absent(chosen, read.label_maps())
    return read


class _Read:
    """Items of any data set, read as samples one by one."""

    def __init__(
        self,
        data: Any,
        moved: Preprocessing | None,
        inside: tuple[int, ...] | None,
        ignore: tuple[int, ...],
        known: bool,
        group: Callable[[int, Any], str] | Sequence[str] | None,
    ) -> None:
        self.data, self.moved, self.inside, self.ignore = data, moved, inside, ignore
        self.known, self.group = known, group
        self.classes = class_names(data)
        if group is not None and not callable(group) and len(group) != len(data):
            raise InputError(f"group: expected {len(data)} names, one per image, got {len(group)}")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        item = self.data[index]
        try:
            if isinstance(item, Sample):
                return self._again(item, index)
            sample = self._sample(fields_of(item), item, index)
        except InputError as error:
            said = str(error)
            raise InputError(
                said if said.startswith("item ") else f"item {index}: {said}"
            ) from error
        return sample

    def _again(self, sample: Sample, index: int) -> Sample:
        """The sample, with its group replaced by the one that was given."""
        if self.moved is not None:
            raise InputError(
                "transform: the items are samples, whose images are as the model takes them; "
                "leave transform= out, or give pictures"
            )
        return replace(sample, group=self._group_of(sample.group, sample, index))

    def _group_of(self, own: Any, item: Any, index: int) -> str | None:
        group = own
        if self.group is not None:
            group = self.group(index, item) if callable(self.group) else self.group[index]
        return None if group is None else str(group)

    def _label_of(self, label: Any) -> Any:
        if isinstance(label, str):
            if label not in self.classes:
                known = f" or one of the classes {', '.join(self.classes)}" if self.classes else ""
                raise InputError(
                    f"label: expected a class's index{known}, got the text {label!r}; a file's "
                    "name or a group is given in a mapping, 'name' or 'group'"
                )
            return self.classes.index(label)
        if isinstance(label, Mapping) or axes_of(label) > 1:
            raise InputError(
                "label: expected a class's index or a vector of several labels, got "
                f"{type(label).__name__}{' of several axes' * (axes_of(label) > 1)}; a label map "
                "is given as 'mask', boxes as 'boxes'"
            )
        return torch.as_tensor(label) if isinstance(label, list | tuple) else label

    def _sample(self, parts: dict[str, Any], item: Any, index: int) -> Sample:
        about: dict[str, Any] = {
            "label": self._label_of(parts.get("label")),
            "group": self._group_of(parts.get("group"), item, index),
            "name": str(parts.get("name", "")),
        }
        image = parts["image"]
        if "annotations" in parts:
            parts["canvas"] = self._stated_size(index)
        if self.moved is not None:
            picture = picture_of(image)
            objects, void = self._objects(parts, picture.size)
            apart = parts.get("mask") is None
            framed = [] if apart else _filled(parts, picture.size)
            scene = Scene(picture, objects, void, **about, apart=apart, framed=framed)
            return scene.prepared(self.moved, index)
        tensor = image.as_subclass(Tensor) if isinstance(image, Tensor) else image
        if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
            raise InputError(
                f"expected an image tensor (c, h, w), got {type(image).__name__}; give transform=, "
                "the model's own preprocessing"
            )
        size = (tensor.shape[-1], tensor.shape[-2])
        objects, void = self._objects(parts, size, axes=tensor.ndim - 1)
        masks = None if objects is None else [torch.from_numpy(one) for one in objects]
        shape = masks[0].shape if masks else tensor.shape[-2:]
        single = masks
        if parts.get("mask") is not None:
            single = [torch.from_numpy(one) for one in _filled(parts, size)]
            if single and shape != tensor.shape[-2:]:
                raise InputError(
                    f"expected a mask and boxes of one image, got a mask {tuple(shape)} and boxes "
                    f"in the pixels of {tuple(tensor.shape[-2:])}; bring the mask to that size"
                )
        boxes = [box for one in single or () if (box := box_of(one)) is not None]
        whole = None if masks is None else torch.zeros(shape, dtype=torch.bool)
        for one in masks or ():
            assert whole is not None
            if one.shape != whole.shape:
                raise InputError(f"masks of {tuple(one.shape)} and {tuple(whole.shape)}")
            whole |= one
        return Sample(
            tensor,
            whole,
            torch.tensor(boxes, dtype=torch.int64) if boxes else None,
            None if void is None else torch.from_numpy(void),
            **about,
        )

    def _objects(
        self, parts: dict[str, Any], size: tuple[int, int], *, axes: int = 2
    ) -> tuple[list[np.ndarray] | None, np.ndarray | None]:
        """A mask per object, None where nothing is known, and ignored pixels."""
        void = parts.get("ignore")
        void = None if void is None else np.asarray(void).astype(bool)
        if parts.get("mask") is not None:
            return self._label_map(self._values(parts["mask"]), void, axes, self.inside)
        if parts.get("masks") is not None:
            masks: list[np.ndarray] = []
            for one in parts["masks"]:
                objects, void = self._label_map(self._values(one), void, axes, None)
                masks += objects
            return masks, void
        if parts.get("boxes") is not None:
            return _filled(parts, size), void
        if parts.get("annotations") is not None:
            _check_canvas(parts.get("canvas"), size)
            return objects_of(parts["annotations"], size)
        return None, void

    def _stated_size(self, index: int) -> tuple[int, int] | None:
        """Height and width of an image of torchvision's `CocoDetection`, as its JSON says.

        None where a transform of both, or of the target, may have moved the annotations.
        """
        joint = getattr(self.data, "transforms", None) is not None
        if joint and getattr(self.data, "transform", None) is None:
            return None
        if getattr(self.data, "target_transform", None) is not None:
            return None
        entries = getattr(getattr(self.data, "coco", None), "imgs", None)
        ids = getattr(self.data, "ids", None)
        if entries is None or ids is None:
            return None
        entry = entries[ids[index]]
        return (int(entry["height"]), int(entry["width"])) if "height" in entry else None

    def _values(self, mask: Any) -> np.ndarray:
        if isinstance(mask, Image.Image):
            return values_of_image(mask, chosen=self.inside is not None or self.known)
        return np.asarray(mask)

    def label_maps(self) -> Iterator[np.ndarray]:
        """The label maps of the items; items that cannot be read are named when they are needed."""
        for index in range(len(self)):
            try:
                mask = fields_of(self.data[index]).get("mask")
                values = None if mask is None else whole(self._values(mask))
            except InputError:
                continue
            if values is not None and values.dtype != bool:
                yield values

    def _label_map(
        self,
        mask: np.ndarray,
        void: np.ndarray | None,
        axes: int,
        inside: tuple[int, ...] | None,
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        if mask.ndim == axes + 1 and 1 in (mask.shape[0], mask.shape[-1]):
            mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
        if mask.ndim != axes:
            raise InputError(f"expected a mask ({'d, ' * (axes == 3)}h, w), got {mask.shape}")
        if mask.dtype == bool:
            return [mask], void
        mask = whole(mask)
        values = [int(value) for value in np.unique(mask) if int(value) not in self.ignore]
        out = np.isin(mask, self.ignore) if self.ignore else np.zeros(mask.shape, bool)
        if void is not None:
            out |= void
        others = [value for value in values if value != 0]
        if inside is None and not self.known and len(others) > 1:
            raise InputError(
                f"a label map with the values {values[:8]}: say which are the thing, "
                "inside=<value or values>, and which count neither way, ignore=<values>"
            )
        chosen = others if inside is None else list(inside)
        return [np.isin(mask, chosen)], out if out.any() else None


def _filled(parts: Mapping[str, Any], size: tuple[int, int]) -> list[np.ndarray]:
    """The boxes of an item as a mask each; none where it has no boxes."""
    boxes = parts.get("boxes")
    if boxes is None:
        return []
    _check_canvas(getattr(boxes, "canvas_size", parts.get("canvas")), size)
    return [filled_box(box, size) for box in corners_of(boxes)]


def _check_canvas(canvas: Sequence[int] | None, size: tuple[int, int]) -> None:
    """An `InputError` where objects are of another height and width than the image."""
    if canvas is not None and tuple(canvas) != (size[1], size[0]):
        raise InputError(
            f"expected boxes of the {size[1]} × {size[0]} image, got boxes of "
            f"{canvas[0]} × {canvas[1]}; boxes and image must go through the same transform, give "
            "it as transform="
        )
