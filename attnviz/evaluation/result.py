"""An evaluation's result: scores per image, their summary, and methods on them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnviz.comparison.from_runs import grouping_of, patched
from attnviz.comparison.text import records
from attnviz.definitions import is_lower_better
from attnviz.display import html_of
from attnviz.errors import AttnvizError, InputError, unknown_name
from attnviz.evaluation.calibration import PRIMARY
from attnviz.evaluation.measuring import Plan
from attnviz.evaluation.pieces import Pieces
from attnviz.evaluation.saving import Rows, saved, summary_of, written
from attnviz.metrics import METRICS
from attnviz.runs import RunWriter, open_run
from attnviz.statistics.summary import summarised
from attnviz.text import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PRINTED = ("energy_pointing_game", "max_iou", "pointing_game", "pixel_auroc")
_COLUMNS = ("map", "metric", "mean", "95 % CI", "chance", "redrawn", "valid")
_DEMAND = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*")


class CheckFailed(AttnvizError, AssertionError):
    """A map scored worse than was demanded of it."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores of every map of one model on one data set.

    Attributes:
        variant: The model's name in tables.
        seed: Of its training, None where not known.
        thing: What the masks show.
        classes: Names of the classes, by index.
        samples: One row per image: what is known of it, what the model answered, and a column
            `"<map>/<metric>"` for every score; NaN where an image cannot be scored.
        summary: Map → metric → `mean`, `low`, `high`, `valid`, `n` and its reference levels.
        primary: The model's primary map.
        layers: Map → the dotted name of its layer.
        about: Map → how it was drawn.
        options: Attribution → the arguments of `attribute` that drew it.
        left_out: Map → why there is none, and what helps.
        thresholds: Map → metric → τ from the calibration split.
        calibrated_on: Images of the calibration split; 0 without one.
        findings: The doctor's findings, None where it did not examine the model.
        unmeasured: Layer → why `attnviz.locate` could not measure which token is which place; the
            maps of such a layer are refused.
        knockout: What each head and gate is worth, None where that was not computed.
        chosen: Construction → the layer and head that were best on the calibration split: `map`,
            `head` (None for the mean of the heads), `of` how many, on how many `images`, with
            which `score` there. Empty without a calibration split or a choice.
        earlier: The number of maps of earlier layers that were left out; `layers=True` draws them.
        by_head: `"<map>/<metric>"` → scores of each image and head, `(n, heads)`.
        rows: Map → the whole attention of a few images.
        target: Which output was explained: `"label"`, `"predicted"`, an index, a function's name.
        pieces: Where the raw maps are.
        parts: Which pieces there are.
    """

    variant: str
    seed: int | None
    thing: str
    classes: tuple[str, ...]
    samples: pd.DataFrame
    summary: dict[str, dict[str, dict[str, Any]]]
    primary: str
    layers: Mapping[str, str]
    about: Mapping[str, str]
    left_out: Mapping[str, str]
    thresholds: Mapping[str, Mapping[str, float]]
    calibrated_on: int
    pieces: Pieces
    parts: Sequence[range]
    findings: Any = None
    knockout: Any = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    earlier: int = 0
    by_head: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    target: str | int = "label"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pieces: Pieces,
        parts: Sequence[range],
        plan: Plan,
        *,
        variant: str,
        seed: int | None,
        thing: str,
        classes: tuple[str, ...],
        target: str | int,
        levels: Callable[[str, tuple[int, int]], dict[str, dict[str, float]]],
        layers: Mapping[str, Any],
        calibrated_on: int,
        chosen: Mapping[str, Mapping[str, Any]],
    ) -> Evaluation:
        """The result of what the pieces hold."""
        names = pieces.names(parts)
        columns = {
            name.removeprefix("column/"): pieces.joined(name, parts)
            for name in names
            if name.startswith("column/")
        }
        samples = _table(columns, pieces.text(parts))
        held = [name.removeprefix("maps/") for name in names if name.startswith("maps/")]
        order = list(layers["layers"])
        maps = sorted(held, key=lambda name: order.index(name) if name in order else len(order))
        summary = {}
        for name in maps:
            level = levels(name, next(pieces.walk(f"maps/{name}", parts)).shape[1:])
            summary[name] = _summary(samples, name, level)
        first = layers["primary"] if layers["primary"] in maps else maps[0] if maps else ""
        return cls(
            variant=variant,
            seed=seed,
            thing=thing,
            classes=classes,
            target=target,
            samples=samples,
            summary=summary,
            primary=first,
            layers=layers["layers"],
            about=layers["about"],
            left_out=layers["left_out"],
            unmeasured=layers["unmeasured"],
            options=layers["options"],
            earlier=layers["earlier"],
            by_head={
                name.removeprefix("by head/"): pieces.joined(name, parts)
                for name in names
                if name.startswith("by head/")
            },
            chosen=chosen,
            thresholds=plan.thresholds,
            calibrated_on=calibrated_on,
            pieces=pieces,
            parts=parts,
        )

    @property
    def maps(self) -> list[str]:
        """The maps that were scored: the primary one, one of each kind, those of earlier layers."""
        main = set(self.main_maps)
        return sorted(self.summary, key=lambda name: (name != self.primary, name not in main))

    @property
    def main_maps(self) -> list[str]:
        """One map of each kind: of several layers with the same construction the last one's."""
        return [
            name
            for name in self.summary
            if not any(name.startswith(f"{other}.") for other in self.summary if other != name)
        ]

    @property
    def accuracy(self) -> float:
        """The share of images that the model answered correctly; NaN without labels."""
        if "correct" not in self.samples:
            return float("nan")
        return float(self.samples["correct"].mean())

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per map and metric: mean, interval, chance, the mask redrawn, counts."""
        rows = [
            {"map": name, "metric": key, **numbers, "threshold": self.tau(name, key),
             "choice": self._choice(name)}
            for name in self.maps
            for key, numbers in self.summary[name].items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    @cached_property
    def heads(self) -> pd.DataFrame:
        """One row per map, head and metric: mean, interval, counts, and whether it was chosen.

        Empty unless the evaluation had `heads=True`.
        """
        rows = []
        for key, scores in self.by_head.items():
            name, _, metric = key.rpartition("/")
            for head in range(scores.shape[1]):
                chosen = any(
                    (one["map"], one["head"]) == (name, head) for one in self.chosen.values()
                )
                numbers = summarised(metric, scores[:, head], group=grouping_of(self.samples))
                rows.append(
                    {"map": name, "layer": self.layers.get(name, ""), "head": head,
                     "metric": metric, **numbers, "choice": self._choice(name, head)
                     if chosen else ""}
                )  # fmt: skip
        return pd.DataFrame(rows)

    def head_scores(self, map: str, metric: str = PRIMARY) -> np.ndarray:
        """A score of each image and head, `(n, heads)`.

        Raises:
            InputError: The heads of this map were not scored by this metric.
        """
        if f"{map}/{metric}" not in self.by_head:
            known = ", ".join(self.by_head) or "none: evaluate with heads=True"
            raise InputError(f"head_scores: no heads of {map!r} by {metric!r}, got {known}")
        return self.by_head[f"{map}/{metric}"]

    def _choice(self, name: str, head: int | None = None) -> str:
        """How a map, or a head of it, was chosen; empty where it was not."""
        return next(
            (f"best of {one['of']} on {one['images']} calibration images"
             for one in self.chosen.values() if (one["map"], one["head"]) == (name, head)),
            "",
        )  # fmt: skip

    def tau(self, name: str, metric: str) -> float:
        """The threshold of a map's metric; NaN where it has none."""
        return self.thresholds.get(name, {}).get(metric, float("nan"))

    def raw(self, name: str) -> np.ndarray:
        """A map of all images on its own grid, `(n, h, w)`; of volumes `(n, d, h, w)`.

        Of a saved evaluation it is read from the run, which keeps scaled float16. Where images of
        several sizes have several grids, all are resized to the largest, bilinearly.

        Raises:
            InputError: There is no such map.
            RunError: The run is gone, or cannot be read.
        """
        if name not in self.summary:
            raise unknown_name("map", name, self.summary)
        return self._array("maps", name)

    def _array(self, folder: str, name: str) -> np.ndarray:
        """An array of all images out of the pieces, or out of the run once they are gone."""
        if "run" not in self.facts:
            return self.pieces.joined(f"{folder}/{name}", self.parts)
        run = open_run(self.facts["run"])
        return run.gates(name) if folder == "gates" else run.maps(name)

    def by(self, column: str, metric: str = PRIMARY, map: str | None = None) -> pd.DataFrame:
        """A score for each value of a column of the samples, such as `"class"` or `"group"`.

        Args:
            column: A column of `samples`; `"class"` is the label, by its name where it has one.
            metric: Which score.
            map: Of which map; None takes the primary one.

        Returns:
            One row per value: `mean`, `low`, `high`, `valid`, `n`.

        Raises:
            InputError: An unknown column, map or metric.
        """
        scores = self._scores(map or self.primary, metric)
        keys = self._values(column)
        rows = []
        for value in sorted(set(keys.dropna()), key=str):
            here = (keys == value).to_numpy()
            rows.append({column: value, **self._summed(metric, scores[here], here)})
        return pd.DataFrame(rows)

    def worst(self, n: int = 10, metric: str = PRIMARY, map: str | None = None) -> pd.DataFrame:
        """The `n` images with the worst score of a map, the worst first."""
        name = f"{map or self.primary}/{metric}"
        self._scores(map or self.primary, metric)
        known = ("name", "group", "label", "prediction", "correct", "confidence")
        shown = [column for column in known if column in self.samples]
        ordered = self.samples.sort_values(
            name, ascending=not is_lower_better(metric), kind="stable"
        )
        return ordered[[*shown, name]].dropna(subset=[name]).head(n)

    def check(self, map: str | None = None, /, **demands: str) -> Evaluation:
        """Demand scores of a map, such as `check(energy_pointing_game=">= .3")`.

        Args:
            map: Which map; None takes the primary one.
            **demands: Metric → `">= x"`, `"> x"`, `"<= x"` or `"< x"`, of the mean.

        Returns:
            This evaluation, where all is well.

        Raises:
            CheckFailed: A mean is on the wrong side; the message has its interval.
            InputError: An unknown metric, a demand that cannot be read, or nothing to score.
        """
        name = map or self.primary
        failed = []
        for metric, demand in demands.items():
            self._scores(name, metric)
            numbers = self.summary[name][metric]
            if not _holds(numbers["mean"], demand, metric):
                failed.append(f"{metric} {_spoken(numbers)}, demanded {demand.strip()}")
        if failed:
            raise CheckFailed(f"{self.variant}, map {name}: {'; '.join(failed)}")
        return self

    def figure(self, metric: str = PRIMARY, *, dark: bool = False) -> Figure:
        """The maps' scores as dots with their intervals, beside chance."""
        from attnviz.figures import dot_plot

        rows = self.table[self.table["metric"] == metric].rename(columns={"map": "variant"})
        return dot_plot(rows, label=f"{metric}, {self.variant}", dark=dark)

    def to_latex(self, metrics: Sequence[str] | None = None) -> str:
        """The table as LaTeX (booktabs): a row per map, a column per metric with its interval."""
        from attnviz.comparison.text import latex

        held = {key for scores in self.summary.values() for key in scores}
        for key in metrics or ():
            if key not in held:
                raise unknown_name("metric", key, held)
        keys = [key for key in metrics or _PRINTED if key in held]
        head = " & ".join(["map", *(latex(key) for key in keys)])
        lines = [
            " & ".join([latex(name), *(_cell(self.summary[name].get(key)) for key in keys)])
            for name in self.maps
        ]
        body = " \\\\\n".join([head, *lines])
        first, rest = body.split("\n", 1) if "\n" in body else (body, "")
        return (
            f"\\begin{{tabular}}{{l{'r' * len(keys)}}}\n\\toprule\n{first}\n\\midrule\n"
            f"{rest} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
        )

    def save(
        self, path: Any, model: Any = None, *, settings: Mapping[str, Any] | None = None
    ) -> Any:
        """Write a run folder, which the dashboard, `compare` and the command line read.

        Args:
            path: The run's folder; its name is the run's id.
            model: The model, whose weights are kept; None keeps none.
            settings: What else to note.

        Raises:
            RunError: A run is already there, or it cannot be written.
        """
        return saved(self, path, model, settings)

    def write(self, writer: RunWriter, model: Any = None) -> dict[str, Any]:
        """Put samples, maps, heads, gates and whole attention into a run that is being written.

        For `evaluate(…, save=writer)`: what was kept to go on after an interruption is removed.

        Args:
            writer: The run's writer; it stays open.
            model: The model, whose weights are kept; None keeps none.

        Returns:
            What belongs into the run's summary, `writer.finish(summary)`.
        """
        written(self, writer, model)
        return summary_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def __repr__(self) -> str:
        return f"Evaluation({self.variant!r}, {len(self.samples)} images, maps {self.maps})"

    def __str__(self) -> str:
        return _printed(self, _PRINTED)

    def _scores(self, name: str, metric: str) -> np.ndarray:
        if name not in self.summary:
            raise unknown_name("map", name, self.summary)
        if metric not in self.summary[name]:
            if metric in METRICS and METRICS[metric].thresholded and not self.calibrated_on:
                raise InputError(
                    f"{metric} of {name} needs a threshold: evaluate with calibration=, other "
                    "images with masks that choose it"
                )
            raise unknown_name(f"metric of {name}", metric, self.summary[name])
        column: np.ndarray = self.samples[f"{name}/{metric}"].to_numpy()
        return column

    def _values(self, column: str) -> pd.Series[Any]:
        if column == "class":
            if "label" not in self.samples:
                raise InputError("by: the images have no labels")
            labels = self.samples["label"]
            return labels.map(lambda k: self.class_name(k) if k == k else None)  # NaN is no class
        if column not in self.samples:
            raise unknown_name("column", column, ["class", *self.samples.columns])
        values: pd.Series[Any] = self.samples[column]
        return values

    def class_name(self, label: float) -> str:
        """A class by its name, or by its number where it has none."""
        index = int(label)
        return self.classes[index] if index < len(self.classes) else str(index)

    def _summed(self, metric: str, scores: np.ndarray, here: np.ndarray) -> dict[str, Any]:
        return summarised(metric, scores, group=grouping_of(self.samples[here]))


