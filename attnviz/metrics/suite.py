"""All localisation metrics by name, computed together, with the reasons for every NaN.

The table `METRICS` is the one place that knows a metric's key, its range, which way is better and
when it has no score. `localization` walks over the images once and lets all metrics share what
they need: one sort, one scaling, one set of flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from attnviz.errors import InputError, unknown_name
from attnviz.metrics.boxes import V2, box_hits_of
from attnviz.metrics.energy import (
    Sign,
    complexity_of,
    energy_blocked,
    energy_of,
    lift_of,
    sparseness_of,
)
from attnviz.metrics.inputs import (
    UNFIT,
    UNSCORABLE,
    VALUES_OF_MANY,
    AnyMaps,
    AnyMasks,
    Batch,
    Reason,
    batches,
    hide,
    joined,
)
from attnviz.metrics.overlap import FLAT, check_threshold, iou_of
from attnviz.metrics.ranking import (
    TOP,
    check_k,
    iou_at_area_of,
    pointing_of,
    rank_of,
    topk_of,
)

Threshold: TypeAlias = int | float | Mapping[str, int | float]
"""One τ for every metric that needs one, or one by the metric's key."""


@dataclass(frozen=True)
class Metric:
    """What is known about a metric.

    Attributes:
        key: Its name in every table.
        title: Its name in a sentence.
        better: "higher" or "lower".
        limits: The range of its scores, in words.
        source: Where it comes from.
        blocked: The flags under which it has no score.
        compute: The metric of a batch under some options, (b,) float64.
        thresholded: Whether it needs a threshold.
        sorts: Whether it sorts the maps, which others can use then.
    """

    key: str
    title: str
    better: str
    limits: str
    source: str
    blocked: Reason
    compute: Callable[[Batch, Options], Tensor] = field(repr=False)
    thresholded: bool = False
    sorts: bool = False


@dataclass(frozen=True)
class Options:
    """What the metrics can be told, with the values they have otherwise.

    Attributes:
        threshold: One τ for all, or one by metric.
        k: How many places `topk_intersection` looks at, a count or a share.
        tolerance: How far the maximum may lie from the mask in `pointing_game`, in pixels.
        sign: Which values carry mass in the energy metrics.
    """

    threshold: Threshold | None = None
    k: int | float = TOP
    tolerance: int | float = 0
    sign: Sign = "positive"

    def tau(self, key: str) -> float:
        """The threshold of one metric, or an `InputError` that says how to get one."""
        given = self.threshold
        tau = given.get(key) if isinstance(given, Mapping) else given
        if tau is None:
            raise InputError(
                f"{key}: expected a threshold, got none; find one on the validation split with "
                "calibrate_threshold(maps, masks)"
            )
        check_threshold(tau)
        return float(tau)

    def blocked(self, metric: Metric) -> Reason:
        """The flags under which a metric has no score, given these options."""
        mass = metric.key in ("energy_pointing_game", "mass_lift")
        return energy_blocked(self.sign) if mass else metric.blocked


