"""`locate`: measure which token is which place, for any model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attnviz.errors import InputError
from attnviz.model_state import frozen
from attnviz.places import motion
from attnviz.places.assignment import Tokens, assign, tokens
from attnviz.places.layout import Layout
from attnviz.places.motion import Amplitude, Images, Motion, Motions
from attnviz.places.probe import Probe, random_state, set_random_state
from attnviz.places.roles import Side, roles
from attnviz.token_places import NO_QUERIES, Places, RecordPlaces, Role

MOST_PASSES = 15
"""Forward passes that one call may take."""

_CLEAR = 0.3  # cells: with a largest error below it one noise field is enough
_CONTRADICTED = "the measured places are others than those followed from a feature map"
_FARTHEST = 0.5  # cells
_FAR = "the measured positions lie half a cell or more off the grid"
_NO_RESIDUAL = "it lies behind several layers of attention without a residual connection"
_REMEMBERED: WeakKeyDictionary[nn.Module, dict[str, Layout]] = WeakKeyDictionary()


def locate(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    *,
    inputs: Callable[[Any], Any] | None = None,
    channels: int | None = None,
    remember: bool = True,
) -> Layout:
    """Measure which token is which place of the image, in every attention of a model.

    Attention is switched off, so that a token depends on its own place alone, and the image is
    changed by noise whose amplitude grows along one axis after the other. The pixels that move a
    token are its place; a token that nothing moves is no place. Positions are then laid on the grid
    that they form. Nothing is assumed of the architecture, the order of tokens or the proportions
    of the image.

    The model runs in evaluation mode, without autocast, always from the caller's random state, and
    is left as it was. A layout is remembered for the model and the shapes of its input; that of a
    model which draws random numbers is not.

    Args:
        model: Any module.
        images: `(b, c, h, w)`, or `(b, c, d, h, w)` and `(b, t, c, h, w)` for volumes and video,
            or a list of images without the axis of the batch.
        inputs: From images to what the model is called with, a mapping of keyword arguments, a
            tuple or one argument; for models that take words as well, or patches that a processor
            makes. The images alone if not given.
        channels: Which axis of `images` holds channels; needed for volumes and video where it is
            not the only one of at most four.
        remember: Whether a layout that is known already will do.

    Returns:
        A layout: the places of queries and keys by the record's name, and why they are unknown
        where they are; of gates whose places a watch does not follow, as keys, those of what they
        multiply. It takes at most 15 forward passes.

    Raises:
        InputError: Images of another shape.
    """
    given = inputs if inputs is not None else lambda same: same
    pictures = Images(images, _channel_axis(images, channels))
    state = random_state()
    key = _key(model, images, given(pictures.given) if remember else None)
    known = _REMEMBERED.get(model, {}).get(key) if remember else None
    if known is not None:
        return known
    try:
        with frozen(model):
            set_random_state(state)
            probe = Probe(model, given)
            layout = _measured(probe, pictures)
    finally:
        set_random_state(state)
    if not probe.random:
        _REMEMBERED.setdefault(model, {})[key] = layout
    return layout


def _measured(probe: Probe, images: Images) -> Layout:
    probe.unchanged(images.given)
    if not any(f.kind == "attention" or f.unproven_gate for f in probe.facts.values()):
        return Layout({}, probe.passes)
    ramps: dict[str, Amplitude] = {f"axis{i}": motion.ramp(i) for i in range(images.axes)}
    first: dict[str, Amplitude] = {**ramps, "squares": motion.squares}
    if len(images) > 1:
        first["image"] = motion.numbered(len(images))
    motions = Motions(probe, images)
    motions.begin(1)
    motions.along(first)
    sides = _assigned(motions)
    motions.begin(2)
    motions.along({"code": motion.code} if _clear(sides) else {**ramps, "code": motion.code})
    sides = _assigned(motions)
    if not _solved(sides) and probe.passes + len(ramps) + 3 <= MOST_PASSES:
        motions.begin(3)
        motions.along(ramps)
        sides = _assigned(motions)
    lost = _revive(probe, images, sides, first)
    named = roles(probe, motions, sides, MOST_PASSES)
    layout = {}
    for name, fact in probe.facts.items():
        if fact.kind == "attention":
            reason = _NO_RESIDUAL if name in lost else fact.fixed
            pair = [
                _settled(
                    _places(None if name in lost else sides.get((name, side)),
                            named.get((name, side)), reason, images),
                    fact.proven_side(side),
                )
                for side in (0, 1)
            ]  # fmt: skip
            layout[name] = RecordPlaces(*map(_near, pair))
        elif fact.unproven_gate:
            keys = _places(sides.get((name, 1)), named.get((name, 1)), fact.fixed, images)
            layout[name] = RecordPlaces(Places(reason=NO_QUERIES), _near(keys))
    return Layout(layout, probe.passes)


def _solved(sides: Mapping[Side, Tokens]) -> bool:
    return all(one.solved for one in sides.values())


def _clear(sides: Mapping[Side, Tokens]) -> bool:
    """Whether one noise field was enough for every side."""
    return _solved(sides) and all(
        found.error < _CLEAR for one in sides.values() for found in one.found.values()
    )


def _revive(
    probe: Probe, images: Images, sides: dict[Side, Tokens], amplitudes: Mapping[str, Amplitude]
) -> set[str]:
    """Measure what lies behind attention without a residual connection, which ends all motion.

    Where places of queries and keys are known, each query is given the key nearest to it instead
    of nothing. Sides that move then are added to `sides`.

    Returns:
        The records of which nothing moves still, though others were brought back: behind several
        such layers.
    """
    still = {name for name, _ in sides if not _moves(name, sides)}
    if not still or not any(_moves(name, sides) for name, _ in sides):
        return set()
    probe.matrices = {
        name: matrix
        for name, fact in probe.facts.items()
        if fact.kind == "attention" and (matrix := _nearest(name, fact.shape, sides)) is not None
    }
    if not probe.matrices:
        return set()
    if probe.passes + len(amplitudes) + 2 > MOST_PASSES:
        probe.matrices = {}
        return still
    second = Motions(probe, images)
    second.begin(4)
    moving = {name for name in still if any(_any(m) for m in second.motions.get(name, []))}
    if moving:
        second.along(amplitudes)
        found = _assigned(second)
        sides.update({key: one for key, one in found.items() if key[0] in moving})
    probe.matrices = {}
    return still - moving if moving else set()


def _any(one: Motion | None) -> bool:
    return one is not None and bool((one.energy > 0).any())


def _moves(name: str, sides: Mapping[Side, Tokens]) -> bool:
    return any(bool(sides[key].alive.any()) for key in ((name, 0), (name, 1)) if key in sides)


def _nearest(name: str, shape: Sequence[int], sides: Mapping[Side, Tokens]) -> Tensor | None:
    """A matrix `(b, 1, q, k)` from each query to the key at its place, None where not known."""
    queries, keys = sides.get((name, 0)), sides.get((name, 1))
    if queries is None or keys is None or not queries.solved or not keys.solved:
        return None
    if not bool(queries.placed.any()) or not bool(keys.placed.any()):
        return None
    b, _, q, k = shape
    if queries.shape != (b, q) or keys.shape != (b, k):
        return None
    a, c = (one.points.view(*one.shape, -1) for one in (queries, keys))
    apart = torch.cdist(a, c)
    apart = apart.masked_fill(~keys.placed.view(b, 1, k), float("inf"))
    matrix = torch.nn.functional.one_hot(apart.argmin(-1), k).to(torch.float32)
    return (matrix * queries.placed.view(b, q, 1))[:, None]


def _assigned(motions: Motions) -> dict[Side, Tokens]:
    sides: dict[Side, Tokens] = {}
    for name, pair in motions.motions.items():
        fact = motions.probe.facts[name]
        for side, one in enumerate(pair):
            if one is not None:
                sides[name, side] = tokens(one, motions.images)
                proven = fact.proven_side(side)
                if proven is not None and proven.grid is not None:
                    sides[name, side].expected = proven.grid, proven.cell
    assign(list(sides.values()))
    return sides


def _long(grid: tuple[int, ...] | None) -> tuple[int, ...]:
    """A grid's sides but for leading ones of 1: one frame of a video is an image."""
    sides = grid or ()
    while len(sides) > 2 and sides[0] == 1:
        sides = sides[1:]
    return sides


