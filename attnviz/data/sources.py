"""Anything that yields images with masks, boxes or labels, as samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
      targets and tv_tensors of torchvision), or a list of COCO annotations (`CocoDetection`),
    - mappings with `image` and any of `mask`, `masks`, `boxes`, `label`, `group`, `name`, `ignore`.

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
        InputError: It is no such data set; items are read, and named, when they are needed.
    """
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        data = data.dataset
    fit = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not fit or isinstance(data, (str, bytes, Mapping)):
        raise InputError(
            f"data: expected a sequence of images with len and [i], got {type(data).__name__}; of "
            "an iterator make a list, of a folder attnviz.data.mask_folder"
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
            parts = fields_of(item)
            sample = self._sample(parts, index)
        except InputError as error:
            said = str(error)
            raise InputError(
                said if said.startswith("item ") else f"item {index}: {said}"
            ) from error
        return sample

    def _sample(self, parts: dict[str, Any], index: int) -> Sample:
        group = parts.get("group")
        if self.group is not None:
            group = (
                self.group(index, self.data[index]) if callable(self.group) else self.group[index]
            )
        about: dict[str, Any] = {
            "label": parts.get("label"),
            "group": None if group is None else str(group),
            "name": str(parts.get("name", "")),
        }
        image = parts["image"]
        if self.moved is not None:
            picture = picture_of(image)
            objects, void = self._objects(parts, picture.size)
            apart = parts.get("mask") is None
            scene = Scene(picture, objects, void, **about, apart=apart)
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
        single = masks if parts.get("mask") is None else None
        boxes = [box for one in single or () if (box := box_of(one)) is not None]
        shape = masks[0].shape if masks else tensor.shape[-2:]
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
            return self._label_map(self._values(parts["mask"]), void, axes)
        if parts.get("masks") is not None:
            masks = [np.asarray(one).astype(bool) for one in parts["masks"]]
            return masks, void
        if parts.get("boxes") is not None:
            return [filled_box(box, size) for box in corners_of(parts["boxes"])], void
        if parts.get("annotations") is not None:
            from attnviz.data.coco import objects_of

            return objects_of(parts["annotations"], size)
        return None, void

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
        self, mask: np.ndarray, void: np.ndarray | None, axes: int
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
        if self.inside is None and not self.known and len(others) > 1:
            raise InputError(
                f"a label map with the values {values[:8]}: say which are the thing, "
                "inside=<value or values>, and which count neither way, ignore=<values>"
            )
        chosen = others if self.inside is None else list(self.inside)
        return [np.isin(mask, chosen)], out if out.any() else None


def fields_of(item: Any) -> dict[str, Any]:
    """An item's image, masks, boxes, label and so on, by name.

    Raises:
        InputError: It has a form that is not known.
    """
    if isinstance(item, Sample):
        return {name: getattr(item, name) for name in
                ("image", "mask", "ignore", "label", "group", "name")}  # fmt: skip
    if isinstance(item, Mapping):
        return _of_mapping(item)
    if not isinstance(item, Sequence) or not 1 <= len(item) <= 3:
        raise InputError(
            f"expected (image, mask), (image, mask, label), (image, target) or a mapping with "
            f"'image', got {type(item).__name__}"
        )
    found: dict[str, Any] = {"image": item[0]}
    for part in item[1:]:
        found |= _of_target(part, found)
    return found


def _of_mapping(item: Mapping[str, Any]) -> dict[str, Any]:
    names = {"pixel_values": "image", "img": "image", "labels": "label", "bbox": "boxes"}
    found = {names.get(key, key): value for key, value in item.items()}
    if "image" not in found:
        raise InputError(f"expected a mapping with 'image', got {', '.join(map(str, item))}")
    return found


def _of_target(target: Any, so_far: Mapping[str, Any]) -> dict[str, Any]:
    """Mask, boxes or label of the second or third part of an item."""
    if target is None:
        return {}
    if _is_scalar(target):
        return {"label": target}
    if isinstance(target, Mapping):
        found = {key: target[key] for key in ("masks", "mask", "boxes", "group", "name", "ignore")
                 if target.get(key) is not None}  # fmt: skip
        label = target.get("label", target.get("labels"))
        return found | ({"label": label} if _is_scalar(label) else {})
    if isinstance(target, Image.Image):
        return {"mask": target}
    shape = getattr(target, "shape", None)
    if shape is not None and len(shape) in (2, 3, 4):
        return {"mask": target}
    if shape is not None and len(shape) == 1:
        return {"label": torch.as_tensor(target)}
    if isinstance(target, Sequence) and not isinstance(target, str):
        if all(isinstance(one, Mapping) for one in target):
            return {"annotations": target}
        found = {}
        for part in target:
            found |= _of_target(part, so_far)
        return found
    if isinstance(target, str):
        return {"group": target} if "label" in so_far else {"name": target}
    raise InputError(f"expected a mask, label, boxes or a mapping, got {type(target).__name__}")


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int | float | np.number):
        return True
    return getattr(value, "shape", None) == () and not isinstance(value, Image.Image)


def picture_of(image: Any) -> Image.Image:
    """An image of any kind as a PIL image in mode RGB.

    Raises:
        InputError: A floating point image outside [0, 1], or something that is no image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if isinstance(image, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise InputError(
            f"expected a picture: PIL, bytes, or floating point in [0, 1]; got {array.dtype} "
            f"{array.shape}; where images are tensors already, leave transform= out"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(array).convert("RGB")


def corners_of(boxes: Any) -> list[list[float]]:
    """Boxes as `[x0, y0, x1, y1)`, from any format of a tv_tensor."""
    form = str(getattr(boxes, "format", "XYXY")).rsplit(".", 1)[-1].upper()
    if form not in ("XYXY", "XYWH", "CXCYWH"):
        raise InputError(f"expected boxes as XYXY, XYWH or CXCYWH, got {form}")
    rows = torch.as_tensor(np.asarray(boxes) if not isinstance(boxes, Tensor) else boxes)
    rows = rows.as_subclass(Tensor).reshape(-1, 4).double()
    if form == "XYWH":
        rows = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:]], 1)
    elif form == "CXCYWH":
        half = rows[:, 2:] / 2
        rows = torch.cat([rows[:, :2] - half, rows[:, :2] + half], 1)
    found: list[list[float]] = rows.tolist()
    return found
