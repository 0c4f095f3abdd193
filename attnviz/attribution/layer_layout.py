"""Which axes of a layer's output are channels and places: proved by data, or given.

Grad-CAM needs a layer's output as `(b, c, h, w)`. The number of axes does not fix that: Swin's
blocks and ConvNeXt's norms put out `(b, h, w, c)`, attention weights are `(b, heads, q, k)`, and
`(b, 8, 8, 8)` could be anything. So the output of one image is compared with that of the same
image at twice its height and at twice its width: a feature map grows along one axis each time,
and these axes are its height and width. Where a model takes no other size, small changes of the
image decide: the response must move along one axis as the change moves down the image, and along
another as it moves across.

A map is then stretched over the whole image, so a place must respond to its own pixels, and the
layer to every border of the image: what was cropped, flipped, padded or rearranged inside the model
is refused (a shift by one place is not seen). Tokens `(b, n, c)` lie where `attnviz.locate` finds
those of the model's attention, if a change of a place's pixels changes most the token that should
be there. What is not proved so is refused.

Every layout is one index: for each channel and place, which number of a layer's output it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from attnviz.errors import InputError
from attnviz.model_state import seeded
from attnviz.places import locate
from attnviz.shapes import Images
from attnviz.token_places import Places, RecordPlaces


@runtime_checkable
class TokenPlaces(Protocol):
    """Which token is which place, as `attnviz.places` measures it."""

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Height and width of the grid of places."""

    @property
    def cell(self) -> Any:
        """`(tokens,)`, each token's place in reading order, -1 for none."""


Layout: TypeAlias = (
    Literal["first", "last"] | TokenPlaces | Mapping[str, RecordPlaces] | Callable[[Tensor], Tensor]
)
"""`"first"` for `(b, c, h, w)`, `"last"` for `(b, h, w, c)`, the places of tokens `(b, n, c)` or
all that `attnviz.locate` found, or a function that rearranges the output into `(b, c, h, w)`."""

