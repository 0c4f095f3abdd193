"""Rules for fused kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnviz.capture.fused import Fused

if TYPE_CHECKING:
    from attnviz.capture.dispatch import Watcher

aten = torch.ops.aten


def attention(watcher: Watcher, func: Any, args: Any, kwargs: Any) -> Any:
    """Let the kernel run, and work out its weights from its arguments."""
    out = func(*args, **kwargs)
    fused = read(func, args, kwargs)
    replaced = watcher.recorder.fused(fused, out[0])
    return out if replaced is None else (replaced, *out[1:])


def read(func: Any, args: Any, kwargs: Any) -> Fused:
    """A kernel's arguments by their names in its schema."""
    given: dict[str, Any] = dict(kwargs)
    for argument, value in zip(func._schema.arguments, args, strict=False):
        given[argument.name] = value
    for argument in func._schema.arguments:
        if argument.name not in given:
            given[argument.name] = argument.default_value
    query: Tensor = given["query"]
    scale = given.get("scale")
    mask = given.get("attn_mask", given.get("attn_bias"))
    return Fused(
        query,
        given["key"],
        given["value"],
        mask,
        bool(given.get("is_causal", False)),
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        float(given.get("dropout_p", 0.0)),
    )


_NAMES = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)

RULES: dict[Any, Any] = {
    getattr(aten, name).default: attention for name in _NAMES if hasattr(aten, name)
}
