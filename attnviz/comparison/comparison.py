"""The result of a comparison: sentence, tables, LaTeX, CSV, figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnviz.comparison.text import (
    WELL_KNOWN,
    closed,
    fineness,
    interval,
    latex,
    markdown,
    number,
    percent,
    records,
    span,
    with_sign,
)
from attnviz.definitions import (
    LEVELS,
    SHOWN_LEVELS,
    is_localization,
    is_lower_better,
    metric_title,
    short_title,
)
from attnviz.display import html_of
from attnviz.errors import unknown_name
from attnviz.statistics.pairs import FEWEST
from attnviz.text import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Variants ranked by one metric, with intervals, tests and notes.

    Attributes:
        primary: The metric that ranks.
        table: A row per metric and variant, in order of rank: variant, metric, mean, low, high,
            valid and n (scores that are numbers, and all: seeds × images), seeds, the reference
            levels (`attnviz.definitions.LEVELS`), accuracy, p, p_adjusted and p_holm (against the
            first in rank; NaN for itself), rank (equal means share one).
        differences: A row per metric and pair, the higher in rank first: metric, variant, other,
            difference (in the metric's own unit), low, high (adjusted for all pairs), clear
            (p_adjusted is at most 1 − confidence: the interval leaves out 0, and both have three
            seeds or more), images, dropped (images that one of the two could not score in any
            seed), seeds (of the one that has fewer), p, p_adjusted (over all pairs of the primary
            metric; over all pairs of all others together), p_holm (p_adjusted under its former
            name). Below three seeds both p are NaN, and the interval is of images more than of
            trainings.
        by_seed: A row per metric, variant and seed: mean over images.
        split: A row per metric and variant: mean over correct and incorrect predictions, and
            how many scores of each; empty where correctness is not known.
        notes: Caveats to read with the numbers.
        images: How many images.
        groups: How many groups (photographs, patients, videos) they come in; 0 if not known.
        thing: What is looked for, such as "lesion".
        confidence: The level of the intervals.
        resamples: How many studies the adjustment for all pairs is drawn from.
    """

    primary: str
    table: pd.DataFrame
    differences: pd.DataFrame
    by_seed: pd.DataFrame
    split: pd.DataFrame
    notes: tuple[str, ...]
    images: int
    groups: int
    thing: str
    confidence: float
    resamples: int

    @property
    def variants(self) -> list[str]:
        """The variants' names, first in rank first."""
        return list(self.of(self.primary)["variant"])

    @property
    def metrics(self) -> list[str]:
        """The metrics' names, the primary one first."""
        return list(dict.fromkeys(self.table["metric"]))

    def of(self, metric: str) -> pd.DataFrame:
        """The rows of one metric, first in rank first."""
        return self.table[self.table["metric"] == metric].reset_index(drop=True)

    @property
    def winner(self) -> str | None:
        """The first in rank, if it is clear of every other; None below three seeds of any."""
        leader = self.variants[0]
        pairs = self._pairs_of(leader)
        return leader if len(pairs) and bool(self._ahead(pairs).all()) else None

    @property
    def sentence(self) -> str:
        """The answer to "which variant looks at the object most", in one sentence."""
        rows = self.of(self.primary)
        first, pairs = rows.iloc[0], self._pairs_of(self.variants[0])
        if not np.isfinite(first["mean"]):
            return f"no ranking: {metric_title(self.primary)} could not be scored for any variant."
        levels = "".join(
            f", {LEVELS[name].title} {number(first[name])}"
            for name in SHOWN_LEVELS
            if np.isfinite(first[name])
        )
        if pairs.empty:
            return f"{first.variant}: {self._score(first)}{levels}; nothing to compare it with."
        if rows["seeds"].min() < FEWEST:
            return self._described(rows, levels)
        if self.winner is not None:
            gap = pairs.iloc[0]
            looks = f"looks at the {self.thing} most"
            verb = looks if is_localization(self.primary) else "ranks first"
            return (
                f"{first.variant} {verb}: {self._score(first)}{levels}; "
                f"{with_sign(gap.difference, fineness(gap))} over {gap.other}, "
                f"{self._gap_interval(gap)}."
            )
        gap = pairs[~self._ahead(pairs)].iloc[0]
        other = rows[rows["variant"] == gap.other].iloc[0]
        how = "rank the other way round on what both share" if gap.clear else "cannot be told apart"
        return (
            f"no clear winner: {first.variant}, {self._score(first)}, and {other.variant}, "
            f"{number(other['mean'], fineness(first))}, {how}: difference "
            f"{with_sign(gap.difference, fineness(gap))}, {self._gap_interval(gap)}{levels}."
        )

    def _described(self, rows: pd.DataFrame, levels: str) -> str:
        """The sentence for fewer than three seeds: means only, no ranking of architectures."""
        few, many = int(rows["seeds"].min()), int(rows["seeds"].max())
        trainings = {1: "one training", 2: "two trainings"}
        if few == many:
            begin = f"{trainings[few]} each"
        else:
            short = rows[rows["seeds"] < FEWEST]["variant"]
            begin = f"fewer than three trainings of {_listed(short)}"
        means = [f"{row['variant']} {number(row['mean'])}" for _, row in rows.iterrows()]
        return (
            f"{begin}: {short_title(self.primary)} {_listed(means)}{levels}, in an order which "
            "another training may turn round."
        )

    def _gap_interval(self, gap: Any) -> str:
        """A difference's interval, with what it is adjusted for."""
        pairs = int((self.differences["metric"] == self.primary).sum())
        adjusted = f" over all {pairs} pairs" if pairs > 1 else ""
        return f"{percent(self.confidence)} CI{adjusted} {interval(gap, signed=True)}"

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """The ranking as a GitHub table: each metric with its interval, the best in bold.

        Args:
            metrics: Metrics to include; by default those that are printed.
        """
        shown = self._shown(metrics)
        rows = self._cells(shown, bold=lambda text: f"**{text}**")
        header = ["rank", "variant", *map(metric_title, shown), *self._accuracy]
        lines = [header, ["---:", "---", *["---:"] * (len(header) - 2)], *rows]
        body = "\n".join(f"| {' | '.join(markdown(c) for c in line)} |" for line in lines)
        return "\n\n".join([body, self.sentence, *self.notes])

    def to_latex(self, metrics: Sequence[str] | None = None) -> str:
        """The ranking as a booktabs table, caption and label included.

        Args:
            metrics: Which; those that are printed, unless given.
        """
        shown = self._shown(metrics)
        rows = self._cells(shown, bold=lambda text: f"\\textbf{{{text}}}", escape=latex)
        header = ["", "variant", *(latex(metric_title(name)) for name in shown), *self._accuracy]
        body = "\n".join(f"  {' & '.join(row)} \\\\" for row in rows)
        caption = " ".join(latex(closed(text)) for text in (self.sentence, *self.notes))
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{caption}}}\n\\label{{tab:attnviz-{self.primary.replace('_', '-')}}}\n"
            f"\\begin{{tabular}}{{rl{'r' * (len(header) - 2)}}}\n  \\toprule\n"
            f"  {' & '.join(header)} \\\\\n  \\midrule\n{body}\n  \\bottomrule\n"
            "\\end{tabular}\n\\end{table}\n"
        )

    def to_csv(self, path: str | Path) -> None:
        """Write `table` as CSV."""
        from attnviz.runs.outputs import write_output

        write_output(Path(path), self.table.to_csv(index=False).encode())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON; NaN becomes None."""
        return {
            "primary": self.primary,
            "sentence": self.sentence,
            "winner": self.winner,
            "images": self.images,
            "groups": self.groups,
            "thing": self.thing,
            "confidence": self.confidence,
            "resamples": self.resamples,
            "notes": list(self.notes),
            "table": records(self.table),
            "differences": records(self.differences),
            "by_seed": records(self.by_seed),
            "split": records(self.split),
        }

    def figure(
        self, metric: str | None = None, *, order: Sequence[str] | None = None, dark: bool = False
    ) -> Figure:
        """A dot plot, sorted: interval, a tick per seed, chance and the mask redrawn as lines.

        Args:
            metric: Metric to draw; the primary one by default.
            order: The order of the variants that fixes their colours; the rank unless given.
            dark: Draw for a dark page.
        """
        from attnviz.figures import dot_plot

        name = self.primary if metric is None else metric
        if name not in self.metrics:
            raise unknown_name("metric", name, self.metrics)
        return dot_plot(
            self.of(name),
            seeds=self.by_seed[self.by_seed["metric"] == name],
            label=metric_title(name),
            confidence=self.confidence,
            order=order,
            dark=dark,
        )

    def __repr__(self) -> str:
        rows = self.of(self.primary)
        others = self._shown()[1:]
        header = ["", "variant", "mean", f"{percent(self.confidence)} CI", "over next"]
        header += [*map(metric_title, others), *self._accuracy, "valid"]
        lines = [self._line(row, rows, others) for _, row in rows.iterrows()]
        lines += self._level_lines(rows, others, len(header))
        numbers = set(range(len(header))) - {header.index("variant")}
        seeds = sorted(set(rows["seeds"]))
        grouped = f" of {self.groups} groups" if self.groups else ""
        title = (
            f"{metric_title(self.primary)} on {self.images} images{grouped}, "
            f"{' to '.join(str(n) for n in dict.fromkeys([seeds[0], seeds[-1]]))} "
            f"seed{'s' if seeds[-1] > 1 else ''}"
        )
        columns = table(header, lines, right=numbers, empty="")
        return "\n".join([title, "", columns, "", self.sentence, *(f"({n})" for n in self.notes)])

    def _repr_html_(self) -> str:
        return html_of(self)

    def _pairs_of(self, variant: str) -> pd.DataFrame:
        found = self.differences
        return found[(found["metric"] == self.primary) & (found["variant"] == variant)]

    def _ahead(self, pairs: pd.DataFrame) -> pd.Series:
        """Which pairs are clear, with the first the better one.

        A pair rests on the images that both could score, the rank on all: they may disagree.
        """
        better = -1 if is_lower_better(self.primary) else 1
        return pairs["clear"].astype(bool) & (better * pairs["difference"] > 0)

    @property
    def _accuracy(self) -> list[str]:
        """The column of accuracies, where any is known."""
        return ["accuracy"] if self.table["accuracy"].notna().any() else []

    def _score(self, row: Any) -> str:
        mean = number(row["mean"], fineness(row))
        return f"{short_title(self.primary)} {mean} ({percent(self.confidence)} CI {interval(row)})"

    def _line(self, row: Any, rows: pd.DataFrame, others: Sequence[str]) -> list[str]:
        pairs = self._pairs_of(row["variant"])
        gap = ""
        if len(pairs):
            pair = pairs.iloc[0]
            gap = f"{with_sign(pair.difference, fineness(pair))} [{interval(pair, signed=True)}]"
        beside = [self._mean(row["variant"], name) for name in others]
        valid = f"{row['valid']}/{row['n']}"
        mean = number(row["mean"], fineness(row))
        head = [str(row["rank"]), str(row["variant"]), mean, f"[{interval(row)}]"]
        accuracy = [number(row[name]) for name in self._accuracy]
        return [*head, gap, *beside, *accuracy, valid]

    def _shown(self, metrics: Sequence[str] | None = None) -> list[str]:
        """The metrics that fit on a line: the primary one and three more, the best known first."""
        for name in metrics or ():
            if name not in self.metrics:
                raise unknown_name("metric", name, self.metrics)
        known = [name for name in WELL_KNOWN if name in self.metrics]
        picked = list(dict.fromkeys([self.primary, *known, *self.metrics]))[:4]
        return picked if metrics is None else list(metrics)

    def _mean(self, variant: str, metric: str) -> str:
        rows = self.of(metric)
        return number(rows[rows["variant"] == variant].iloc[0]["mean"])

    def _level_lines(
        self, rows: pd.DataFrame, others: Sequence[str], columns: int
    ) -> Iterable[list[str]]:
        """The reference levels as the table's last rows, where the metrics have them."""
        for level in LEVELS.values():
            shown = [span(self.of(name)[level.key]) for name in (self.primary, *others)]
            if any(shown):
                line = ["", level.title, shown[0], "", "", *shown[1:]]
                yield line + [""] * (columns - len(line))

    def _cells(self, metrics: Sequence[str], *, bold: Any, escape: Any = str) -> list[list[str]]:
        """The ranking's rows as text: rank, variant, each metric with its interval, accuracy."""
        cells = []
        for _, row in self.of(self.primary).iterrows():
            line = [str(row["rank"]), escape(str(row["variant"]))]
            for metric in metrics:
                rows = self.of(metric)
                mine = rows[rows["variant"] == row["variant"]].iloc[0]
                mean = number(mine["mean"], fineness(mine))
                best = mine["rank"] == 1 and len(rows) > 1
                line.append(f"{bold(mean) if best else mean} [{interval(mine)}]")
            cells.append([*line, *(number(row[name]) for name in self._accuracy)])
        return cells


def _listed(names: Iterable[str], most: int = 6) -> str:
    """Names in a row, the first few of many."""
    found = list(names)
    return ", ".join(found[:most]) + (", …" if len(found) > most else "")