_Forward: TypeAlias = Callable[[Tensor], Any]
_NOISES = 3  # fields of noise of the response test
_STRENGTH = 1e-2  # of small noise, in the image's standard deviations
_CELLS = 16  # places that are changed, one in each image, to find the tokens that respond
_SHARP = 0.5  # the part of a response that lies around its peak, where it says where it lies
_MOVES, _STAYS = 0.3, 0.1  # of the image: what a moving response covers, and what a still one may


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Where the numbers of a feature map `(b, c, h, w)` lie in a layer's output.

    Attributes:
        index: `(c, h, w)`, each number's position in the flattened output of one image.
        shape: The output's shape without its batch axis.
    """

    index: Int[Tensor, "c h w"]
    shape: tuple[int, ...]

    @property
    def unchanged(self) -> bool:
        """Whether the output is a feature map as it is."""
        return self.index.shape == self.shape and bool(
            (self.index.flatten() == torch.arange(self.index.numel())).all()
        )

    def feature_map(self, output: Tensor) -> Tensor:
        """The output as `(b, c, h, w)`."""
        if tuple(output.shape[1:]) != self.shape:
            raise InputError(
                f"layer: expected the output {self.shape} per image that was measured, got "
                f"{tuple(output.shape[1:])}; a layer that runs more than once must put out the "
                "same shape each time"
            )
        index = self.index.flatten().to(output.device)
        found: Tensor = output.flatten(1)[:, index].unflatten(1, tuple(self.index.shape))
        return found

    def written_back(self, features: Tensor, output: Tensor) -> Tensor:
        """The output with the feature map in its place; the rest, such as class tokens, stays."""
        index = self.index.flatten().to(output.device)
        written: Tensor = output.flatten(1).index_copy(1, index, features.flatten(1))
        return written.reshape(output.shape)


@contextmanager
def feature_maps(
    layer: nn.Module, arrangement: Arrangement, *, of_input: bool = False
) -> Iterator[nn.Module]:
    """A module that sees the layer's output as `(b, c, h, w)` on its way to the next layer.

    Args:
        layer: The layer.
        arrangement: Where its numbers lie.
        of_input: The layer's first input instead of its output.

    Yields:
        The layer itself where nothing has to be rearranged; otherwise an identity module, inserted
        by a hook for as long as the block lasts.
    """
    if arrangement.unchanged:
        yield layer
        return
    view = nn.Identity()

    def rearranged(tensor: Tensor) -> Tensor:
        return arrangement.written_back(view(arrangement.feature_map(tensor)), tensor)

    if of_input:
        handle = layer.register_forward_pre_hook(
            lambda _module, args: (rearranged(args[0]), *args[1:])
        )
    else:
        handle = layer.register_forward_hook(lambda _module, _args, output: rearranged(output))
    try:
        yield view
    finally:
        handle.remove()


def arrangement_of(
    forward: _Forward,
    layer: nn.Module,
    images: Images,
    *,
    layout: Layout | None = None,
    name: str = "",
    of_input: bool = False,
) -> Arrangement:
    """Where a layer's channels and places lie.

    Args:
        forward: The model, in evaluation mode.
        layer: One of its modules.
        images: `(b, c, h, w)`; the first is used.
        layout: The caller's word; None measures.
        name: What messages call the layer.
        of_input: The layer's first input instead of its output.

    Returns:
        The arrangement; measured once per model, layer and size of image.

    Raises:
        InputError: A layer that does not run, an output without proved places, or a layout that
            does not fit the output.
    """
    title = f"layer {name!r}" if name else f"layer {type(layer).__name__}"
    image = images[:1]
    known = _MEASURED.setdefault(layer, WeakKeyDictionary()) if layout is None else None
    memory = known.setdefault(forward, {}) if known is not None else {}
    key = (tuple(image.shape), image.dtype, image.device, of_input)
    if key in memory:
        return memory[key]
    probe = _Probe(forward, layer, of_input)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other sizes may make the model's own code warn
        output = probe(image)
        shape = _checked_shape(output, title)
        if layout is not None:
            return _given(layout, shape, title)
        if len(shape) == 2:
            memory[key] = _measured_tokens(forward, probe, image, shape, title)
        else:
            memory[key] = _measured(probe, image, shape, title)
    return memory[key]


_MEASURED: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Any, dict[Any, Arrangement]]] = (
    WeakKeyDictionary()
)


class _Probe:
    """Forward passes that read one layer: the output of its last call, None if it did not run."""

    def __init__(self, forward: _Forward, layer: nn.Module, of_input: bool) -> None:
        self._forward, self._layer, self._of_input = forward, layer, of_input
        self.output: Any = None

    def __call__(self, image: Tensor) -> Any:
        self.output = None

        def read(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = (args or (None,))[0] if self._of_input else output
            self.output = value.detach().clone() if isinstance(value, Tensor) else value

        handle = self._layer.register_forward_hook(read)
        try:
            with seeded(0, image.device):
                self._forward(image)
        finally:
            handle.remove()
        return self.output

    def attempted(self, image: Tensor) -> Tensor | None:
        """The same where the model may refuse the image, perhaps after the layer has run."""
        with suppress(Exception):
            self(image)
        return self.output if isinstance(self.output, Tensor) else None


def _checked_shape(output: Any, title: str) -> tuple[int, ...]:
    """The shape per image."""
    if output is None:
        raise InputError(f"{title}: expected a layer that runs in the forward pass; it does not")
    if not isinstance(output, Tensor):
        raise InputError(
            f"{title}: expected an output as one tensor, got {type(output).__name__}; "
            "a layer must put out (b, c, h, w) to have a map: pass one inside it or around it"
        )
    shape = tuple(output.shape)
    if not shape or shape[0] != 1:
        raise InputError(
            f"{title}: expected one row per image, got {shape} for one image, as windows that are "
            "folded into the batch give; pass layer= a module before or after them"
        )
    return shape[1:]


def _given(layout: Layout, shape: tuple[int, ...], title: str) -> Arrangement:
    positions = torch.arange(int(torch.tensor(shape).prod()) if shape else 1).reshape(1, *shape)
    if isinstance(layout, str):
        if layout not in ("first", "last"):
            raise InputError(
                f"layout: expected 'first', 'last', token places or a function, got {layout!r}"
            )
        if len(shape) != 3:
            raise InputError(
                f"{title}: expected an output of four axes for layout={layout!r}, got "
                f"(b, {', '.join(map(str, shape))})"
            )
        index = positions[0] if layout == "first" else positions[0].permute(2, 0, 1)
    elif isinstance(layout, Mapping):
        index = _token_index(_agreed(layout, shape[0], title), positions[0], title)
    elif isinstance(layout, TokenPlaces):
        index = _token_index(layout, positions[0], title)
    elif callable(layout):
        index = _function_index(layout, positions, title)
    else:
        raise InputError(
            "layout: expected 'first', 'last', what av.locate returns, token places with .grid and "
            ".cell, or a function, "
            f"got {type(layout).__name__}"
        )
    return Arrangement(index.contiguous(), shape)


def _token_index(places: TokenPlaces, positions: Tensor, title: str) -> Tensor:
    grid, cell = tuple(int(side) for side in places.grid or ()), torch.as_tensor(places.cell).cpu()
    if len(grid) != 2 or cell.ndim != 1:
        raise InputError(
            f"{title}: expected places on a grid (h, w), the same for all images, got a grid "
            f"{grid} and cells {tuple(cell.shape)}"
        )
    if positions.ndim != 2 or len(positions) != len(cell):
        raise InputError(
            f"{title}: expected tokens (b, {len(cell)}, c), as many as the layout has, got "
            f"(b, {', '.join(map(str, positions.shape))})"
        )
    tokens = (cell >= 0).nonzero()[:, 0]
    if cell[tokens].sort().values.tolist() != list(range(grid[0] * grid[1])):
        raise InputError(
            f"{title}: expected one token for each of the {grid[0]} x {grid[1]} places, got "
            f"{len(cell[tokens].unique())} places with {len(tokens)} tokens"
        )
    ordered = tokens[cell[tokens].argsort()]
    return positions[ordered].T.reshape(-1, *grid)


def _function_index(function: Callable[[Tensor], Tensor], positions: Tensor, title: str) -> Tensor:
    """What a function does to an output, read from what it does to the positions themselves."""
    index = function(positions.double())
    if not isinstance(index, Tensor) or index.ndim != 4 or len(index) != 1 or not index.numel():
        got = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise InputError(f"layout: expected the function to return (b, c, h, w), got {got}")
    whole = index[0].long()
    other = torch.rand(positions.shape, generator=torch.Generator().manual_seed(0)).double()
    in_range = bool(((whole >= 0) & (whole < positions.numel())).all())
    if (
        not in_range
        or len(whole.unique()) != whole.numel()
        or not torch.equal(function(other)[0], other.flatten()[whole])
    ):
        raise InputError(
            f"{title}: expected the layout function to rearrange numbers only (index, permute, "
            "reshape), got one that computes or repeats some"
        )
    return whole


def _measured_tokens(
    forward: _Forward, probe: _Probe, image: Tensor, shape: tuple[int, ...], title: str
) -> Arrangement:
    """The places of tokens, those of the model's attention, checked in the layer itself."""
    found = locate(forward, image) if isinstance(forward, nn.Module) else {}
    places = _agreed(found, shape[0], title)
    arrangement = _given(places, shape, title)
    if not _respond(probe, image, places):
        raise InputError(
            f"{title}: its tokens (b, {shape[0]}, {shape[1]}) do not respond most to the pixels of "
            f"the places that the model's attention has for them; {_TOKENS}"
        )
    return arrangement


