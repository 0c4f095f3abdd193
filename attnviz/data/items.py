"""One item of a data set: its image, place and label, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnviz.errors import InputError
from attnviz.image_files import coloured

_PLACES = ("mask", "masks", "boxes", "annotations")
"""The keys under which an item says where its objects are."""

_LIKE_A_PLACE = re.compile(
    r"(?!attention_mask|pixel_mask)(.*_)?"
    r"(mask|box|boxe|bbox|bboxe|bndbox|seg|segmap|segmentation|annotation|object|polygon|rle)s?"
    r"(_(image|map|mask|path|file|label)s?)?",
    re.IGNORECASE,
)


def fields_of(item: Any) -> dict[str, Any]:
    """An item's image, masks, boxes, label and so on, by name.

    Raises:
        InputError: It has a form that is not known.
    """
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
    for key in ("image", "pixel_values", "img"):
        if item.get(key) is not None:
            return {"image": item[key]} | _known_of(item)
    raise InputError(f"expected a mapping with 'image', got {', '.join(map(str, item))}")


def _known_of(item: Mapping[str, Any], *, placed: bool = False) -> dict[str, Any]:
    """What a mapping says beside the image: place, label, group and so on.

    Args:
        item: The mapping.
        placed: Whether the item has said before where its objects are.
    """
    found = {key: item[key] for key in ("group", "name", "ignore") if item.get(key) is not None}
    found |= _place_of(item, placed)
    if item.get("label") is not None:
        return found | {"label": item["label"]}
    labels = item.get("labels")
    several = any(key in found for key in ("masks", "boxes", "annotations"))
    per_object = several and axes_of(labels) == 1
    return found if labels is None or per_object else found | {"label": labels}


def axes_of(labels: Any) -> int:
    """How many axes labels have."""
    return 1 if isinstance(labels, list | tuple) else len(getattr(labels, "shape", ()))


def _place_of(item: Mapping[str, Any], placed: bool) -> dict[str, Any]:
    """Where the objects of a mapping are, by the keys of `_PLACES` that it has.

    Raises:
        InputError: It has none of them, and others that look like a place.
    """
    found = {key: item[key] for key in _PLACES if item.get(key) is not None}
    if "annotations" in found:
        found["annotations"] = _coco_annotations(found["annotations"])
    if found:
        return found
    annotation = item.get("annotation")
    if isinstance(annotation, Mapping) and "object" in annotation:
        size = annotation.get("size")
        canvas = {} if size is None else {"canvas": (int(size["height"]), int(size["width"]))}
        return {"boxes": _voc_boxes(annotation), **canvas}
    if hasattr(item.get("bbox"), "canvas_size"):  # tv_tensors.BoundingBoxes say their format
        return {"boxes": item["bbox"]}
    like = [
        str(key) for key, value in item.items()
        if value is not None and not _is_scalar(value) and _LIKE_A_PLACE.fullmatch(str(key))
    ]  # fmt: skip
    if like and not placed:
        raise InputError(
            f"the place of the objects under {', '.join(like)} is not understood; expected mask, "
            "masks, boxes of corners [x0, y0, x1, y1), or annotations of COCO: rename it, convert "
            "bbox to one of them, or leave it out where places are unknown"
        )
    return {}


def _coco_annotations(annotations: Any) -> Sequence[Mapping[str, Any]]:
    """A list of objects, once it is COCO's: `bbox` of other formats may mean corners.

    Raises:
        InputError: It is another.
    """
    listed = isinstance(annotations, Sequence) and not isinstance(annotations, str)
    other: Any = annotations
    if listed:
        other = next((one for one in annotations if not _is_coco(one)), None)
    if other is not None:
        keys = ", ".join(map(str, other)) if isinstance(other, Mapping) else type(other).__name__
        raise InputError(
            "expected a list of COCO's annotations, each with category_id and bbox "
            f"[x, y, width, height] or segmentation, got {keys}; give other boxes as a mapping "
            "with 'boxes', corners [x0, y0, x1, y1)"
        )
    found: Sequence[Mapping[str, Any]] = annotations
    return found


def _is_coco(one: Any) -> bool:
    return (
        isinstance(one, Mapping) and bool({"bbox", "segmentation"} & set(one))
        and bool({"category_id", "segmentation", "iscrowd", "image_id"} & set(one))
    )  # fmt: skip


def _voc_boxes(annotation: Mapping[str, Any]) -> list[list[float]]:
    """The boxes of an annotation of Pascal VOC, whose pixels count from 1 and include the last."""
    objects = annotation["object"]
    boxes = []
    for one in [objects] if isinstance(objects, Mapping) else objects:
        try:
            box = [float(one["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"expected a VOC object with bndbox of xmin, ymin, xmax and ymax, got {one!r}"
            ) from error
        boxes.append([box[0] - 1, box[1] - 1, *box[2:]])
    return boxes


def _of_target(target: Any, so_far: Mapping[str, Any]) -> dict[str, Any]:
    """Mask, boxes or label of the second or third part of an item."""
    if target is None:
        return {}
    if _is_scalar(target):
        return {"label": target}
    if isinstance(target, Mapping):
        return _known_of(target, placed=any(key in so_far for key in _PLACES))
    if hasattr(target, "canvas_size") and hasattr(target, "format"):
        return {"boxes": target}
    if isinstance(target, Image.Image):
        return {"mask": target}
    shape = getattr(target, "shape", None)
    if shape is not None and len(shape) in (2, 3, 4):
        return {"mask": target}
    if shape is not None and len(shape) == 1:
        return {"label": torch.as_tensor(target)}
    if isinstance(target, Sequence) and not isinstance(target, str):
        if all(isinstance(one, Mapping) for one in target):
            return {"annotations": _coco_annotations(target)}
        found: dict[str, Any] = {}
        for part in target:
            found |= _of_target(part, so_far)
        return found
    if isinstance(target, str):
        return {"group": target} if "label" in so_far else {"label": target}
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
        return coloured(image, "image")
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
    if len(rows) and bool((rows <= 1).all()) and bool((rows % 1 != 0).any()):
        raise InputError(
            f"expected boxes in pixels, got {rows[0].tolist()}, shares of the image; multiply them "
            "by its width and height"
        )
    if form == "XYWH":
        rows = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:]], 1)
    elif form == "CXCYWH":
        half = rows[:, 2:] / 2
        rows = torch.cat([rows[:, :2] - half, rows[:, :2] + half], 1)
    found: list[list[float]] = rows.tolist()
    return found
