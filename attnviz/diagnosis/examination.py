"""One model under examination: a few images, a few runs, each made when a rule first asks.

No rule runs the model by itself. What they share is here, so that a diagnosis costs a few passes
over a handful of images however many rules there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnviz.capture import Capture, Record, watch
from attnviz.diagnosis.asking import answer
from attnviz.diagnosis.axes import Kind, kinds
from attnviz.diagnosis.perturbation import Nudged, Still, nudge, overheard

FEW = 8
"""How many images the weights are read from."""

_SOME = 3  # images in a run that only asks whether something changes
_ASLEEP = 1e-3  # parameters this small at initialisation hide the branch that they scale
_AWAKE = 0.1
_EACH, _MOST = 3, 24  # the same layer in fifty blocks is one layer
_RANDOM = 1e-5  # two runs of the same sums on the same machine agree to the last bits


@dataclass(frozen=True)
class Run:
    """One run of the model.

    Attributes:
        seen: What was captured.
        output: `(b, n)`, None where the model did not get that far.
        failure: Why it did not.
    """

    seen: Capture
    output: Tensor | None
    failure: Exception | None = None

    @property
    def records(self) -> list[Record]:
        """The records in order."""
        return list(self.seen.values())


class Examination:
    """A model, a few images, and what running it in different ways shows.

    Args:
        model: In evaluation mode while examined.
        images: All that were given; probes take the first few.
        masks: `(b, h, w)` where the thing is, or None.
        padding: `(b, h, w)` where images are padding, or None.
        trained: Whether the weights are trained; None if that is not known.
        left_in_training: How many modules were in training mode when the model came.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        masks: Tensor | None = None,
        padding: Tensor | None = None,
        trained: bool | None = None,
        left_in_training: int = 0,
    ) -> None:
        self.model, self.images, self.masks, self.padding = model, images, masks, padding
        self.trained = trained
        self.left_in_training = left_in_training
        self.few = images[:FEW] if len(images) > 1 else torch.cat([images, images.flip(-1)])

    @property
    def some(self) -> Tensor:
        """Fewer images than `few`, the first of them."""
        return self.few[: min(_SOME, len(self.few) - 1)]

    def run(
        self, images: Tensor, *, edit: Mapping[str, Any] | None = None, seed: int = 0, **how: Any
    ) -> Run:
        """The model on some images, watched; awake if it is not known to be trained."""
        torch.manual_seed(seed)
        with watch(self.model, operands=True, edit=edit, empty=True, **how) as seen:
            output = answer(functional_call(self.model, self.awakened, (images,)))
        return Run(seen, output)

    def attempt(self, images: Tensor, **how: Any) -> Run:
        """The same, where the model may refuse: what it did before that still counts."""
        torch.manual_seed(0)
        seen = Capture()
        try:
            with watch(self.model, operands=True, empty=True, **how) as seen:
                output = answer(functional_call(self.model, self.awakened, (images,)))
        except Exception as failure:
            return Run(seen, None, failure)
        return Run(seen, output)

    @cached_property
    def awakened(self) -> dict[str, Tensor]:
        """Parameters that start at zero and hide the branch behind them, made small numbers."""
        if self.trained:
            return {}
        return {
            name: woken
            for name, parameter in self.model.named_parameters()
            if not name.endswith("bias") and (woken := _awake(parameter)) is not None
        }

    @cached_property
    def base(self) -> Run:
        """The few images as they are."""
        return self.run(self.few)

    @cached_property
    def again(self) -> Run:
        """The same images with other random numbers."""
        return self.run(self.some, seed=1)

    @cached_property
    def fewer(self) -> Run:
        """The first images of `few` in a smaller batch."""
        return self.run(self.some)

    @cached_property
    def taller(self) -> Run:
        """An image of twice the height; many models refuse."""
        image = self.few[:1]
        return self.attempt(torch.cat([image, image.flip(-2)], 2))

    @cached_property
    def nudged(self) -> Nudged | None:
        """An image and its copies changed at one spot, attention held; None if that failed."""
        return self.nudge()

    def nudge(self, silent: int | None = None) -> Nudged | None:
        """The same, with the attention of one record (by its number) switched off."""
        images, places = nudge(self.few[:1])
        off = None if silent is None else self.editable.index(silent)
        maps = {(one.shape[-2], one.shape[-1]) for _, one in self.attention() if one.shape}
        with overheard(self.model, images, maps) as events:
            still = Still(len(images), events, off)
            edits = {self.records[i].name: still for i in self.editable}
            records = self.attempt(images, edit=edits or None).records
        if len(records) != len(self.records) or len(still.moments) != len(self.editable):
            return None
        moments = dict(zip(self.editable, still.moments, strict=True))
        blurred = len(events) if still.blurred is None else still.blurred
        return Nudged(records, events, moments, blurred, places)

    @cached_property
    def kinds(self) -> dict[int, Kind]:
        """What the tokens of each attention are, by record number."""
        return kinds(self)

    @cached_property
    def randomness(self) -> float:
        """How far two runs of the same images are apart, as a part of the largest value."""
        one, other = self.fewer.output, self.again.output
        if one is None or other is None or one.shape != other.shape or not bool(one.any()):
            return 0.0
        return float((one - other).abs().max() / one.abs().max())

    @property
    def is_random(self) -> bool:
        """Whether the model draws random numbers in evaluation mode."""
        return self.randomness > _RANDOM

    @cached_property
    def editable(self) -> list[int]:
        """Numbers of the records whose values can be replaced, in order."""
        return [i for i, one in enumerate(self.records)
                if one.weights is not None or one.scale is not None]  # fmt: skip

    @cached_property
    def chosen(self) -> list[int]:
        """Numbers of the records that are asked one by one: a few of each line of source."""
        lines: Counter[tuple[str, str]] = Counter()
        found = []
        for i in self.editable:
            line = (self.records[i].source, self.records[i].module)
            lines[line] += 1
            if lines[line] <= _EACH:
                found.append(i)
        return found[:_MOST]

    @property
    def records(self) -> list[Record]:
        """What was captured on the few images, in order."""
        return self.base.records

    def attention(self) -> list[tuple[int, Record]]:
        """Attention records with their numbers."""
        return [(i, one) for i, one in enumerate(self.records) if one.kind == "attention"]

    def gates(self) -> list[tuple[int, Record]]:
        """Gate records with their numbers."""
        return [(i, one) for i, one in enumerate(self.records) if one.kind == "gate"]

    def paired(self, run: Run) -> Sequence[Record | None]:
        """A run's records beside those of `base`, None where it has no such record."""
        theirs = run.records
        names = [one.origin for one in theirs]
        if names == [one.origin for one in self.records][: len(names)]:
            return [*theirs, *[None] * (len(self.records) - len(theirs))]
        return [None] * len(self.records)