_TOKENS = (
    "pass layout= the places of its tokens, or a function such as "
    "lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (h, w))"
)


def _agreed(layout: Mapping[str, RecordPlaces], count: int, title: str) -> Places:
    """The places of so many tokens, which must be the same in all attention that has as many."""
    sides = [side for one in layout.values() for side in (one.queries, one.keys)]
    fitting = {
        (side.grid, side.cell): side
        for side in sides
        if side.grid is not None and side.image is None and len(side.cell) == count
    }
    if len(fitting) != 1:
        why = "in several orders" if fitting else "nowhere"
        raise InputError(
            f"{title}: expected feature maps, got {count} tokens, and which token is which place "
            f"is known {why} in the model's attention; {_TOKENS}"
        )
    return next(iter(fitting.values()))


def _respond(probe: _Probe, image: Tensor, places: Places) -> bool:
    """Whether the tokens of some places respond to changes of their own pixels."""
    assert places.grid is not None  # `_token_index` has refused the others
    h, w = places.grid
    chosen, changed = _changed_cells(image, (h, w), _STRENGTH)
    before, after = probe(image), probe(changed)
    if not isinstance(after, Tensor) or after.shape[1:] != before.shape[1:]:
        return False
    cell = torch.tensor(places.cell, device=image.device)
    tokens = (cell >= 0).nonzero()[:, 0]
    moved = (after - before).norm(dim=-1)[:, tokens[cell[tokens].argsort()]]
    return _at_home(moved.view(-1, h, w).cpu(), chosen)


