"""Maps of one key: where on the image a word is used.

In a diffusion model the places of the image are the queries, and the words of the prompt are keys:
of cross-attention all of them, of joint attention those beside the places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from attnviz.errors import InputError
from attnviz.maps.arguments import whole_numbers
from attnviz.maps.geometry import (
    Attention,
    Grid,
    Interpolation,
    listed,
    name_of,
    reduced_of,
    resized,
)
from attnviz.maps.placement import Given, Known, laid, places_of, side
from attnviz.maps.single_record import Heads, fused_heads, no_query_places
from attnviz.maps.word_tokens import spelled
from attnviz.token_places import Places

Key: TypeAlias = int | str | Sequence[int]
"""A word by its number, as it is written, or several numbers."""


def key_map(
    records: Attention | Mapping[str, Any] | Sequence[Any],
    key: Key,
    *,
    layout: Known = None,
    layers: str | Sequence[str] | None = None,
    steps: int | Sequence[int] | None = None,
    weights: Mapping[str, float] | None = None,
    guidance: str | None = None,
    heads: Heads = "mean",
    prompt: Sequence[int] | None = None,
    tokenizer: Any = None,
    grid: Grid | None = None,
    prefix: int | None = None,
    places: Tensor | None = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
) -> Float[Tensor, "b *heads h w"]:
    """Where on the image a word is used: `M[q] = A[q, key]`, over the places of the queries.

    Of several records it is their mean: within a layer every forward pass (denoising step) counts
    the same, and so does every layer without `weights`: `Σ w_l M_l / Σ w_l`. Layers
    with coarser grids are resized to the finest one, or to `size`, before. Several keys are
    averaged. Raw attention: 0 to 1, and over all words the maps of one record sum to one at each
    place (in joint attention, to the share that goes to words).

    Args:
        records: A record, several, or a capture, of which those are taken whose queries are places
            and whose keys are words; self-attention of the image is left out.
        key: The number of the word among the record's words, from 0, as the text encoder counts
            them; where the layout has no words, among all keys. A word as it is written needs
            `prompt` and `tokenizer`. Several numbers are averaged.
        layout: Which token is which place, from `av.locate`.
        layers: Globs on dotted names; all if not given.
        steps: Numbers of forward passes, from 0; all if not given.
        weights: Globs on dotted names and their weights; layers that no glob names count 0.
        guidance: `"conditional"` or `"unconditional"`: half of a batch under classifier-free
            guidance. The unconditional rows come first, as diffusers concatenates them. If not
            given, all rows are drawn, apart.
        heads: `"mean"`, `"each"`, or one head's number.
        prompt: The ids of the prompt.
        tokenizer: Anything with `decode(ids) -> str`.
        grid: The queries' `(h, w)`, where a record lacks it.
        prefix: The number of leading tokens among the queries.
        places: Rows and columns of the queries on `grid`, `(tokens, 2)`.
        size: `(h, w)` of the map; None keeps the finest grid.
        interpolation: How it is resized.

    Returns:
        `(b, h, w)`, or `(b, heads, h, w)` for `heads="each"`.

    Raises:
        InputError: No record from places to words, unknown places, a word that does not exist, or
            an odd number of rows under guidance.

    Examples:
        with torch.no_grad(), av.watch(pipeline.unet, reduce=reductions.columns(5)) as seen:
            image = pipeline("a photo of a cat").images[0]
        av.key_map(seen, 5, layout=layout, guidance="conditional")
    """
    given = Given(layout, places, grid, prefix)
    numbers = _numbers(key, prompt, tokenizer)
    by_layer: dict[str, list[Tensor]] = {}
    for record in _chosen(records, layers, steps, given):
        maps = torch.stack([_drawn(record, number, given) for number in numbers]).mean(0)
        maps = fused_heads(_guided(maps, guidance, record), heads, name_of(record))
        by_layer.setdefault(_module(record), []).append(maps)
    share = _shares(list(by_layer), weights)
    layers_ = {name: torch.stack(maps).mean(0) for name, maps in by_layer.items() if share[name]}
    return _mean(layers_, share, size, interpolation)


def _numbers(key: Key, prompt: Sequence[int] | None, tokenizer: Any) -> list[int]:
    if isinstance(key, str):
        if prompt is None:
            raise InputError(
                f"key_map: to find the word {key!r} pass prompt= (its ids) and tokenizer="
            )
        return spelled(key, torch.as_tensor(prompt).flatten().tolist(), tokenizer)
    numbers = whole_numbers(key, "key_map: numbers of words")
    if not numbers or min(numbers) < 0:
        raise InputError(f"key_map: expected numbers of words from 0, got {key!r}")
    return numbers


def _module(record: Attention) -> str:
    return "" if isinstance(record, Tensor) else record.name.partition("#")[0]


def _chosen(
    records: Attention | Mapping[str, Any] | Sequence[Any],
    layers: str | Sequence[str] | None,
    steps: int | Sequence[int] | None,
    given: Given,
) -> list[Any]:
    """The records to draw.

    Raises:
        InputError: There is none, or one whose places are not known.
    """
    several = isinstance(records, (Mapping, Sequence))
    given_ = listed(records, "key_map", tensors=not several)
    globs = [layers] if isinstance(layers, str) else layers
    if globs is not None and not all(isinstance(glob, str) for glob in _iterated(globs)):
        raise InputError(f"key_map: layers: expected globs on dotted names, got {layers!r}")
    named = [
        record for record in given_
        if globs is None or any(fnmatchcase(_module(record), glob) for glob in globs)
    ]  # fmt: skip
    found = [record for record in named if not several or _from_places_to_words(record, given)]
    if steps is not None:
        passes = whole_numbers(steps, "key_map: steps")
        found = [record for record, number in _numbered(found) if number in passes]
    if not found:
        names = ", ".join(dict.fromkeys(_module(record) for record in given_)) or "nothing"
        raise InputError(
            f"key_map: none of {len(given_)} records ({names[:200]}) goes from places of the image "
            "to words"
            + (f" in layers={layers!r}, steps={steps!r}" if layers or steps is not None else "")
            + "; pass layout= of av.locate, or one record"
        )
    return found


def _iterated(globs: Any) -> Sequence[Any]:
    return list(globs) if isinstance(globs, Iterable) else [globs]


def _numbered(records: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Records with the number of the forward pass that they are from."""
    count: dict[str, int] = {}
    for record in records:
        name = _module(record)
        yield record, count.get(name, 0)
        count[name] = count.get(name, 0) + 1


