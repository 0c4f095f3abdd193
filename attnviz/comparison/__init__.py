"""Which variant looks at the patch most, how sure is that, and may the two be compared at all.

The unit of replication of an architecture is the training seed: a thousand images of one test set
are not a thousand trainings. Every interval and test here takes seeds and images as two crossed
sources of chance, on the same images for all variants, so that differences are paired.

    inputs      what people have → one `Group` of (seeds, images) scores per variant
    tables      … from dicts and arrays
    recorded    … from run folders, if they may be compared at all
    resampling  the hierarchical bootstrap, the sign-flip test, Holm
    ranking     groups → `Comparison`: means, intervals, pairs, tests
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
) -> Comparison:
    """Rank variants by one metric, with intervals and paired tests that know about seeds.

    A mean is the mean over seeds of each seed's mean over images. Its interval is the mean ± t·SE,
    the standard error that of a bootstrap which draws seeds, then images (see
    `attnviz.comparison.resampling`). A difference of two variants is taken image by image and seed
    by seed. Nobody wins whose paired interval to any other variant touches zero.

    Args:
        tables_or_runs: One of

            - `{variant: scores}`, where scores is a dict metric → (images,), as from
              `attnviz.localization`, a list or `{seed: scores}` of such dicts (one per seed), or,
              for the primary metric alone, an array (images,) or (seeds, images). The key
              `correct`, where there is one, says which images were classified rightly: it gives
              accuracy and the split.
            - `{variant: runs}` or a list of runs: `attnviz.runs.Run` objects or paths; a list is
              grouped by each run's own variant. A folder of runs is the list of its complete runs.

            Numpy arrays and torch tensors are both welcome. NaN is "cannot be scored".
        primary: The metric that ranks, declared beforehand.
        metrics: The metrics to report; all that every variant has, unless given.
        resamples: How many times the bootstrap draws.
        confidence: The level of the intervals, between 0 and 1.
        seed: Of the bootstrap; the same seed gives the same numbers.
        baselines: For tables: the levels to stand beside the scores, `{metric: {"chance": …,
            "redrawn": …}}` or `{"chance": {metric: …}, …}`; values are numbers or one
            number per image. Runs bring their own.
        map_name: For runs: which map's scores to take; each run's primary map unless given.

    Returns:
        The comparison; printing it gives a ranking.

    Raises:
        InputError: Something is missing or misshapen, or the variants were measured on different
            images or asked different questions; the message says which.
        RunError: A run cannot be read.

    Example:
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
    groups, notes = read_groups(
        tables_or_runs, primary=primary, metrics=metrics, baselines=baselines, map_name=map_name
    )
    return rank(
        groups, primary=primary, resamples=resamples, confidence=confidence, seed=seed, notes=notes
    )
