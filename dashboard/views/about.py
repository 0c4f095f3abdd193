"""About this data: which images, what the numbers mean, and where they were made."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import map_names, patched
from attnviz.definitions import DEFINITIONS, LEVELS, metric_title
from attnviz.runs import differing, flat, in_words
from dashboard import notices, run_cache
from dashboard.address import plain
from dashboard.chosen_runs import Chosen, chosen
from dashboard.selection import metric_names, patch_sizes

PAGE = {"title": "About this data", "icon": ":material/info:", "order": 8}


def main() -> None:
    """The page."""
    st.title("About this data")
    choice = chosen()
    if choice is None:
        _metrics(list(DEFINITIONS))
        return
    _images(choice)
    run = choice.runs[0]
    table = notices.readable(lambda: run_cache.samples(run), run)
    if table is not None:
        used = [metric for name in map_names(table) for metric in metric_names(table, name)]
        _metrics(list(dict.fromkeys(used)))
    _environment(choice)


def _images(choice: Chosen) -> None:
    st.header("Test images")
    run = choice.runs[0]
    if not run.dataset:
        st.caption("The runs name no test images.")
        return
    st.markdown("Digest (of the pixels, masks, boxes and labels; equal digests are equal images):")
    st.code(choice.digest, language=None, wrap_lines=True)
    info = notices.readable(lambda: run_cache.dataset_info(choice.listing.root, choice.digest), run)
    table = notices.readable(lambda: run_cache.samples(run), run)
    facts: dict[str, Any] = {}
    if table is not None:
        sizes = sorted({int(size) for size in patch_sizes(table) if size})
        facts |= {"images": len(table), "with a patch": int(patched(table).sum())}
        facts |= {"patch sizes in pixels": ", ".join(map(str, sizes)) or "none"}
    facts |= flat(info or {})
    _pairs(facts, "Test images")


def _pairs(facts: dict[str, Any], alt: str) -> None:
    rows = pd.DataFrame({"what": list(facts), "value": [str(value) for value in facts.values()]})
    words = "; ".join(f"{key} {value}" for key, value in list(facts.items())[:12])
    whole = 38 + 35 * len(rows)  # all rows: a table of facts is not scrolled
    st.dataframe(rows, hide_index=True, height=whole, alt=f"{alt}: {words}")


def _metrics(used: list[str]) -> None:
    st.header("What the numbers mean")
    for key in used:
        known = DEFINITIONS.get(key)
        if known is None:
            st.markdown(f"- **{plain(metric_title(key))}**: a metric without a definition.")
        else:
            st.markdown(f"- **{known.title}**. {known.meaning} {known.scale}. *{known.source}.*")
    st.caption(
        "Only images with a patch count; one that cannot be scored is left out and counted. "
        "Intervals are of 95 %, over seeds and groups of images, or images where no group is "
        "known; with one seed they speak of the images alone. Thresholds were chosen on validation "
        "images."
    )
    st.markdown("Levels that stand beside a score:")
    st.markdown("\n".join(f"- **{one.title}**. {one.meaning}" for one in LEVELS.values()))


def _environment(choice: Chosen) -> None:
    st.header("Environment")
    environments = {run.id: run.environment for run in choice.runs}
    odd = in_words(differing(environments))
    first = flat(choice.runs[0].environment)
    shared = {key: value for key, value in first.items() if key not in odd}
    if shared:
        _pairs(shared, "Environment of all runs")
    if odd:
        st.markdown("In these the runs differ:")
        rows = [
            {"what": key, "value": value, "runs": len(runs), "such as": ", ".join(runs[:3])}
            for key, values in sorted(odd.items())
            for value, runs in _by_value(values).items()
        ]
        st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            alt=f"{len(odd)} facts in which the runs' environments differ",
        )
    if not shared and not odd:
        st.caption("The runs say nothing about where they were made.")


def _by_value(values: dict[str, str]) -> dict[str, list[str]]:
    """Which runs say what about one fact, the value that most have first."""
    found: dict[str, list[str]] = {}
    for run, value in values.items():
        found.setdefault(value, []).append(run)
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


main()
