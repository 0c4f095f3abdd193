"""The result of a comparison, in every form in which one would want to hand it on."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnviz.compare.groups import LEVELS, LOWER_IS_BETTER, Group
from attnviz.compare.resampling import (
    half_width,
    holm,
    image_draws,
    mean_of_valid,
    seed_weights,
    sign_flip,
    smallest_p,
)
from attnviz.errors import unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Variants ranked by one metric, with what it takes to believe or doubt the ranking.

    Attributes:
        primary: The metric that ranks.
        table: A row per metric and variant, in order of rank: variant, metric, mean, low, high,
            valid and n (scores that are numbers, and all: seeds × images), seeds, chance, centre,
            ceiling, accuracy, p and p_holm (against the first in rank; NaN for itself, and
            wherever there are fewer than two seeds), rank (equal means share one).
        differences: A row per metric and pair, the higher in rank first: metric, variant, other,
            difference (in the metric's own unit), low, high, clear (the interval leaves out 0),
            images, dropped (images that one of the two could not score in any seed), seeds, p,
            p_holm (over all pairs and metrics: the leader is picked by looking, so every pair is
            a test).
        by_seed: A row per metric, variant and seed: mean over images.
        split: A row per metric and variant: mean over images classified rightly and wrongly, and
            how many scores of each; empty where correctness is not known.
        notes: What a reader must know beside the numbers.
        images: How many images.
        confidence: The level of the intervals.
        resamples: How many bootstrap draws they rest on.
    """

    primary: str
    table: pd.DataFrame
    differences: pd.DataFrame
    by_seed: pd.DataFrame
    split: pd.DataFrame
    notes: tuple[str, ...]
    images: int
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
        """The variant whose paired interval to every other leaves out zero, or None."""
        leader = self.variants[0]
        pairs = self._pairs_of(leader)
        return leader if len(pairs) and bool(pairs["clear"].all()) else None

    @property
    def sentence(self) -> str:
        """The answer to "which variant looks at the patch most", in one sentence."""
        rows = self.of(self.primary)
        first, pairs = rows.iloc[0], self._pairs_of(self.variants[0])
        if not np.isfinite(first["mean"]):
            return f"no ranking: {_spoken(self.primary)} could not be scored for any variant."
        levels = "".join(
            f", {name} {_number(first[name])}"
            for name in ("chance", "ceiling")
            if np.isfinite(first[name])
        )
        if pairs.empty:
            return f"{first.variant}: {self._score(first)}{levels}; nothing to compare it with."
        if self.winner is not None:
            gap = pairs.iloc[0]
            verb = "looks at the patch most" if _looks(self.primary) else "ranks first"
            return (
                f"{first.variant} {verb}: {self._score(first)}{levels}; "
                f"{_signed(gap.difference)} over {gap.other}, paired CI {_range(gap, signed=True)}."
            )
        gap = pairs[~pairs["clear"]].iloc[0]
        other = rows[rows["variant"] == gap.other].iloc[0]
        return (
            f"no clear winner: {first.variant} ({self._score(first)}) and {other.variant} "
            f"({_number(other['mean'])}) cannot be told apart, paired difference "
            f"{_signed(gap.difference)}, CI {_range(gap, signed=True)}{levels}."
        )

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """The ranking as a GitHub table: each metric with its interval, the best in bold.

        Args:
            metrics: Which; those that are printed, unless given.
        """
        shown = self._shown(metrics)
        rows = self._cells(shown, bold=lambda text: f"**{text}**")
        header = ["rank", "variant", *map(_spoken, shown), "accuracy"]
        lines = [header, ["---:", "---", *["---:"] * (len(header) - 2)], *rows]
        table = "\n".join(f"| {' | '.join(_escaped_cell(c) for c in line)} |" for line in lines)
        return "\n\n".join([table, self.sentence, *self.notes])

    def to_latex(self, metrics: Sequence[str] | None = None) -> str:
        """The ranking as a booktabs table, caption and label included.

        Args:
            metrics: Which; those that are printed, unless given.
        """
        shown = self._shown(metrics)
        rows = self._cells(shown, bold=lambda text: f"\\textbf{{{text}}}", escape=_latex)
        header = ["", "variant", *(_latex(_spoken(name)) for name in shown), "accuracy"]
        body = "\n".join(f"  {' & '.join(row)} \\\\" for row in rows)
        caption = " ".join(_latex(_closed(text)) for text in (self.sentence, *self.notes))
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{caption}}}\n\\label{{tab:attnviz-{self.primary.replace('_', '-')}}}\n"
            f"\\begin{{tabular}}{{rl{'r' * (len(header) - 2)}}}\n  \\toprule\n"
            f"  {' & '.join(header)} \\\\\n  \\midrule\n{body}\n  \\bottomrule\n"
            "\\end{tabular}\n\\end{table}\n"
        )

    def to_csv(self, path: str | Path) -> None:
        """Write `table` as CSV."""
        self.table.to_csv(path, index=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python, ready for JSON: numbers that are no numbers are None."""
        return {
            "primary": self.primary,
            "sentence": self.sentence,
            "winner": self.winner,
            "images": self.images,
            "confidence": self.confidence,
            "resamples": self.resamples,
            "notes": list(self.notes),
            "table": _records(self.table),
            "differences": _records(self.differences),
            "by_seed": _records(self.by_seed),
            "split": _records(self.split),
        }

    def figure(
        self, metric: str | None = None, *, order: Sequence[str] | None = None, dark: bool = False
    ) -> Figure:
        """A dot plot, sorted: interval, a tick per seed, chance and ceiling as lines.

        Args:
            metric: Which; the primary one unless given.
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
            label=_spoken(name),
            confidence=self.confidence,
            order=order,
            dark=dark,
        )

    def __repr__(self) -> str:
        rows = self.of(self.primary)
        others = self._shown()[1:]
        header = ["", "variant", "mean", f"{_percent(self.confidence)} CI", "over next, paired"]
        header += [*map(_spoken, others), "accuracy", "valid"]
        lines = [header, *(self._line(row, rows, others) for _, row in rows.iterrows())]
        lines += self._level_lines(rows, others, len(header))
        seeds = sorted(set(rows["seeds"]))
        title = (
            f"{_spoken(self.primary)} on {self.images} images, "
            f"{' to '.join(str(n) for n in dict.fromkeys([seeds[0], seeds[-1]]))} "
            f"seed{'s' if seeds[-1] > 1 else ''}, {self.resamples:,} resamples"
        )
        text = [title, "", *_aligned(lines), "", self.sentence, *(f"({n})" for n in self.notes)]
        return "\n".join(text)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _pairs_of(self, variant: str) -> pd.DataFrame:
        found = self.differences
        return found[(found["metric"] == self.primary) & (found["variant"] == variant)]

    def _score(self, row: Any) -> str:
        name = "energy" if self.primary == "energy_pointing_game" else _spoken(self.primary)
        return f"{name} {_number(row['mean'])} ({_percent(self.confidence)} CI {_range(row)})"

    def _line(self, row: Any, rows: pd.DataFrame, others: Sequence[str]) -> list[str]:
        pairs = self._pairs_of(row["variant"])
        gap = ""
        if len(pairs):
            gap = f"{_signed(pairs.iloc[0].difference)} [{_range(pairs.iloc[0], signed=True)}]"
        beside = [self._mean(row["variant"], name) for name in others]
        valid = f"{row['valid']}/{row['n']}"
        head = [str(row["rank"]), str(row["variant"]), _number(row["mean"]), f"[{_range(row)}]"]
        return [*head, gap, *beside, _number(row["accuracy"]), valid]

    def _shown(self, metrics: Sequence[str] | None = None) -> list[str]:
        """The metrics that fit on a line: the primary one and three more, the best known first."""
        for name in metrics or ():
            if name not in self.metrics:
                raise unknown_name("metric", name, self.metrics)
        known = [name for name in _WELL_KNOWN if name in self.metrics]
        picked = list(dict.fromkeys([self.primary, *known, *self.metrics]))[:4]
        return picked if metrics is None else list(metrics)

    def _mean(self, variant: str, metric: str) -> str:
        rows = self.of(metric)
        return _number(rows[rows["variant"] == variant].iloc[0]["mean"])

    def _level_lines(
        self, rows: pd.DataFrame, others: Sequence[str], columns: int
    ) -> Iterable[list[str]]:
        """Chance, centre and ceiling as the table's last rows, where the metrics have them."""
        for level in LEVELS:
            shown = [_span(self.of(name)[level]) for name in (self.primary, *others)]
            if any(shown):
                line = ["", level, shown[0], "", "", *shown[1:]]
                yield line + [""] * (columns - len(line))

    def _cells(self, metrics: Sequence[str], *, bold: Any, escape: Any = str) -> list[list[str]]:
        """The ranking's rows as text: rank, variant, each metric with its interval, accuracy."""
        cells = []
        for _, row in self.of(self.primary).iterrows():
            line = [str(row["rank"]), escape(str(row["variant"]))]
            for metric in metrics:
                rows = self.of(metric)
                mine = rows[rows["variant"] == row["variant"]].iloc[0]
                mean = _number(mine["mean"])
                best = mine["rank"] == 1 and len(rows) > 1
                line.append(f"{bold(mean) if best else mean} [{_range(mine)}]")
            cells.append([*line, _number(row["accuracy"])])
        return cells


