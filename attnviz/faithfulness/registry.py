"""Registry of the faithfulness metrics: definition and function of each.

`metric` binds a `MetricDefinition` of the family "faithfulness" to a function of model, images and
maps; `METRICS` holds all of them. A metric from outside the package is registered by the same
decorator (CONTRIBUTING.md, "A faithfulness metric").
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.definitions import DEFINITIONS, MetricDefinition, define, sort_by_definition
from attnviz.errors import InputError
from attnviz.inputs import AnyMaps
from attnviz.model_state import copied_inputs
from attnviz.shapes import Images, Scores

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS = ("target", "baseline", "value_range", "steps", "percentiles", "output", "rows", "seed")
"""The options of `faithfulness_scores`; each function gets those that its signature names."""


@dataclass(frozen=True)
class FaithfulnessMetric:
    """A faithfulness metric and its code.

    Attributes:
        definition: What it is.
        function: The public function, `(model, images, maps, **options) -> (b,)`.
        options: Those of `OPTIONS` that the function takes.
        of: The metrics that it is computed from.
        combine: Its scores from those of `of`; None if it has a function of its own only.
    """

    definition: MetricDefinition
    function: Callable[..., Any] = field(repr=False)
    options: tuple[str, ...]
    of: tuple[str, ...] = ()
    combine: Callable[..., Tensor] | None = field(default=None, repr=False)

    def scores(
        self, model: nn.Module, images: Images, maps: AnyMaps, options: Mapping[str, Any]
    ) -> Scores:
        """The `(b,)` scores under the options that the function takes.

        Raises:
            InputError: The function returns anything but one score per image.
        """
        own = {name: options[name] for name in self.options}
        with copied_inputs(model):
            found = self.function(model, images, maps, **own)
        if isinstance(found, np.ndarray):
            found = torch.from_numpy(found)
        if not isinstance(found, Tensor) or found.shape != (len(images),) or found.is_complex():
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"metric {self.definition.key}: expected one score per image, ({len(images)},), "
                f"got {got}"
            )
        return found.detach().to(torch.float32)


METRICS: dict[str, FaithfulnessMetric] = {}
"""Every metric that `faithfulness_scores` computes, by key, in the order of their definitions."""


def metric(
    definition: MetricDefinition,
    *,
    of: tuple[str, ...] = (),
    combine: Callable[..., Tensor] | None = None,
) -> Callable[[Function], Function]:
    """Register a metric of a model, images and maps under its definition.

    The function takes `(model, images, maps)` and, by keyword, any of `OPTIONS`; other arguments
    need a default. It returns `(b,)` scores as a tensor or an array, NaN where there is none.
    Registered, the metric is known by its key to `faithfulness_scores`, the command line,
    comparison, report and dashboard. It is not part of the default set.

    Args:
        definition: What the metric is, with `family="faithfulness"`. The key of a metric of the
            package is refused; a second registration of another key replaces the first.
        of: The keys of other metrics from which it follows, each computed once.
        combine: Its scores from theirs, in that order.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        InputError: The key belongs to the package, another family, or an argument that
            `faithfulness_scores` does not have.

    Examples:
        >>> import torch
        >>> from attnviz.definitions import MetricDefinition
        >>> @metric(MetricDefinition(key="flip_drop", title="flip drop", family="faithfulness",
        ...         meaning="What mirroring the image takes from the output.", source="here"))
        ... def flip_drop(model, images, maps, *, target=None):
        ...     return model(images)[:, target] - model(images.flip(-1))[:, target]
        >>> METRICS["flip_drop"].options
        ('target',)
    """
    key = definition.key
    if definition.family != "faithfulness":
        raise InputError(
            f"metric {key}: expected the family faithfulness, got {definition.family}; a metric of "
            "maps and masks is registered with attnviz.metric"
        )

    def register(function: Function) -> Function:
        options = _options(key, function)
        if DEFINITIONS.get(key) is not definition or key in METRICS:
            define(definition)
        METRICS[key] = FaithfulnessMetric(definition, function, options, of, combine)
        sort_by_definition(METRICS)
        return function

    return register


def _options(key: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Those of `OPTIONS` that the function takes."""
    parameters = list(inspect.signature(function).parameters.values())
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for one in parameters[3:]:
        if one.name not in OPTIONS and one.default is one.empty and one.kind not in variadic:
            raise InputError(
                f"metric {key}: {one.name}: expected a default, or one of {', '.join(OPTIONS)}"
            )
    names = {one.name for one in parameters[3:]}
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    return tuple(name for name in OPTIONS if anything or name in names)
