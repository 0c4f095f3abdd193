"""Rank comparable model variants by a metric, with intervals and tests.

The unit of replication of an architecture is the training seed: a thousand images of one test set
are not a thousand trainings. Crops of one photograph are not independent images either. Interval,
p and "clear" come from one model of seeds × groups × images (docs/intervals.md).

    inputs      tables or runs → one `Group` of (seeds, images) scores per variant
    tables      … from dicts and arrays
    from_runs   … from run folders, if they may be compared at all
    variance    variance and degrees of freedom of a mean over seeds, groups and images
    pairs       differences of all pairs, p, the adjustment for all of them
    intervals   bounded confidence intervals; trainings of two kinds
    ranking     groups → `Comparison`
    comparison  the result as a sentence, a table, LaTeX, a figure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnviz.comparison.comparison import Comparison
from attnviz.comparison.groups import Group
from attnviz.comparison.inputs import Source, read_groups
from attnviz.comparison.ranking import rank
from attnviz.errors import InputError

__all__ = ["Comparison", "Group", "compare"]


def compare(
    tables_or_runs: Source,
    *,
    primary: str = "energy_pointing_game",
    metrics: Sequence[str] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    baselines: Mapping[str, Any] | None = None,
    map_name: str | None = None,
    groups: Any = None,
) -> Comparison:
    """Rank variants by one metric, with intervals and tests over seeds, groups and images.

    A mean is the mean over seeds of each seed's mean over images. Its variance has a part by seeds
    and one by groups of images (photographs, patients, videos), each image being its own group by
    default; the interval is Student's t with Satterthwaite's degrees of freedom, bounded for scores
    between 0 and 1. A difference is paired over images, and over seeds only where seeds of the same
    name score alike. Intervals of differences, their adjusted p and "clear" agree,
    adjusted for all pairs. A winner is clear of all others, each with three seeds or more.
    docs/intervals.md has the formulas and measured coverage. Scores outside their
    metric's limits, and trainings whose scores are the same to the last bit, get a note.

    Args:
        tables_or_runs: One of

            - `{variant: scores}`, where scores is a dict metric → (images,), as from
              `attnviz.localization`, a list or `{seed: scores}` of such dicts (one per seed), or,
              for the primary metric alone, an array (images,) or (seeds, images). The key
              `correct`, where there is one, marks correct predictions: it gives
              accuracy and the split.
            - `{variant: runs}` or a list of runs: `attnviz.runs.Run` objects or paths; a list is
              grouped by each run's own variant. A folder of runs is the list of its complete runs.

            Numpy arrays or torch tensors. NaN is an image without a score.
        primary: The metric that ranks, declared beforehand.
        metrics: The metrics to report; all that every variant has, unless given.
        resamples: How many studies without a difference are drawn, from the fitted variances, to
            adjust for the number of pairs; at least 5,000.
        confidence: The level of the intervals, between 0 and 1.
        seed: Seed of these studies; the same seed gives the same numbers.
        baselines: For tables: the reference levels of the scores, `{metric: {"chance": …,
            "redrawn": …}}` or `{"chance": {metric: …}, …}`; values are numbers or one
            number per image. Runs bring their own.
        map_name: For runs: which map's scores to take; each run's primary map unless given.
        groups: Each image's group (photograph, patient, video), one label per image; None, NaN
            and "" stand for a group of its own. Tables may hold it under the key `group`; runs do
            in the column `group` of their samples.

    Returns:
        The comparison; printing it gives a ranking.

    Raises:
        InputError: Something is missing or misshapen, or the variants were measured on different
            images or for different questions; the message names the difference.
        RunError: A run cannot be read.

    Examples:
        >>> import numpy as np
        >>> scores = {"a": np.array([[0.5, 0.6, 0.7]]), "b": np.array([[0.1, 0.2, 0.4]])}
        >>> result = compare(scores, resamples=100)
        >>> list(result.table.variant)
        ['a', 'b']
    """
    if resamples < 2:
        raise InputError(f"compare: expected at least 2 resamples, got {resamples}")
    if not 0 < confidence < 1:
        raise InputError(f"compare: expected a confidence between 0 and 1, got {confidence}")
    found, notes = read_groups(
        tables_or_runs,
        primary=primary,
        metrics=metrics,
        baselines=baselines,
        map_name=map_name,
        groups=groups,
    )
    return rank(
        found, primary=primary, resamples=resamples, confidence=confidence, seed=seed, notes=notes
    )