_SHARE = "0 to 1"
_ENERGY = UNSCORABLE | Reason.NO_POSITIVE
_MASS = UNFIT | Reason.ALL_ZERO

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "pointing_game",
            "pointing game",
            "higher",
            _SHARE,
            "Zhang 2018",
            UNSCORABLE,
            lambda batch, options: pointing_of(batch, tolerance=options.tolerance),
        ),
        Metric(
            "energy_pointing_game",
            "energy pointing game",
            "higher",
            _SHARE,
            "Wang 2020; Arras 2022",
            _ENERGY,
            lambda batch, options: energy_of(batch, sign=options.sign),
        ),
        Metric(
            "mass_lift",
            "mass lift",
            "higher",
            "0 to D/|G|, chance is 1",
            "Kohlbrenner 2020",
            _ENERGY,
            lambda batch, options: lift_of(batch, sign=options.sign),
        ),
        Metric(
            "relevance_rank_accuracy",
            "relevance rank accuracy",
            "higher",
            _SHARE,
            "Arras 2022",
            UNSCORABLE,
            lambda batch, options: rank_of(batch),
        ),
        Metric(
            "topk_intersection",
            "top-k intersection",
            "higher",
            _SHARE,
            "Theiner 2021",
            UNSCORABLE,
            lambda batch, options: topk_of(batch, k=options.k),
        ),
        Metric(
            "pixel_auroc",
            "pixel AUROC",
            "higher",
            "0 to 1, chance is 0.5",
            "Fawcett 2006",
            UNSCORABLE | Reason.FULL_MASK,
            lambda batch, options: batch.curves.auroc(),
            sorts=True,
        ),
        Metric(
            "pixel_ap",
            "pixel AP",
            "higher",
            _SHARE,
            "scikit-learn's definition",
            UNSCORABLE,
            lambda batch, options: batch.curves.average_precision(),
            sorts=True,
        ),
        Metric(
            "iou",
            "IoU at a threshold",
            "higher",
            _SHARE,
            "Jaccard 1901",
            FLAT,
            lambda batch, options: iou_of(batch, threshold=options.tau("iou")),
            thresholded=True,
        ),
        Metric(
            "iou_at_area",
            "IoU at the mask's area",
            "higher",
            _SHARE,
            "r/(2−r) of rank accuracy r",
            UNSCORABLE,
            lambda batch, options: iou_at_area_of(batch),
        ),
        Metric(
            "max_iou",
            "calibrated IoU",
            "higher",
            _SHARE,
            "after Choe 2020",
            FLAT,
            lambda batch, options: iou_of(batch, threshold=options.tau("max_iou")),
            thresholded=True,
        ),
        Metric(
            "oracle_iou",
            "oracle IoU",
            "higher",
            _SHARE,
            "per-map maximum over all thresholds",
            UNSCORABLE,
            lambda batch, options: batch.curves.best_iou(),
            sorts=True,
        ),
        Metric(
            "max_box_acc",
            "MaxBoxAcc",
            "higher",
            _SHARE,
            "Choe 2020",
            FLAT,
            lambda batch, options: box_hits_of(batch, threshold=options.tau("max_box_acc")),
            thresholded=True,
        ),
        Metric(
            "max_box_acc_v2",
            "MaxBoxAccV2",
            "higher",
            _SHARE,
            "Choe 2020",
            FLAT,
            lambda batch, options: box_hits_of(
                batch, threshold=options.tau("max_box_acc_v2"), levels=V2
            ),
            thresholded=True,
        ),
        Metric(
            "sparseness",
            "sparseness",
            "higher",
            "0 to (D−1)/D",
            "Chalasani 2020",
            _MASS,
            lambda batch, options: sparseness_of(batch),
        ),
        Metric(
            "complexity",
            "complexity",
            "lower",
            "0 to ln D",
            "Bhatt 2020",
            _MASS,
            lambda batch, options: complexity_of(batch),
        ),
    )
}
"""Every metric of one map and one mask, by key."""

DEFAULT: tuple[str, ...] = tuple(METRICS)
"""What `localization` computes unless told otherwise; what needs a threshold only with one."""


