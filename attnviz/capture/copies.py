"""Rules for ops that write a tensor anew without changing what it means.

Views need none: they share their storage, and the tag with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.tags import Tag

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def same_shape(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Carry a tag over to a copy, a cast, a masked or shifted version of the same tensor."""
    if not len(watcher.tags):
        return func(*args, **kwargs)
    tag, source = _first(watcher, args)
    out = func(*args, **kwargs)
    if tag is not None and isinstance(out, Tensor):
        carry(watcher, tag, source, out)
    return out


def carry(watcher: Watcher, tag: Tag, source: Tensor, out: Tensor, **changes: Any) -> None:
    """Tag `out`, which holds the same axes as `source`, aligned at the last one."""
    if tag.kind == "parameter":
        watcher.tags.put(out, tag)
        return
    axis = tag.find(source)
    if axis is not None:
        axis += out.dim() - source.dim()
        if axis < 0 or out.shape[axis] != source.shape[axis - out.dim() + source.dim()]:
            axis = None
    watcher.tags.put(out, tag.on(out, axis, **changes))


def _first(watcher: Watcher, args: Any) -> tuple[Tag | None, Any]:
    """The first tagged tensor among the arguments that is no parameter, or a parameter."""
    parameter: tuple[Tag | None, Any] = (None, None)
    data = False
    for x in args:
        if isinstance(x, Tensor):
            tag = watcher.tags.get(x)
            if tag is None:
                data = data or x.dim() > 0
            elif tag.kind != "parameter":
                return tag, x
            else:
                parameter = tag, x
    return (None, None) if data else parameter


RULES: dict[Any, Any] = dict.fromkeys((aten.clone.default, aten._to_copy.default, aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor, aten.where.self, aten.clamp.default, aten.clamp_.default, aten.clamp_min.default, aten.nan_to_num.default, aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default, aten.upsample_bicubic2d.default), same_shape)
