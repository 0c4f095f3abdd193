"""Records of a model that generates, joined over its forward passes.

Each pass of a `generate` with a cache computes new queries only, over the keys of all tokens so
far. Which token each key is follows from the keys themselves: a cache copies them unchanged, so
that a key is found again in the next pass, wherever a growing, static or sliding cache keeps it,
and in whichever row of the batch a beam search has moved it to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from attnviz.capture.blocks import Held
from attnviz.capture.record import Record
from attnviz.capture.reductions import key_codes
from attnviz.errors import InputError
from attnviz.token_places import RecordPlaces

REMEDY = 'watch the generation with reduce="steps", which follows the keys through the cache'


class Pass(NamedTuple):
    """What was kept of one attention in one forward pass.

    Attributes:
        shape: Of its weights, `(b, heads, q, k)`.
        queries: The numbers of the rows that were kept.
        rows: These rows, `(b, heads, n, k)`.
        codes: `(b, k)`, 64 bits for each key.
    """

    shape: tuple[int, ...]
    queries: tuple[int, ...]
    rows: Tensor | Held
    codes: Tensor | Held | None

    @property
    def rows_(self) -> Tensor:
        """The rows as a tensor."""
        return self.rows.tensor() if isinstance(self.rows, Held) else self.rows

    @property
    def codes_(self) -> Tensor | None:
        """The codes as a tensor on the CPU."""
        codes = self.codes.tensor() if isinstance(self.codes, Held) else self.codes
        return None if codes is None else codes.cpu()


@dataclass(frozen=True, eq=False)
class Step:
    """One attention in one forward pass.

    Attributes:
        kept: What was kept of it.
        queries: For each of its `n` rows the number of its token, prompt and answer counted.
        keys: `(b, k)`, the number of each key's token; of cross-attention the number of the key.
        parents: `(b,)`, the row of the batch that each row continues; itself but in a beam search.
        length: How many tokens there were at its end.
        unknown: Why tokens of keys are not known; empty where they are.
    """

    kept: Pass
    queries: tuple[int, ...]
    keys: Tensor
    parents: Tensor
    length: int
    unknown: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights, `(b, heads, q, k)`."""
        return self.kept.shape

    @property
    def rows(self) -> Tensor:
        """`(b, heads, n, k)`, the rows of the weights that were kept."""
        return self.kept.rows_


@dataclass(frozen=True, eq=False, repr=False)
class Steps:
    """One attention through all forward passes of a generation.

    Attributes:
        name: The dotted name of its module.
        steps: Its passes, in order.
        places: The places of the first pass, where the watch proved them.
    """

    name: str
    steps: tuple[Step, ...]
    places: RecordPlaces | None = None

    @property
    def prompt(self) -> int:
        """How many tokens the first pass had: the prompt, with the places of its images."""
        return self.steps[0].length

    @property
    def tokens(self) -> int:
        """How many tokens were generated."""
        return self.steps[-1].length - self.prompt + 1

    @property
    def rows(self) -> Tensor:
        """`(b, heads, tokens, n)`: for each generated token the row that it was predicted from.

        The last axis counts tokens from the start of the prompt, for cross-attention its keys.
        Zero where a key does not exist yet, or no longer.

        Raises:
            InputError: Which token is which key is not known.
        """
        found = [self.row(self.prompt - 1 + token) for token in range(self.tokens)]
        width = max(int(keys.max()) + 1 for _, keys in found)
        return torch.stack([_scattered(rows, keys, width) for rows, keys in found], 2)

    def row(self, token: int) -> tuple[Tensor, Tensor]:
        """The weights of one query, by the number of its token.

        Args:
            token: Counted from the start of the prompt. The row of the token before a generated
                one is the row that this was predicted from.

        Returns:
            `(b, heads, k)`, and `(b, k)` the token of each key.

        Raises:
            InputError: The row was not kept, or keys are not known.
        """
        for step in reversed(self.steps):
            if token in step.queries:
                if step.unknown:
                    raise InputError(f"steps of {self.name!r}: {step.unknown}; {REMEDY}")
                return step.rows[:, :, step.queries.index(token)], step.keys
        kept = sorted({query for step in self.steps for query in step.queries})
        raise InputError(
            f"steps of {self.name!r}: the row of token {token} was not kept, of {self._words(kept)}"
            " it was; for words of the prompt watch with reduce=reductions.Steps(prompt=[numbers]) "
            "or Steps(layout), before the model runs"
        )

    @staticmethod
    def _words(kept: list[int]) -> str:
        return f"{', '.join(map(str, kept[:8]))}{' and others' if len(kept) > 8 else ''}"

    @property
    def grows(self) -> bool:
        """Whether each pass adds tokens; not where a module runs on several parts of an image."""
        return all(after.length > step.length for step, after in pairwise(self.steps))

    @property
    def in_parts(self) -> bool:
        """Whether a later pass adds several tokens: a prompt in parts, or assisted generation."""
        return any(after.length - step.length > 1 for step, after in pairwise(self.steps))

    @property
    def reordered(self) -> bool:
        """Whether rows of the batch were exchanged between passes, as in a beam search."""
        return any(
            bool((step.parents != torch.arange(len(step.parents))).any()) for step in self.steps[1:]
        )

    def __repr__(self) -> str:
        b, heads = self.steps[0].shape[:2]
        return (
            f"Steps({self.name!r}, {len(self.steps)} passes of {b}×{heads} rows, "
            f"{self.prompt} + {self.tokens} tokens)"
        )


