"""Maps that follow attention through layers, or weigh it by a gradient.

All of them need square maps: as many keys as queries, the same tokens in every layer. Windows
(Swin), reduced keys (PVT) and class attention (CaiT) have no such product; they raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from attnviz import capture
from attnviz.errors import InputError, unknown_name
from attnviz.maps.constructions import construction
from attnviz.maps.geometry import (
    Attention,
    Grid,
    Interpolation,
    Watched,
    listed,
    name_of,
    reduced_of,
    resized,
    weights_of,
    windows_of,
)
from attnviz.maps.placement import Given, Known, laid, padding, side
from attnviz.maps.single_record import class_index, has_class_token
from attnviz.targets import Target, target_scores

Records: TypeAlias = Mapping[str, Watched] | Iterable[Attention] | Attention
"""Records in the order of the layers: a capture, a list of records or weights, or a single one."""

Read: TypeAlias = Literal["auto", "class", "received"]
"""How a `(n, n)` matrix becomes a map: the class token's row, or the mean of the columns.
`"auto"` takes the class row where there are leading tokens, else what is received."""

_FUSIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}


@construction(
    title="attention rollout",
    meaning="product over layers of attention plus identity",
    source="Abnar and Zuidema 2020",
    subject="layers",
    reduce="rollout",
)
def rollout(
    records: Records,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    fuse: Literal["mean", "max", "min"] = "mean",
    read: Read = "auto",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
) -> Float[Tensor, "images *d h w"]:
    """Attention followed through all layers, with half of each token staying where it is.

    `R = Ã_L … Ã_1` with `Ã = norm(½ (A + I))`, heads fused, rows normalised to one (Abnar and
    Zuidema 2020, *Quantifying attention flow in transformers*, section 3.2). Only the row that is
    read is multiplied, from the last layer to the first.

    Args:
        records: The layers' records, first to last; of a capture its attention is taken. A watch
            with `reduce="head_mean"` has kept what is needed, and one with `reduce="rollout"` has
            done the product already, which takes less memory.
        size: `(h, w)` of the map; None keeps the grid.
        interpolation: How it is resized: `bilinear` (pixel centres aligned), `nearest`, `bicubic`.
        fuse: How heads become one; the paper takes the mean.
        read: `"class"`, `"received"`, or `"auto"`.
        grid: `(h, w)` of the tokens, where the records lack it.
        prefix: The number of leading tokens, where the records lack it.
        layout: Which token is which place, from `av.locate`.

    Returns:
        `(b, h, w)`, raw float32, 0 to 1.

    Raises:
        InputError: No records, layers whose tokens differ, maps that are not square, an unknown
            grid.
    """
    if fuse not in _FUSIONS:
        raise unknown_name("fuse", fuse, _FUSIONS)
    layers, given = _listed(records), Given(layout, None, grid, prefix)
    rolled = [layer for layer in layers if "rollout" in reduced_of(layer)]
    if rolled:
        made = _rolled_while_watching(rolled[-1], fuse)
        return _read(made, rolled[-1], read, size, interpolation, given)
    layers = _square(layers)
    _same_tokens(layers, given)
    row = _queries_read(layers[-1], read, given, _heads_fused(layers[-1], fuse))
    for layer in reversed(layers):
        fused = _heads_fused(layer, fuse)
        row = row / (fused.sum(-1) + 1)
        row = (row[:, None] @ fused)[:, 0] + row
    keys = side(layers[-1], "keys", len(row), row.shape[-1], given)
    return resized(laid(row[:, None], keys)[:, 0], size, interpolation)


def _heads_fused(layer: Attention, fuse: str) -> Float[Tensor, "b q k"]:
    """A layer's weights with their heads as one."""
    kept = reduced_of(layer).get("head_mean")
    if kept is None:
        return _FUSIONS[fuse](weights_of(layer), 1)
    if fuse != "mean":
        raise InputError(
            f"{name_of(layer)} was reduced to the mean of its heads; for fuse={fuse!r} "
            "watch without reduce="
        )
    mean: Tensor = kept
    return mean if mean.dtype == torch.float64 else mean.float()


def _queries_read(
    record: Attention, read: Read, given: Given, fused: Float[Tensor, "b q k"]
) -> Float[Tensor, "b q"]:
    """The share of each query in the map: all of the class token's, or the same of all."""
    b, q, _ = fused.shape
    if _reads_class(record, read, given):
        index = class_index(record, given, b, q).to(fused.device)
        return torch.nn.functional.one_hot(index, q).to(fused)
    counted = ~padding(fused[:, None])
    return counted.to(fused) / counted.sum(1, keepdim=True).clamp_min(1)


