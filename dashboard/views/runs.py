"""Runs: the folder's runs, their states and reasons, and differences of chosen runs."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from attnviz.runs import STATES
from dashboard import notices
from dashboard.address import plain, several
from dashboard.chosen_runs import listed
from dashboard.cohorts import differences, matching, question, question_in_words
from dashboard.controls import chooser, go, typed, value_or_warning
from dashboard.summaries import level

PAGE = {"title": "Runs", "icon": ":material/table_rows:", "order": 6}


def main() -> None:
    """The page."""
    st.title("Runs")
    listing = listed()
    if listing is None:
        return
    wanted = value_or_warning(several(st.query_params, "runs", [run.id for run in listing.runs]))
    left, right = st.columns([3, 1])
    with left:
        words = typed("Filter", "q", "variant, id, setting=value …")
    with right:
        there = [state for state in STATES if listing.of(state)]
        states = {"all": f"all {len(listing.runs)}"} | {
            state: f"{notices.state_in_words(state)} ({len(listing.of(state))})" for state in there
        }
        state = chooser("State", "state", states, "all")
    shown = [
        run
        for run in listing.runs
        if (state == "all" or run.state == state) and matching(run, words)
    ]
    if listing.left_out:
        names = ", ".join(f"`{plain(name)}`" for name in list(listing.left_out)[:5])
        count = len(listing.left_out)
        counted = (
            "1 folder holds no run.json" if count == 1 else f"{count} folders hold no run.json"
        )
        st.caption(f"{counted}, left out: {names}.")
    if not shown:
        st.info("No run passes this filter.", icon=":material/filter_alt_off:")
        return
    chosen = _table(shown, wanted)
    _faults(shown)
    _chosen(chosen)


def _table(shown: list[Any], wanted: list[str]) -> list[Any]:
    """The table; what is ticked in it."""
    rows = pd.DataFrame([_row(run) for run in shown])
    if not rows["why"].any():
        rows = rows.drop(columns="why")
    ticked = [i for i, run in enumerate(shown) if run.id in wanted]
    event = st.dataframe(
        rows,
        hide_index=True,
        key="runs_table",
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": ticked}},
        height=min(38 + 35 * len(rows), 560),
        column_config={
            "why": st.column_config.TextColumn(width=130),
            "accuracy": st.column_config.NumberColumn(format="%.3f"),
            "energy": st.column_config.NumberColumn(
                format="%.3f", help="Mean energy pointing game of the primary map"
            ),
            "seconds": st.column_config.NumberColumn(format="%.0f"),
            "data": st.column_config.TextColumn(help="Digest of the test images"),
            "started": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
        alt=f"{len(rows)} runs with state, reason, seed, accuracy and score",
    )
    count = f"{len(rows)} run{'s' if len(rows) > 1 else ''}"
    st.caption(f"{count}. Tick two or more to see what tells them apart.")
    return [shown[i] for i in event.selection.rows if i < len(shown)]


def _row(run: Any) -> dict[str, Any]:
    summary = run.summary
    epoch = run.progress.get("epoch")
    return {
        "run": run.id,
        "variant": run.variant,
        "seed": run.seed,
        "question": question_in_words(question(run)),
        "state": notices.state_in_words(run.state),
        "why": run.reason or (f"epoch {epoch}" if run.state == "running" and epoch else ""),
        "accuracy": summary.get("accuracy"),
        "energy": level(run, summary.get("map"), "energy_pointing_game", "mean"),
        "seconds": summary.get("seconds"),
        "data": (run.dataset or "")[:8],
        "started": run.created,
    }


def _faults(shown: list[Any]) -> None:
    broken = [run for run in shown if run.state == "broken"]
    if broken:
        st.markdown(f"{len(broken)} of these are broken. What is wrong, file by file:")
        notices.verify(broken[0])


def _chosen(chosen: list[Any]) -> None:
    if len(chosen) < 2:
        return
    st.header(f"What tells these {len(chosen)} runs apart")
    table = differences(chosen)
    if table.empty:
        st.caption("Nothing: their settings are the same.")
    else:
        st.dataframe(table, alt=f"{len(table)} settings in which the chosen runs differ")
    if st.button("Compare these", type="primary", icon=":material/leaderboard:"):
        go("compare", runs=",".join(run.id for run in chosen))


main()
