"""The page's sections, each a function of the study; an empty one is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attnviz.comparison.board import ordinal
from attnviz.comparison.text import WELL_KNOWN, interval, number, percent, span, with_sign
from attnviz.definitions import (
    DEFINITIONS,
    LEVELS,
    as_words,
    is_lower_better,
    metric_title,
    short_title,
)
from attnviz.errors import AttnvizError
from attnviz.figures import curves
from attnviz.figures.sheets import SCALING
from attnviz.report.markup import Html, joined, line, table, tag
from attnviz.report.pictures import plot, tile
from attnviz.report.study import Study
from attnviz.report.terms import TERMS
from attnviz.runs import differing, flat, in_words


def ranking(study: Study) -> Html | None:
    """The table, the dot plot and the notes."""
    comparison = study.comparison
    if comparison is None:
        return _unranked(study)
    rows = comparison.of(study.primary)
    known = [name for name in WELL_KNOWN if name in comparison.metrics]
    others = list(dict.fromkeys([*known, *comparison.metrics]))
    others = [name for name in others if name != study.primary][:4]
    header = [
        "variant",
        "rank",
        metric_title(study.primary),
        f"{percent(comparison.confidence)} CI",
    ]
    header += [*map(metric_title, others), "accuracy", "seeds", "valid"]
    body: list[Any] = [_ranked(row, comparison, others) for _, row in rows.iterrows()]
    for level in LEVELS.values():
        spans = [span(comparison.of(metric)[level.key]) for metric in (study.primary, *others)]
        if any(spans):
            body.append(
                line([level.title, "", spans[0], "", *spans[1:], "", "", ""], class_="level")
            )
    alt = "; ".join(f"{r.variant} {number(r['mean'])} ({interval(r)})" for _, r in rows.iterrows())
    levels = "".join(
        f"; {level.title} {span(rows[level.key])}"
        for level in LEVELS.values()
        if span(rows[level.key])
    )
    dots = plot(
        lambda dark: comparison.figure(order=list(study.variants), dark=dark),
        f"{metric_title(study.primary)}: {alt}{levels}",
        "A large dot is a variant's mean, its line the interval, a small dot one training.",
    )
    notes = tag("ul", (tag("li", note) for note in comparison.notes), class_="soft")
    return joined([table(header, body, caption=_how(study)), dots, notes])


def metric_board(study: Study) -> Html | None:
    """Variants by several metrics: means with ranks; what is no better than chance is hatched."""
    if study.board is None or study.board["metric"].nunique() < 2:
        return None
    metrics = list(dict.fromkeys(study.board["metric"]))
    cells = study.board.set_index(["variant", "metric"])
    rows = [
        [variant, *(_board_cell(cells.loc[(variant, metric)]) for metric in metrics)]
        for variant in study.order
    ]
    header = ["variant", *map(short_title, metrics)]
    hatched = "; hatched: a mean no better than chance" if study.board["below"].any() else ""
    return table(header, rows, caption=f"Means over seeds and images, and ranks{hatched}")


def _board_cell(row: Any) -> Html | str:
    if not np.isfinite(row["mean"]):
        return "–"
    rank = ordinal(int(row["rank"]))
    said = f"{row['mean']:.3f} ({rank})"
    if not row["below"]:
        return said
    return tag("span", said, class_="hatched", title=f"no better than chance, {row['chance']:.3f}")


def _how(study: Study) -> str:
    comparison = study.comparison
    assert comparison is not None, "only called where there is a ranking"
    grouped = f" of {comparison.groups} groups" if comparison.groups else ""
    title = metric_title(study.primary)
    return f"Ranked by {title} on {comparison.images} images{grouped} with a marked {study.thing}"


def _ranked(row: Any, comparison: Any, others: Sequence[str]) -> list[str]:
    means = []
    for metric in others:
        rows = comparison.of(metric)
        means.append(number(rows[rows["variant"] == row["variant"]].iloc[0]["mean"]))
    head = [str(row["variant"]), str(row["rank"]), number(row["mean"]), interval(row)]
    valid = f"{row['valid']}/{row['n']}"
    return [*head, *means, number(row["accuracy"]), str(row["seeds"]), valid]


def _unranked(study: Study) -> Html:
    """Each run's own summary, side by side, without ranking."""
    rows = []
    for run in study.complete:
        name = str(run.summary.get("map"))
        score = ((run.summary.get("metrics") or {}).get(name) or {}).get(study.primary) or {}
        mean, accuracy = score.get("mean"), run.summary.get("accuracy")
        rows.append(
            [run.id, run.variant, str(run.dataset), _value_text(mean), _value_text(accuracy)],
        )
    header = ["run", "variant", "images", metric_title(study.primary), "accuracy"]
    return table(header, rows, caption="Each run on its own images: not to be ranked")