def _rolled_while_watching(last: Attention, fuse: str) -> Tensor:
    """The product that `reduce="rollout"` left in the last record it took in, heads averaged."""
    if fuse != "mean":
        raise InputError(
            f"{name_of(last)} was reduced to a rollout of mean heads; for fuse={fuse!r} "
            "watch without reduce="
        )
    flow: Tensor = reduced_of(last)["rollout"]
    return flow.float()


@construction(
    title="gradient-weighted attention",
    meaning="relevance through all layers",
    source="Chefer et al. 2021",
    subject="layers",
    gradient=True,
)
def gradient_weighted(
    records: Records,
    outputs: Float[Tensor, "b *n"] | None = None,
    target: Target = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    gradients: Sequence[Tensor] | None = None,
    read: Read = "auto",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
) -> Float[Tensor, "images *d h w"]:
    """Relevance of each token for one output, followed through all layers.

    `R ← R + mean_h[(∇A ⊙ A)⁺] R`, starting from `R = I` (Chefer et al. 2021, *Generic
    attention-model explainability*, equations 5 and 6, self-attention). Watch with
    `keep_graph=True`, so that the weights have a gradient.

    Arguments that are not listed are those of `rollout`.

    Args:
        outputs: The model's outputs, with their graph: `(b,)`, `(b, 1)` or `(b, n)`.
        target: Which of the `n` outputs is explained, for all images or one index per image.
        gradients: `∂output/∂A` per layer, instead of `outputs`, where already computed.

    Returns:
        `(b, h, w)`, raw float32, 0 or more. Read without the identity that `R` starts from, as
        the paper does: a token's relevance to itself does not count.

    Raises:
        InputError: As `rollout`, several outputs without a target, and weights without a graph.
    """
    layers = _square(records)
    slopes = gradients if gradients is not None else _gradients(layers, outputs, target)
    if len(slopes) != len(layers):
        raise InputError(
            f"gradient_weighted: expected one gradient per layer, got {len(slopes)} for "
            f"{len(layers)} layers"
        )
    flow: Tensor | None = None
    for record, slope in zip(layers, slopes, strict=True):
        weights = weights_of(record).detach()
        step = (slope.to(weights) * weights).clamp(min=0).mean(1)
        flow = step if flow is None else flow + step + step @ flow
    assert flow is not None  # _square raises where there are no layers
    given = Given(layout, None, grid, prefix)
    _same_tokens(layers, given)
    return _read(flow, layers[-1], read, size, interpolation, given)


@construction(
    title="attention Grad-CAM",
    meaning="heads weighted by their mean gradient",
    source="Chefer et al. 2021, after Selvaraju et al. 2017",
    subject="attention",
    gradient=True,
)
def attention_gradcam(
    record: Attention,
    outputs: Float[Tensor, "b *n"] | None = None,
    target: Target = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    gradients: Tensor | None = None,
    read: Read = "auto",
    grid: Grid | None = None,
    prefix: int | None = None,
    layout: Known = None,
) -> Float[Tensor, "images *d h w"]:
    """Grad-CAM with heads in the place of channels: `relu(mean_h(w_h M_h))`.

    `M_h` is head `h`'s class row (or what each place receives from it), and `w_h` the mean of
    `∂output/∂A_h` over the same entries (the baseline of Chefer et al. 2021, after Selvaraju et
    al. 2017). Watch with `keep_graph=True`.

    Arguments that are not listed are those of `gradient_weighted`.

    Args:
        record: The layer's record, usually the last one's.
        gradients: `∂output/∂A`, instead of `outputs`, where already computed.

    Returns:
        `(b, h, w)`, raw float32, 0 or more.

    Raises:
        InputError: As `received`, several outputs without a target, and weights without a graph.
    """
    weights = weights_of(record).detach()
    _whole(record)
    slope = gradients if gradients is not None else _gradients([record], outputs, target)[0]
    given = Given(layout, None, grid, prefix)
    keys = side(record, "keys", weights.shape[0], weights.shape[-1], given)
    counted = _counted(weights)
    rows, slopes = (
        _rows(values, record, read, given, counted) for values in (weights, slope.to(weights))
    )
    placed = (keys.cell >= 0).to(weights)[:, None]
    mean = (slopes * placed).sum(-1, keepdim=True) / placed.sum(-1, keepdim=True).clamp_min(1)
    return resized(laid(mean * rows, keys).mean(1).clamp(min=0), size, interpolation)


def _listed(records: Records) -> list[Attention]:
    found = listed(records, "maps of several layers")
    if not isinstance(records, Mapping):
        return found
    return [one for one in found if isinstance(one, Tensor) or one.kind == "attention"]


