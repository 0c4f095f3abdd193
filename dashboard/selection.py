"""What a page shows, decided without Streamlit: which runs, which images, in which order.

The address (URL) is the state. Each reader function here takes the query parameters and returns a
value together with a complaint, which is None or the sentence to show: a bad value is said, and
never replaced in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnviz.compare import LOWER_IS_BETTER
from attnviz.compare.recorded import asks, differing, incidental, map_names
from attnviz.compare.resampling import mean_of_valid
from attnviz.runs import flat

PAGE_SIZE = 48
AGREEMENT = "agreement_"
ORDERS = {
    "worst": "worst first",
    "best": "best first",
    "disagreement": "most disagreement between variants",
    "number": "by number",
}
OUTCOMES = {"all": "all", "right": "classified rightly", "wrong": "classified wrongly"}

Params = Mapping[str, Any]


# The address


def one_of(
    params: Params, name: str, options: Sequence[str], default: str
) -> tuple[str, str | None]:
    """One of some words; the default, with a complaint, where the address has another."""
    value = params.get(name)
    if value is None or value in options:
        return (default if value is None else str(value)), None
    shown = ", ".join(map(str, options[:8])) + (", …" if len(options) > 8 else "")
    return default, (
        f"The address asks for {name} = {quoted(value)}, which is not here. "
        f"Known: {shown or 'nothing'}. Shown instead: {default or 'nothing'}."
    )


def whole(params: Params, name: str, low: int, high: int, default: int) -> tuple[int, str | None]:
    """A whole number in `low … high`, both included."""
    value = params.get(name)
    if value is None:
        return default, None
    try:
        number = int(str(value))
    except ValueError:
        number = low - 1
    if low <= number <= high:
        return number, None
    return default, (
        f"The address asks for {name} = {quoted(value)}; expected a whole number from {low} to "
        f"{high}. Shown instead: {default}."
    )


def share(params: Params, name: str, default: float) -> tuple[float, str | None]:
    """A number from 0 to 1."""
    value = params.get(name)
    if value is None:
        return default, None
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if 0 <= number <= 1:
        return number, None
    return default, (
        f"The address asks for {name} = {quoted(value)}; expected a number from 0 to 1. "
        f"Shown instead: {default:.2f}."
    )


def several(params: Params, name: str, known: Iterable[str]) -> tuple[list[str], str | None]:
    """Ids, separated by commas, each once; unknown ones are left out and named."""
    asked = list(dict.fromkeys(part for part in str(params.get(name, "")).split(",") if part))
    there = set(known)
    missing = [part for part in asked if part not in there]
    if not missing:
        return asked, None
    names = ", ".join(quoted(part) for part in missing[:5]) + ("…" if len(missing) > 5 else "")
    return [part for part in asked if part in there], (
        f"The address asks for {name} {names}, which {'is' if len(missing) == 1 else 'are'} not "
        "in this folder."
    )


def quoted(value: Any) -> str:
    """A stranger's text as code, short, and unable to end its own quotation."""
    text = "".join(c if c.isprintable() and c not in "`$" else "·" for c in str(value))
    return f"`{text[:160]}…`" if len(text) > 160 else f"`{text or ' '}`"


