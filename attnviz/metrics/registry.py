"""Registry of the metrics of a map and a mask: definition and function of each.

`metric` binds a `MetricDefinition` to a function; `METRICS` holds all of them. A metric from
outside the package is registered by the same decorator (CONTRIBUTING.md, "A metric").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from attnviz.definitions import DEFINITIONS, MetricDefinition, built_in, define, sort_by_definition
from attnviz.errors import InputError, unknown_name
from attnviz.metrics.batching import Batch
from attnviz.metrics.options import Options
from attnviz.metrics.reasons import UNSCORABLE, Reason

Compute: TypeAlias = Callable[[Batch, Options], Tensor]
"""A metric of a batch under some options, (b,) float64."""

Blocked: TypeAlias = Reason | Callable[[Options], Reason]
"""The reasons for which a metric has no score, or these given the options."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Metric:
    """A metric and its code.

    Attributes:
        definition: What it is.
        function: The public function.
        compute: The metric of a batch.
        blocked: The reasons for which it has no score.
        sorts: Whether it sorts the maps; other metrics reuse the order.
        planar: Whether it needs maps of two place axes.
        fair: Whether ties score their expectation, so that a constant map scores chance exactly.
        bound: The best score that any map can reach for each mask, where it depends on the mask.
        weight: The weight of a calibration mask in the best fixed map, of its area and D.
        peak: Whether the best fixed map lights only the places of the largest weight.
    """

    definition: MetricDefinition
    function: Callable[..., Any] = field(repr=False)
    compute: Compute = field(repr=False)
    blocked: Blocked = field(default=UNSCORABLE, repr=False)
    sorts: bool = False
    planar: bool = False
    fair: bool = False
    bound: Callable[[Batch], Tensor] | None = field(default=None, repr=False)
    weight: Callable[[Tensor, int], Tensor] | None = field(default=None, repr=False)
    peak: bool = False

    @property
    def key(self) -> str:
        """Its name in tables and columns."""
        return self.definition.key

    @property
    def thresholded(self) -> bool:
        """Whether it needs a threshold."""
        return self.definition.threshold

    def blocked_under(self, options: Options) -> Reason:
        """The reasons for which it has no score, given the options."""
        return self.blocked if isinstance(self.blocked, Reason) else self.blocked(options)


METRICS: dict[str, Metric] = {}
"""Every metric of one map and one mask, by key, in the order of their definitions."""

DEFAULT: tuple[str, ...] = built_in("localization", "concentration")
"""Default metrics of `localization`; those that need a threshold only with one."""


def metric(
    definition: MetricDefinition, *, batched: Compute | None = None, **code: Any
) -> Callable[[Function], Function]:
    """Register a metric of maps and masks under its definition.

    The function takes maps (b, *places), floating point, and masks (b, *places), bool, as tensors,
    and a keyword `threshold` if the definition requires it; it returns (b,) scores as a tensor or
    an array, NaN where there is none. Images whose mask is empty or whose map holds NaN or Inf
    score NaN without it; other reasons are given as `blocked`. Registered, the metric is known by
    its key to `localization`, `LocalizationMeter`, `baselines`, `calibrate_threshold`, comparison,
    report and dashboard. It is not part of the default set.

    Args:
        definition: What the metric is. The key of a metric of the package is refused; a second
            registration of another key replaces the first.
        batched: The metric of a `Batch` under `Options`, instead of the function.
        **code: Fields of `Metric`: blocked, sorts, planar, fair, bound, weight, peak.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        InputError: The key belongs to the package, or the family needs more than maps and masks.

    Examples:
        >>> from attnviz.definitions import MetricDefinition
        >>> @metric(MetricDefinition(key="peak_inside", title="peak inside", source="here",
        ...         meaning="The greatest value in the mask over the greatest of the map."))
        ... def peak_inside(maps, masks):
        ...     inside = maps.masked_fill(~masks, float("-inf")).flatten(1)
        ...     return inside.amax(1) / maps.flatten(1).amax(1)
        >>> import torch
        >>> maps, masks = torch.rand(2, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
        >>> METRICS["peak_inside"].function(maps, masks).tolist()
        [1.0, 1.0]
    """
    if definition.family in ("faithfulness", "agreement"):
        raise InputError(
            f"metric {definition.key}: expected the family localization, concentration or other, "
            f"got {definition.family}; attnviz.faithfulness.metric registers metrics of a model"
        )
    if DEFINITIONS.get(definition.key) is not definition or definition.key in METRICS:
        define(definition)

    def register(function: Function) -> Function:
        compute = _of_function(definition, function) if batched is None else batched
        METRICS[definition.key] = Metric(definition, function, compute, **code)
        sort_by_definition(METRICS)
        return function

    return register


def _of_function(definition: MetricDefinition, function: Callable[..., Any]) -> Compute:
    """The metric of a batch, from a function of maps and masks; its scores are checked."""

    def compute(batch: Batch, options: Options) -> Tensor:
        named = {"threshold": options.tau(definition.key)} if definition.threshold else {}
        maps, masks = batch.maps.clone(), batch.masks.clone()  # the caller's own stay as they are
        scores = function(maps, masks, **named)
        if isinstance(scores, np.ndarray):
            scores = torch.from_numpy(scores)
        if not isinstance(scores, Tensor) or scores.shape != (len(maps),) or scores.is_complex():
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(
                f"metric {definition.key}: expected one score per map, ({len(maps)},), got {got}"
            )
        return scores.detach().to(maps.device, torch.float64)

    return compute


def chosen_metrics(metrics: Sequence[str], options: Options) -> tuple[str, ...]:
    """The keys to compute: all known, each once, each with the threshold it needs.

    Of the default set, the metrics without their threshold are left out.
    """
    keys = known_metrics(metrics)
    if metrics is DEFAULT:
        keys = tuple(key for key in keys if not METRICS[key].thresholded or options.has_tau(key))
    for key in keys:
        if METRICS[key].thresholded:
            options.tau(key)
    return keys


def known_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The keys, each once, or an `InputError` that names the nearest."""
    if isinstance(metrics, str):
        raise InputError(f"metrics: expected a list of names, got the string {metrics!r}")
    for key in metrics:
        if key not in METRICS:
            raise unknown_name("metric", key, METRICS)
    return tuple(dict.fromkeys(metrics))


def of_any_axes(keys: Sequence[str], maps: Any) -> tuple[str, ...]:
    """The metrics that can score these maps, whatever their number of place axes."""
    return tuple(key for key in keys if not METRICS[key].planar or not _is_volume(maps))


def check_axes(keys: Sequence[str], maps: Any) -> None:
    """Raise an `InputError` for a metric of images that is given maps of more place axes."""
    for key in keys:
        if METRICS[key].planar and _is_volume(maps):
            raise InputError(
                f"{key}: expected maps (b, h, w), got {tuple(maps.shape)}; boxes are drawn in "
                "images only, leave it out of metrics= or score slice by slice"
            )


def _is_volume(maps: Any) -> bool:
    """Whether maps have more than two place axes; what is no array is refused elsewhere."""
    return len(getattr(maps, "shape", ())) > 3