class ScoreTable(dict[str, Tensor]):
    """Scores by metric, each (b,) float64, that know why they are NaN.

    A plain dict in every other respect.

    Attributes:
        flags: The `Reason` flags of each image, (b,) int64.
        options: The options under which the scores were computed.
    """

    def __init__(self, scores: Mapping[str, Tensor], flags: Tensor, options: Options) -> None:
        super().__init__(scores)
        self.flags = flags
        self.options = options

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each metric that has one."""
        return {key: self.options.tau(key) for key in self if METRICS[key].thresholded}

    def why(self, key: str) -> list[str | None]:
        """For each image why this metric has no score, or None where it has one.

        Raises:
            InputError: The table has no such metric.
        """
        if key not in self:
            raise unknown_name("metric", key, self)
        return _in_words(self.flags, self.options.blocked(METRICS[key]))

    def summary(self) -> dict[str, dict[str, float | int]]:
        """By metric the mean over the images that have a score, how many have, and of how many."""
        return {
            key: {
                "mean": float(scores.nanmean()),
                "valid": int((~scores.isnan()).sum()),
                "n": len(scores),
            }
            for key, scores in self.items()
        }

    def __repr__(self) -> str:
        head = f"{'metric':<24} {'mean':>8}  scored"
        lines = [head, "─" * len(head)]
        for key, row in self.summary().items():
            tau = f"  τ {self.thresholds[key]:.4g}" if key in self.thresholds else ""
            lines.append(f"{key:<24} {row['mean']:8.4f}  {row['valid']} of {row['n']}{tau}")
        return "\n".join([*lines, *self._missing()])

    def _missing(self) -> list[str]:
        return [
            f"{int((self.flags & int(reason) != 0).sum())} × {reason.words}"
            for reason in Reason
            if any(reason in self.options.blocked(METRICS[key]) for key in self)
            and bool((self.flags & int(reason)).any())
        ]


def localization(
    maps: AnyMaps,
    masks: AnyMasks,
    metrics: Sequence[str] = DEFAULT,
    *,
    threshold: Threshold | None = None,
    k: int | float = TOP,
    tolerance: int | float = 0,
    sign: Sign = "positive",
) -> ScoreTable:
    """How well each map finds its mask, by every metric at once, one score per image.

    Args:
        maps: Raw maps, (b, h, w), float16 to float64, tensors on any device or arrays.
        masks: Where the thing to be found is, (b, h, w), bool, on the same device.
        metrics: Keys of `METRICS`. By default all of them; those that need a threshold are left
            out when there is none.
        threshold: τ for the metrics that need one, from `calibrate_threshold` on the validation
            split; one number, or one by key.
        k: For `topk_intersection`: an `int` count or a `float` share of the places.
        tolerance: For `pointing_game`: how far from the mask a maximum still counts, in pixels.
        sign: For the energy metrics: "positive", "abs" or "signed".

    Returns:
        A dict of key → (b,) float64 scores, on the device of the maps. NaN where an image cannot
        be scored; `.why(key)` says why, `.summary()` gives means with how many of how many.

    Raises:
        InputError: Wrong shapes, dtypes or devices, an unknown metric, a metric without its
            threshold, or an option out of range.

    Example:
        >>> import torch
        >>> maps, masks = torch.rand(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> masks[0, 2:4, 2:4] = True
        >>> localization(maps, masks, ["pointing_game"]).why("pointing_game")
        [None, 'the mask is empty']
    """
    options = checked_options(threshold=threshold, k=k, tolerance=tolerance, sign=sign)
    return compute_scores(maps, masks, chosen_metrics(metrics, options), options)


def compute_scores(
    maps: AnyMaps, masks: AnyMasks, keys: Iterable[str], options: Options
) -> ScoreTable:
    """The scores of checked metrics under checked options."""
    parts: dict[str, list[Tensor]] = {key: [] for key in keys}
    flags: list[Tensor] = []
    order = sorted((METRICS[key] for key in parts), key=lambda metric: not metric.sorts)
    for batch in batches(maps, masks, at_once=VALUES_OF_MANY):
        flags.append(batch.flags)
        for metric in order:
            scores = metric.compute(batch, options)
            parts[metric.key].append(hide(scores, batch, options.blocked(metric)))
    return ScoreTable(
        {key: joined(scores, torch.float64) for key, scores in parts.items()},
        joined(flags, torch.int64),
        options,
    )


def checked_options(**given: Any) -> Options:
    """Options that are in range, or an `InputError`."""
    options = Options(**given)
    check_k(options.k)
    energy_blocked(options.sign)
    if not 0 <= options.tolerance < float("inf"):
        raise InputError(f"tolerance: expected a distance of at least 0, got {options.tolerance}")
    if isinstance(options.threshold, Mapping):
        for key in options.threshold:
            if key not in METRICS or not METRICS[key].thresholded:
                raise unknown_name("thresholded metric", key, _thresholded())
    return options


def chosen_metrics(metrics: Sequence[str], options: Options) -> tuple[str, ...]:
    """The keys to compute: all known, each once, each with the threshold it needs."""
    keys = known_metrics(metrics)
    if metrics is DEFAULT:
        keys = tuple(key for key in keys if not METRICS[key].thresholded or _has_tau(options, key))
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


def reasons(maps: AnyMaps, masks: AnyMasks, metric: str | None = None) -> list[str | None]:
    """For each image why it cannot be scored, or None where it can.

    Args:
        maps: Raw maps, (b, h, w).
        masks: Where the thing to be found is, (b, h, w).
        metric: Only what keeps this one from scoring; by default what keeps any from it.

    Returns:
        A list of b sentences or None, in the order of the images.

    Raises:
        InputError: Wrong shapes, dtypes or devices, or an unknown metric.
    """
    if metric is not None and metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    flags = joined([batch.flags for batch in batches(maps, masks)], torch.int64)
    return _in_words(flags, ~Reason(0) if metric is None else METRICS[metric].blocked)


def _in_words(flags: Tensor, blocked: Reason) -> list[str | None]:
    return [Reason(flag & int(blocked)).words or None for flag in np.asarray(flags.cpu()).tolist()]


def _thresholded() -> list[str]:
    return [key for key, metric in METRICS.items() if metric.thresholded]


def _has_tau(options: Options, key: str) -> bool:
    given = options.threshold
    return key in given if isinstance(given, Mapping) else given is not None
