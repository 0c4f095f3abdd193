"""What tokens are that are no places: class, register, word, query, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnviz.places.assignment import Tokens
from attnviz.places.motion import Motions
from attnviz.places.probe import Probe
from attnviz.token_places import Role

Side = tuple[str, int]

_FEW = 4  # tokens that are taken apart to find which of them the head reads


def roles(
    probe: Probe, motions: Motions, sides: Mapping[Side, Tokens], most: int
) -> dict[Side, list[Role]]:
    """The role of every token.

    Padding gets no weight from any query, or is missing from some windows and not from others. A
    word moves with another input than the image, or with what is read for its number in a table.
    Of what remains beside places, a class token is what the head reads: the output changes when it
    is made to attend to a place.

    Args:
        probe: Runs the model.
        motions: What was measured, with all attention off.
        sides: What was found.
        most: Forward passes that may be taken in all.

    Returns:
        By record and side, a role per token, flat.
    """
    named = {side: _first_roles(one) for side, one in sides.items()}
    for side, one in sides.items():
        _mark_padding(side, one, probe, named[side])
    _mark_words(probe, motions, sides, named, most)
    _mark_class(probe, motions, sides, named, most)
    for name in {name for name, _ in sides}:
        if (name, 0) in sides and (name, 1) in sides:
            _mark_single(named[name, 0], named[name, 1], probe.facts[name].shape)
    return {
        side: cast(
            list[Role],
            [role or ("other" if bool(one.placed.any()) else "query") for role in named[side]],
        )
        for side, one in sides.items()
    }


def _first_roles(one: Tokens) -> list[str]:
    return [
        "global" if wide else "place" if alive else ""
        for alive, wide in zip(one.alive.tolist(), one.wide.tolist(), strict=True)
    ]


def _mark_padding(side: Side, one: Tokens, probe: Probe, named: list[str]) -> None:
    b, n = one.shape
    fact = probe.facts[side[0]]
    square = len(fact.shape) == 4 and fact.shape[2] == fact.shape[3]
    masked = fact.masked
    if masked is not None and masked.shape == (b, n) and (side[1] == 1 or square):
        for i in masked.flatten().nonzero()[:, 0].tolist():
            named[i] = named[i] if named[i] == "place" else "padding"
    still = ~one.alive.view(b, n)
    images = max(one.image.tolist()) + 1
    if b > images and b % images == 0 and bool(one.placed.any()):
        windows = still.view(images, -1, n)
        uneven = (windows & ~(windows == windows[:, :1]).all(1, keepdim=True)).view(b, n)
        for i in uneven.flatten().nonzero()[:, 0].tolist():
            named[i] = named[i] or "padding"


def _mark_words(
    probe: Probe,
    motions: Motions,
    sides: Mapping[Side, Tokens],
    named: dict[Side, list[str]],
    most: int,
) -> None:
    """Tokens that the model's other inputs move: their features, or what is read for their numbers.

    Numbers themselves cannot be changed a little; what is read for each of them in a table is.
    """
    args = probe.given(motions.images.given)
    images = motions.images.perturbed(1, lambda _, c: torch.ones_like(c[0]))
    others = _others(args, probe.given(images))
    numbers = [x for path, x in others.items() if _are_words(path, x)]
    noise = torch.Generator().manual_seed(3)
    changed = {
        path: x + torch.randn(x.shape, generator=noise).to(x)
        for path, x in others.items()
        if x.is_floating_point() and x.dim() >= 3
    }
    for context, given in (
        [(Reworded(numbers), args)] * bool(numbers)
        + [(nullcontext(), _with(args, changed))] * bool(changed)
    ):  # fmt: skip
        if probe.passes >= most:
            return
        try:
            with context:
                moved = motions.moved_by(given)
        except Exception:
            continue  # the model refuses such an input: words stay unknown
        _name_moved(moved, named)


def _name_moved(moved: Mapping[str, Sequence[Tensor | None]], named: dict[Side, list[str]]) -> None:
    for (name, side), own in named.items():
        tokens = moved.get(name, [None, None])[side]
        if tokens is not None and tokens.numel() == len(own):
            for i in tokens.flatten().nonzero()[:, 0].tolist():
                own[i] = own[i] or "word"


def _are_words(path: tuple[Any, ...], x: Tensor) -> bool:
    """Whether an input can be the numbers of words; positions, types and masks are not."""
    if x.dim() != 2 or x.is_floating_point() or x.dtype == torch.bool:
        return False
    rising = x.shape[1] > 1 and bool((x.diff() == 1).all())
    return path[-1] == "input_ids" or (int(x.max()) > 1 and not rising)


class Reworded(TorchDispatchMode):
    """Adds noise to what a model reads in a table for some numbers.

    Args:
        numbers: The numbers, tensors of whole numbers. A model may put another number in the place
            of one of them, which stands for an image.
    """

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self._numbers = numbers
        self._noise = torch.Generator().manual_seed(5)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op, and change its result if it reads a table for the numbers."""
        out = func(*args, **(kwargs or {}))
        read = _READ.get(str(func))
        index = None if read is None else read(args)
        if isinstance(index, Tensor) and any(_replaced(index, one) for one in self._numbers):
            return out + torch.randn(out.shape, generator=self._noise).to(out)
        return out