def differences(study: Study) -> Html | None:
    """Every pair on the primary metric, and the scores of correct and incorrect predictions."""
    if study.comparison is None:
        return None
    found = study.comparison.differences
    pairs = found[found["metric"] == study.primary]
    parts = []
    if len(pairs):
        header = ["variants", "difference", "CI", "clear", "p", "adjusted", "images", "seeds"]
        rows = [_pair(row) for _, row in pairs.iterrows()]
        parts.append(
            table(
                header,
                rows,
                caption=f"Differences, {metric_title(study.primary)}; adjusted for all pairs",
            )
        )
    split = study.comparison.split
    split = split[split["metric"] == study.primary]
    if len(split):
        header = ["variant", "correct answers", "scores", "wrong answers", "scores"]
        rows = [_split(row) for _, row in split.iterrows()]
        caption = f"{metric_title(study.primary).capitalize()} by whether the answer was correct"
        parts.append(table(header, rows, caption=caption))
    return joined(parts) if parts else None


def _pair(row: Any) -> list[str]:
    return [
        f"{row['variant']} over {row['other']}",
        with_sign(row["difference"]),
        interval(row, signed=True),
        "yes" if row["clear"] else "no",
        number(row["p"]),
        number(row["p_adjusted"]),
        str(row["images"]),
        str(row["seeds"]),
    ]


def _split(row: Any) -> list[str]:
    right, wrong = number(row["right"]), number(row["wrong"])
    return [str(row["variant"]), right, str(row["n_right"]), wrong, str(row["n_wrong"])]


def strip(study: Study) -> Html | None:
    """The same images in every variant, from the hardest to the easiest."""
    if study.comparison is None:
        return None
    samples = {variant: study.first(variant) for variant in study.drawn}
    stacked = np.stack([sample.scores for sample in samples.values()])
    scored = np.flatnonzero(np.isfinite(stacked).all(0))
    if not len(scored):
        return None
    by_mean = scored[np.argsort(stacked[:, scored].mean(0), kind="stable")]
    few = min(study.amount.images, len(by_mean))
    places = np.linspace(0, len(by_mean) - 1, few).round().astype(int)
    picked = [int(i) for i in by_mean[places]]
    cuts = next(iter(samples.values())).cuts(picked)
    maps = {variant: sample.maps(picked, cuts) for variant, sample in samples.items()}
    rows = []
    for k, index in enumerate(picked):
        alt = f"test image {index}, {study.thing} outlined"
        bare = tile(cuts[k], None, alt, f"#{index}", study.amount)
        cells = [tag("td", bare)]
        for variant, sample in samples.items():
            score = number(sample.scores[index])
            alt = f"{variant} on test image {index}: {metric_title(study.primary)} {score}"
            cells.append(tag("td", tile(cuts[k], maps[variant][k], alt, score, study.amount)))
        rows.append(tag("tr", cells))
    head = tag("tr", (tag("th", name, scope="col") for name in ["image", *samples]))
    description = (
        f"Below each tile its {metric_title(study.primary)}; first seed of each variant; images "
        "from the lowest to the highest mean over variants. "
        f"Raw maps, {SCALING}; box: the {study.thing}.{_left_out(study)}"
    )
    grid = tag("table", tag("caption", description), tag("thead", head), tag("tbody", rows))
    label = "the same images in every variant"
    return tag("div", grid, class_="wide strip", tabindex="0", role="group", aria_label=label)


