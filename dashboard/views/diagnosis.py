"""Diagnosis: findings about each run's attention, with evidence and remedies."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import charts
from dashboard.address import plain, quoted
from dashboard.chosen_runs import Chosen, chosen, limited
from dashboard.controls import chooser, draw, offer
from dashboard.notices import command
from dashboard.summaries import knockouts

PAGE = {"title": "Diagnosis", "icon": ":material/troubleshoot:", "order": 4}

_SEVERITIES = ("error", "warning", "note")
_ICONS = {"error": ":material/error:", "warning": ":material/warning:", "note": ":material/info:"}


def main() -> None:
    """The page."""
    st.title("Diagnosis")
    choice = chosen()
    if choice is None:
        return
    choice = limited(choice)
    findings, unasked = _findings(choice)
    _sentence(findings, len(choice.runs) - len(unasked))
    if findings:
        shown = _filtered(findings)
        for severity in _SEVERITIES:
            _group(severity, [one for one in shown if one["severity"] == severity])
        table = pd.DataFrame(
            [{**one, "evidence": _evidence(one["evidence"])} for one in shown], dtype=str
        )
        offer(
            "Findings as CSV",
            lambda: table.to_csv(index=False).encode(),
            "findings.csv",
            "text/csv",
            key="csv",
        )
    _knockouts(choice)
    if unasked:
        names = ", ".join(f"`{run.id}`" for run in unasked[:8])
        more = f" and {len(unasked) - 8} more" if len(unasked) > 8 else ""
        st.info(f"Not examined yet: {names}{more}.", icon=":material/stethoscope:")
        command(f"attnviz doctor {quote(unasked[0].location)}")


def _findings(choice: Chosen) -> tuple[list[dict[str, Any]], list[Any]]:
    """All findings, each with its run; and the runs that were not diagnosed."""
    found: list[dict[str, Any]] = []
    unasked = []
    for run in choice.runs:
        kept = run.summary.get("findings")
        if not isinstance(kept, list):
            unasked.append(run)
            continue
        for one in kept:
            if isinstance(one, Mapping):
                found.append(_whole(one, run))
    return found, unasked


def _whole(one: Mapping[str, Any], run: Any) -> dict[str, Any]:
    """A finding with every field, whatever its writer left out."""
    severity = one.get("severity")
    texts = {name: str(one.get(name, "")) for name in ("code", "where", "meaning", "remedy")}
    return {
        "run": run.id,
        "variant": run.variant,
        "severity": severity if severity in _SEVERITIES else "note",
        "evidence": one.get("evidence", {}),
        **texts,
    }


def _sentence(findings: list[dict[str, Any]], examined: int) -> None:
    if not examined:
        return
    counts = [
        f"{n} {severity}{'s' if n > 1 else ''}"
        for severity in _SEVERITIES
        if (n := sum(one["severity"] == severity for one in findings))
    ]
    if counts:
        st.header(f"{', '.join(counts)} in {_runs(examined)}")
    else:
        st.header(f"Nothing wrong was found in {_runs(examined)}")


def _runs(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"


def _filtered(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left, right = st.columns(2)
    names = {"all": "all variants"} | {one["variant"]: one["variant"] for one in findings}
    codes = {"all": "all findings"} | {one["code"]: one["code"] for one in findings}
    with left:
        variant = chooser("Variant", "variant", names, "all")
    with right:
        code = chooser("Finding", "code", codes, "all")
    return [
        one
        for one in findings
        if variant in ("all", one["variant"]) and code in ("all", one["code"])
    ]


def _group(severity: str, findings: list[dict[str, Any]]) -> None:
    """The findings of one severity; the same fault of a variant is listed once."""
    merged: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in findings:
        key = (one["variant"], one["code"], one["where"], one["remedy"])
        merged.setdefault(key, []).append(one)
    for (variant, code, where, remedy), same in merged.items():
        with st.container(border=True):
            st.markdown(
                f"{_ICONS[severity]} **{severity}: {plain(code)}** · {plain(variant)}, "
                f"{quoted(where)}" + (f", {len(same)} runs" if len(same) > 1 else "")
            )
            _finding(same)
            if remedy:
                st.markdown(f"**What to do:** {plain(remedy)}")


def _finding(same: list[dict[str, Any]]) -> None:
    """A finding's text, its runs, and each run's own numbers."""
    meaning = plain(same[0]["meaning"])
    if len({one["meaning"] for one in same}) > 1:
        meaning += f" (so in {quoted(same[0]['run'])}; each run's own numbers follow)"
    lines = [meaning, ""]
    for one in same:
        described = plain(_evidence(one["evidence"]))
        lines.append(f"- {quoted(one['run'])}" + (f": {described}" if described else ""))
    st.markdown("\n".join(lines))


def _knockouts(choice: Chosen) -> None:
    """Knockout effects of each head and gate of a run, where measured."""
    cuts = {run.id: found for run in choice.runs if len(found := knockouts(run))}
    if not cuts:
        return
    st.header("What each head and gate is worth")
    names = {run.id: f"{run.variant}, {run.id}" for run in choice.runs if run.id in cuts}
    data = cuts[chooser("Run", "knockout", names, next(iter(cuts)))]
    described = "; ".join(
        f"{one.what} {one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
        for one in data.itertuples()
    )
    draw(
        charts.intervals, data, alt=f"Change of the output by knockout: {described}",
        row="what", order=list(data["what"]), tint="clear", title="change of the logit",
    )  # fmt: skip
    st.caption(
        "A head is made uniform or zeroed, or a gate opened, one at a time: the mean change over "
        f"{data['images'].max()} test images, 95 % intervals over images, of this training alone. "
        "A striking map is not what the network goes by where its knockout changes nothing."
    )


def _evidence(evidence: Any) -> str:
    if not isinstance(evidence, Mapping):
        return str(evidence)
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in evidence.items()
    )


main()
