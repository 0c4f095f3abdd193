"""From the shape that meets the values to `(b, heads, q, k)`, and back.

A product sees `(b · heads, q, k)` or some transposition of it. Which of its rows belongs to which
image is followed through the ops (`attnviz.capture.followed_images`); rows of one image whose
tokens are other places are windows, the others its heads. Where images were not followed they are
read off the shapes, if these can be read in one way only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.capture.lineage import Lineage, Numbers
from attnviz.capture.provenance import Tag

UNSPLIT = (
    "images and heads lie in one axis, in an order that was not followed: the weights hold one row "
    "of images for both; give the model one image at a time"
)
"""The note of records whose images and heads cannot be told apart."""

_HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads", "nhead", "n_head", "nheads")


@dataclass(frozen=True)
class Split:
    """How rows, one for each image, window and head, become `(b, heads)`.

    Attributes:
        heads: How many heads there are; None where there is no such axis.
        order: The rows by image, then window, then head; None where they lie so.
        unsplit: Whether images and heads cannot be told apart.
    """

    heads: int | None = None
    order: tuple[int, ...] | None = None
    unsplit: bool = False

    def present(self, x: Tensor) -> Tensor:
        """From `(rows, …)` to `(b, heads, …)`."""
        if self.order is not None:
            x = x.index_select(0, torch.tensor(self.order, device=x.device))
        return x.reshape(-1, self.heads or 1, *x.shape[1:])

    def restore(self, x: Tensor) -> Tensor:
        """From `(b, heads, …)` to `(rows, …)`."""
        x = x.flatten(0, 1)
        if self.order is None:
            return x
        return x.index_select(0, torch.from_numpy(np.argsort(self.order)).to(x.device))

    def rows(self, flat: Numbers) -> Numbers:
        """Values along the rows as `(b, heads)`."""
        flat = flat if self.order is None else flat[list(self.order)]
        return flat.reshape(-1, self.heads or 1)

    def images(self, count: int) -> Numbers:
        """For each row the first index, of so many, of where it became a head."""
        rows = np.repeat(np.arange(count, dtype=np.int64), self.heads or 1)
        return rows if self.order is None else rows[np.argsort(self.order)]


@dataclass(frozen=True)
class Layout:
    """How an operand's axes are to be read.

    Attributes:
        order: The operand's axes as (leading …, query, key).
        leading: Sizes of the leading axes, slowest first, as the softmax had them.
        split: How images and heads lie along them.
    """

    order: tuple[int, ...]
    leading: tuple[int, ...]
    split: Split

    @property
    def heads(self) -> int | None:
        """How many heads there are; None where there is no such axis."""
        return self.split.heads

    def present(self, operand: Tensor) -> Tensor:
        """The operand as `(b, heads, q, k)`."""
        x = operand.permute(self.order)
        return self.split.present(x.reshape(-1, *x.shape[-2:]))

    def operand(self, tensor: Tensor | None, tokens: int) -> Tensor | None:
        """Queries or keys `(n, tokens, d)` as `(b, heads, tokens, d)`, split as the weights are.

        None where they were not kept, or do not fit.
        """
        if tensor is None or tensor.shape[-2] != tokens:
            return None
        if tensor.shape[:-2].numel() != prod(self.leading):
            return None
        return self.split.present(tensor.reshape(-1, *tensor.shape[-2:]))

    def rows(self, flat: Numbers) -> Numbers:
        """Values along the operand's leading axes as `(b, heads)`."""
        return self.split.rows(flat)

    def restore(self, weights: Tensor, like: Tensor) -> Tensor:
        """Weights `(b, heads, q, k)` in the operand's own shape."""
        x = self.split.restore(weights).reshape([like.shape[i] for i in self.order])
        return x.permute([self.order.index(i) for i in range(len(self.order))])


