"""About this data: which images, what the numbers mean, and where they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from attnviz.comparison.from_runs import grouping_of, map_names, patched
from attnviz.comparison.ranking import FEW_GROUPS
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
        facts |= {"images": len(table), f"with a marked {run.thing}": int(patched(table).sum())}
        facts |= {f"sizes of the {run.thing} in pixels": ", ".join(map(str, sizes)) or "none"}
        named = grouping_of(table)
        facts["groups of images"] = len(set(named)) if named else "not named"
    told = dict(info or {})
    photographs = told.pop("photographs", None)
    facts |= flat(told)
    _pairs(facts, "Test images")
    if table is not None:
        _groups(grouping_of(table))
    if isinstance(photographs, Mapping):
        _photographs(photographs)


def _groups(named: tuple[Any, ...] | None) -> None:
    """What few groups, or none, mean for the intervals."""
    if named is None:
        st.caption(
            "No groups are named: intervals take every image for independent of the others. "
            "Images of one photograph, patient or video are not."
        )
        return
    groups = len(set(named))
    if groups < FEW_GROUPS:
        s = "" if groups == 1 else "s"
        st.info(
            f"{groups} group{s} of images: expected at least {FEW_GROUPS} for an interval that "
            "says much of other groups.",
            icon=":material/info:",
        )


def _photographs(photographs: Mapping[str, Any]) -> None:
    """The photographs of each split, by name."""
    rows = [
        {"split": str(split), "photograph": str(name), "about": str(about)}
        for split, found in photographs.items()
        if isinstance(found, Mapping)
        for name, about in found.items()
    ]
    if not rows:
        return
    st.subheader("Photographs")
    words = "; ".join(f"{row['split']}: {row['photograph']}" for row in rows)
    table = pd.DataFrame(rows)
    st.dataframe(table, hide_index=True, height=38 + 35 * len(rows), alt=f"Photographs: {words}")


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
        "Only images with a marked object count; one that cannot be scored is left out and "
        "counted. Intervals are of 95 %, over seeds and groups of images, or images where no group "
        "is known; with one seed they speak of the images alone."
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
    """Values of one fact with the runs that have them, the most common value first."""
    found: dict[str, list[str]] = {}
    for run, value in values.items():
        found.setdefault(value, []).append(run)
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


main()
