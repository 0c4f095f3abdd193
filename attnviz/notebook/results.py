"""What every result looks like in a notebook: words, tables and pictures, light and dark.

One function per kind of result. Text takes the page's own colours; figures are drawn once for a
light and once for a dark page, and the notebook's theme chooses. Text is escaped by `tag`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from PIL import Image

from attnviz.capture import Capture, Record
from attnviz.comparison.comparison import Comparison
from attnviz.diagnosis import RULES
from attnviz.diagnosis.findings import Finding, Findings
from attnviz.errors import AttnvizError
from attnviz.evaluation.result import Evaluation
from attnviz.figures import coloured, curves, enlarged, png_bytes
from attnviz.maps import DrawnMaps, drawings, maps_of
from attnviz.metrics.reference_levels import baselines
from attnviz.metrics.score_table import ScoreTable
from attnviz.report.markup import Html, raw, table, tag
from attnviz.runs import Run
from attnviz.runs.reader import RunList

MOST = 48
"""Records, maps or runs that are drawn; of more the rest is counted."""

_THUMBNAIL = 96  # pixels on the larger side
_DARK = (
    '[data-jp-theme-light="false"]', ".vscode-dark", ".vscode-high-contrast", "html[theme=dark]",
    ".dark", ".dark-theme",
)  # fmt: skip
_LIGHT = ('[data-jp-theme-light="true"]', ".vscode-light", "html[theme=light]", ".light")
_STYLE = "".join(
    [
        ".attnviz table { border-collapse: collapse; font-variant-numeric: tabular-nums; }",
        ".attnviz th, .attnviz td { text-align: left; padding: .25rem .8rem .25rem 0; ",
        "border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); ",
        "color: inherit; background: none; vertical-align: top; }",
        ".attnviz caption { text-align: left; padding: .2rem 0 .4rem; color: inherit; }",
        ".attnviz td.n, .attnviz th.n { text-align: right; }",
        ".attnviz ul { list-style: none; display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; }",
        ".attnviz figure { margin: 0; max-width: 9rem; font-size: .8rem; ",
        "overflow-wrap: anywhere; }",
        ".attnviz figure.plot { max-width: none; } .attnviz img { max-width: 100%; }",
        ".attnviz .night { display: none; }",
        "@media (prefers-color-scheme: dark) { .attnviz .night { display: block; } ",
        ".attnviz .day { display: none; } }",
        *(f"{theme} .attnviz .night {{ display: block; }} {theme} .attnviz .day "
          "{ display: none; } " for theme in _DARK),
        *(f"{theme} .attnviz .night {{ display: none; }} {theme} .attnviz .day "
          "{ display: block; } " for theme in _LIGHT),
    ]
)  # fmt: skip


def html_of(result: Any) -> str:
    """A result as HTML, with its style."""
    return str(tag("div", tag("style", raw(_STYLE)), _content(result), class_="attnviz"))


@singledispatch
def _content(result: Any) -> Html:
    """What is printed, as it is, for results without pictures."""
    return tag("pre", repr(result))


@_content.register
def _of_capture(seen: Capture) -> Html:
    rows = [
        (name, one.kind, "×".join(map(str, one.shape)) or "–", one.axis or "–", one.how, one.source)
        for name, one in seen.items()
    ]
    words = f"{len(seen.attention)} attention, {len(seen.gates)} gates"
    if seen.unused:
        words += f", {len(seen.unused)} computed and not applied"
    head = ("name", "kind", "shape", "axis", "how", "source")
    return tag("div", _tiles(_thumbnails(seen)), table(head, rows, caption=words))


@_content.register
def _of_record(record: Record) -> Html:
    return tag("div", _tiles(_thumbnails({record.name: record})), tag("pre", repr(record)))


@_content.register
def _of_maps(drawn: DrawnMaps) -> Html:
    tiles = [
        _thumbnail(one[0].detach().cpu().float().numpy(), f"{name}, image 0",
                   str(drawn.drawings[name].construction))
        for name, one in list(drawn.items())[:MOST]
    ]  # fmt: skip
    missing = [tag("p", f"no {name}: {reason}") for name, reason in drawn.left_out.items()]
    return tag("div", _tiles(tiles), missing, _rest(len(drawn)))


@_content.register
def _of_scores(scores: ScoreTable) -> Html:
    chance = _chance(scores)
    tau = scores.thresholds
    head = ["metric", "mean", "95 % interval", *(["chance"] if chance else []), "scored"]
    head += ["τ"] if tau else []
    rows = []
    for key, row in scores.summary().items():
        ends = f"{row['low']:.4f} to {row['high']:.4f}" if row["low"] == row["low"] else "–"
        line = [key, _number(row["mean"]), ends]
        line += [_number(chance.get(key))] if chance else []
        line += [f"{row['valid']} of {row['n']}"]
        rows.append(line + ([_number(tau.get(key))] if tau else []))
    reasons = [tag("p", line) for line in scores.missing()]
    return tag("div", table(head, rows, caption="Scores, means over the images"), reasons)


def _chance(scores: ScoreTable) -> dict[str, float]:
    """A map without information under the same masks; empty where these are not known."""
    if scores.masks is None:
        return {}
    try:
        found = baselines(scores.masks[:256], metrics=list(scores), threshold=scores.thresholds)
    except AttnvizError:  # no mask of these images shows anything, or it has more axes than two
        return {}
    return {key: levels["chance"] for key, levels in found.items() if "chance" in levels}


@_content.register
def _of_findings(findings: Findings) -> Html:
    said = [tag("p", tag("strong", findings.headline))]
    said += [tag("p", f"not examined: {reason}") for reason in findings.unexamined]
    return tag("div", said, _findings(findings) if len(findings) else None)


@_content.register
def _of_finding(finding: Finding) -> Html:
    return _findings([finding])


def _findings(findings: Iterable[Finding]) -> Html:
    rows = [
        (
            one.severity,
            tag("code", one.code),
            tag("code", one.where),
            tag("div", one.meaning, tag("br"), "Remedy: ", one.remedy),
            ", ".join(f"{name} {_number(value)}" for name, value in one.evidence.items()),
            _page(one),
        )
        for one in findings
    ]
    head = ("severity", "finding", "where", "meaning and remedy", "evidence", "page")
    return table(head, rows, caption=f"{len(rows)} findings")


def _page(finding: Finding) -> Html:
    """The page of a finding: a link to one on the web, else what the package says, to unfold.

    A path of the repository would lead nowhere from a notebook.
    """
    if finding.page.startswith(("https://", "http://")):
        return tag("a", finding.page.rstrip("/").rpartition("/")[2], href=finding.page)
    rule = RULES.get(finding.code)
    if rule is None:
        return raw("")
    evidence = "; ".join(f"{name}: {words}" for name, words in rule.evidence.items())
    parts = {
        "Evidence": evidence, "As a heatmap": rule.appearance, "Why it happens": rule.cause,
        "How it is found": rule.method,
    }  # fmt: skip
    told = [tag("p", tag("strong", f"{head}: "), words) for head, words in parts.items() if words]
    return tag("details", tag("summary", finding.code), tag("p", rule.summary), told)


@_content.register
def _of_evaluation(result: Evaluation) -> Html:
    figure = _plot(lambda dark: result.figure(dark=dark), f"Scores of the maps of {result.variant}")
    return tag("div", figure, tag("pre", str(result)))


@_content.register
def _of_comparison(comparison: Comparison) -> Html:
    figure = _plot(lambda dark: comparison.figure(dark=dark), comparison.sentence)
    return tag("div", tag("p", tag("strong", comparison.sentence)), figure,
               tag("pre", repr(comparison)))  # fmt: skip


@_content.register
def _of_run(run: Run) -> Html:
    """A run's header, and its curves where it has some."""
    facts: dict[str, Any] = {
        "state": f"{run.state} {run.reason}".strip(),
        "variant": run.variant,
        "seed": run.seed,
    }
    missing = run.summary.get("not_measured")
    if isinstance(missing, Mapping):
        facts |= {f"{name} not measured": why for name, why in missing.items()}
    facts |= {"created": run.created, "maps": ", ".join(run.map_names[:12]) or "–"}
    metrics = run.summary.get("metrics")
    scores = [
        (name, key, *(_number(row.get(part)) for part in ("mean", "low", "high", "chance")))
        for name, by_metric in (metrics.items() if isinstance(metrics, Mapping) else ())
        if isinstance(by_metric, Mapping)
        for key, row in by_metric.items()
        if isinstance(row, Mapping)
    ]
    head = ("map", "metric", "mean", "low", "high", "chance")
    return tag(
        "div",
        table((run.id, ""), [(k, str(v)) for k, v in facts.items()], caption=f"Run {run.id}"),
        _curves(run),
        table(head, scores[:MOST], caption="Scores") if scores else None,
    )