def _from_places_to_words(record: Any, given: Given) -> bool:
    """Whether to draw a record of a capture.

    Raises:
        InputError: Its keys are words, and where its queries lie is not known.
    """
    if record.kind != "attention" or len(record.shape) != 4:
        return False
    _, _, q, k = record.shape
    queries, keys = places_of(record, "queries", q, given), _keys(record, k, given)
    words = "word" in keys.role
    if not queries.known and words:
        raise InputError(
            f"key_map: where the queries of {record.name!r} lie is not known ({queries.reason}); "
            "leave it out by layers="
        )
    if not any(cell >= 0 for cell in queries.cell):
        return False
    return words or not keys.known


def _drawn(record: Attention, number: int, given: Given) -> Float[Tensor, "images heads *grid"]:
    """The column of one word, on the places of the queries."""
    shape = tuple(getattr(record, "shape", ()))
    if len(shape) != 4:
        raise InputError(f"key_map: expected a record with weights, got {name_of(record)}")
    b, _, q, k = shape
    index = _index(record, number, _keys(record, k, given), k)
    queries = side(record, "queries", b, q, given)
    if queries.grid is None:
        raise no_query_places(record, "key_map")
    return laid(_column(record, index), queries)


def _keys(record: Attention, k: int, given: Given) -> Places:
    """What is known of the keys; `grid=` and `places=` are about the queries alone."""
    if given.layout is None and getattr(record, "places", None) is None:
        return Places()
    return places_of(record, "keys", k, Given(given.layout))


def _index(record: Attention, number: int, keys: Places, k: int) -> int:
    """The number of a word among all keys.

    Raises:
        InputError: There is no such word, or which keys are words is not known.
    """
    words = [i % k for i, role in enumerate(keys.role) if role == "word"]
    words = sorted(set(words)) or list(range(k))
    if "word" not in keys.role and any(cell >= 0 for cell in keys.cell):
        raise InputError(
            f"key_map: which keys of {name_of(record)} are words is not known; pass layout= of "
            "av.locate, or count among all keys with key_column"
        )
    if number >= len(words):
        raise InputError(f"key_map: {name_of(record)} has {len(words)} words, got number {number}")
    return words[number]


def _column(record: Attention, index: int) -> Float[Tensor, "b heads q"]:
    weights = record if isinstance(record, Tensor) else record.weights
    if weights is not None:
        return weights[..., index].float()
    kept: Tensor | None = reduced_of(record).get(f"column {index}")
    if kept is None:
        raise InputError(
            f"key_map: {name_of(record)} was reduced to {sorted(reduced_of(record))}; watch with "
            f"reduce=reductions.columns({index})"
        )
    return kept.float()


def _guided(maps: Tensor, guidance: str | None, record: Attention) -> Tensor:
    if guidance is None:
        return maps
    if guidance not in ("conditional", "unconditional"):
        raise InputError(
            f"key_map: guidance: expected 'conditional' or 'unconditional', got {guidance!r}"
        )
    if len(maps) % 2:
        raise InputError(
            f"key_map: guidance runs unconditional and conditional rows in one batch, and "
            f"{name_of(record)} has {len(maps)}; where each has forward passes of its own, choose "
            "these by steps="
        )
    return maps.chunk(2)[guidance == "conditional"]


def _shares(names: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(names, 1.0)
    share = {
        name: next((float(w) for glob, w in weights.items() if fnmatchcase(name, glob)), 0.0)
        for name in names
    }
    if min(share.values()) < 0 or not any(share.values()):
        raise InputError(
            f"key_map: weights: expected positive ones for some of {', '.join(names[:6])}, got "
            f"{dict(weights)}"
        )
    return share


def _mean(
    maps: Mapping[str, Tensor], share: Mapping[str, float], size: Grid | None,
    interpolation: Interpolation,
) -> Tensor:  # fmt: skip
    """The weighted mean of layers, at the finest of their grids."""
    grids = {tuple(one.shape[-2:]) for one in maps.values()}
    if size is None and len(grids) > 1:
        size = max(grids)
    if len({tuple(one.shape[:-2]) for one in maps.values()}) > 1:
        raise InputError(
            "key_map: layers have different numbers of heads or rows, "
            f"{ {name: tuple(one.shape) for name, one in list(maps.items())[:4]} }: choose some by "
            "layers="
        )
    total = sum(share[name] for name in maps)
    drawn = [
        resized(one, size, interpolation) * (share[name] / total) for name, one in maps.items()
    ]
    return torch.stack(drawn).sum(0)
