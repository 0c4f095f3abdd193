"""All faithfulness scores of a set of maps, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from attnviz.attribution import infidelity
from attnviz.baseline_images import Blank, ValueRange
from attnviz.definitions import DEFINITIONS
from attnviz.errors import unknown_name
from attnviz.faithfulness.confidence import ROWS, Output
from attnviz.faithfulness.registry import METRICS, metric
from attnviz.faithfulness.road import PERCENTILES
from attnviz.inputs import AnyMaps
from attnviz.shapes import Images, Scores
from attnviz.targets import Target

DEFAULT = (
    *("deletion_auc", "insertion_auc", "road_morf", "road_lerf", "road_combined"),
    *("avg_drop", "increase_in_confidence"),
)
"""The metrics that `faithfulness_scores` computes by default."""

metric(DEFINITIONS["infidelity"])(infidelity)


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
    """Faithfulness of maps to the model: one score per image and metric.

    Args:
        model: Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs; it runs in evaluation
            mode and is left as it was.
        images: `(b, c, h, w)`, square or not.
        maps: `(b, h, w)` at the images' size, tensor or numpy.
        metrics: Keys of `METRICS`.
        target: Which output, for all images or one index per image; needed for `n > 1`.
        baseline: What stands where a place is removed: a name of `attnviz.baseline_images.BLANKS`,
            a number, an image or images. ROAD imputes instead.
        value_range: Black and white in the images' own units, each one number or one per channel;
            `attnviz.baseline_images.black_and_white(mean=, std=)` gives those of normalised images.
        steps: Into how many steps deletion and insertion divide the places.
        percentiles: Shares of the places that ROAD removes, in percent, between 0 and 100.
        output: `"probability"` (sigmoid of a single output, softmax over several) or `"logit"`.
        rows: Images in one forward.
        seed: Of random numbers, and of the order among tied places.

    Returns:
        Each metric's `(b,)` scores; NaN where a map cannot be scored.

    Raises:
        InputError: An unknown metric, maps that do not fit, several outputs and no target.
    """
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("faithfulness metric", name, METRICS)
    options = {
        "target": target, "baseline": baseline, "value_range": value_range, "steps": steps,
        "percentiles": percentiles, "output": output, "rows": rows, "seed": seed,
    }  # fmt: skip
    scores: dict[str, Scores] = {}

    def scores_of(name: str) -> Scores:
        if name not in scores:
            one = METRICS[name]
            scores[name] = (
                one.combine(*map(scores_of, one.of))
                if one.combine is not None
                else one.scores(model, images, maps, options)
            )
        return scores[name]

    return {name: scores_of(name) for name in metrics}