def _settled(measured: Places, proven: Places | None) -> Places:
    """Measured places, proven ones where they could not be measured; neither where they differ.

    The error of proven places is known exactly; that of others has to be below half a cell.
    """
    if proven is None or not measured.known:
        return proven or measured
    if measured.image is None and measured.grid is not None:
        if (_long(measured.grid), measured.cell) != (_long(proven.grid), proven.cell):
            return Places(reason=_CONTRADICTED)
        role = tuple(
            own if own == "padding" else found
            for own, found in zip(proven.role, measured.role, strict=True)
        )
        return replace(measured, error=proven.error, role=role)
    return measured


def _near(places: Places) -> Places:
    """Places that lie within half a cell of where they are said to be."""
    return Places(reason=_FAR) if places.error >= _FARTHEST else places


def _places(one: Tokens | None, named: Sequence[Role] | None, fixed: str, images: Images) -> Places:
    if one is None or named is None:
        return Places(reason=fixed or "its queries and keys are not at hand")
    if not one.solved:
        return Places(reason=one.reason)
    b, n = one.shape
    cell = torch.full((b * n,), -1)
    for image, found in one.found.items():
        cell[one.of(image)] = torch.as_tensor(found.cell)
    error = max((found.error for found in one.found.values()), default=0.0)
    grids = tuple(one.found[i].grid if i in one.found else None for i in range(len(images)))
    same = {grid for grid in grids if grid is not None}
    grid = next(iter(same)) if len(same) == 1 else None
    part = _alike(one, cell, named, len(images))
    if part is not None and len(same) <= 1:
        return Places(grid, tuple(cell[:part].tolist()), tuple(named[:part]),
                      status="measured", error=error)  # fmt: skip
    number = one.image.where(one.placed, -1)
    return Places(
        grid, tuple(cell.tolist()), tuple(named), tuple(number.tolist()),
        grids if len(same) > 1 else (), "measured", error=error,
    )  # fmt: skip