def plain(value: Any) -> str:
    """A stranger's text for Markdown: every character that could mark something up is escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:&" else c for c in str(value))


# Runs


@dataclass(frozen=True)
class Cohort:
    """Runs that may be ranked together: the same test images, and the same question asked.

    Attributes:
        dataset: The digest of the test images.
        question: The settings that make the question, as `(key, value)` pairs.
        runs: The runs, one per variant and seed.
        replaced: Older runs of the same variant, settings and seed.
    """

    dataset: str
    question: tuple[tuple[str, str], ...]
    runs: tuple[Any, ...]
    replaced: tuple[Any, ...] = ()

    @property
    def variants(self) -> dict[str, list[Any]]:
        """Runs by variant, told apart by the settings in which runs of one variant differ."""
        return variants(self.runs)


def cohorts(runs: Iterable[Any]) -> list[Cohort]:
    """Complete runs in groups that may be ranked; the one with the most variants first."""
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], list[Any]] = {}
    for run in runs:
        if run.state == "complete":
            grouped.setdefault((str(run.dataset), question(run)), []).append(run)
    found = [_cohort(dataset, asked, members) for (dataset, asked), members in grouped.items()]
    return sorted(found, key=lambda one: (-len(one.variants), -len(one.runs), one.dataset))


def _cohort(dataset: str, question: tuple[tuple[str, str], ...], runs: list[Any]) -> Cohort:
    newest: dict[tuple[str, str, str], Any] = {}
    replaced = []
    for run in sorted(runs, key=lambda one: (str(one.created), one.id)):
        key = (str(run.variant), str(run.seed), repr(_trained(run)))
        if key in newest:
            replaced.append(newest[key])
        newest[key] = run
    kept = tuple(sorted(newest.values(), key=lambda one: (str(one.variant), one.seed, one.id)))
    return Cohort(dataset, question, kept, tuple(replaced))


def variants(runs: Iterable[Any]) -> dict[str, list[Any]]:
    """Runs by variant; `name · key=value` where one variant was trained in several ways."""
    by_name: dict[str, list[Any]] = {}
    for run in runs:
        by_name.setdefault(str(run.variant), []).append(run)
    out: dict[str, list[Any]] = {}
    for name, members in by_name.items():
        told_apart = _telling(differing({run.id: _trained(run) for run in members}))
        for run in members:
            suffix = ", ".join(f"{key}={values[run.id]}" for key, values in told_apart.items())
            out.setdefault(f"{name} · {suffix}" if suffix else name, []).append(run)
    return out


def _telling(columns: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Settings without those that part the runs as one with a shorter name does already."""
    kept: dict[tuple[int, ...], str] = {}
    for key in sorted(columns, key=len):
        values = list(columns[key].values())
        kept.setdefault(tuple(values.index(value) for value in values), key)
    return {key: columns[key] for key in columns if key in kept.values()}


def differences(runs: Sequence[Any]) -> pd.DataFrame:
    """The settings in which runs differ: one row per setting, one column per run."""
    settings = {run.id: {"variant": run.variant, "seed": run.seed, **run.settings} for run in runs}
    columns = differing(settings)
    table = pd.DataFrame.from_dict(columns, orient="index", columns=list(settings), dtype=str)
    return table.rename_axis("setting")


def matching(run: Any, words: str) -> bool:
    """Whether each word is found in a run's id, variant, state, or `setting=value`."""
    settings = [f"{key}={value}" for key, value in flat(run.settings).items()]
    text = " ".join([run.id, run.variant, run.state, f"seed={run.seed}", *settings]).casefold()
    return all(word in text for word in words.casefold().split())


def question(run: Any) -> tuple[tuple[str, str], ...]:
    """The settings that make a run's question, as `(key, value)` pairs."""
    settings = flat(run.settings)
    return tuple(sorted((key, str(value)) for key, value in settings.items() if asks(key)))


def asked_in_words(question: Sequence[tuple[str, str]]) -> str:
    """A question as its name and the patch it is asked of: `patch, square of 16, photos`."""
    asked = {key.removeprefix("patch."): value for key, value in question}
    patch = " of ".join(asked[key] for key in ("shape", "size") if key in asked)
    faint = f"opacity {asked['opacity']}" if asked.get("opacity", "1.0") != "1.0" else ""
    parts = (asked.get("question"), patch, faint, asked.get("data"))
    return ", ".join(part for part in parts if part)


def _trained(run: Any) -> dict[str, str]:
    settings = flat(run.settings)
    return {k: str(v) for k, v in settings.items() if not asks(k) and not incidental(k)}


# Images


@dataclass(frozen=True)
class Choice:
    """Which images a gallery shows.

    Attributes:
        order: A key of `ORDERS`.
        outcome: A key of `OUTCOMES`.
        size: Only patches with this longer side in pixels, or None.
        shape: Only patches of this shape, or None.
        page: Counted from 0.
    """

    order: str = "worst"
    outcome: str = "all"
    size: int | None = None
    shape: str | None = None
    page: int = 0
    per_page: int = field(default=PAGE_SIZE, repr=False)


def patch_sizes(samples: pd.DataFrame) -> np.ndarray:
    """The longer side of each image's box in pixels, 0 where there is none."""
    width, height = samples["x1"] - samples["x0"], samples["y1"] - samples["y0"]
    return np.maximum(width, height).to_numpy()


def scores(samples: pd.DataFrame, map_name: str, metric: str) -> np.ndarray:
    """One map's scores, (n,) with NaN where an image cannot be scored or has no such column."""
    column = f"{map_name}/{metric}"
    if column not in samples:
        return np.full(len(samples), np.nan)
    return samples[column].to_numpy(dtype=float)


