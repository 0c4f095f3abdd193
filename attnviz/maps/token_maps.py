"""Maps of words: where on the image a model attends that reads or writes text.

In a language model, the places of the image are keys like any other token. The row of the query
from which a word is predicted holds the attention that each of them gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from attnviz.capture import Capture
from attnviz.capture.steps import Steps
from attnviz.errors import InputError
from attnviz.maps.arguments import whole_numbers
from attnviz.maps.geometry import Grid, Interpolation, resized
from attnviz.maps.single_record import Heads, fused_heads
from attnviz.maps.word_tokens import spelled
from attnviz.token_places import REMEDY, Places, RecordPlaces

Tokens: TypeAlias = int | str | Sequence[int]
"""One token by its number, a word, or several tokens."""

Layers: TypeAlias = str | int | Sequence[int] | None
"""A glob on dotted names, numbers in the order in which layers run, or None for all."""

Row: TypeAlias = tuple[Tensor, Tensor, int]
"""One row `(heads, k)`, the tokens of its keys `(k,)`, and the row of the batch it is from."""


def token_map(
    seen: Any,
    token: Tokens | None = None,
    *,
    prompt: Tokens | None = None,
    layout: Mapping[str, RecordPlaces] | None = None,
    image: int | None = None,
    tiles: tuple[int, int] | None = None,
    layers: Layers = None,
    heads: Heads = "mean",
    at: str = "output",
    tokenizer: Any = None,
    output: Any = None,
    size: Grid | None = None,
    interpolation: Interpolation = "bilinear",
) -> Float[Tensor, "b *heads h w"]:
    """Attention from a word to the places of an image, in a model that reads or writes text.

    `M[place] = mean over layers and heads of A[query, key of the place]`, with `query` the token
    before a generated one, from which it was predicted (`at="output"`), or the token itself, once
    it was fed back (`at="input"`). Words of the prompt are their own query. Several tokens are
    averaged. Every layer counts the same; a layer whose cache has dropped the image counts with
    zeros. Raw attention: a map sums to the share of the row that falls on this image.

    Args:
        seen: The capture of a `generate` or of a forward pass, best with `reduce="steps"`.
        token: A generated token: its number from 0, negative from the end; a word of the answer
            (needs `tokenizer` and `output`); or several numbers.
        prompt: In its place, tokens of the prompt, counted as the language model does, images
            included; or a word. Their rows have to be kept: `reduce=reductions.Steps(layout)`.
        layout: Which token is which place, from `av.locate` with the same prompt.
        image: Which image of each prompt, from 0. Needed where there are several.
        tiles: `(rows, columns)` of an image that the processor cut into tiles, each an image of its
            own. `image` is then the first of them, 0 if not given.
        layers: A glob on dotted names, or numbers among the layers that see the image; all if not
            given.
        heads: `"mean"`, `"each"`, or one head's number.
        at: `"output"` or `"input"`, see above.
        tokenizer: Anything with `decode(ids) -> str`.
        output: What `generate` returned: ids, or its dictionary (`return_dict_in_generate=True`).
            Beam search needs the latter with `output_scores=True`: it holds the beam of each
            token.
        size: `(h, w)` of the map; None keeps the grid.
        interpolation: How it is resized.

    Returns:
        `(b, h, w)`, one map per answer; `(b, heads, h, w)` for `heads="each"`.

    Raises:
        InputError: Places are not known, a token does not exist or its row was not kept, several
            images and none chosen, or a beam search without `output`.

    Examples:
        with torch.no_grad(), av.watch(model, reduce="steps") as seen:
            output = model.generate(**inputs, max_new_tokens=20)
        layout = av.locate(model, pixels, inputs=lambda pixels: {**inputs, "pixel_values": pixels})
        av.token_map(seen, "cat", layout=layout, tokenizer=tokenizer, output=output)
    """
    if (token is None) == (prompt is None):
        raise InputError(
            "token_map: expected a generated token or prompt=, got "
            + ("neither" if token is None else "both")
        )
    if at not in ("output", "input"):
        raise InputError(f"token_map: at: expected 'output' or 'input', got {at!r}")
    chosen = _layers(_seeing(seen, layout), layers)
    answer = Answer.read(output, chosen[0][0])
    wanted = _Wanted(token, prompt, at, tokenizer)
    rows = [wanted.rows(steps, answer) for steps, _ in chosen]
    first = 0 if tiles is not None and image is None else image
    numbers = [first] if tiles is None else [
        (first or 0) + i for i in range(tiles[0] * tiles[1])
    ]  # fmt: skip
    drawn = [
        _mean([
            fused_heads(_on_image(steps, places, row, number), heads, steps.name)
            for (steps, places), row in zip(chosen, rows, strict=True)
        ])
        for number in numbers
    ]  # fmt: skip
    maps = drawn[0] if tiles is None else _mosaic(drawn, tiles)
    if prompt is not None and not bool((maps != 0).any()):
        raise InputError(
            f"token_map: no attention passes from the prompt's {prompt!r} to the image; under a "
            "causal mask a word that stands before the image does not see it"
        )
    return resized(maps, size, interpolation)


@dataclass(frozen=True)
class Answer:
    """What a model has generated.

    Attributes:
        ids: The ids of the prompt, row by row; empty where they are not known.
        generated: The ids of the answer.
        beams: `(answers, tokens)`, the row of the batch that each token was taken from.
    """

    ids: list[list[int]]
    generated: list[list[int]]
    beams: Tensor | None = None

    @classmethod
    def read(cls, output: Any, steps: Steps) -> Answer | None:
        """From what `generate` returned; None from None.

        Raises:
            InputError: It does not fit to what was seen.
        """
        if output is None:
            return None
        ids = getattr(output, "sequences", output)
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise InputError(
                "token_map: output: expected what model.generate returned, ids (b, tokens) or its "
                f"dictionary, got {type(output).__name__}"
            )
        scored, beams = hasattr(output, "beam_indices"), getattr(output, "beam_indices", None)
        rows = steps.steps[0].shape[0]
        if scored and beams is None:
            raise InputError(
                "token_map: a beam search without its beam indices: generate with "
                "return_dict_in_generate=True, output_scores=True"
            )
        if beams is None and (len(ids) != rows or (rows > 1 and output is ids)):
            raise InputError(
                f"token_map: {len(ids)} answers of {rows} rows, which may be beams: generate with "
                "return_dict_in_generate=True, output_scores=True and pass the whole output"
            )
        before = steps.prompt if ids.shape[1] > steps.prompt else 0
        listed = ids.tolist()
        beams = None if beams is None else beams.cpu()
        return cls([row[:before] for row in listed], [row[before:] for row in listed], beams)


@dataclass(frozen=True)
class _Wanted:
    """The requested tokens."""

    token: Tokens | None
    prompt: Tokens | None
    at: str
    tokenizer: Any

    def rows(self, steps: Steps, answer: Answer | None) -> list[list[Row]]:
        """The rows of each answer.

        Raises:
            InputError: A token that does not exist, or whose row was not kept.
        """
        b = steps.steps[0].shape[0]
        if answer is None and steps.reordered:
            raise InputError(
                "token_map: a beam search has exchanged rows of the batch: pass output= of "
                "generate(…, return_dict_in_generate=True, output_scores=True)"
            )
        count = b if answer is None else len(answer.generated)
        return [list(self._of(steps, answer, i)) for i in range(count)]

    def _of(
        self, steps: Steps, answer: Answer | None, i: int
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        for number in self._numbers(steps, answer, i):
            row = i
            if self.token is None:
                query = number
                if answer is not None and answer.beams is not None:
                    row = int(answer.beams[i, 0])
            else:
                query = steps.prompt + number - (self.at == "output")
                if answer is not None and answer.beams is not None:
                    row = self._beam(steps, answer, i, number)
            weights, keys = steps.row(query)
            yield weights[row], keys[row], row

    def _beam(self, steps: Steps, answer: Answer, i: int, number: int) -> int:
        assert answer.beams is not None
        number += self.at == "input"  # the row in which it was fed back led to the next token
        beam = int(answer.beams[i, number]) if number < answer.beams.shape[1] else -1
        if beam < 0:
            raise InputError(
                f"token_map: answer {i} has no token {number}: it has "
                f"{int((answer.beams[i] >= 0).sum())}, and at='input' needs the one after it"
            )
        return beam

    def _numbers(self, steps: Steps, answer: Answer | None, i: int) -> list[int]:
        wanted = self.prompt if self.token is None else self.token
        if isinstance(wanted, str):
            if answer is None:
                raise InputError(
                    f"token_map: to find the word {wanted!r} pass output= (what generate returned) "
                    "and tokenizer="
                )
            ids = answer.ids[i] if self.token is None else answer.generated[i]
            if self.token is None and not ids:
                raise InputError("token_map: output does not hold the prompt: pass numbers instead")
            return spelled(wanted, ids, self.tokenizer)
        count = steps.prompt if self.token is None else steps.tokens
        if self.token is not None and steps.in_parts:
            raise InputError(
                "token_map: a later pass holds several tokens (a prompt in parts, or assisted "
                "generation): which was generated is not known; pass prompt=, counted from the "
                "start of the prompt"
            )
        numbers = whole_numbers(wanted, "token_map: numbers of tokens")
        if not numbers or any(not -count <= number < count for number in numbers):
            what = "the prompt" if self.token is None else "generated tokens"
            raise InputError(
                f"token_map: expected numbers of {what} from 0 to {count - 1}, got {wanted!r}"
            )
        return [number % count for number in numbers]


def _seeing(seen: Any, layout: Mapping[str, RecordPlaces] | None) -> list[tuple[Steps, Places]]:
    """The attentions from words to places, with the places of their keys."""
    if not isinstance(seen, Capture):
        raise InputError(f"token_map: expected the capture of av.watch, got {type(seen).__name__}")
    if layout is not None and not isinstance(layout, Mapping):
        raise InputError(
            f"token_map: layout: expected what av.locate returns, got {type(layout).__name__}"
        )
    found, refused = [], {}
    for name, steps in seen.steps.items():
        own = steps.places if layout is None else layout.get(name)
        if own is None or not own.keys.known:
            refused[name] = "" if own is None else own.keys.reason
        elif any(cell >= 0 for cell in own.keys.cell) and (
            "word" in own.queries.role
            or (len(steps.steps) > 1 and set(own.queries.role) != {"query"})
        ):
            found.append((steps, own.keys))
    if found:
        return found
    if broken := _broken(seen, layout):
        raise InputError(
            f"token_map: the forward passes of {broken!r} do not continue each other: assisted and "
            "speculative decoding take tokens back, and a second generation begins anew; generate "
            "once in each watch, without assistant_model= and prompt_lookup_num_tokens="
        )
    reason = next((reason for reason in refused.values() if reason), "")
    raise InputError(
        "token_map: in no layer that sees words is a key known to be a place of the image"
        f"{f' ({reason})' if reason else ''}; {REMEDY} of the same prompt. Where a resampler makes "
        "tokens of the whole image (Q-Former, perceiver), these are no places: object_maps draws "
        "its cross-attention, one map for each of its queries"
    )


def _broken(seen: Capture, layout: Mapping[str, RecordPlaces] | None) -> str:
    """The first attention from words to places whose passes `seen.steps` could not join."""
    joined = seen.steps
    for record in seen.attention.values():
        name = record.name.partition("#")[0]
        own = record.places if layout is None else layout.get(name)
        places = own is not None and any(cell >= 0 for cell in own.keys.cell)
        if name not in joined and own is not None and places and "word" in own.queries.role:
            return name
    return ""


def _layers(found: list[tuple[Steps, Places]], layers: Layers) -> list[tuple[Steps, Places]]:
    if layers is None:
        return found
    names = [steps.name for steps, _ in found]
    if isinstance(layers, str):
        chosen = [one for one, name in zip(found, names, strict=True) if fnmatchcase(name, layers)]
        if chosen:
            return chosen
    else:
        numbers = [layers] if isinstance(layers, int) else list(layers)
        if numbers and all(-len(found) <= number < len(found) for number in numbers):
            return [found[number] for number in numbers]
    raise InputError(
        f"token_map: layers: expected a glob or numbers below {len(found)} for "
        f"{', '.join(names[:6])}, got {layers!r}"
    )


def _on_image(
    steps: Steps, places: Places, rows: list[list[Row]], image: int | None
) -> Float[Tensor, "b heads *grid"]:
    """The rows of each answer, averaged, on one image of its prompt."""
    maps = []
    for own in rows:
        drawn = [_laid(weights, keys, *_cells(steps, places, row, image))
                 for weights, keys, row in own]  # fmt: skip
        maps.append(torch.stack(drawn).mean(0))
    grids = {tuple(one.shape[1:]) for one in maps}
    if len(grids) > 1:
        raise InputError(
            f"token_map: the images of the batch lie on different grids, {sorted(grids)}; run one "
            "prompt at a time"
        )
    return torch.stack(maps)


def _cells(steps: Steps, places: Places, row: int, image: int | None) -> tuple[Tensor, Grid]:
    """The cell of each token of one row of the batch, −1 where not of this image; and its grid."""
    b, _, q, k = steps.steps[0].shape
    count = len(places.cell)
    tokens = k if count % k == 0 else q
    located = count // tokens
    if count % tokens or b % located or (places.image is None and located > 1):
        raise InputError(
            f"token_map: the layout of {steps.name!r} tells of {count} keys, and the prompt had "
            f"{b} · {tokens}; call av.locate with the same prompt"
        )
    own = slice(row // (b // located) * tokens, (row // (b // located) + 1) * tokens)
    cell = torch.tensor(places.cell[own])
    number = torch.zeros_like(cell) if places.image is None else torch.tensor(places.image[own])
    images = sorted(set(number[cell >= 0].tolist()))
    if image is None and len(images) != 1:
        raise InputError(
            f"token_map: the prompt has {len(images)} images: choose one by image=0 … "
            f"{len(images) - 1}, or pass tiles=(rows, columns) for the tiles of one"
        )
    if image is not None and not 0 <= image < len(images):
        raise InputError(f"token_map: image: expected 0 to {len(images) - 1}, got {image}")
    which = images[image or 0]
    grid = places.grids[which] if places.grids else places.grid
    assert grid is not None  # or none of its cells would be one
    return cell.masked_fill(number != which, -1), grid


def _laid(
    weights: Float[Tensor, "heads k"], keys: Tensor, cell: Tensor, grid: Grid
) -> Float[Tensor, "heads *grid"]:
    """One row on the image."""
    known = (keys >= 0) & (keys < len(cell))
    where = torch.where(known, cell[keys.clamp(0, len(cell) - 1)], -1)
    chosen = (where >= 0).to(weights.device)
    out = weights.new_zeros(weights.shape[0], math.prod(grid)).float()
    out.index_add_(1, where[where >= 0].to(weights.device), weights[:, chosen].float())
    return out.view(-1, *grid)


def _mean(maps: list[Tensor]) -> Tensor:
    if len({tuple(one.shape) for one in maps}) > 1:
        raise InputError(
            f"token_map: layers with different heads or grids, {[tuple(m.shape) for m in maps]}: "
            "choose some by layers="
        )
    return torch.stack(maps).mean(0)


def _mosaic(maps: list[Tensor], tiles: tuple[int, int]) -> Tensor:
    """Maps of tiles, row by row, as one."""
    rows, columns = tiles
    lines = [torch.cat(maps[i * columns : (i + 1) * columns], -1) for i in range(rows)]
    return torch.cat(lines, -2)
