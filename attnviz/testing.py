"""Assertions about a model's attention for test suites."""

from __future__ import annotations

from typing import Any

from attnviz.evaluation.result import Evaluation


def assert_looks_at(
    model: Any, data: Any, *, map: str | None = None, options: dict[str, Any] | None = None,
    **demands: str,
) -> Evaluation:  # fmt: skip
    """Fail a test if a model's map scores worse than required.

    Args:
        model: Any module from images to outputs.
        data: Images with masks or boxes, see `attnviz.evaluate`.
        map: Which map; None takes the model's primary one.
        options: Further arguments of `attnviz.evaluate`, such as `calibration`.
        **demands: Metric → `">= x"`, `"> x"`, `"<= x"` or `"< x"`, of the mean over the images.

    Returns:
        The evaluation.

    Raises:
        CheckFailed: An `AssertionError` whose message has the mean, its interval and the demand.
        InputError: Nothing is demanded, or `evaluate` cannot read model or data.

    Examples:
        >>> from attnviz.testing import assert_looks_at
        >>> assert_looks_at(model, data, energy_pointing_game=">= .3")  # doctest: +SKIP
    """
    from attnviz.errors import InputError
    from attnviz.evaluation import evaluate

    if not demands:
        raise InputError(
            "assert_looks_at: expected a demand, such as energy_pointing_game='>= .3', got none"
        )
    result = evaluate(model, data, **{"findings": False, **(options or {})})
    return result.check(map, **demands)