def spread(by_variant: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """How far the variants disagree about each image: greatest less least mean over seeds, (n,)."""
    means = np.stack([mean_of_valid(np.stack(list(seeds)).T) for seeds in by_variant.values()])
    known = np.isfinite(means).sum(axis=0) > 1
    high = np.where(np.isfinite(means), means, -np.inf).max(axis=0)
    low = np.where(np.isfinite(means), means, np.inf).min(axis=0)
    return np.where(known, np.where(known, high, 0) - np.where(known, low, 0), np.nan)


def in_order(
    samples: pd.DataFrame,
    values: np.ndarray,
    choice: Choice,
    *,
    metric: str = "",
    disagreement: np.ndarray | None = None,
) -> np.ndarray:
    """Positions of the images that pass the filters, in the order asked for.

    Images that cannot be scored come last; ties keep their number. The metrics of which less is
    better are turned round, so that "worst" always means worst.

    Args:
        samples: The run's samples, one row per image.
        values: One score per row.
        choice: Order and filters.
        metric: The metric's key.
        disagreement: What `spread` returned; needed for that order.
    """
    keep = np.ones(len(samples), bool)
    if choice.outcome != "all" and "correct" in samples:
        keep &= samples["correct"].to_numpy(dtype=bool) == (choice.outcome == "right")
    if choice.size is not None:
        keep &= patch_sizes(samples) == choice.size
    if choice.shape is not None and "shape" in samples:
        keep &= samples["shape"].to_numpy() == choice.shape
    where = np.flatnonzero(keep)
    if choice.order == "number":
        return where
    if choice.order == "disagreement":
        key = -(np.full(len(samples), np.nan) if disagreement is None else disagreement)
    else:
        upwards = (choice.order == "worst") != (metric in LOWER_IS_BETTER)
        key = values if upwards else -values
    return where[np.argsort(key[where], kind="stable")]  # NaN sorts last


def verdict(row: Mapping[str, Any], decimals: int = 2) -> str:
    """What the model said of an image, as far as its table tells: `right, p = 0.99`."""
    known = {key: row[key] for key in ("correct", "probability", "logit") if key in row}
    known = {key: float(value) for key, value in known.items() if not pd.isna(value)}
    parts = []
    if "correct" in known:
        parts.append("right" if known["correct"] else "wrong")
    if "probability" in known:
        parts.append(f"p = {known['probability']:.{decimals}f}")
    elif "logit" in known:
        parts.append(f"logit {known['logit']:+.2f}")
    return ", ".join(parts)


def page_of(where: np.ndarray, page: int, per_page: int = PAGE_SIZE) -> np.ndarray:
    """The part of `where` on one page."""
    return where[page * per_page : (page + 1) * per_page]


def pages(count: int, per_page: int = PAGE_SIZE) -> int:
    """How many pages that many images fill; at least one."""
    return max(1, -(-count // per_page))


def neighbours(where: Sequence[int] | np.ndarray, image: int) -> tuple[int | None, int | None]:
    """The images before and after one in an order; None at its ends, or if it is not in it."""
    places = np.flatnonzero(np.asarray(where) == image)
    if not len(places):
        return None, None
    at = int(places[0])
    before = int(where[at - 1]) if at > 0 else None
    after = int(where[at + 1]) if at + 1 < len(where) else None
    return before, after


# Maps


def metric_names(samples: pd.DataFrame, map_name: str) -> list[str]:
    """The metrics of one map against the mask, in the table's order."""
    return [name for name in _columns_of(samples, map_name) if not name.startswith(AGREEMENT)]


def agreement_names(samples: pd.DataFrame, map_name: str) -> list[str]:
    """The columns that say how far a map agrees with an attribution, without their prefix."""
    found = _columns_of(samples, map_name)
    return [name.removeprefix(AGREEMENT) for name in found if name.startswith(AGREEMENT)]


def _columns_of(samples: pd.DataFrame, map_name: str) -> list[str]:
    prefix = f"{map_name}/"
    return [c.removeprefix(prefix) for c in samples.columns if c.startswith(prefix)]


def primary_map(run: Any, samples: pd.DataFrame) -> str | None:
    """The map a run is judged by: the one its summary names, else the first that has scores."""
    names = map_names(samples)
    named = run.summary.get("map")
    return named if named in names else (names[0] if names else None)


def threshold_of(run: Any, map_name: str) -> float:
    """The threshold that the run's validation images chose for a map; one half if it names none."""
    value = chosen_threshold(run, map_name)
    return 0.5 if value is None else value


def chosen_threshold(run: Any, map_name: str) -> float | None:
    """The threshold that the run's validation images chose for a map, where they did."""
    value = run.summary.get("threshold", {}).get(map_name)
    return float(value) if value is not None and 0 <= value <= 1 else None
