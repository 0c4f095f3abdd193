"""The runs of a model that the rules share, each made on first use.

Rules take what they measure from here, so that the number of forward passes does not grow with the
number of rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnviz.capture import Capture, Record, watch
from attnviz.diagnosis.backward import Backward, differentiated
from attnviz.diagnosis.calls import Call, Product, recorded_calls
from attnviz.diagnosis.findings import Severity
from attnviz.diagnosis.outputs import flat_output
from attnviz.diagnosis.perturbation import (
    IdentityAttention,
    Perturbed,
    perturb_patches,
    recorded_activations,
)
from attnviz.diagnosis.token_axes import Probes, Tokens, tokens_of

Result = TypeVar("Result")

FEW = 8
"""Images in the plain run, from which weights and gates are read; fewer where these are large."""

_SOME = 2  # images in a run that only measures whether the output changes
_ZERO = 1e-3  # parameters this small at initialisation hide the branch that they scale
_SMALL = 0.1
DIFFERENT = 1e-3
"""Relative difference between outputs that batch size and rounding do not explain."""

LEAK = 1e-5
"""Relative difference by other neighbours in a batch of the same size, which rounding explains."""

_EACH, _MOST = 12, 16  # records edited one by one: of each source line, and in all
_STRONGER = 3.0  # factor of neighbours that must not matter
_BRIGHT = 1000.0  # factor of images that drive every squashing function to its ends
_TOGETHER = 8  # edits that share a forward pass, if what is captured then stays below
_MEMORY = 2**30  # bytes
_RANDOM = 1e-5  # two runs of the same operations on one machine agree to rounding


Edit: TypeAlias = Callable[..., Tensor]
"""From the weights or the scale of a record to the values that replace them."""


@dataclass(frozen=True)
class Run:
    """One run of the model.

    Attributes:
        seen: What was captured.
        output: `(b, n)`, None where the model failed.
        failure: The exception.
    """

    seen: Capture
    output: Tensor | None
    failure: Exception | None = None

    @property
    def records(self) -> list[Record]:
        """The records in order."""
        return list(self.seen.values())


@dataclass(frozen=True)
class Calls:
    """A run with its calls.

    Attributes:
        calls: Sigmoid, softmax and attention kernels, in order.
        products: Products with a broadcast factor, in order.
        output: `(b, n)`, None where the model failed.
    """

    calls: list[Call]
    products: list[Product]
    output: Tensor | None


class Examination:
    """A model, its images, and the runs that show its behaviour.

    Args:
        model: In evaluation mode while examined.
        images: All images; probes take the first few.
        masks: `(b, h, w)` of the object, or None.
        padding: `(b, h, w)` of padding, or None.
        groups: `(b,)` numbers of photographs, or None where each image is independent.
        trained: Whether the weights are trained; None if that is not known.
        left_in_training: Number of modules that were in training mode before.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        masks: Tensor | None = None,
        padding: Tensor | None = None,
        groups: Tensor | None = None,
        trained: bool | None = None,
        left_in_training: int = 0,
    ) -> None:
        self.model, self.images, self.masks, self.padding = model, images, masks, padding
        self.groups, self.trained = groups, trained
        self.left_in_training = left_in_training
        self._results: dict[Callable[[Examination], Any], Any] = {}
        self._several = images if len(images) > 1 else torch.cat([images, images.flip(-1)])

    @cached_property
    def few(self) -> Tensor:
        """The first images, as many as memory allows; a single one with its mirror image."""
        least = len(self.some) + 1
        most = 2 * _MEMORY * len(self.some) // self._bytes
        return self._several[: max(least, min(FEW, most))]

    @property
    def some(self) -> Tensor:
        """Fewer images than `few`, the first of them."""
        return self._several[: min(_SOME, len(self._several) - 1)]

    def run(
        self, images: Tensor, *, edit: Mapping[str, Any] | None = None, seed: int = 0, **how: Any
    ) -> Run:
        """A watched run; zero-initialised parameters are replaced as in `substitutes`."""
        torch.manual_seed(seed)
        with watch(self.model, operands=True, edit=edit, empty=True, **how) as seen:
            output = self._output(images)
        return Run(seen, output)

    def _output(self, images: Tensor) -> Tensor:
        outputs = functional_call(self.model, self.substitutes, (images,))
        return flat_output(outputs, len(images))

    def attempt(self, images: Tensor, **how: Any) -> Run:
        """The same where the model may fail; what was captured before that is kept."""
        torch.manual_seed(0)
        seen = Capture()
        try:
            with watch(self.model, operands=True, empty=True, **how) as seen:
                output = self._output(images)
        except Exception as failure:
            return Run(seen, None, failure)
        return Run(seen, output)

    @cached_property
    def substitutes(self) -> dict[str, Tensor]:
        """Small random values for parameters that are zero, so that no branch is hidden by them.

        Empty for a trained model.
        """
        if self.trained:
            return {}
        return {
            name: value
            for name, parameter in self.model.named_parameters()
            if not name.endswith("bias") and (value := _substitute(parameter)) is not None
        }

    @cached_property
    def base(self) -> Run:
        """The plain run on the first few images."""
        return self.run(self.few)

    @cached_property
    def again(self) -> Tensor:
        """The output for `some` with another random seed."""
        torch.manual_seed(1)
        return self._output(self.some)

    @cached_property
    def fewer(self) -> Run:
        """The first images of `few` in a smaller batch."""
        return self.run(self.some)

    @cached_property
    def taller(self) -> Run:
        """An image of twice the height; many models fail on it."""
        image = self.few[:1]
        return self.attempt(torch.cat([image, image.flip(-2)], 2))

    @cached_property
    def extreme(self) -> Run:
        """Two images, 1000 times as bright, and their negatives."""
        image = self.few[:1] * _BRIGHT
        return self.attempt(torch.cat([image, -image]))

    @cached_property
    def calls(self) -> Calls:
        """The calls of sigmoid, softmax and attention kernels on `some`."""
        return self.run_calls(self.some)

    @cached_property
    def extreme_calls(self) -> Calls:
        """The same on images 1000 times as bright."""
        return self.run_calls(self.some * _BRIGHT)

    def run_calls(self, images: Tensor, replace: Mapping[int, Edit] | None = None) -> Calls:
        """A run in which the results of some calls, by their numbers, are replaced."""
        torch.manual_seed(0)
        output = None
        with recorded_calls(self.model, replace) as mode, suppress(Exception):
            output = self._output(images)
        return Calls(mode.calls, mode.products, output)

    @cached_property
    def backward(self) -> Backward | None:
        """One backward pass on `some`; None where the model cannot be differentiated."""
        try:
            return differentiated(self.model, self.some, self.substitutes)
        except RuntimeError:  # kernels without a derivative
            return None

    @cached_property
    def perturbed(self) -> Perturbed | None:
        """An image with perturbed patches under identity attention; None if that failed."""
        run, (one,) = self._perturb([None], features=True)
        if one is None or len(run.records) != len(self.records):
            return None
        features = {
            i: kept[1:].float() - kept[:1].float()
            for i in one.gates
            if (kept := run.records[i].features) is not None
        }
        return replace(one, records=run.records, features=features)

    def silenced(self, numbers: Sequence[int]) -> dict[int, Perturbed]:
        """The same with zero attention of one record, for each of some records.

        Activations are kept from that record to the next. Records whose run failed are left out.
        """
        found: dict[int, Perturbed] = {}
        size = self.perturbed.size if self.perturbed is not None else 0
        for some in self._batches(numbers, size):
            _, runs = self._perturb([self.editable.index(i) for i in some])
            pairs = zip(some, runs, strict=True)
            found |= {i: one.behind(i) for i, one in pairs if one is not None}
        return found

    def _perturb(
        self, silent: Sequence[int | None], **how: Any
    ) -> tuple[Run, list[Perturbed | None]]:
        images, places = perturb_patches(self.few[:1])
        copies = len(silent)
        maps = {(one.shape[-2], one.shape[-1]) for _, one in self.attention() if one.shape}
        with recorded_activations(self.model, images, maps, copies=copies) as recorded:
            identity = IdentityAttention(len(images), recorded[0], silent)
            edits = {self.records[i].name: identity for i in self.editable}
            run = self.attempt(images.repeat(copies, 1, 1, 1), edit=edits or None, **how)
        if len(identity.moments) != len(self.editable):
            return run, [None] * copies
        moments = dict(zip(self.editable, identity.moments, strict=True))
        gates = {self.editable[n]: change for n, change in identity.gates.items()}
        blurred = len(recorded[0]) if identity.blurred is None else identity.blurred
        return run, [
            Perturbed(self.records, one, moments, blurred, places, gates) for one in recorded
        ]

    def changes(self, edits: Mapping[int, Edit]) -> dict[int, float]:
        """Relative change of the output by an edit of one record, for each of some records.

        Several edits share a batch, of which the first images stay plain for comparison. An edit of
        values that all images share has a run of its own. Records whose edit failed are left out.
        """
        shared = [i for i in edits if self.separate or not self._of_each_image(i)]
        found = {}
        for i in shared:
            run = self.attempt(self.some, edit={self.records[i].name: edits[i]})
            if run.output is not None and self.fewer.output is not None:
                found[i] = _relative(run.output, self.fewer.output)
        for some in self._batches([i for i in edits if i not in shared], self._bytes):
            copies = len(some) + 1
            part = {
                self.records[i].name: partial(_edit_copy, edits[i], n + 1, copies)
                for n, i in enumerate(some)
            }
            output = self.attempt(self.some.repeat(copies, 1, 1, 1), edit=part).output
            if output is None or len(output) != copies * len(self.some):
                continue
            plain, *others = output.chunk(copies)
            for i, other in zip(some, others, strict=True):
                found[i] = _relative(other, plain)
        return found

    def _of_each_image(self, i: int) -> bool:
        """Whether the values of a record have an axis over the images of the batch."""
        other = self.paired(self.fewer)[i]
        if other is None:
            return False
        more, less = _length(self.records[i]), _length(other)
        return more * len(self.some) == less * len(self.few)

    def _batches(self, numbers: Sequence[int], memory: int) -> list[Sequence[int]]:
        """Groups of records whose edits share a forward pass, which takes that memory for each."""
        size = 1 if self.separate else min(_TOGETHER, max(1, _MEMORY // max(memory, 1)))
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    @cached_property
    def _bytes(self) -> int:
        """Memory of the weights that a run on `some` captures."""
        kept = [one.weights for one in self.fewer.records if one.weights is not None]
        return max(1, sum(one.numel() * one.element_size() for one in kept))

    @cached_property
    def separate(self) -> bool:
        """Whether images of one batch influence each other, so that edits need their own runs."""
        leaks = not self.batch_difference <= DIFFERENT  # NaN too
        return leaks or any(one.axis == "images" for one in self.tokens.values())

    @cached_property
    def batch_difference(self) -> float:
        """The largest difference by the size of the batch, over the largest output."""
        whole, part = self.base.output, self.fewer.output
        if whole is None or part is None or whole.shape[1:] != part.shape[1:]:
            return 0.0
        scale = float(part.abs().max())
        return float((whole[: len(part)] - part).abs().max()) / scale if scale else 0.0

    @cached_property
    def neighbour_difference(self) -> float:
        """The largest difference of the first image's output by its neighbour in the batch."""
        others = self.some[1:].flip(0) * -_STRONGER
        plain = self.fewer.output
        other = self.attempt(torch.cat([self.some[:1], others])).output
        if plain is None or other is None or plain.shape != other.shape or not len(others):
            return 0.0
        scale = float(plain.abs().max())
        return float((other[0] - plain[0]).abs().max()) / scale if scale else 0.0

    @cached_property
    def training_run(self) -> Run:
        """A run on `some` in training mode; buffers are copied, so that they stay."""
        torch.manual_seed(0)
        buffers = {name: one.clone() for name, one in self.model.named_buffers()}
        modules = list(self.model.modules())
        seen = Capture()
        try:
            for module in modules:
                module.training = True
            with watch(self.model, empty=True) as seen:
                functional_call(self.model, {**self.substitutes, **buffers}, (self.some,))
        except Exception as failure:
            return Run(seen, None, failure)
        finally:
            for module in modules:
                module.training = False
        return Run(seen, None)

    @cached_property
    def tokens(self) -> dict[int, Tokens]:
        """What the tokens of each attention are, by record number."""
        fewer, taller = self.paired(self.fewer), self.paired(self.taller)
        found = {}
        for i, record in self.attention():
            probes = Probes(
                (len(self.few), len(self.some)), fewer[i], taller[i],
                self.taller.output is None, self.perturbed,
            )  # fmt: skip
            found[i] = tokens_of(i, record, probes)
        return found

    @property
    def trained_severity(self) -> Severity:
        """Severity of what random weights show by nature: a note unless surely trained."""
        return "warning" if self.trained else "note"

    @cached_property
    def randomness(self) -> float:
        """The largest difference of two runs of the same images over the largest output."""
        one, other = self.fewer.output, self.again
        if one is None or one.shape != other.shape or not bool(one.any()):
            return 0.0
        return float((one - other).abs().max() / one.abs().max())

    @cached_property
    def is_finite(self) -> bool:
        """Whether weights, gates and outputs of the plain run are finite."""
        values = [self.base.output]
        values += [one.weights if one.kind == "attention" else one.scale for one in self.records]
        return all(bool(x.isfinite().all()) for x in values if x is not None)

    def cached(self, measure: Callable[[Examination], Result]) -> Result:
        """The result of a measurement that several rules use, made once."""
        if measure not in self._results:
            self._results[measure] = measure(self)
        result: Result = self._results[measure]
        return result

    @property
    def is_random(self) -> bool:
        """Whether the output is random in evaluation mode."""
        return self.randomness > _RANDOM

    @cached_property
    def editable(self) -> list[int]:
        """Numbers of the records whose values can be replaced, in order."""
        return [i for i, one in enumerate(self.records)
                if one.weights is not None or one.scale is not None]  # fmt: skip

    @cached_property
    def chosen(self) -> list[int]:
        """Numbers of the records that are edited one by one: a few of each source line."""
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
        """The records of the plain run, in order."""
        return self.base.records

    def attention(self) -> list[tuple[int, Record]]:
        """Attention records with their numbers."""
        return [(i, one) for i, one in enumerate(self.records) if one.kind == "attention"]

    def gates(self) -> list[tuple[int, Record]]:
        """Gate records with their numbers."""
        return [(i, one) for i, one in enumerate(self.records) if one.kind == "gate"]

    def paired(self, run: Run) -> Sequence[Record | None]:
        """A run's records in the order of the plain run's, None where one is missing."""
        theirs = run.records
        names = [one.origin for one in theirs]
        if names == [one.origin for one in self.records][: len(names)]:
            return [*theirs, *[None] * (len(self.records) - len(theirs))]
        return [None] * len(self.records)


def _edit_copy(edit: Edit, copy: int, copies: int, values: Tensor) -> Tensor:
    """Edit one of the copies of the images in a batch."""
    parts = list(values.chunk(copies))
    parts[copy] = edit(parts[copy])
    return torch.cat(parts)


def _length(record: Record) -> int:
    """The first axis of a record's weights or scale."""
    values = record.weights if record.weights is not None else record.scale
    return 0 if values is None else len(values)


def _relative(other: Tensor, plain: Tensor) -> float:
    """The change of an output relative to the output."""
    return float((other - plain).norm() / plain.norm())


def _substitute(parameter: Tensor) -> Tensor | None:
    """Random values for a parameter that is constant, None for one that is not.

    A branch scaled by 0 does not reach the output, and the mean over places cancels a layer norm
    whose weights are all 1.
    """
    if isinstance(parameter, nn.UninitializedParameter) or not parameter.is_floating_point():
        return None
    low, high = (float(x) for x in parameter.detach().aminmax()) if parameter.numel() else (0, 0)
    zero = max(abs(low), abs(high)) < _ZERO
    if not parameter.numel() or not (zero or (low == high and parameter.numel() > 1)):
        return None
    noise = torch.Generator().manual_seed(parameter.numel())
    values = torch.rand(parameter.shape, generator=noise) + 0.5
    if zero and parameter.dim() > 1:  # a scale of a branch keeps its sign
        values *= torch.randint(0, 2, parameter.shape, generator=noise) * 2 - 1
    return ((_SMALL if zero else low) * values).to(parameter)


def is_trained(model: nn.Module) -> bool | None:
    """Whether a model was trained, read off its norm layers; None if that is not known.

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