_READ: dict[str, Callable[[Any], Any]] = {
    "aten.embedding.default": lambda args: args[1],
    "aten.index.Tensor": lambda args: args[1][0] if len(args[1]) == 1 else None,
    "aten.index_select.default": lambda args: args[2],
}
"""Ops that read rows of a table, and where their numbers stand."""


def _replaced(index: Tensor, numbers: Tensor) -> bool:
    """Whether these are the numbers, one of which may have been replaced."""
    if index.numel() != numbers.numel() or index.dtype not in (torch.int32, torch.int64):
        return False
    flat = numbers.flatten().to(index.device)
    return len(flat[index.flatten() != flat].unique()) <= 1


def _others(args: Any, moved: Any) -> dict[tuple[Any, ...], Tensor]:
    """The tensors among a model's arguments that the image does not change, by their path."""
    if not isinstance(args, (Mapping, tuple)) or type(args) is not type(moved):
        return {}
    pairs = args.items() if isinstance(args, Mapping) else enumerate(args)
    return {
        (key,): x
        for key, x in pairs
        if isinstance(x, Tensor) and x.shape == moved[key].shape and torch.equal(x, moved[key])
    }


def _with(args: Any, changed: Mapping[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(args, Mapping):
        return {**args, **{key: x for (key,), x in changed.items()}}
    return tuple(changed.get((i,), x) for i, x in enumerate(args))


def _mark_class(
    probe: Probe,
    motions: Motions,
    sides: Mapping[Side, Tokens],
    named: dict[Side, list[str]],
    most: int,
) -> None:
    """Class tokens, which the head reads, and registers, which it does not."""
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for (name, side), one in sides.items():
        fact = probe.facts[name]
        n = one.shape[1]
        if side or fact.shape[2:] != (n, n) or not one.solved or not bool(one.placed.any()):
            continue
        rows = [named[name, 0][i * n : (i + 1) * n] for i in range(one.shape[0])]
        left = tuple(i for i in range(n) if all(row[i] == "" for row in rows))
        if left:
            groups.setdefault((n, left), []).append(name)
    for (n, left), names in sorted(groups.items(), key=lambda item: -len(item[1])):
        place = int(sides[names[0], 0].placed.nonzero()[0]) % n
        read = _read(probe, motions, n, left, place, names, most)
        for name in names:
            for side in (0, 1):
                own = named.get((name, side), [])
                for i, role in read.items():
                    for row in range(0, len(own), n):
                        own[row + i] = own[row + i] or role


def _mark_single(queries: list[str], keys: list[str], shape: Sequence[int]) -> None:
    """A single query beside places, and one key that is no place either: the class token, twice."""
    if len(shape) == 4 and shape[2] == 1 and set(queries) == {""} and "place" in keys:
        still = [i % shape[3] for i, role in enumerate(keys) if role == ""]
        if len(set(still)) == 1:
            queries[:] = ["class"] * len(queries)
            keys[:] = [role or "class" for role in keys]


def _read(
    probe: Probe,
    motions: Motions,
    n: int,
    left: Sequence[int],
    place: int,
    names: Sequence[str],
    most: int,
) -> dict[int, str]:
    """Which of some tokens the output depends on: `"class"`; and on which not: `"register"`."""
    plain = _pooled(probe, motions, n)
    found: dict[int, str] = {}
    open_: list[list[int]] = [[left[0]], list(left[1:])]
    while open_:
        some = open_.pop(0)
        if not some:
            continue
        if not plain or probe.passes >= most:
            return found
        matrix = torch.zeros(n, n)
        matrix[some, place] = 1
        probe.matrices = dict.fromkeys(names, matrix)
        probe.tokens(motions.images.given)
        probe.matrices = {}
        outputs = _outputs(probe.output, n)
        changed = any(
            a.shape == b.shape and not torch.equal(a, b)
            for a, b in zip(plain, outputs, strict=False)
        )
        if not changed or len(some) == 1:
            found.update(dict.fromkeys(some, "class" if changed else "register"))
        elif len(some) <= _FEW:
            half = len(some) // 2
            open_ += [some[:half], some[half:]]
    return found


def _pooled(probe: Probe, motions: Motions, n: int) -> list[Tensor]:
    """What the model puts out with all attention off, without outputs that still hold tokens."""
    return _outputs(motions.output, n)


def _outputs(output: Any, n: int) -> list[Tensor]:
    """The floating point tensors of an output that do not hold one entry per token."""
    if isinstance(output, Tensor):
        whole = output.is_floating_point() and not (output.dim() == 3 and output.shape[1] == n)
        return [output] if whole else []
    if isinstance(output, Mapping):
        return [x for value in output.values() for x in _outputs(value, n)]
    if isinstance(output, (tuple, list)):
        return [x for value in output for x in _outputs(value, n)]
    return []