def _at_home(moved: Tensor, chosen: Sequence[int]) -> bool:
    """Whether places respond to changes of their own pixels, as far as places overlap.

    A stem of overlapping convolutions moves the neighbours too, some of them more: each response is
    greatest at most one place away, and the mean over all of them is greatest at the place itself,
    which a shift of the tokens by one would not leave there.

    Args:
        moved: `(k, h, w)`, how far each place moved.
        chosen: For each of them the place that was changed, row by row.
    """
    _, h, w = moved.shape
    near = torch.full((len(chosen), 3, 3), torch.nan)
    for one, cell, around in zip(moved, chosen, near, strict=True):
        y, x = divmod(cell, w)
        top, left = divmod(int(one.argmax()), w)
        if max(abs(top - y), abs(left - x)) > 1:
            return False
        for dy, dx in product((-1, 0, 1), repeat=2):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                around[dy + 1, dx + 1] = one[y + dy, x + dx] / one.max()
    mean = near.nanmean(0).nan_to_num(-1.0)
    return int(mean.argmax()) == 4


def _changed_cells(
    image: Tensor, grid: tuple[int, int], strength: float
) -> tuple[list[int], Tensor]:
    """Some places, in reading order, and copies of the image, each with noise in one of them."""
    (h, w), (height, width) = grid, image.shape[-2:]
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randperm(h * w, generator=draw)[:_CELLS].tolist()
    noise = torch.randn(image.shape, generator=draw).to(image) * image.std().clamp(min=_STRENGTH)
    changed = image.repeat(len(chosen), *[1] * (image.ndim - 1))
    for row, cell in enumerate(chosen):
        y, x = divmod(cell, w)
        part = (
            ...,
            slice(y * height // h, -(-(y + 1) * height // h)),
            slice(x * width // w, -(-(x + 1) * width // w)),
        )
        changed[row][part] += strength * noise[0][part]
    return chosen, changed


def _measured(probe: _Probe, image: Tensor, shape: tuple[int, ...], title: str) -> Arrangement:
    if len(shape) != 3:
        got = ", ".join(["b", *map(str, shape)])
        raise InputError(
            f"{title}: expected feature maps, got ({got}); a layer must put out (b, c, h, w) or "
            "(b, h, w, c) to have a map"
        )
    axes = _axes_by_size(probe, image, shape) or _axes_by_response(probe, image, shape)
    if isinstance(axes, str):
        raise InputError(
            f"{title}: expected (b, c, h, w) or (b, h, w, c), got (b, {shape[0]}, {shape[1]}, "
            f"{shape[2]}) {axes}; pass layer= a module that puts out a feature map, or say how "
            "this one lies with channels='first', channels='last' or layout="
        )
    if elsewhere := _displaced(probe, image, axes) or _unseen_border(probe, image, axes):
        raise InputError(
            f"{title}: expected a feature map of the whole image, from top left to bottom right, "
            f"got one {elsewhere}, as where the model crops, pads, flips or rearranges it; pass "
            "layer= a module before that, or layout= a function that rearranges the output "
            "('first' or 'last' takes it as it is)"
        )
    y, x = axes
    channel = 3 - y - x
    positions = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape)
    return Arrangement(positions.permute(channel, y, x).contiguous(), shape)


_Axes: TypeAlias = tuple[int, int] | str


def _axes_by_size(probe: _Probe, image: Tensor, shape: tuple[int, ...]) -> _Axes | None:
    """Axes of height and width as the image doubles; a reason against; None where it is silent."""
    grown = []
    for axis in (-2, -1):
        output = probe.attempted(torch.cat([image, image.flip(axis)], axis))
        if output is None:
            return None
        if output.ndim != 4 or len(output) != 1:
            return "whose batch axis grows with the image, as windows folded into the batch do"
        grown.append([i for i in range(3) if output.shape[i + 1] != shape[i]])
    tall, wide = grown
    if len(tall) > 1 or len(wide) > 1:
        return (
            "of which two axes grow with one side of the image, as in attention weights "
            "(b, heads, q, k): av.attention_gradcam weighs those by their gradient"
        )
    if not tall or not wide:
        return None
    if tall == wide:
        return "of which one axis grows with both sides of the image, as the axis of tokens does"
    return tall[0], wide[0]


def _axes_by_response(probe: _Probe, image: Tensor, shape: tuple[int, ...]) -> _Axes:
    """Axes along which the response to small changes moves as these move down and across.

    For a noise field ε and its ramps y·ε, x·ε the differences Δ to the unchanged image give each
    index of an axis the centroid `⟨Δ_y, Δ⟩ / ⟨Δ, Δ⟩` of what it responds to.
    """
    unproved = "whose axes nothing proves to be height and width"
    responses = _responses(probe, image, shape)
    if responses is None:
        return unproved
    energy, *moments = responses
    if not bool(energy.isfinite().all()) or not bool(energy.any()):
        return "that does not respond to the image"
    found = []
    for moment in moments:
        motions = [_motion(moment, energy, axis) for axis in range(3)]
        if sorted(motions) != ["moves", "stays", "stays"]:
            return unproved
        found.append(motions.index("moves"))
    return unproved if found[0] == found[1] else (found[0], found[1])


def _displaced(probe: _Probe, image: Tensor, axes: tuple[int, int]) -> str:
    """Whether rows or columns respond to other parts of the image than they are drawn over.

    Noise in one place moves most, beside what noise elsewhere moves there, the number of the place
    itself or a neighbour's. Only sharp responses count, most of which lie within one place of their
    peak: those of a receptive field as large as the image, of statistics over the image (a group
    norm's) and of dead features are spread, and say nothing.
    """
    base = probe.attempted(image)
    if base is None:
        return ""
    grid = base.shape[1 + axes[0]], base.shape[1 + axes[1]]
    chosen, changed = _changed_cells(image, grid, 1.0)
    after = probe.attempted(changed)
    if after is None or after.shape[1:] != base.shape[1:] or len(after) != len(chosen):
        return ""
    moved = (after - base).double().square().sum(4 - sum(axes))
    moved = moved if axes[0] < axes[1] else moved.mT
    rounding = torch.finfo(base.dtype).eps * float(base.double().norm())
    total = moved.sum((1, 2)).clamp_min((10 * rounding) ** 2)
    beside = (moved / moved.mean(0).clamp_min(1e-300)).masked_fill(
        moved < 1e-3 * moved.amax((1, 2), keepdim=True), 0.0
    )
    peak, cell = beside.flatten(1).argmax(1), torch.tensor(chosen, device=moved.device)
    around = 9 * nn.functional.avg_pool2d(moved[:, None], 3, stride=1, padding=1)
    sharp = around.flatten(1).gather(1, peak[:, None])[:, 0] > _SHARP * total
    if not bool(moved.isfinite().all()) or int(sharp.sum()) < max(4, len(chosen) / 3):
        return ""
    for count, there, due, name in (
        (grid[0], peak // grid[1], cell // grid[1], "rows"),
        (grid[1], peak % grid[1], cell % grid[1], "columns"),
    ):
        away = float((there - due)[sharp].abs().double().median())
        if count > 3 and away > max(1.5, count / 12):
            return f"whose {name} respond to pixels {away:.0f} of {count} {name} away"
    return ""


def _unseen_border(probe: _Probe, image: Tensor, axes: tuple[int, int]) -> str:
    """A border of the image, one place wide, that leaves the layer's output as it is.

    Of an image of noise as well, since features may be dead along the border of one image.
    """
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(image.shape, generator=draw).to(image) * image.std().clamp(min=_STRENGTH)
    output = probe.attempted(image)
    if output is None or _same(probe, image, noise, -1, 0, image.shape[-1]):
        return ""  # nothing moves it, such as a norm whose weights are zero
    for axis, dim, sides in zip(
        axes, (-2, -1), (("top", "bottom"), ("left", "right")), strict=True
    ):
        width = -(-image.shape[dim] // output.shape[1 + axis])
        for side, start in zip(sides, (0, image.shape[dim] - width), strict=True):
            if all(_same(probe, one, noise, dim, start, width) for one in (image, noise.flip(-1))):
                return f"that does not see the {side} {width} pixels of the image"
    return ""


def _same(probe: _Probe, image: Tensor, noise: Tensor, dim: int, start: int, width: int) -> bool:
    """Whether noise in a stripe of the image leaves the output as it is."""
    changed = image.clone()
    changed.narrow(dim, start, width).add_(noise.narrow(dim, start, width))
    before, after = probe.attempted(image), probe.attempted(changed)
    return before is not None and after is not None and torch.equal(before, after)


def _responses(probe: _Probe, image: Tensor, shape: tuple[int, ...]) -> list[Tensor] | None:
    """`⟨Δ, Δ⟩`, `⟨Δ_y, Δ⟩` and `⟨Δ_x, Δ⟩` of every number of the output, over noise fields."""
    h, w = image.shape[-2:]
    ramps = torch.ones(1, 1), torch.linspace(0, 1, h)[:, None], torch.linspace(0, 1, w)[None]
    draw = torch.Generator().manual_seed(0)
    strength = _STRENGTH * max(float(image.std()) if image.numel() > 1 else 0.0, 1e-2)
    sums = [torch.zeros(shape, dtype=torch.float64) for _ in ramps]
    base = probe.attempted(image)
    for _ in range(_NOISES):
        noise = strength * torch.randn(image.shape, generator=draw)
        changed = [probe.attempted(image + (noise * ramp).to(image)) for ramp in ramps]
        if base is None or any(one is None or one.shape != base.shape for one in changed):
            return None
        moved = [(one - base)[0].double().cpu() for one in changed if one is not None]
        for total, part in zip(sums, moved, strict=True):
            total += part * moved[0]
    return sums


def _motion(moment: Tensor, energy: Tensor, axis: int) -> Literal["moves", "stays", "unclear"]:
    """Whether the centroid moves down the image along an axis, on a straight line, or stays."""
    others = [i for i in range(3) if i != axis]
    weight = energy.sum(others)
    used = (weight > 0).nonzero()[:, 0]
    if len(used) < 2:
        return "stays" if len(weight) == 1 else "unclear"
    centroid = moment.sum(others)[used] / weight[used]
    at = used.double() - used.double().mean()
    away = centroid - centroid.mean()
    slope = float((at @ away) / (at @ at))
    travel = slope * float(used[-1] - used[0])
    fit = float((at @ away) ** 2 / ((at @ at) * (away @ away)).clamp_min(1e-30))
    if travel >= _MOVES and fit > 0.5:
        return "moves"
    return "stays" if abs(travel) <= _STAYS else "unclear"