def _curves(run: Run) -> Html | None:
    try:
        found = run.curves()
    except AttnvizError as error:
        return tag("p", str(error))
    known = [name for name in ("train_loss", "val_loss", "val_energy_pointing_game", "val_accuracy")
             if name in found and found[name].notna().any()]  # fmt: skip
    if "epoch" not in found or not known:
        return None
    return _plot(lambda dark: curves({run.variant: [found]}, known, dark=dark),
                 f"Curves of run {run.id}: {', '.join(known)}")  # fmt: skip


@_content.register
def _of_runs(runs: RunList) -> Html:
    rows = [(one.id, one.state, one.variant, one.seed, one.reason) for one in runs[:MOST]]
    head = ("run", "state", "variant", "seed", "")
    return tag("div", table(head, rows, caption=f"{len(runs)} runs in {runs.where}"),
               _rest(len(runs)))  # fmt: skip


def _thumbnails(records: Mapping[str, Record]) -> list[Html]:
    """The first image's map of each record, or why there is none."""
    tiles = []
    for name, record in list(records.items())[:MOST]:
        found = drawings({name: record})
        if not found:
            tiles.append(tag("figure", tag("figcaption", f"{name}: no map of this record")))
            continue
        drawn = maps_of({name: record}, [found[0].construction.key])
        if not len(drawn):
            reason = next(iter(drawn.left_out.values()), "no map")
            tiles.append(tag("figure", tag("figcaption", f"{name}: {reason}")))
            continue
        one = next(iter(drawn.values()))[0].detach().cpu().float().numpy()
        title = found[0].construction.title
        tiles.append(_thumbnail(one, f"{name}, {title}, image 0", f"{name}: {title}"))
    return [*tiles, *([_rest(len(records))] if len(records) > MOST else [])]


def _thumbnail(map_: np.ndarray, alt: str, words: str) -> Html:
    scale = max(1, round(_THUMBNAIL / max(map_.shape)))
    picture = enlarged(coloured(np.nan_to_num(map_)), scale)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    most = f"0 to {float(np.nanmax(map_)):.3g}" if np.isfinite(map_).any() else "not finite"
    image = tag("img", src=_uri(buffer.getvalue()), alt=f"{alt}: {most}", title=most)
    return tag("figure", image, tag("figcaption", f"{words}, {most}"))


def _tiles(tiles: Sequence[Html]) -> Html:
    return tag("ul", (tag("li", one) for one in tiles))


def _rest(count: int) -> Html:
    return tag("p", f"and {count - MOST} more") if count > MOST else raw("")


def _plot(draw: Callable[[bool], Any], alt: str) -> Html:
    """A figure for a light and one for a dark page; the notebook's theme shows one of them."""
    day, night = (
        tag("img", src=_uri(png_bytes(draw(dark), dpi=100)), alt=alt,
            class_="night" if dark else "day")
        for dark in (False, True)
    )  # fmt: skip
    return tag("figure", day, night, class_="plot")


def _uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _number(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return str(value) if isinstance(value, int | str) else f"{value:.4g}"