def _alike(one: Tokens, cell: Tensor, named: Sequence[str], images: int) -> int | None:
    """How many tokens one image has, if all have the same in the same order; None if not."""
    b, n = one.shape
    if b % images:
        return None
    part = b // images * n
    own = torch.arange(b * n) // part
    if bool((one.image != own)[one.placed].any()):
        return None
    rows = cell.view(images, part)
    words = [tuple(named[i * part : (i + 1) * part]) for i in range(images)]
    return part if bool((rows == rows[0]).all()) and len(set(words)) == 1 else None


def _channel_axis(images: Any, channels: int | None) -> int:
    """Which axis of the images holds channels."""
    tensors = [images] if isinstance(images, Tensor) else list(images)
    if not tensors or not all(isinstance(one, Tensor) for one in tensors):
        raise InputError(
            "locate: expected images as a tensor (b, c, h, w) or a list of tensors (c, h, w), "
            f"got {type(images).__name__}"
        )
    offset = 0 if isinstance(images, Tensor) else 1
    axes = tensors[0].dim() + offset
    if channels is not None:
        return channels
    if axes == 4:
        return 1
    if axes == 5:
        small = [i for i in (1, 2) if tensors[0].shape[i - offset] <= 4]
        if len(small) == 1:
            return small[0]
        raise InputError(
            f"locate: which axis of images {tuple(tensors[0].shape)} holds channels is not clear; "
            "pass channels=1 for (b, c, d, h, w) or channels=2 for (b, t, c, h, w)"
        )
    raise InputError(
        f"locate: expected images (b, c, h, w), (b, c, d, h, w) or (b, t, c, h, w), got "
        f"{tuple(tensors[0].shape)}; for a model that takes something else pass inputs="
    )


def _key(model: nn.Module, images: Any, args: Any) -> str:
    """What a layout depends on, besides the model: shapes, and the values of whole numbers."""
    told = hashlib.sha256()
    for value in _leaves((images, args)):
        if isinstance(value, Tensor):
            told.update(f"{tuple(value.shape)}{value.dtype}".encode())
            if not value.is_floating_point() and value.numel() < 1 << 16:
                told.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            told.update(repr(value).encode())
    return told.hexdigest()


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for key, one in value.items() for leaf in (key, *_leaves(one))]
    if isinstance(value, (tuple, list)):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value]