def layout(
    operand: Tensor,
    query: int,
    key: int,
    tag: Tag,
    module: nn.Module,
    images: int | None,
    lineage: Lineage,
    *,
    values: Tensor | None = None,
    whole: bool = False,
) -> Layout:
    """Read an operand whose query and key axes are known, the rest from the softmax's result.

    Args:
        operand: What meets the values.
        query: Its axis of queries.
        key: Its axis of keys.
        tag: What is known of the softmax.
        module: The module of the attention, for its number of heads.
        images: The batch size, if it is known.
        lineage: What is known of the images and places of tensors.
        values: The values, whose leading axes are the operand's.
        whole: Whether a single leading axis holds no heads.
    """
    lead = [i for i in range(operand.dim()) if i not in (query, key)]
    order = (*lead, query, key)
    total = prod(operand.shape[i] for i in lead)
    axes = _leading(operand, query, key, tag)
    sizes = tuple(tag.shape[i] for i in axes)
    if not axes or prod(sizes) != total:
        sizes = tuple(operand.shape[i] for i in lead)
    known = followed_images(lineage, operand, lead)
    if values is not None and values.shape[:-2].numel() != total:
        values = None
    outer = () if values is None else range(values.dim() - 2)
    if known is None and values is not None:
        known = followed_images(lineage, values, outer)
    if known is None:
        images = _counted(lineage, operand, module, images)
    whole = whole and len(sizes) == 1
    if whole and known is None:
        return Layout(order, sizes, Split())

    def windows() -> Numbers | None:
        found = same_places(lineage, operand, lead)
        if found is None and values is not None:
            found = same_places(lineage, values, outer)
        return found

    split = divided(sizes, head_count(module), images, known, windows, whole=whole)
    return Layout(order, sizes, split)


class Beside(NamedTuple):
    """Heads that share their keys and lie beside the queries, in one axis of a product.

    Attributes:
        sizes: What the axis holds, slowest first.
        heads: Which of the two are heads; the other are queries.
    """

    sizes: tuple[int, int]
    heads: int

    def apart(self, operand: Tensor, query: int, key: int) -> tuple[Tensor, int, int]:
        """A view of the operand with heads as an axis, and its axes of queries and of keys."""
        view = operand.unflatten(query, self.sizes)
        return view, query + 1 - self.heads, key + (key > query)

    def queries(self, x: Tensor | None, lineage: Lineage) -> Tensor | None:
        """Queries `(…, heads and queries, d)` as `(…, heads, queries, d)`; None if not proven."""
        if x is None or x.shape[-2] != prod(self.sizes):
            return None
        split: Tensor = x.unflatten(-2, self.sizes)
        at = split.dim() - 3 + self.heads
        labels = lineage.labels(split) or ()
        if not labels or any(one.along(at) for one in labels):
            return None
        return split.movedim(at, -3)

    def keys(self, x: Tensor | None) -> Tensor | None:
        """Keys or values `(…, keys, d)` as `(…, heads, keys, d)`."""
        if x is None:
            return None
        repeated: Tensor = x.unsqueeze(-3).expand(
            *x.shape[:-2], self.sizes[self.heads], *x.shape[-2:]
        )
        return repeated


def heads_beside(
    operand: Tensor, query: int, tag: Tag, module: nn.Module, lineage: Lineage
) -> Beside | None:
    """Heads in the same axis as queries; None where it holds queries alone.

    Heads that share their keys are written as more queries of one product, as `einsum` does with
    `b h i d, b j d -> b h i j`. They are told from queries on a grid by their places, which are the
    same in each head, or by the number of heads that the module names.
    """
    size, stride = operand.shape[query], operand.stride(query)
    inner = sorted(_inside(size, stride, tag, set()) - {tag.axis}, key=lambda i: -tag.stride[i])
    inner = [i for i in inner if tag.shape[i] > 1]
    sizes = [tag.shape[i] for i in inner]
    if len(inner) < 2 or prod(sizes) != size:
        return None
    view = operand.unflatten(query, sizes)
    if [view.stride(query + i) for i in range(len(sizes))] != [tag.stride[i] for i in inner]:
        return None
    labels = lineage.labels(view) or ()
    placed = [any(one.along(query + i) for one in labels) for i in range(len(sizes))]
    if not any(placed):
        heads = head_count(module)
        first = next((i for i, n in enumerate(sizes) if n == heads), None)
        placed = [first is not None and i != first for i in range(len(sizes))]
    cut = next((i for i in range(1, len(sizes)) if placed[i] != placed[i - 1]), 0)
    if not cut or len(set(placed[cut:])) > 1:
        return None
    return Beside((prod(sizes[:cut]), prod(sizes[cut:])), int(placed[0]))


def _leading(operand: Tensor, query: int, key: int, tag: Tag) -> list[int]:
    """The tagged tensor's axes that are neither queries nor keys, slowest first."""
    inner: set[int] = set()
    for axis in (query, key):
        inner |= _inside(operand.shape[axis], operand.stride(axis), tag, inner)
    rest = [i for i in range(len(tag.shape)) if i not in inner]
    return sorted(rest, key=lambda i: -tag.stride[i]) if all(tag.stride) else rest