def _table(columns: Mapping[str, np.ndarray], text: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    known = {key: list(values) for key, values in text.items() if any(values)}
    whole = {"index": np.arange(count), **known}
    for key, column in columns.items():
        if key in ("x0", "y0", "x1", "y1", "prediction", "label"):
            column = _whole(column)
        elif key == "correct" and np.isfinite(column).all():
            column = column.astype(bool)
        whole[key] = column
    return pd.DataFrame(whole)


def _whole(column: np.ndarray) -> np.ndarray:
    """A column as whole numbers where it holds no others."""
    whole = np.isfinite(column).all() and (column == np.round(column)).all()
    return column.astype(np.int64) if whole else column


def _summary(
    samples: pd.DataFrame, name: str, levels: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    keys = [c.removeprefix(f"{name}/") for c in samples.columns if c.startswith(f"{name}/")]
    group = grouping_of(samples)
    return {
        key: summarised(key, samples[f"{name}/{key}"].to_numpy(), levels.get(key), group=group)
        for key in keys
    }


def _holds(mean: float | None, demand: str, metric: str) -> bool:
    parts = _DEMAND.fullmatch(demand) if isinstance(demand, str) else None
    if parts is None:
        raise InputError(f"check: {metric}: expected a demand such as '>= .3', got {demand!r}")
    if mean is None:
        raise InputError(f"check: {metric}: no image can be scored")
    limit = float(parts[2])
    sides = {">=": mean >= limit, ">": mean > limit, "<=": mean <= limit, "<": mean < limit}
    return sides[parts[1]]


def _spoken(numbers: Mapping[str, Any]) -> str:
    low, high = numbers.get("low"), numbers.get("high")
    span = f" [95 % CI {low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{numbers['mean']:.3f}{span} on {numbers['valid']} of {numbers['n']} images"


def _cell(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None or numbers["mean"] is None:
        return "--"
    low, high = numbers.get("low"), numbers.get("high")
    span = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{numbers['mean']:.3f}{span}"


def _printed(result: Evaluation, metrics: Sequence[str]) -> str:
    """The table of maps and metrics, what is missing, and what was found."""
    lines = [_first_line(result)]
    rows: list[tuple[str, ...]] = []
    main = [name for name in result.maps if name in result.main_maps]
    for name in main:
        for key in metrics:
            numbers = result.summary[name].get(key)
            if numbers is not None:
                span = f"[{_number(numbers['low'])}, {_number(numbers['high'])}]"
                rows.append(
                    (name, key, _number(numbers["mean"]), span, _number(numbers.get("chance")),
                     _number(numbers.get("redrawn")), f"{numbers['valid']}/{numbers['n']}")
                )  # fmt: skip
    lines.append(table(_COLUMNS, rows, right=range(2, len(_COLUMNS))))
    if len(main) < len(result.maps):
        lines.append(f"and {len(result.maps) - len(main)} maps of earlier layers, see .table")
    if result.earlier:
        lines.append(
            f"{result.earlier} maps of earlier layers are left out: layers=True (--layers)"
        )
    lines += [_chosen_line(result, key, one) for key, one in result.chosen.items()]
    lines += [f"{name}: no image could be scored: {why}" for name in main
              if (why := _unscored(result, name, metrics))]  # fmt: skip
    lines += [f"no map {name}: {why}" for name, why in result.left_out.items()]
    lines += [
        f"places of {layer} could not be measured ({why}): it has no maps"
        for layer, why in result.unmeasured.items()
    ]
    if not result.calibrated_on:
        lines.append(
            "metrics that need a threshold are left out: give calibration=, other images "
            "(--calibration-images)"
        )
    if result.findings is not None:
        lines.append(str(result.findings.headline))
    return "\n".join(lines)


def _unscored(result: Evaluation, name: str, metrics: Sequence[str]) -> str:
    """Why none of a map's images has a score; empty where one has, or that is not known."""
    scores = [result.summary[name][key] for key in metrics if key in result.summary[name]]
    if not scores or any(numbers["valid"] for numbers in scores):
        return ""
    if not patched(result.samples).any():
        return "no mask has anything in it"
    return "" if np.isfinite(result.raw(name)).any() else "its maps are NaN or infinite"


def _chosen_line(result: Evaluation, key: str, one: Mapping[str, Any]) -> str:
    """A layer and head that were chosen on the calibration split, with their score on the data."""
    name, head = one["map"], one["head"]
    if head is None:
        numbers = result.summary[name].get(PRIMARY) or {}
    else:
        here = result.heads.query("map == @name and head == @head and metric == @PRIMARY")
        numbers = records(here)[0] if len(here) else {}
    told = f"; on these images {_spoken(numbers)}" if numbers.get("mean") is not None else ""
    which = "" if head is None else f", head {head}"
    return (
        f"{key}: of {one['of']} layers and heads {name}{which} is best on {one['images']} "
        f"calibration images ({PRIMARY} {one['score']:.3f}){told}"
    )


def _first_line(result: Evaluation) -> str:
    seed = "" if result.seed is None else f", seed {result.seed}"
    line = f"{result.variant}{seed}: {len(result.samples)} images"
    if not math.isnan(result.accuracy):
        line += f", accuracy {result.accuracy:.3f}"
    if "prediction" in result.samples and (lost := int(result.samples["prediction"].isna().sum())):
        line += f", {lost} with outputs that are NaN or infinite"
    groups = result.samples["group"].nunique() if "group" in result.samples else 0
    return line + (f", {groups} groups" if groups else "")


def _number(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
