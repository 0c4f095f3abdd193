"""What is known about every localisation metric, and what the metrics can be told.

The table `METRICS` is the one place that knows a metric's key, its range, which way is better and
when it has no score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from attnviz.errors import InputError, unknown_name
from attnviz.metrics.batching import Batch
from attnviz.metrics.boxes import V2, box_hits_of
from attnviz.metrics.energy import (
    Sign,
    complexity_of,
    energy_blocked,
    energy_of,
    lift_of,
    sparseness_of,
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
from attnviz.metrics.reasons import UNFIT, UNSCORABLE, Reason

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


def _thresholded() -> list[str]:
    return [key for key, metric in METRICS.items() if metric.thresholded]


def _has_tau(options: Options, key: str) -> bool:
    given = options.threshold
    return key in given if isinstance(given, Mapping) else given is not None
