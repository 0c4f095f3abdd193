"""What tokens are, and whether they are in the order of their places.

One image patch is perturbed; the change of the keys and of the output shows where tokens went.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from attnviz.capture import Record
from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.perturbation import (
    WIDEST,
    Grid,
    Perturbed,
    effective_count,
    share_inside,
    support,
)
from attnviz.diagnosis.registry import Observation, observed, rule
from attnviz.diagnosis.rules.weights import normalised
from attnviz.diagnosis.token_axes import OWN, last_grid

KEPT = 0.75
"""Tokens are in order if this share of a change stays where the features changed before."""

MORE = 4.0
"""Tokens of windows are in order if not more than this many times as many change."""

_LEADING = 8  # more leading tokens than this are no class and register tokens, but padding


@rule(
    code="channel-attention",
    severity="warning",
    summary="Channels attend to channels, where places may have been meant.",
    meaning="channels attend to channels: {keys} keys whatever the image's size, and the scores "
    "sum over places; the weights have no position in the image",
    evidence={"keys": "number of keys"},
    remedy="for attention over places make each place a token, x.flatten(2).transpose(1, 2), so "
    "that q @ k.transpose(-2, -1) is (places, places); if channels are meant, draw no map of it",
    appearance="There is no heatmap: the weights are `(channels, channels)`. Drawn as a picture of "
    "`√c × √c` they are a texture that does not follow the image.",
    cause="`q @ k.transpose(1, 2)` with q and k `(b, c, h·w)`, as 1 × 1 convolutions leave them, "
    "sums over places. Several designs mean it (XCiT, DaViT, the channel half of DANet).",
    method="On an image of twice the height the number of keys stays and the width of the "
    "contracted axis grows. Where the model fails at that size: as many keys as channels, all of "
    "them change with one place, and the change along the contracted axis is local. A note where "
    "queries and keys are normalised, or other layers attend over places.",
)
def channel_attention(case: Examination) -> Iterator[Observation]:
    spatial = any(tokens.axis == "places" for tokens in case.tokens.values())
    for i, tokens in case.tokens.items():
        if tokens.axis == "channels":
            record = case.records[i]
            meant = spatial or normalised(record)
            yield Observation(record.name, tokens.evidence, "note" if meant else None)


@rule(
    code="swapped-axes",
    severity="error",
    summary="A linear layer mixes places, since tokens and channels were swapped before it.",
    meaning="tokens and channels are swapped before a linear layer: it mixes {places} places, each "
    "of the {keys} tokens is a channel, and the model works at one image size only",
    evidence={"keys": "number of keys", "places": "number of places"},
    remedy="transpose first, then project: layer(x.flatten(2).transpose(1, 2)) with "
    "nn.Linear(channels, …)",
    appearance="No map of places exists; keys are channels.",
    cause="`nn.Linear(h*w, d)` on `x.flatten(2)`, `(b, c, h·w)`: the layer takes what its width "
    "was made to fit. It learns one weight per place, the model works at one image size only, and "
    "an object that moves is another object.",
    method="As many keys as channels, every key changes with any one place, the change is spread "
    "along the features, the model fails at twice the height, and keys change as the channels of "
    f"the map before them do: an alignment of the two changes above {OWN:g}, in the order of "
    "channels. Latents, learned tokens and keys in chunks that happen to be as many are no "
    "channels.",
)
def swapped_axes(case: Examination) -> Iterator[Observation]:
    for i, tokens in case.tokens.items():
        if tokens.axis == "swapped":
            yield Observation(case.records[i].name, tokens.evidence)


@rule(
    code="batch-attention",
    severity="error",
    summary="Images of a batch attend to each other.",
    meaning="images attend to each other: with {images} images there are {keys} keys, with {more} "
    "there are {grown}",
    evidence={
        "images": "images in the smaller batch",
        "keys": "keys in the smaller batch",
        "more": "images in the larger batch",
        "grown": "keys in the larger batch",
    },
    remedy="put the batch first: nn.MultiheadAttention(…, batch_first=True), or permute to what "
    "the layer expects",
    appearance="A map of `batch × batch`; with a batch of one it is a single 1.",
    cause="`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` expect `(sequence, batch, "
    "width)` unless `batch_first=True`. Given `(batch, sequence, width)` they attend over the "
    "batch, and the output of an image depends on the others.",
    method="Two runs with batches of different size: the number of keys grows with the batch.",
)
def batch_attention(case: Examination) -> Iterator[Observation]:
    for i, tokens in case.tokens.items():
        if tokens.axis == "images":
            yield Observation(case.records[i].name, tokens.evidence)


@rule(
    code="scrambled-tokens",
    severity="error",
    summary="Tokens are no places: each mixes parts of several places and channels.",
    meaning="perturbing one image patch changes keys all over the grid, only {share:.0%} of the "
    "change is where the features changed: tokens mix places and channels, and their weights "
    "have no position in the image",
    evidence={"share": "share of a key's change where the features changed, 0 to 1"},
    threshold=f"share below {KEPT:g}",
    remedy="transpose, do not reshape: tokens = x.flatten(2).transpose(1, 2); heads = "
    "t.view(b, n, heads, d).transpose(1, 2)",
    appearance="Stripes and blocks with a period that is unrelated to the image; the map moves "
    "when a channel changes, not when the object does. It often looks plausible, since every "
    "heatmap has a brightest spot.",
    cause="`x.reshape(b, h*w, c)` of a tensor `(b, c, h, w)` keeps the order in memory: a token "
    "becomes a run of neighbouring pixels of one channel. `t.view(b, heads, n, d)` of a tensor "
    "`(b, n, heads·d)` does the same to heads. Both have the right shape, and training goes on.",
    method="One image patch is perturbed while every attention is the identity and every gate is "
    "held. A key must change where the features before the attention changed. The finding is that "
    f"less than {KEPT:.0%} of some head's change lies there (the fewest places that hold 99 % of "
    "the features' change, and their neighbours). For windows the number of changed tokens is "
    f"compared instead. Not judged where the change had spread over more than {WIDEST:.0%} of the "
    "grid.",
)
def scrambled_tokens(case: Examination) -> Iterator[Observation]:
    for i, (perturbed, region) in _regions(case).items():
        share = _tokens_kept(perturbed.records[i], region, _grid(perturbed, i))
        if share is not None and share < KEPT:
            yield observed(perturbed.records[i].name, share=share)


@rule(
    code="scrambled-output",
    severity="error",
    summary="The attention is right, and its result is put back in another order.",
    meaning="with every place attending to itself, perturbing one image patch changes the output "
    "elsewhere, only {share:.0%} of it is where the features changed: tokens are put back in "
    "another order than they were taken",
    evidence={"share": "share of the output's change where the features changed, 0 to 1"},
    threshold=f"share below {KEPT:g}",
    remedy="invert the steps: out.transpose(1, 2).reshape(b, c, h, w), and for heads first "
    "out.transpose(1, 2).flatten(2)",
    appearance="The attention map is right; maps of later layers (Grad-CAM, later attention) are "
    "striped.",
    cause="`out.reshape(b, c, h, w)` of tokens `(b, h·w, c)`, or heads merged without a transpose: "
    "`out.reshape(b, n, heads·d)` of `(b, heads, n, d)`.",
    method="The run of [scrambled-tokens](scrambled-tokens.md) is made twice, with the attention "
    "as identity and with zero attention; the difference of the two changes is the attention's own "
    f"part, without any residual. The finding is less than {KEPT:.0%} of it where the features "
    "changed.",
    explained_by=("scrambled-tokens", "no-effect"),
)
def scrambled_output(case: Examination) -> Iterator[Observation]:
    silenced = silenced_runs(case)
    for i, (perturbed, region) in _regions(case).items():
        if i not in silenced:
            continue
        share = _lowest(_branch(perturbed, silenced[i], i), region)
        if share is not None and share < KEPT:
            yield observed(perturbed.records[i].name, share=share)


def silenced_runs(case: Examination) -> dict[int, Perturbed]:
    """The runs with zero attention of one record, for the records that are edited one by one."""
    return case.cached(_silence)


def _silence(case: Examination) -> dict[int, Perturbed]:
    if case.perturbed is None:
        return {}
    apart = ("channels", "swapped", "images")
    return case.silenced(
        [i for i in case.chosen if i in case.tokens and case.tokens[i].axis not in apart]
    )


def _regions(case: Examination) -> dict[int, tuple[Perturbed, Tensor]]:
    """For each attention over places the support of the change before it."""
    found = {}
    for i, _ in case.attention():
        perturbed = case.perturbed
        if perturbed is None or case.tokens[i].axis in ("channels", "swapped", "images"):
            continue
        region = _region(perturbed, i, perturbed.records[i])
        if region is not None:
            found[i] = (perturbed, region)
    return found


def _region(perturbed: Perturbed, number: int, record: Record) -> Tensor | None:
    """Support of the change before an attention, `(patches, h, w)`; None if it is not judged."""
    grid = _grid(perturbed, number)
    if grid is None or record.prefix > _LEADING:
        return None
    if perturbed.moments.get(number, 0) > perturbed.blurred:
        return None
    last = last_grid(perturbed.before(number))
    if last is not None:
        return support(last.energy) if last.grid == grid else None
    tokens = [one.at(grid, record.prefix) for one in perturbed.before(number)]
    first = next((energy for energy in reversed(tokens) if energy is not None), None)
    return None if first is None else support(first)


def _grid(perturbed: Perturbed, number: int) -> Grid | None:
    """The grid that keys are said to lie on; where that is not known, the one they must lie on.

    Tokens that mix places lie nowhere. If there are as many as places in the feature map before
    them, or a few more that lead, they were meant to be these places, and the change of one patch
    shows whether they are.
    """
    record = perturbed.records[number]
    known = record.row_grids[1] if record.windows is None else record.windows.grid
    last = last_grid(perturbed.before(number))
    if known is not None or last is None or last.grid is None or not record.shape:
        return known
    return last.grid if 0 <= _leading(record, last.grid) <= _LEADING else None


def _leading(record: Record, grid: Grid) -> int:
    """How many keys there are besides the places of a grid."""
    return record.shape[-1] - grid[0] * grid[1]


def _tokens_kept(record: Record, region: Tensor, grid: Grid | None) -> float | None:
    """The smallest share of a head's change that stays in the region.

    Where the places' order among the tokens is not known, the share in the best of the orders.
    """
    if record.windows:
        return _windowed(record, region)
    if record.key is None or grid is None:
        return None
    more = record.key.shape[-2] - grid[0] * grid[1]
    starts = [more] if record.row_grids[1] else range(max(0, more) + 1)
    shares = [_lowest(_keys(record.key, grid, start), region) for start in starts]
    return max((share for share in shares if share is not None), default=None)


def _lowest(energies: Iterator[Tensor], region: Tensor) -> float | None:
    shares = (share_inside(energy, region) for energy in energies)
    return min((share for share in shares if share is not None), default=None)


def _keys(key: Tensor, grid: Grid, start: int) -> Iterator[Tensor]:
    """The change of each head's keys, `(patches, h, w)`; heads that hardly change are left out."""
    energy = _energy(key)
    n = grid[0] * grid[1]
    if not 0 <= start <= min(_LEADING, energy.shape[-1] - n):
        return
    energy = energy[..., start : start + n].unflatten(-1, grid)
    totals = energy.sum((0, 2, 3))
    for head in range(energy.shape[1]):
        if totals[head] > 0.1 * totals.max():
            yield energy[:, head]