def extremes(study: Study) -> Html | None:
    """The images that each variant is worst and best at."""
    parts: list[Html] = []
    for variant in study.drawn:
        try:
            parts += _extremes_of(variant, study)
        except AttnvizError as error:
            parts += [tag("h3", variant), fault(error)]
    if parts and (words := _left_out(study)):
        parts.append(tag("p", words.strip(), class_="soft"))
    return joined(parts) if parts else None


def _left_out(study: Study) -> str:
    """How many variants have no pictures, in words; nothing where all have."""
    others = len(study.order) - len(study.drawn)
    if not others:
        return ""
    return f" Left out, to keep this page small: the pictures of {others} more variants."


def _extremes_of(variant: str, study: Study) -> Iterable[Html]:
    sample, primary = study.first(variant), study.primary
    scored = np.flatnonzero(np.isfinite(sample.scores))
    order = [int(i) for i in scored[np.argsort(sample.scores[scored], kind="stable")]]
    if is_lower_better(primary):
        order.reverse()
    if not order:
        return
    few = min(study.amount.images, len(order))
    yield tag("h3", f"{variant}: ", tag("span", f"{sample.map}, {sample.run.id}", class_="soft"))
    ends = (("worst", order[:few]), ("best", order[::-1][:few]))
    yield tag("div", (_few(variant, study, *end) for end in ends), class_="pair")


def _few(variant: str, study: Study, what: str, picked: list[int]) -> Html:
    sample, primary = study.first(variant), study.primary
    cuts = sample.cuts(picked)
    maps, tiles = sample.maps(picked, cuts), []
    for k, index in enumerate(picked):
        score = number(sample.scores[index])
        answer = _judged(sample.table.iloc[index])
        alt = f"{variant}, {what} {k + 1}: test image {index}, {metric_title(primary)} {score}"
        alt, below = alt + answer, f"{score}, #{index}{answer}"
        tiles.append(tag("li", tile(cuts[k], maps[k], alt, below, study.amount)))
    return tag("div", tag("p", what.capitalize(), class_="soft"), tag("ul", tiles, class_="tiles"))


def _judged(row: Any) -> str:
    """Whether the image was answered rightly; nothing where that is not known."""
    known = row.get("correct")
    return "" if known is None or known != known else ", right" if known else ", wrong"


def training(study: Study) -> Html | None:
    """Training curves of the runs that have them."""
    kept = {variant: [run.curves() for run in runs] for variant, runs in study.variants.items()}
    known = {str(name) for tables in kept.values() for table in tables for name in table}
    wanted = ("train_loss", "val_loss", "val_accuracy", f"val_{study.primary}")
    shown = [name for name in wanted if name in known]
    if not shown or "epoch" not in known:
        return None
    ends = "; ".join(
        f"{variant} {metric_title(shown[-1])} {number(float(tables[0][shown[-1]].iloc[-1]))}"
        for variant, tables in kept.items()
        if tables and shown[-1] in tables[0]
    )
    return plot(
        lambda dark: curves(kept, shown, dark=dark),
        f"curves of {', '.join(map(metric_title, shown))}; last epoch: {ends}",
        "A line is the mean over seeds, its band reaches from the lowest to the highest.",
    )


def findings(study: Study) -> Html | None:
    """Findings of the diagnosis by severity; findings that several runs share are merged."""
    shared: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for run in study.complete:
        for finding in run.summary.get("findings") or ():
            if isinstance(finding, Mapping):
                key = tuple(str(finding.get(name, "")) for name in _FINDING)
                shared.setdefault(key, []).append((run.id, _evidence(finding.get("evidence"))))
    if not shared:
        return None
    worst_first = sorted(shared, key=lambda key: (_SEVERITIES.get(key[0], 3), key))
    header = ["severity", "finding", "where", "what it means and what to do", "seen in"]
    rows = [_found(key, shared[key]) for key in worst_first]
    return table(
        header, rows, caption=f"{len(rows)} kinds of findings in {len(study.complete)} runs"
    )


