"""Knockout: the effect of each head and each gate on the output, by replacing it.

A map shows where a head attends; knockout measures whether that matters. One at a time, a head's
weights are made uniform or zero or a gate is opened while the model runs, and the change of the
output is recorded per image. A head with a striking map can have an effect of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnviz.capture import Record, watch
from attnviz.errors import InputError, unknown_name
from attnviz.faithfulness.confidence import ROWS, Confidence, Output, confidence_of
from attnviz.shapes import Images, Scores
from attnviz.targets import Target
from attnviz.text import table

if TYPE_CHECKING:
    import pandas as pd

WAYS = {
    "uniform": "a head attends to all places alike",
    "zero": "a head's output is zero",
    "open": "a gate's scale is 1",
    "mean": "a gate's scale is its own mean",
}
"""Replacements of a head or a gate."""

_FOR_HEADS, _FOR_GATES = ("uniform", "zero"), ("open", "mean")


@dataclass(frozen=True)
class Cut:
    """One head or gate and its replacement.

    Attributes:
        name: The record's dotted name.
        kind: `"attention"` or `"gate"`.
        head: The head's index, None for a gate.
        way: A key of `WAYS`.
    """

    name: str
    kind: str
    head: int | None
    way: str


@dataclass(frozen=True, eq=False, repr=False)
class Knockout:
    """The effect of each cut on the output.

    Attributes:
        cuts: Heads and gates with their replacements, in the model's order.
        effects: `(cuts, b)` output with the cut minus output without, per image: negative where
            the head or gate contributed to the target.
        plain: `(b,)` outputs without a cut.
        confidence: The level of the intervals.
    """

    cuts: tuple[Cut, ...]
    effects: Float[Tensor, "cuts b"]
    plain: Scores
    confidence: float = 0.95

    @property
    def table(self) -> pd.DataFrame:
        """One row per cut: mean effect, its interval over the images, and the mean size.

        The interval, mean ± t·SE, is over the images and holds for these weights alone, not for
        another training of the same model.
        """
        import pandas as pd

        from attnviz.statistics.intervals import half_width
        from attnviz.statistics.variance import sampled

        effects = self.effects.double().cpu().numpy()
        means = effects.mean(1)
        half = np.array([half_width(sampled(one[None]), self.confidence) for one in effects])
        table = pd.DataFrame([vars(cut) for cut in self.cuts])
        table["head"] = table["head"].astype("Int64")
        return table.assign(
            effect=means,
            low=means - half,
            high=means + half,
            size=np.abs(effects).mean(1),
            images=effects.shape[1],
        )

    def __repr__(self) -> str:
        header = ("replaced", "way", "effect", "interval", "|effect|")
        rows = (
            (
                row.name if row.kind == "gate" else f"{row.name} head {row.head}",
                row.way,
                f"{row.effect:+.3g}",
                f"[{row.low:+.3g}, {row.high:+.3g}]",
                f"{row.size:.3g}",
            )
            for row in self.table.itertuples()
        )
        return (
            f"{table(header, rows, right=(2, 3, 4))}\n{self.effects.shape[1]} images; "
            f"{100 * self.confidence:g} % intervals over images, of one training"
        )


def knockout(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    where: Any = None,
    ways: Sequence[str] = ("uniform", "zero", "open"),
    output: Output = "logit",
    rows: int = ROWS,
    confidence: float = 0.95,
) -> Knockout:
    """How the output changes when a head is made uniform or zero, or a gate is opened.

    Args:
        model: Any module that `attnviz.watch` can edit; it runs in evaluation mode and is left as
            it was.
        images: `(b, c, h, w)`.
        target: Which output; needed for `n > 1`.
        where: Which records, as in `attnviz.watch`: a glob, a kind, or a function.
        ways: Keys of `WAYS`: `uniform` and `zero` for each head, `open` (scale 1) and `mean` (the
            gate's own mean over the image) for each gate.
        output: `"logit"` or `"probability"`.
        rows: Images in one forward.
        confidence: Level of the intervals.

    Returns:
        Effects per cut and image; its repr is a table with intervals, `.table` a DataFrame.

    Raises:
        InputError: An unknown way, no images, several outputs and no target, or ways that fit
            nothing that was seen.
        NothingSeenError: The model has no attention and no gate, or none that `where` selects.
    """
    for way in ways:
        if way not in WAYS:
            raise unknown_name("way", way, WAYS)
    if not len(images):
        raise InputError("knockout: expected at least one image")
    with confidence_of(model, target, output, rows) as confidences:
        plain = confidences.of(images)
        with watch(model, where=where) as seen:
            model(images[:1])
        cuts = [cut for record in seen.values() for cut in _cuts(record, ways)]
        if not cuts:
            raise InputError(
                f"knockout: {', '.join(ways)} fit none of {', '.join(seen)}; heads can be "
                f"{' or '.join(_FOR_HEADS)}, gates {' or '.join(_FOR_GATES)}"
            )
        effects = torch.stack([_output_with(confidences, cut, images) - plain for cut in cuts])
    return Knockout(tuple(cuts), effects.float(), plain.float(), confidence)


def _cuts(record: Record, ways: Sequence[str]) -> Iterator[Cut]:
    """All replacements of one record's heads or gate."""
    if record.kind == "gate":
        yield from (Cut(record.name, "gate", None, way) for way in ways if way in _FOR_GATES)
    elif record.weights is not None:
        for head in range(record.weights.shape[1]):
            for way in ways:
                if way in _FOR_HEADS:
                    yield Cut(record.name, "attention", head, way)


def _output_with(confidences: Confidence, cut: Cut, images: Images) -> Scores:
    """The outputs with the cut, one watch to a forward: `name#1` counts calls within a watch."""
    outputs = []
    for start in range(0, len(images), confidences.rows):
        part = slice(start, start + confidences.rows)
        with watch(confidences.model, edit={cut.name: _edit(cut)}):
            outputs.append(confidences.of(images[part], part, len(images)))
    return torch.cat(outputs)


def _edit(cut: Cut) -> Callable[[Tensor, Record], Tensor]:
    from attnviz.capture import edits

    def edit(values: Tensor, record: Record) -> Tensor:
        if cut.way == "open":
            return torch.ones_like(values)
        if cut.way == "mean":
            return edits.uniform(values, record)
        values = values.clone()
        replaced = edits.uniform(values, record) if cut.way == "uniform" else values * 0
        values[:, cut.head] = replaced[:, cut.head]
        return values

    return edit