def _windowed(record: Record, region: Tensor) -> float | None:
    """The same for windows, by the number of changed tokens: their places need not be known."""
    if record.key is None or record.windows is None or float(region.float().mean()) > WIDEST:
        return None
    keys = record.key.unflatten(0, (-1, record.windows.count))
    if len(keys) != len(region) + 1:
        return None
    changed = effective_count(_energy(keys.flatten(1, 2)))
    heads = record.key.shape[1]
    allowed = float(region.flatten(1).sum(1).float().median()) * heads * MORE
    return 1.0 if changed <= allowed else allowed / MORE / changed


def _energy(key: Tensor) -> Tensor:
    """`(patches, heads, tokens)`: the squared change of each key."""
    change: Tensor = (key[1:].float() - key[:1].float()).square().sum(-1)
    return change


def _branch(on: Perturbed, off: Perturbed, number: int) -> Iterator[Tensor]:
    """The attention's own part of the change after it, `(patches, h, w)`.

    The change with zero attention, as of a residual, is subtracted. The first tokens and the first
    feature map on the queries' grid are taken.
    """
    record = on.records[number]
    grid, keys = record.row_grids
    if grid is None or grid != keys or record.windows is not None:
        return  # fewer keys than queries: each stands for several places
    taken: set[bool] = set()
    for activation, other in zip(on.after(number), off.after(number), strict=False):
        own = activation.without(other)
        energy = None if own is None else own.at(grid, record.prefix)
        if own is None or energy is None or not bool(energy.any()) or (own.grid is None) in taken:
            continue
        yield energy
        taken.add(own.grid is None)
        if own.grid is not None:
            return