_FINDING = ("severity", "code", "where", "meaning", "remedy")
_SEVERITIES = {"error": 0, "warning": 1, "note": 2}


def _found(key: tuple[str, ...], seen: Sequence[tuple[str, str]]) -> list[Any]:
    severity, code, where, meaning, remedy = key
    by_evidence: dict[str, list[str]] = {}
    for run_id, evidence in seen:
        by_evidence.setdefault(evidence, []).append(run_id)
    places = (
        tag("p", ", ".join(run_ids), f": {evidence}" if evidence else "", class_="soft")
        for evidence, run_ids in by_evidence.items()
    )
    look = {"error": "bad", "warning": "warning"}.get(severity)
    return [
        tag("span", severity, class_=look),
        tag("code", code),
        tag("code", where),
        joined([tag("p", meaning), tag("p", remedy)]),
        joined(places),
    ]


def _evidence(evidence: Any) -> str:
    if not isinstance(evidence, Mapping):
        return "" if evidence is None else str(evidence)
    return ", ".join(
        f"{as_words(str(key))} {_value_text(value)}" for key, value in evidence.items()
    )


def settings(study: Study) -> Html | None:
    """The settings in which variants differ, and those that they share."""
    per_run = {run.id: run.settings for run in study.complete}
    odd = in_words(differing(per_run))
    rows = []
    for key, values in odd.items():
        cells = [
            ", ".join(dict.fromkeys(values[run.id] for run in runs))
            for runs in study.variants.values()
        ]
        rows.append([tag("code", key), *cells])
    parts = []
    if rows:
        parts.append(table(["setting", *study.variants], rows, caption="Settings that differ"))
    first = flat(study.complete[0].settings)
    shared = {key: value for key, value in first.items() if key not in odd}
    if shared:
        parts.append(_folded(f"{len(shared)} settings shared by all runs", shared))
    return joined(parts) if parts else None


def runs(study: Study) -> Html:
    """Every run and its state, the environment, the digest of the test images."""
    rows = [
        [run.id, run.variant or "–", str(run.seed), run.state, run.reason or "", _date(run)]
        for run in study.runs[: study.amount.runs]
    ]
    header = ["run", "variant", "seed", "state", "reason", "started (UTC)"]
    seen = {run.id: run.environment for run in study.complete}
    odd = in_words(differing(seen))
    shared = {
        key: value for key, value in flat(study.complete[0].environment).items() if key not in odd
    }
    shared |= {
        key: ", ".join(dict.fromkeys(values.values())) + " (differs between runs)"
        for key, values in odd.items()
    }
    shared["test images"] = ", ".join(dict.fromkeys(str(run.dataset) for run in study.complete))
    others = len(study.runs) - len(rows)
    caption = f"{len(rows)} runs" + (f"; {others} more are not listed" if others else "")
    listed = table(header, rows, caption=caption)
    return joined([listed, _folded("Environment", shared)])


def words(study: Study) -> Html:
    """Definitions of the terms in the tables."""
    shown = [study.primary] if study.comparison is None else study.comparison.metrics
    entries = []
    for metric in shown:
        if metric in DEFINITIONS:
            known = DEFINITIONS[metric]
            description = f"{known.meaning} {known.scale}. "
            entries.append((metric_title(metric), joined([description, tag("i", known.source)])))
    entries += [(term, joined([text])) for term, text in TERMS]
    entries += [(level.title, joined([level.meaning])) for level in LEVELS.values()]
    return tag("dl", ((tag("dt", name), tag("dd", text)) for name, text in entries))


def fault(error: AttnvizError) -> Html:
    """A notice in place of a part that could not be made."""
    return tag("p", f"cannot be shown: {error}", class_="bad")


def _folded(summary: str, values: Mapping[str, Any]) -> Html:
    pairs = ((tag("dt", tag("code", key)), tag("dd", _value_text(v))) for key, v in values.items())
    return tag("details", tag("summary", summary), tag("dl", pairs))


def _date(run: Any) -> str:
    return "–" if run.created is None else f"{run.created:%Y-%m-%d %H:%M}"


def _value_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