_TABLE = [
    *("variant", "metric", "mean", "low", "high", "valid", "n", "seeds"),
    *(*LEVELS, "accuracy", "p", "p_holm", "rank"),
]
_DIFFERENCES = [
    *("metric", "variant", "other", "difference", "low", "high", "clear"),
    *("images", "dropped", "seeds", "p", "p_holm"),
]
_SPLIT = ["metric", "variant", "right", "wrong", "n_right", "n_wrong"]


def rank(
    groups: Sequence[Group],
    *,
    primary: str,
    resamples: int,
    confidence: float,
    seed: int,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare groups measured on the same images; see `attnviz.compare.compare`."""
    rng = np.random.default_rng(seed)
    ordered = {metric: _ordered(groups, metric) for metric in groups[0].values}
    cells = [(metric, group) for metric, ranked in ordered.items() for group in ranked]
    pairs = [
        (metric, one, other)
        for metric, ranked in ordered.items()
        for one, other in combinations(ranked, 2)
    ]
    blocks = [group.values[metric] for metric, group in cells]
    blocks += [_paired(one, other, metric) for metric, one, other in pairs]
    widths = _half_widths(blocks, resamples=resamples, confidence=confidence, rng=rng)
    gaps = pd.DataFrame(
        [
            _gap(*pair, block, width, rng)
            for pair, block, width in zip(
                pairs, blocks[len(cells) :], widths[len(cells) :], strict=True
            )
        ],
        columns=_DIFFERENCES,
    )
    gaps["p_holm"] = holm(gaps["p"].to_numpy(dtype=np.float64))
    table = pd.DataFrame(
        [
            _row(metric, group, width, gaps, ordered[metric])
            for (metric, group), width in zip(cells, widths[: len(cells)], strict=True)
        ],
        columns=_TABLE,
    )
    return Comparison(
        primary=primary,
        table=table,
        differences=gaps,
        by_seed=pd.DataFrame([row for metric, group in cells for row in _seeds(metric, group)]),
        split=pd.DataFrame(
            [_right_and_wrong(metric, group) for metric, group in cells if _has_split(group)],
            columns=_SPLIT,
        ),
        notes=(*_notes(groups, table, gaps, primary), *notes),
        images=groups[0].images,
        confidence=confidence,
        resamples=resamples,
    )


def _mean(scores: np.ndarray) -> float:
    """The mean over seeds of each seed's mean over the images that it could score."""
    return float(mean_of_valid(mean_of_valid(scores)))


def _ordered(groups: Sequence[Group], metric: str) -> list[Group]:
    """Best first by one metric; ties in the order given, what has no score last."""
    return sorted(groups, key=lambda group: _badness(group, metric))


def _badness(group: Group, metric: str) -> float:
    mean = _mean(group.values[metric])
    if not np.isfinite(mean):
        return float("inf")
    return mean if metric in LOWER_IS_BETTER else -mean


def _paired(one: Group, other: Group, metric: str) -> np.ndarray:
    """Differences per seed and image: over the seeds both have, else seed by seed in order."""
    a, b = one.values[metric], other.values[metric]
    common = [label for label in one.seeds if label in other.seeds]
    if not common:
        shorter = min(len(a), len(b))
        return np.asarray(a[:shorter] - b[:shorter])
    mine = [one.seeds.index(label) for label in common]
    theirs = [other.seeds.index(label) for label in common]
    return np.asarray(a[mine] - b[theirs])


def _half_widths(
    blocks: Sequence[np.ndarray], *, resamples: int, confidence: float, rng: np.random.Generator
) -> list[float]:
    """Half the interval of each block's mean, all of them under the same resamples."""
    blocks = [block[np.isfinite(block).any(axis=1)] for block in blocks]
    centres, draws = image_draws(np.concatenate(blocks), resamples=resamples, rng=rng)
    sizes = [len(block) for block in blocks]
    weights = {k: seed_weights(k, resamples=resamples, rng=rng) for k in sorted({*sizes} - {0})}
    widths, start = [], 0
    for block, k in zip(blocks, sizes, strict=True):
        mine = slice(start, start + k)
        boot = ((draws[:, mine] + centres[mine]) * weights[k]).sum(1) if k else np.empty(0)
        widths.append(half_width(block, boot, confidence))
        start += k
    return widths


def _gap(
    metric: str,
    one: Group,
    other: Group,
    block: np.ndarray,
    width: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """One pair on one metric: the row of `differences`."""
    gap, valid = _mean(block), np.isfinite(block).any(axis=0)
    return {
        "metric": metric,
        "variant": one.variant,
        "other": other.variant,
        "difference": gap,
        "low": gap - width,
        "high": gap + width,
        "clear": abs(gap) > width,
        "images": int(valid.sum()),
        "dropped": int((~valid).sum()),
        "seeds": len(block),
        "p": sign_flip(mean_of_valid(block), rng=rng),
    }


def _row(
    metric: str, group: Group, width: float, gaps: pd.DataFrame, ranked: Sequence[Group]
) -> dict[str, Any]:
    """One variant on one metric: the row of `table`."""
    scores, mean = group.values[metric], _mean(group.values[metric])
    lead = gaps[(gaps["metric"] == metric) & (gaps["variant"] == ranked[0].variant)]
    against = lead[lead["other"] == group.variant]
    better = sum(_badness(other, metric) < _badness(group, metric) for other in ranked)
    nan = float("nan")
    return {
        "variant": group.variant,
        "metric": metric,
        "mean": mean,
        "low": mean - width,
        "high": mean + width,
        "valid": int(np.isfinite(scores).sum()),
        "n": scores.size,
        "seeds": len(group.seeds),
        **{level: group.levels.get(metric, {}).get(level, nan) for level in LEVELS},
        "accuracy": float(mean_of_valid(np.asarray(group.accuracy))),
        "p": float(against["p"].iloc[0]) if len(against) else nan,
        "p_holm": float(against["p_holm"].iloc[0]) if len(against) else nan,
        "rank": 1 + better,
    }


def _seeds(metric: str, group: Group) -> Iterable[dict[str, Any]]:
    for label, mean in zip(group.seeds, mean_of_valid(group.values[metric]), strict=True):
        yield {"metric": metric, "variant": group.variant, "seed": label, "mean": float(mean)}


def _has_split(group: Group) -> bool:
    return group.correct is not None


def _right_and_wrong(metric: str, group: Group) -> dict[str, Any]:
    """The mean over all seeds' images classified rightly, and wrongly."""
    scores, correct = group.values[metric], np.asarray(group.correct)
    right, wrong = scores[correct == 1], scores[correct == 0]
    return {
        "metric": metric,
        "variant": group.variant,
        "right": float(mean_of_valid(right)),
        "wrong": float(mean_of_valid(wrong)),
        "n_right": int(np.isfinite(right).sum()),
        "n_wrong": int(np.isfinite(wrong).sum()),
    }


def _notes(
    groups: Sequence[Group], table: pd.DataFrame, gaps: pd.DataFrame, primary: str
) -> Iterable[str]:
    """What the numbers alone do not say: seeds, tests, images that were left out."""
    alone = [group.variant for group in groups if len(group.seeds) == 1]
    if len(alone) == len(groups):
        yield "one seed each: the intervals speak of these images alone, not of another training"
    elif alone:
        yield (
            f"one seed for {', '.join(alone)}: the interval speaks of these images alone, "
            "not of another training"
        )
    tested = gaps[(gaps["metric"] == primary) & np.isfinite(gaps["p"].astype(float))]
    for seeds in sorted(set(tested["seeds"])):
        yield (
            f"{seeds} paired seeds: the smallest two-sided p that the sign-flip test can reach "
            f"is {smallest_p(seeds):.4g}"
        )
    if any(not set(a.seeds) & set(b.seeds) for a, b in combinations(groups, 2)):
        yield "variants without a seed in common are paired seed by seed in order"
    yield from _unscored(table)


def _unscored(table: pd.DataFrame) -> Iterable[str]:
    """One note on all the scores that are missing, by metric and variant."""
    told = []
    for metric, rows in table[table["valid"] < table["n"]].groupby("metric", sort=False):
        missing = (f"{row['variant']} {row['n'] - row['valid']}" for _, row in rows.iterrows())
        told.append(f"{_spoken(str(metric))} ({', '.join(missing)} of {rows['n'].max()})")
    if told:
        yield f"scores that cannot be computed, left out of means and pairs: {'; '.join(told)}"


# Words and numbers


def _spoken(metric: str) -> str:
    return metric.replace("_", " ")


def _looks(metric: str) -> bool:
    """Whether a metric says how well a map finds the patch, rather than how well it explains."""
    return metric in _LOCALISING


_WELL_KNOWN = ("max_iou", "pointing_game", "energy_pointing_game", "pixel_auroc")
_LOCALISING = {
    *("pointing_game", "energy_pointing_game", "mass_lift", "relevance_rank_accuracy"),
    *("topk_intersection", "pixel_auroc", "pixel_ap", "max_box_acc", "max_box_acc_v2"),
    *("iou", "iou_at_area", "max_iou", "oracle_iou"),
}


def _number(value: float) -> str:
    """Two decimals, more where those would hide the number, a dash where there is none."""
    if not np.isfinite(value):
        return "–"
    if abs(value) >= 0.0095 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3f}" if abs(value) >= 0.0005 else f"{value:.1g}"


def _signed(value: float) -> str:
    text = _number(abs(value))
    return text if text == "–" else f"{'-' if value < 0 else '+'}{text}"


def _range(row: Any, *, signed: bool = False) -> str:
    show = _signed if signed else _number
    return f"{show(row['low'])} to {show(row['high'])}"


def _span(values: pd.Series) -> str:
    """One number for a level that all variants share, from-to where grids differ."""
    known = values[np.isfinite(values.astype(float))]
    if known.empty:
        return ""
    texts = dict.fromkeys([_number(float(known.min())), _number(float(known.max()))])
    return "–".join(texts)


def _percent(confidence: float) -> str:
    return f"{100 * confidence:g} %"


def _closed(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain Python values, None for what is no number."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
        for row in plain.to_dict("records")
    ]


def _aligned(lines: Iterable[Sequence[str]]) -> Iterable[str]:
    """Columns padded to one width: the variant's name to the left, numbers to the right."""
    rows = [list(line) for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        padded = [
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()


def _escaped_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "–": "--",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