def _awake(parameter: Tensor) -> Tensor | None:
    """Other values for a parameter that is one constant, None for one that is not.

    A branch scaled by 0 reaches nothing, and the mean over places undoes a layer norm whose
    weights are all 1.
    """
    if isinstance(parameter, nn.UninitializedParameter) or not parameter.is_floating_point():
        return None
    low, high = (float(x) for x in parameter.detach().aminmax()) if parameter.numel() else (0, 0)
    asleep = max(abs(low), abs(high)) < _ASLEEP
    if not parameter.numel() or not (asleep or (low == high and parameter.numel() > 1)):
        return None
    noise = torch.Generator().manual_seed(parameter.numel())
    values = torch.rand(parameter.shape, generator=noise) + 0.5
    if asleep and parameter.dim() > 1:  # a scale of a branch keeps its sign
        values *= torch.randint(0, 2, parameter.shape, generator=noise) * 2 - 1
    return ((_AWAKE if asleep else low) * values).to(parameter)


def is_trained(model: nn.Module) -> bool | None:
    """Whether a model was trained, read off its norm layers; None if it has none that tell.

    Norm layers begin with weight 1 and bias 0 (or all 0), and batch norms count their batches.
    """
    told = False
    for module in model.modules():
        count = getattr(module, "num_batches_tracked", None)
        if isinstance(count, Tensor) and int(count) > 0:
            return True
        weight = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or not isinstance(weight, Tensor):
            continue
        if isinstance(weight, nn.UninitializedParameter) or not weight.numel():
            continue
        told = True
        bias = getattr(module, "bias", None)
        if float(weight.detach().std(correction=0)) > 0 or (
            isinstance(bias, Tensor) and bool(bias.detach().any())
        ):
            return True
    return False if told else None