def joined(records: Iterable[Record], kept: Mapping[str, Sequence[Pass]]) -> dict[str, Steps]:
    """The attention records of a capture by module, each over all its forward passes.

    Args:
        records: Records in the order in which they ran, with weights or with rows.
        kept: The passes of modules that were watched with `reduce="steps"` alone.

    Raises:
        InputError: No record holds rows.
    """
    by_name: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "attention":
            by_name.setdefault(record.name, []).append(record)
    steps = {}
    for name, ordered in by_name.items():
        passes = list(kept.get(name) or filter(None, map(_pass, ordered)))
        if passes:
            steps[name] = Steps(name, _followed(passes), ordered[0].places)
    if not steps:
        raise InputError(f"steps: no record holds rows of attention; {REMEDY}")
    return {name: one for name, one in steps.items() if one.grows}


def _pass(record: Record) -> Pass | None:
    rows = record.reduced.get("steps", record.weights)
    if rows is None or len(record.shape) != 4:
        return None
    codes, queries = record.reduced.get("steps.keys"), record.reduced.get("steps.queries")
    return Pass(
        record.shape,
        tuple(range(record.shape[2]) if queries is None else queries.tolist()),
        rows,
        key_codes(record) if codes is None else codes,
    )


def _followed(passes: Sequence[Pass]) -> tuple[Step, ...]:
    steps = [_first(passes)]
    for before, one in pairwise(passes):
        steps.append(_next(one, steps[-1], before.codes_))
    return tuple(steps)


def _made(one: Pass, start: int, keys: Tensor, parents: Tensor, unknown: str = "") -> Step:
    queries = tuple(start + query for query in one.queries)
    return Step(one, queries, keys, parents, start + one.shape[2], unknown)


def _first(passes: Sequence[Pass]) -> Step:
    b, _, q, k = passes[0].shape
    start = 0
    if len(passes) > 1 and k > q and passes[1].shape[3] == k + passes[1].shape[2]:
        start = k - q  # a cache that was filled before
    return _made(passes[0], start, torch.arange(k).expand(b, k), torch.arange(b))


def _next(one: Pass, before: Step, old: Tensor | None) -> Step:
    b, _, q, k = one.shape
    same, none = torch.arange(b), torch.full((b, k), -1)
    codes = one.codes_
    if before.unknown:
        return _made(one, before.length, none, same, before.unknown)
    if b != len(before.keys):
        unknown = f"the batch changed from {len(before.keys)} to {b} rows"
        return _made(one, before.length, none, same, unknown)
    whole = q == k or q > before.length
    if codes is None or old is None:
        if b == 1 and (whole or k == before.keys.shape[1] + q):
            keys = torch.arange(k)[None] if whole else _longer(before, k)
            return _made(one, 0 if whole else before.length, keys, same)
        return _made(one, before.length, none, same, "which key is which token is not known")
    found = _matched(codes, old, q)
    if found is None:
        if whole and b == 1:
            return _made(one, 0, torch.arange(k)[None], same)
        unknown = "the keys of one pass were not found in the next one"
        return _made(one, before.length, none, same, unknown)
    origin, parents = found
    if whole:
        return _made(one, 0, torch.arange(k).expand(b, k), parents)
    keys = before.keys[parents].gather(1, origin.clamp_min(0)).masked_fill(origin < 0, -1)
    new = (origin < 0) & (codes != 0)  # a static cache holds zeros where no key is yet
    keys, start = _numbered(keys, new, q, before.length)
    if start is None:
        return _made(one, before.length, none, same, "its rows have tokens of other numbers")
    return _made(one, start, keys, parents)


def _longer(before: Step, k: int) -> Tensor:
    new = before.length + torch.arange(k - before.keys.shape[1])
    return torch.cat([before.keys, new.expand(len(before.keys), -1)], 1)


def _matched(codes: Tensor, old: Tensor, q: int) -> tuple[Tensor, Tensor] | None:
    """For each key its number in the pass before, −1 for a new one, and each row's parent.

    All but `q` keys have to be found again, in the order that they had; None if they are not.
    """
    b, k = codes.shape
    shift = max(0, old.shape[1] + q - k)  # of a sliding cache that was full
    origin, parents = torch.full((b, k), -1), torch.full((b,), -1)
    for row in range(b):
        others = [row, *(other for other in range(b) if other != row)]
        for parent, by in [(parent, by) for by in dict.fromkeys((0, shift)) for parent in others]:
            m = min(k, old.shape[1] - by)
            equal = codes[row, :m] == old[parent, by : by + m]
            if int(equal.sum()) >= max(1, min(k - q, m)):
                origin[row, :m] = torch.where(equal, torch.arange(by, by + m), -1)
                parents[row] = parent
                break
    return None if bool((parents < 0).any()) else (origin, parents)


def _numbered(keys: Tensor, new: Tensor, q: int, length: int) -> tuple[Tensor, int | None]:
    """Numbers for the new keys, which follow the key before them; and that of the first query."""
    if not bool(new.any()):
        return keys, length  # cross-attention: the same keys in every pass
    keys = keys.clone()
    for column in new.any(0).nonzero()[:, 0].tolist():
        own, left = new[:, column], keys[:, column - 1] if column else keys.new_zeros(len(keys)) - 1
        keys[own, column] = left[own] + 1
    last = keys.masked_fill(~new, -1).amax(1)
    first = last + 1 - q
    return keys, int(first[0]) if bool((first == first[0]).all()) else None


def _scattered(rows: Tensor, keys: Tensor, width: int) -> Tensor:
    out = rows.new_zeros(*rows.shape[:2], width)
    at = keys.clamp_min(0).to(rows.device)[:, None].expand(rows.shape)
    return out.scatter_add(2, at, rows * (keys >= 0).to(rows)[:, None])
