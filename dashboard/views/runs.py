"""Runs: the folder's runs, chosen by id; groups, names, tags, and what tells chosen runs apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from attnviz.comparison.cohorts import differences, matching
from attnviz.errors import AttnvizError
from attnviz.runs import STATES, delete_run, note_run, rename_run, restore_run
from dashboard import notices, run_cache, run_table
from dashboard.address import one_of, plain, quoted, several, whole
from dashboard.chosen_runs import bar, listed
from dashboard.controls import (
    changes_allowed,
    chooser,
    go,
    many,
    root,
    stepper,
    typed,
    value_or_warning,
)
from dashboard.query import params, put
from dashboard.run_table import PER_PAGE, Field
from dashboard.table import Event, table

PAGE = {"title": "Runs", "icon": ":material/table_rows:", "order": 6}

_DELETED = "runs_deleted"  # where the session keeps what can be undone
_RENAMED = "runs_renamed"
_ASKED = "runs_asked"


def main() -> None:
    """The page."""
    st.title("Runs")
    _undo()
    listing = listed()
    if listing is None:
        return
    wanted = value_or_warning(several(params(), "runs", listing.by_id))
    chosen = [run for run in map(listing.find, wanted) if run is not None]
    if chosen:
        bar(listing, chosen, picked=True)
    _strays(listing)
    shown = _filtered(listing)
    if not shown:
        st.info("No run passes this filter.", icon=":material/filter_alt_off:")
        return
    notes = notices.readable(lambda: run_cache.notes(listing.root)) or run_cache.NO_NOTES
    known = run_table.fields(notes, run_cache.settings_that_differ(listing))
    _table(shown, chosen, known)
    _faults(shown)
    _chosen(listing, chosen, notes)


def _strays(listing: run_cache.Listing) -> None:
    if not listing.left_out:
        return
    names = ", ".join(quoted(name) for name in list(listing.left_out)[:5])
    count = len(listing.left_out)
    counted = "1 folder holds no run.json" if count == 1 else f"{count} folders hold no run.json"
    st.caption(f"{counted}, left out: {names}.")


def _filtered(listing: run_cache.Listing) -> list[Any]:
    left, right = st.columns([3, 1])
    with left:
        words = typed("Filter", "q", "variant, id, setting=value …")
    with right:
        there = [state for state in STATES if listing.of(state)]
        states = {"all": f"all {len(listing.runs)}"} | {
            state: f"{notices.state_in_words(state)} ({len(listing.of(state))})" for state in there
        }
        state = chooser("State", "state", states, "all", forget=("page",))
    return [
        run
        for run in listing.runs
        if (state == "all" or run.state == state) and (not words or matching(run, words))
    ]


def _table(shown: list[Any], chosen: list[Any], known: dict[str, Field]) -> None:
    """The table, a page of it; ticks go into the address by id."""
    left, right = st.columns([1, 3])
    with left:
        groups = {"none": "one row per run"} | {
            key: f"by {one.label}" for key, one in known.items()
            if key in ("variant", "seed", "question", "state", "data") or "setting." in key
        }  # fmt: skip
        by = chooser("Rows", "group", groups, "none", forget=("page",))
    ids = {run.id for run in chosen}
    if by != "none":
        _groups(shown, chosen, ids, known[by])
        return
    with right:
        usual = [key for key in run_table.DEFAULT if _any(shown, known[key], key)]
        words = {key: one.label for key, one in known.items()}
        picked = many("Columns", "columns", words, default=usual)
    columns = {key: known[key] for key in picked}
    sort = value_or_warning(one_of(params(), "sort", ["run", *known], "run"))
    down = params().get("desc") == "1"
    key = known[sort].of if sort in known else lambda run: run.id
    ordered = run_table.in_order(shown, key, down=down)
    page = _page(len(ordered))
    here = ordered[page * PER_PAGE : (page + 1) * PER_PAGE]
    event = table(
        run_table.columns_of(columns, sort, down=down),
        run_table.rows_of(here, columns, ids, chosen),
        label=f"{len(ordered)} runs, {len(here)} on this page", key="runs", ticks=True, opens=True,
    )  # fmt: skip
    _happened(event, {run.id: [run] for run in here}, ids, sort, down)
    _counted(len(shown))


def _any(shown: Sequence[Any], one: Field, key: str) -> bool:
    """Whether a column has anything to show; the reasons only where there are any."""
    return key != "why" or any(one.of(run) for run in shown)


def _groups(shown: list[Any], chosen: list[Any], ids: set[str], by: Field) -> None:
    groups = run_table.grouped(shown, by.of)
    page = _page(len(groups))
    names = list(groups)[page * PER_PAGE : (page + 1) * PER_PAGE]
    here = {name: groups[name] for name in names}
    event = table(
        run_table.group_columns(by.label), run_table.group_rows(here, ids, chosen),
        label=f"{len(groups)} groups of runs by {by.label}", key="groups", ticks=True,
    )  # fmt: skip
    _happened(event, here, ids, "run", False)
    _counted(len(shown))


def _counted(n: int) -> None:
    st.caption(
        f"{n} run{'s' if n > 1 else ''}. Tick two or more to see what tells them apart. What "
        "cannot be ranked with the ticked ones is grey; its box says why."
    )


def _page(count: int) -> int:
    last = max(0, (count - 1) // PER_PAGE)
    page = value_or_warning(whole(params(), "page", 1, last + 1, 1)) - 1
    if last:
        stepper(
            "page", page if page else None, page + 2 if page < last else None,
            f"page **{page + 1}** of {last + 1}",
        )  # fmt: skip
    return page


def _happened(
    event: Event, rows: dict[str, list[Any]], ids: set[str], sort: str, down: bool
) -> None:
    """Put what the reader did into the address."""
    if event.opened:
        run = rows[event.opened][0]
        page = "gallery" if run.state == "complete" else "training"
        go(page, run=run.id)
    if event.sorted:
        put({"sort": event.sorted, "desc": "1" if event.sorted == sort and not down else "0"})
        st.rerun()
    if event.ticked is not None:
        shown = {run.id for key in event.shown for run in rows.get(key, ())}
        on = {
            run.id for key in event.ticked for run in rows.get(key, ()) if run.state == "complete"
        }
        wanted = sorted((ids - shown) | on)
        put({"runs": ",".join(wanted) or None})
        st.rerun()


def _faults(shown: list[Any]) -> None:
    broken = [run for run in shown if run.state == "broken"]
    if broken:
        st.markdown(f"{len(broken)} of these are broken. What is wrong, file by file:")
        notices.verify(broken[0])


def _chosen(listing: run_cache.Listing, chosen: list[Any], notes: Any) -> None:
    if not chosen:
        return
    if len(chosen) > 1:
        _apart(chosen)
    if changes_allowed(listing.root):
        _changes(listing, chosen, notes)


def _apart(chosen: list[Any]) -> None:
    st.header(f"What tells these {len(chosen)} runs apart")
    odd = differences(chosen)
    if odd.empty:
        st.caption("Nothing: their settings are the same.")
    elif len(chosen) > 12:
        told = odd.apply(lambda row: ", ".join(list(dict.fromkeys(row))[:12]), axis=1)
        st.dataframe(told.rename("values"), alt=f"{len(odd)} settings in which the runs differ")
    else:
        st.dataframe(odd, alt=f"{len(odd)} settings in which the chosen runs differ")
    if st.button("Compare these", type="primary", icon=":material/leaderboard:"):
        go("compare", runs=",".join(run.id for run in chosen))


def _changes(listing: run_cache.Listing, chosen: list[Any], notes: Any) -> None:
    """Tags and a note, another name, deletion with a question."""
    with st.expander(f"Change {_named(chosen)}"):
        first = notes.runs.get(chosen[0].id)
        with st.form("tags", border=False):
            tags = st.text_input(
                "Tags, separated by commas", ", ".join(first.tags) if first else "",
                key=f"tags_{chosen[0].id}",
            )  # fmt: skip
            note = st.text_area("Note", first.note if first else "", key=f"note_{chosen[0].id}")
            if st.form_submit_button("Keep tags and note"):
                _note(listing.root, chosen, tags, note)
        if len(chosen) == 1:
            _rename(listing.root, chosen[0])
        _delete(listing.root, chosen)


def _named(runs: Sequence[Any]) -> str:
    return plain(runs[0].id) if len(runs) == 1 else f"{len(runs)} runs"


def _note(folder: str, chosen: list[Any], tags: str, note: str) -> None:
    for run in chosen:
        done = notices.readable(lambda run=run: note_run(folder, run.id, tags=tags.split(","),
                                                         note=note))  # fmt: skip
        if done is None:
            return
    st.rerun()


def _rename(folder: str, run: Any) -> None:
    with st.form("rename", border=False):
        name = st.text_input("Name", run.id, key=f"name_{run.id}")
        if st.form_submit_button("Rename") and name != run.id:
            try:
                rename_run(folder, run.id, name)
            except AttnvizError as error:
                notices.broken(error)
                return
            st.session_state[_RENAMED] = (run.id, name)
            run_cache.listing(folder, newest=True)
            put({"runs": name})
            st.rerun()


def _delete(folder: str, chosen: list[Any]) -> None:
    ids = tuple(run.id for run in chosen)
    if st.session_state.get(_ASKED) != ids:
        if st.button(f"Delete {_named(chosen)} …", icon=":material/delete:"):
            st.session_state[_ASKED] = ids
            st.rerun()
        return
    st.warning(f"Delete {', '.join(map(quoted, ids[:8]))}{' …' if len(ids) > 8 else ''}? "
               "It can be undone; the test images stay.")  # fmt: skip
    with st.container(horizontal=True):
        if st.button("Yes, delete", type="primary"):
            st.session_state.pop(_ASKED)
            tokens = []
            for run in chosen:
                token = notices.readable(lambda run=run: delete_run(folder, run.id))
                if token is None:
                    break
                tokens.append(token)
            st.session_state[_DELETED] = tokens
            run_cache.listing(folder, newest=True)
            put({"runs": None})
            st.rerun()
        if st.button("Keep"):
            st.session_state.pop(_ASKED)
            st.rerun()


def _undo() -> None:
    """What was done just now, with the way back."""
    folder = root()
    tokens = st.session_state.get(_DELETED) or ()
    if tokens:
        names = ", ".join(quoted(token.rpartition("~")[0]) for token in tokens[:8])
        st.info(f"Deleted: {names}.", icon=":material/delete:")
        if st.button("Undo", key="undo_delete"):
            for token in tokens:
                notices.readable(lambda token=token: restore_run(folder, token))
            st.session_state.pop(_DELETED)
            run_cache.listing(folder, newest=True)
            st.rerun()
    renamed = st.session_state.get(_RENAMED)
    if renamed:
        before, after = renamed
        st.info(f"{quoted(before)} is now called {quoted(after)}.", icon=":material/edit:")
        if st.button("Undo", key="undo_rename"):
            notices.readable(lambda: rename_run(folder, after, before))
            st.session_state.pop(_RENAMED)
            run_cache.listing(folder, newest=True)
            put({"runs": None})
            st.rerun()


main()
