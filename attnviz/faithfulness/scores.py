"""All faithfulness scores of a set of maps, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from attnviz.attribution import infidelity
from attnviz.baseline_images import Blank, ValueRange
from attnviz.definitions import DEFINITIONS, MetricDefinition
from attnviz.errors import unknown_name
from attnviz.faithfulness.arguments import documented
from attnviz.faithfulness.average_drop import avg_drop, increase_in_confidence
from attnviz.faithfulness.confidence import ROWS, Output
from attnviz.faithfulness.deletion import deletion_auc, insertion_auc
from attnviz.faithfulness.road import PERCENTILES, road_lerf, road_morf
from attnviz.inputs import AnyMaps
from attnviz.shapes import Images, Scores
from attnviz.targets import Target

METRICS: dict[str, MetricDefinition] = {
    key: DEFINITIONS[key]
    for key in (
        *("deletion_auc", "insertion_auc", "road_morf", "road_lerf", "road_combined"),
        *("avg_drop", "increase_in_confidence", "infidelity"),
    )
}
"""The scores that `faithfulness_scores` computes, by key."""

DEFAULT = tuple(name for name in METRICS if name != "infidelity")


@documented(
    metrics="Keys of `METRICS`.",
    baseline="What stands for a removed place in deletion, insertion, average drop and increase: a "
    "name of `attnviz.baseline_images.BLANKS`, a number, an image or images. ROAD imputes.",
    steps="Into how many steps deletion and insertion divide the places.",
    percentiles="Shares of the places that ROAD removes, in percent, between 0 and 100.",
)
def faithfulness_scores(
    model: nn.Module,
    images: Images,
    maps: AnyMaps,
    *,
    metrics: Sequence[str] = DEFAULT,
    target: Target = None,
    baseline: Blank = "black",
    value_range: ValueRange = (-1.0, 1.0),
    steps: int = 32,
    percentiles: Sequence[int | float] = PERCENTILES,
    output: Output = "probability",
    rows: int = ROWS,
    seed: int = 0,
) -> dict[str, Scores]:
    """Whether the maps show what the model goes by: one score per image and metric.

    Returns:
        Each metric's `(b,)` scores; NaN where a map cannot be scored.

    Raises:
        InputError: An unknown metric, maps that do not fit, several outputs and no target.
    """
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("faithfulness metric", name, METRICS)
    common: dict[str, Any] = {"target": target, "output": output, "rows": rows}
    blanked = {"baseline": baseline, "value_range": value_range, **common}
    stepped = {"steps": steps, "seed": seed, **blanked}
    imputed = {"percentiles": percentiles, "seed": seed, **common}
    ways: dict[str, tuple[Callable[..., Scores], dict[str, Any]]] = {
        "deletion_auc": (deletion_auc, stepped),
        "insertion_auc": (insertion_auc, stepped),
        "road_morf": (road_morf, imputed),
        "road_lerf": (road_lerf, imputed),
        "avg_drop": (avg_drop, blanked),
        "increase_in_confidence": (increase_in_confidence, blanked),
        "infidelity": (infidelity, {"target": target, "seed": seed}),
    }
    wanted = set(metrics)
    if "road_combined" in wanted:  # both halves, once
        wanted |= {"road_morf", "road_lerf"}
    scores = {
        name: way(model, images, maps, **options)
        for name, (way, options) in ways.items()
        if name in wanted
    }
    if "road_combined" in wanted:
        scores["road_combined"] = (scores["road_lerf"] - scores["road_morf"]) / 2
    return {name: scores[name] for name in metrics}
