"""What a monitor finds out about a model before it measures: the map, its layer, the cost.

Each step waits until the training has earned it. The cost of a step is expected in forward passes
of one image, the first of which is timed; `benchmarks/monitor.py` prints what they took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from attnviz.capture import watch
from attnviz.data.samples import Batch, batches
from attnviz.evaluation.answers import Answers, Target
from attnviz.evaluation.evaluation import device_of, planned
from attnviz.evaluation.measuring import Plan, measured
from attnviz.maps import CONSTRUCTIONS, watch_options
from attnviz.model_state import copied_inputs
from attnviz.places.records import are_proven
from attnviz.training.budget import Budget
from attnviz.training.calibration import Calibration

PROBE = 0.05
"""Seconds that must have been earned before the first forward pass, whose cost is not known."""

FIRST = 0.7
"""Seconds for what is imported and built on first use."""

WATCHED = 15
"""Forward passes of one image that finding the map is expected to cost, with a reserve."""

LOCATED = 60
"""The same for measuring the places of tokens, which a model needs whose places are not proven."""

_BATCH = 16


class Preparation:
    """From a model to what is computed of every batch, step by step as the budget allows.

    Args:
        data: The calibration images; the first of them is used.
        maps: Keys of constructions, or None for the primary one.
        metrics: Keys of localisation metrics.
        target: Which output maps with gradients explain.
        budget: The account of time.

    Attributes:
        job: What a measurement takes; None until all steps are done.
        layers: Map → the layer it comes from.
        forward: Seconds of a forward pass of one image; None until timed.
        each: Seconds that one image takes to measure.
        missing: What the next step is, with its price; empty once all are done.
    """

    def __init__(
        self,
        data: Calibration,
        maps: Sequence[str] | None,
        metrics: Sequence[str],
        target: Target,
        budget: Budget,
    ) -> None:
        self.data, self.maps, self.metrics = data, maps, metrics
        self.target, self.budget = target, budget
        self._begin(None)

    def _begin(self, model: nn.Module | None) -> None:
        self.model = model
        self.job: tuple[Answers, Plan] | None = None
        self.layers: dict[str, str] = {}
        self.forward: float | None = None
        self.each = 0.0
        self.missing = ""
        self._proven: bool | None = None

    def ready(self, model: nn.Module) -> bool:
        """Take the steps that are still missing and earned; whether all are done.

        Args:
            model: In evaluation mode; another one than before begins anew.
        """
        if self.model is not model:
            self._begin(model)
        if self.job is None:
            first = next(batches(self.data, self.data.order[:1], 1)).to(str(device_of(model)))
            steps = (self._probe, self._watch, self._plan)
            self.missing = next((why for step in steps if (why := step(model, first))), "")
        return self.job is not None

    def _probe(self, model: nn.Module, first: Batch) -> str:
        """Time a plain forward pass."""
        if self.forward is None:
            if not self.budget.allows(PROBE):
                return f"a first forward pass: {self.budget.price(PROBE)}"
            begun = self.budget.clock()
            with torch.no_grad(), copied_inputs(model):
                model(first.images)
            settle(model)
            self.forward = self.budget.clock() - begun
        return ""

    def _watch(self, model: nn.Module, first: Batch) -> str:
        """Find out whether the places of tokens are proven."""
        if self._proven is None:
            cost = FIRST + WATCHED * (self.forward or 0.0)
            if not self.budget.allows(cost):
                return f"finding the map: {self.budget.price(cost)}"
            with torch.no_grad(), copied_inputs(model), watch(model, empty=True) as seen:
                model(first.images)
            self._proven = are_proven(seen)
        return ""

    def _plan(self, model: nn.Module, first: Batch) -> str:
        """Choose the map and its layer, measure one image, and take the time."""
        if not self._proven:
            cost = LOCATED * (self.forward or 0.0)
            if not self.budget.allows(cost):
                return f"measuring the places of tokens: {self.budget.price(cost)}"
        answers, plan, found = planned(
            model, self.data, self.maps, (), self.metrics, self.target, _BATCH,
            str(device_of(model)), proven=True,
        )  # fmt: skip
        self.layers = dict(found["layers"])
        if self.maps is None and found["primary"] in self.layers:
            plan = self._primary(plan, found["primary"])
        measured(answers, first, plan)  # imports and builds on first use
        begun = self.budget.clock()
        measured(answers, first, plan)
        self.each = self.budget.clock() - begun
        self.job = answers, plan
        return ""

    def _primary(self, plan: Plan, name: str) -> Plan:
        """The plan of the primary map alone, which watches its layer alone."""
        layer = self.layers[name]
        key, module = name.partition(".")[0], layer.partition("#")[0]
        self.layers = {key: layer}
        options = watch_options([CONSTRUCTIONS[key]])
        options["where"] = lambda name, _: name == module
        return replace(plan, maps=(key,), names=(key,), watch=options)


def settle(model: nn.Module) -> None:
    """Wait for the work that is queued on the model's device, so that it is not timed as other."""
    device = device_of(model)
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