def _whole(layer: Attention) -> None:
    if windows_of(layer) is not None:
        raise InputError(
            f"{name_of(layer)} attends within windows, where this map is undefined; "
            "received and query_row lay windows back onto the image"
        )


def _square(records: Records) -> list[Attention]:
    """The layers, once they are known to be n × n maps of the same n tokens."""
    layers = _listed(records)
    if not layers:
        raise InputError("expected at least one attention record, got none")
    tokens = _shape(layers[0])[-1]
    for layer in layers:
        _whole(layer)
        *_, q, k = _shape(layer)
        if q != k or k != tokens:
            raise InputError(
                f"{name_of(layer)} attends from {q} queries to {k} keys, and a product of layers "
                f"needs the same {tokens} tokens on both sides of every one; choose layers that "
                "agree (where=), or take a map of a single record, such as received"
            )
    return layers


def _shape(layer: Attention) -> torch.Size:
    """The shape of a layer's weights, or of their mean over heads where that alone was kept."""
    kept = reduced_of(layer).get("head_mean")
    return weights_of(layer).shape if kept is None else kept.shape


def _gradients(
    layers: Sequence[Attention], outputs: Tensor | None, target: Target
) -> tuple[Tensor, ...]:
    """`∂output/∂A` for each layer; the images' outputs do not depend on each other's weights."""
    if outputs is None:
        raise InputError("expected outputs=, the model's logits with their graph, or gradients=")
    if all(getattr(layer, "leaf", None) is not None for layer in layers):
        return capture.gradients(layers, target_scores(outputs, target))  # type: ignore[arg-type]  # records
    raw = [layer if isinstance(layer, Tensor) else layer.weights for layer in layers]
    missing = [
        name_of(layer)
        for layer, weights in zip(layers, raw, strict=True)
        if weights is None or not weights.requires_grad
    ]
    if missing or not outputs.requires_grad:
        raise InputError(
            f"no gradient reaches {', '.join(missing) or 'the outputs'}: run the model with "
            "gradients enabled inside watch(model, keep_graph=True)"
        )
    total = target_scores(outputs, target).sum()
    leaves = [weights for weights in raw if weights is not None]
    slopes = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    lost = [name_of(a) for a, slope in zip(layers, slopes, strict=True) if slope is None]
    if lost:
        raise InputError(
            f"the outputs do not depend on the weights of {', '.join(lost)} as they were kept: "
            "they were recomputed beside a fused kernel or come from another forward; "
            "pass gradients="
        )
    return slopes


def _same_tokens(layers: Sequence[Attention], given: Given) -> None:
    """Raise an InputError where layers hold the same number of tokens in another order."""
    first: tuple[str, Tensor] | None = None
    for layer in layers:
        b, *_, k = _shape(layer)
        cell = side(layer, "keys", b, k, given).cell
        if first is not None and not torch.equal(first[1], cell):
            raise InputError(
                f"{first[0]} and {name_of(layer)} hold their tokens in another order, and a "
                "product of layers needs the same tokens in all; choose layers that agree (where=)"
            )
        first = first or (name_of(layer), cell)


def _counted(weights: Tensor) -> Tensor:
    """`(b, q)`, queries that are no padding."""
    return ~padding(weights)


def _reads_class(record: Attention, read: Read, given: Given) -> bool:
    """Whether the class token's row is read."""
    if read not in ("auto", "class", "received"):
        raise unknown_name("read", read, ("auto", "class", "received"))
    return read == "class" or (read == "auto" and has_class_token(record, given))


def _rows(
    values: Tensor, record: Attention, read: Read, given: Given, counted: Tensor | None
) -> Tensor:
    """`(b, …, q, k)` → `(b, …, k)`: the class token's row, or the mean of the columns."""
    if _reads_class(record, read, given):
        index = class_index(record, given, values.shape[0], values.shape[-2])
        return values[torch.arange(len(values)), ..., index, :]
    if counted is None or bool(counted.all()):
        return values.mean(-2)
    share = counted.to(values) / counted.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bq,b...qk->b...k", share, values)


def _read(
    flow: Tensor,
    record: Attention,
    read: Read,
    size: Grid | None,
    interpolation: Interpolation,
    given: Given,
) -> Tensor:
    keys = side(record, "keys", flow.shape[0], flow.shape[-1], given)
    weights = record if isinstance(record, Tensor) else record.weights
    counted = None if weights is None else _counted(weights)
    rows = _rows(flow, record, read, given, counted)
    return resized(laid(rows[:, None], keys)[:, 0], size, interpolation)
