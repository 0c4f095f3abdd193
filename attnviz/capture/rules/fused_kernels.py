"""Rules for fused attention kernels, whose weights are recomputed."""

from __future__ import annotations

import re
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnviz.capture.fused_weights import Fused, grouped
from attnviz.capture.op_mode import apart, as_called
from attnviz.capture.provenance import factor_of
from attnviz.capture.registry import Entry, rule
from attnviz.capture.session import Session


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_fused_attention_overrideable.default",
    "aten._scaled_dot_product_attention_math_for_mps.default", nested=True, fixed=True,
)  # fmt: skip
def attention(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """`scaled_dot_product_attention`: let the kernel run, and read its arguments."""
    out = func(*args, **kwargs)
    given = arguments(func, args, kwargs)
    query: Tensor = given["query"]
    scale = given.get("scale")
    fused = Fused(
        query,
        given["key"],
        given["value"],
        given.get("attn_mask", given.get("attn_bias")),
        bool(given.get("is_causal", False)),
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        float(given.get("dropout_p") or 0.0),
        prod(factor_of(session.tags.get(given[one]), given[one]) for one in ("query", "key")),
    )
    more = out[1] if func._schema.returns[1].name in ("logsumexp", "log_sumexp") else None
    replaced = session.attention.fused(fused, out[0], more)
    if replaced is None:
        return out
    session.recorder.guard(replaced)
    return (replaced, *out[1:])


@rule("aten._native_multi_head_attention.default", nested=True, fixed=True)
def multihead(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """The fast path of `nn.MultiheadAttention`, projections included."""
    out = as_called(func, args, kwargs)  # it calls ops that autocast casts
    given = arguments(func, args, kwargs)
    if given["query"].is_nested:
        session.attention.unreadable("fast path", _NESTED)
        return out
    fused = _projected(given, given["query"], given["key"], given["value"], given["num_head"])

    def finished(mixed: Tensor, rows: Any) -> Tensor:
        return F.linear(mixed, given["proj_weight"], given["proj_bias"])

    replaced = session.attention.projected(fused, out[0], finished, (given["query"], given["key"]))
    return out if replaced is None else (replaced, *out[1:])


@rule("aten._transformer_encoder_layer_fwd.default", nested=True, fixed=True)
def encoder_layer(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """The fast path of `nn.TransformerEncoderLayer`, norms and feed-forward included."""
    out: Tensor = as_called(func, args, kwargs)
    given = arguments(func, args, kwargs)
    src: Tensor = given["src"]
    if src.is_nested:
        session.attention.unreadable("fast path", _NESTED)
        return out
    first, eps, width = given["norm_first"], given["eps"], (given["embed_dim"],)

    @apart
    def norm(x: Tensor, number: int) -> Tensor:
        weight, bias = given[f"norm_weight_{number}"], given[f"norm_bias_{number}"]
        return F.layer_norm(x, width, weight, bias, eps)

    x = norm(src, 1) if first else src
    fused = _projected(given, x, x, x, given["num_heads"])

    def finished(mixed: Tensor, rows: Any) -> Tensor:
        y = src[:, rows] + F.linear(mixed, given["proj_weight"], given["proj_bias"])
        y = y if first else norm(y, 1)
        z = F.linear(norm(y, 2) if first else y, given["ffn_weight_1"], given["ffn_bias_1"])
        z = F.gelu(z) if given["use_gelu"] else F.relu(z)
        y = y + F.linear(z, given["ffn_weight_2"], given["ffn_bias_2"])
        return y if first else norm(y, 2)

    replaced = session.attention.projected(fused, out, finished, (src, src))
    return out if replaced is None else replaced


@apart
def _projected(given: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, heads: int) -> Fused:
    """Queries, keys and values as the kernel projects them, and its mask."""
    weight, bias = given["qkv_weight"].chunk(3), given["qkv_bias"].chunk(3)
    q, k, v = (
        F.linear(x, w.to(x.dtype), c.to(x.dtype)).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, w, c in zip((q, k, v), weight, bias, strict=True)
    )
    return Fused(q, k, v, _mask(given), scale=float(q.shape[-1]) ** -0.5)


def _mask(given: dict[str, Any]) -> Tensor | None:
    """The kernel's mask, True where attention is allowed: it reads any other value as masked."""
    mask: Tensor | None = given.get("mask")
    if mask is None:
        return None
    allowed = ~mask.bool()
    return allowed[:, None, None, :] if given.get("mask_type") == 1 else allowed


@rule("flex_attention")
def flexible(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    """`flex_attention`: its weights follow from its own unfused implementation."""
    out = func(*args, **kwargs)
    flex = import_module("torch._higher_order_ops.flex_attention")
    inner: Any = getattr(flex, "_math_attention_inner", None)
    if inner is None:
        session.attention.unreadable("flex_attention", "this torch keeps its scores to itself")
        return out
    query, key, value = args[:3]
    _, scores = inner(query, grouped(key, query.shape[1]), grouped(value, query.shape[1]),
                      *args[3:], **kwargs)  # fmt: skip
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    scale = args[5] if len(args) > 5 else kwargs.get("scale")
    fused = Fused(query, key, value, scale=query.shape[-1] ** -0.5 if scale is None else scale)
    replaced = session.attention.fused(fused, out[0], None, weights)
    if replaced is None:
        return out
    session.recorder.guard(replaced)
    return (replaced, *out[1:])


_OURS = ("aten", "prim", "prims", "quantized", "torchvision", "mkldnn", "inductor", "higher_order")
_ATTENDS = re.compile(r"(?<![a-z])(attn|fmha|flash)(?![a-z])|attention(?![a-z])", re.IGNORECASE)
_BESIDE = re.compile(r"backward|bwd|rotary|combine|metadata", re.IGNORECASE)


def foreign(op: str) -> Entry | None:
    """The rule of a kernel from outside torch that attends by its name; None for other ops.

    flash-attn, xformers and the kernels of the hub register such ops. Their weights exist nowhere.
    """
    namespace = op.partition(".")[0]
    attends = _ATTENDS.search(op) and not _BESIDE.search(op)
    return Entry(_outside) if namespace not in _OURS and attends else None


def _outside(session: Session, func: Any, args: Any, kwargs: Any) -> Any:
    out = func(*args, **kwargs)
    session.attention.unreadable(str(func), _OUTSIDE)
    return out


_OUTSIDE = (
    "a kernel from outside torch, whose weights are not at hand: load the model with "
    "attn_implementation='sdpa' or 'eager', or switch the kernel off "
    "(disable_xformers_memory_efficient_attention())"
)


def arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """An op's arguments by their names in its schema, defaults included."""
    schema = func._schema.arguments
    given = {argument.name: argument.default_value for argument in schema[len(args) :]}
    given.update(zip((argument.name for argument in schema), args, strict=False))
    given.update(kwargs)
    return given


_NESTED = "nested tensors: build the encoder with enable_nested_tensor=False to see their weights"