def _inside(size: int, stride: int, tag: Tag, taken: set[int]) -> set[int]:
    """The tagged tensor's axes that one axis of a view runs through."""
    shape, strides = tag.shape, tag.stride
    if size == 1:
        ones = [i for i, n in enumerate(shape) if n == 1 and i not in taken and i != tag.axis]
        return set(ones[-1:])
    hits = [i for i, n in enumerate(shape) if n == size and strides[i] == stride]
    if hits:
        return {hits[-1]}
    return {i for i, n in enumerate(shape) if n > 1 and stride <= strides[i] < stride * size}


def divided_kernel(
    query: Tensor, value: Tensor, module: nn.Module, images: int | None, lineage: Lineage
) -> Split:
    """How the two leading axes of a kernel's queries become images and heads.

    Args:
        query: The queries, `(b, heads, q, d)`.
        value: The values, with as many or fewer heads.
        module: The module of the attention, for its number of heads.
        images: The batch size, if it is known.
        lineage: What is known of the images and places of tensors.
    """
    sizes, lead, heads = tuple(query.shape[:2]), range(2), head_count(module)
    known = followed_images(lineage, query, lead)
    if known is None and value.shape[:2] == sizes:
        known = followed_images(lineage, value, lead)
    if known is None:
        images = _counted(lineage, query, module, images)
    several = known is not None or images not in (None, 1)
    if several and sizes[0] == 1 and sizes[1] > 1 and heads != sizes[1]:
        sizes = sizes[1:]
    return divided(sizes, heads, images, known, partial(same_places, lineage, query, lead))


def _counted(lineage: Lineage, x: Tensor, module: nn.Module, images: int | None) -> int | None:
    """The batch size, where it can tell how rows are to be read that were not followed.

    It cannot where what was taken for images lies along queries or keys. `nn.MultiheadAttention`
    folds its heads last, and does not need it.
    """
    tells = lineage.images(x) is None and not isinstance(module, nn.MultiheadAttention)
    return images if tells else None


def followed_images(lineage: Lineage, tensor: Tensor, lead: Sequence[int]) -> Numbers | None:
    """The image of each entry along a tensor's leading axes, flat; None where it is not known."""
    numbers = lineage.images(tensor)
    if numbers is None or any(n > 1 for i, n in enumerate(numbers.shape) if i not in lead):
        return None
    sizes = [tensor.shape[i] for i in lead]
    own = numbers.transpose([*lead, *(i for i in range(tensor.dim()) if i not in lead)])
    return np.broadcast_to(own.reshape(own.shape[: len(lead)]), sizes).reshape(-1)


def divided(
    sizes: tuple[int, ...],
    heads: int | None,
    images: int | None,
    known: Numbers | None,
    windows: Callable[[], Numbers | None] = lambda: None,
    *,
    whole: bool = False,
) -> Split:
    """How rows along some leading axes become images, windows and heads.

    Args:
        sizes: The axes, slowest first.
        heads: The number of heads by the module's attributes, if known.
        images: The number of images, if known.
        known: The image of each row, if it was followed.
        windows: Called for a number for each row that is the same where tokens are the same
            places; returns None where places are not known.
        whole: Whether rows that are left of an image are windows, and no heads.
    """
    total = prod(sizes)
    if known is None:
        known = _by_shape(sizes, heads, images)
        if known is None:
            return Split(unsplit=True)
    counts = np.bincount(known)
    count = int((counts > 0).sum())
    if counts.max(initial=0) * count != total:
        return Split(unsplit=True)  # images have more rows than others
    order = np.argsort(known, kind="stable").reshape(count, -1)
    left, along = _left(sizes, known, count)
    rest = tuple(n for n in left if n > 1)
    if not whole and rest:
        cut = windows() if count < total else None
        if cut is not None and heads is None and len(rest) > 1 and along is not None:
            cut = _with_frames(cut, sizes, order[0], along)
        own, heads = _heads(rest, heads, None if cut is None else cut[order[0]], len(sizes) == 1)
        order = order[:, own]
    else:
        heads = None
    flat = order.reshape(-1)
    kept = bool((flat == np.arange(total)).all())
    return Split(heads, None if kept else tuple(flat.tolist()))


def _by_shape(sizes: tuple[int, ...], heads: int | None, images: int | None) -> Numbers | None:
    """The image of each row, if sizes can be read in one way only; None if not."""
    total = prod(sizes)
    rows = np.arange(total, dtype=np.int64)
    if images == 1:
        return np.zeros(total, np.int64)
    if len(sizes) == 1:
        if total == images or (images is None and heads is None):
            return rows
        return None if images and total % images == 0 else np.zeros(total, np.int64)
    by_axis = np.unravel_index(rows, sizes)
    others = [
        i for i, n in enumerate(sizes[1:], 1)
        if images and ((n == images and heads is None) or (n % images == 0 and sizes[0] == heads))
    ]  # fmt: skip
    if not others or not images or sizes[0] == 1:
        return by_axis[0]
    usual = sizes[0] % images == 0 and (heads is None or heads in (*sizes[1:], prod(sizes[1:])))
    if usual or len(others) > 1:
        return None
    return by_axis[others[0]] // (sizes[others[0]] // images)


def _left(sizes: tuple[int, ...], known: Numbers, count: int) -> tuple[tuple[int, ...], int | None]:
    """The axes that are left of each image, and which one images lie along."""
    by_axis = known.reshape(sizes)
    along = [i for i in range(len(sizes)) if (by_axis != by_axis.take([0], i)).any()]
    if not along:
        return sizes, 0
    if len(along) > 1 or sizes[along[0]] % count:
        return (known.size // count,), None
    return tuple(n // count if i == along[0] else n for i, n in enumerate(sizes)), along[0]


def _with_frames(windows: Numbers, sizes: tuple[int, ...], rows: Numbers, along: int) -> Numbers:
    """Windows, where rows of one image that lie in the images' own axis are apart.

    Frames of a video, views and crops are folded with the images before there are any heads, and
    hold the same places. Heads lie in an axis of their own then.

    Args:
        windows: A number for each row, the same where tokens are the same places.
        sizes: The axes of the rows.
        rows: Those of one image.
        along: The axis that images lie along.
    """
    at = np.unravel_index(np.arange(len(windows)), sizes)[along]
    if len(np.unique(windows[rows])) > 1 or len(np.unique(at[rows])) == 1:
        return windows
    return at


def _heads(
    rest: tuple[int, ...], heads: int | None, windows: Numbers | None, single: bool
) -> tuple[Numbers, int | None]:
    """The rows of one image by window, then by head, and how many heads there are."""
    total = prod(rest)
    rows = np.arange(total, dtype=np.int64)
    if windows is not None:
        names, first, counts = np.unique(windows, return_index=True, return_counts=True)
        own = total // len(names)
        if (counts == own).all() and heads in (None, own):
            return np.lexsort((rows, first[np.searchsorted(names, windows)])), own
    fitting = [
        order.reshape(-1) for order in _orders(rest, heads, single)
        if windows is None or (windows[order] == windows[order][..., :1]).all()
    ] if heads else []  # fmt: skip
    if fitting:
        return fitting[0], heads
    if len(rest) > 1:
        return rows, rest[-1]
    return rows, total if heads is None or not single or total % heads else heads


def _orders(rest: tuple[int, ...], heads: int, single: bool) -> Iterator[Numbers]:
    """Ways to read rows as `(windows, heads)`: the last axes first, then another one."""
    total = prod(rest)
    rows = np.arange(total, dtype=np.int64)
    for first in reversed(range(len(rest))):
        if prod(rest[first:]) == heads:
            yield rows.reshape(-1, heads)
    for axis, n in enumerate(rest[:-1]):
        if n == heads:
            yield np.moveaxis(rows.reshape(rest), axis, -1).reshape(-1, heads)
    if single and total % heads == 0:
        yield rows.reshape(-1, heads)
        yield rows.reshape(heads, -1).T


def same_places(lineage: Lineage, tensor: Tensor, lead: Sequence[int]) -> Numbers | None:
    """A number for each entry along leading axes, the same where tokens are the same places.

    Entries that hold a place several times are no windows: heads were split off by a view, which
    cuts the features of each place into several tokens. None where no places are known.
    """
    found: Numbers | None = None
    sizes = [tensor.shape[i] for i in lead]
    for label in lineage.labels(tensor) or ():
        if label.space.raw:
            continue
        key = "windows", tuple(tensor.shape), tuple(lead)
        if key not in label.sides:
            rest = [i for i in range(label.numbers.ndim) if i not in lead]
            own = label.numbers.transpose([*lead, *rest])
            shape = own.shape[: len(lead)]
            flat = own.reshape(prod(shape), -1)
            inner = np.sort(flat, axis=1)
            if ((inner[:, 1:] == inner[:, :-1]) & (inner[:, 1:] >= 0)).any():
                flat = np.zeros_like(flat)
            names = np.unique(flat, axis=0, return_inverse=True)[1]
            label.sides[key] = np.broadcast_to(names.reshape(shape), sizes).reshape(-1)
        names = label.sides[key]
        found = names if found is None else found * (int(names.max()) + 1) + names
    return found


def head_count(module: nn.Module) -> int | None:
    """The number of heads by a module's own attributes."""
    for name in _HEADS:
        value = getattr(module, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
