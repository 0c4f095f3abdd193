"""Runs that a page compares: those of the address, or the largest group that may be ranked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import streamlit as st

from attnviz.comparison.cohorts import Cohort, cohorts, differences, question_in_words, variants
from attnviz.comparison.groups import thing_of
from dashboard import notices, run_cache
from dashboard.address import plain, quoted, several
from dashboard.controls import carried, chooser, root, value_or_warning
from dashboard.query import params, put

MOST = 15
"""Variants that a page shows at once."""

_NAMED = 4  # runs, or variants, that the bar names
_LISTED = 100  # runs that a menu offers


@dataclass(frozen=True)
class Chosen:
    """The runs that a page compares.

    Attributes:
        listing: All runs of the folder.
        runs: The complete runs that were chosen.
        cohort: The group they belong to; None where they belong to several.
    """

    listing: run_cache.Listing
    runs: tuple[Any, ...]
    cohort: Cohort | None

    @cached_property
    def groups(self) -> dict[str, list[Any]]:
        """The runs by variant."""
        whole = self.cohort is not None and self.cohort.runs is self.runs
        return self.cohort.variants if self.cohort and whole else variants(self.runs)

    @property
    def thing(self) -> str:
        """What the runs look for, such as "lesion"; "object" where they do not agree."""
        return thing_of(self.runs)

    @property
    def digest(self) -> str:
        """The test images of the first run."""
        return str(self.runs[0].dataset)


def listed() -> run_cache.Listing | None:
    """The folder's runs, with a notice for each problem of the folder; None without any."""
    listing = run_cache.listing(root())
    if listing.problem:
        nowhere = not listing.late and "://" not in listing.root and not listing.runs
        if nowhere and listing.age is None:
            notices.nothing_here(listing.root, listing.problem)
            return None
        notices.unreachable(listing.root, listing.problem, listing.age)
    if not listing.runs:
        if not listing.problem:
            notices.nothing_here(listing.root)
            notices.not_ranked(listing)
        return None
    return listing


def chosen() -> Chosen | None:
    """The runs to compare, named in a bar; None, with a notice on the page, without any."""
    listing = listed()
    if listing is None:
        return None
    choice = _of_address(listing) or _of_folder(listing)
    if choice is None:
        return None
    bar(listing, choice.runs, picked="runs" in params())
    return choice


def _of_address(listing: run_cache.Listing) -> Chosen | None:
    """The complete runs that the address names; None where it names none."""
    wanted = value_or_warning(several(params(), "runs", listing.by_id))
    for run in map(listing.find, wanted):
        if run is not None and run.state != "complete":
            state = notices.state_in_words(run.state)
            st.warning(f"{quoted(run.id)} is not ranked: {state}. {plain(run.reason)}")
    picked = tuple(
        run for run in map(listing.find, wanted) if run is not None and run.state == "complete"
    )
    if not picked:
        return None
    found = cohorts(picked)
    return Chosen(listing, picked, found[0] if len(found) == 1 else None)


def _of_folder(listing: run_cache.Listing) -> Chosen | None:
    """The largest group of complete runs, or the one that the address names."""
    if listing.groups:
        return _cohort_of(listing, listing.groups)
    st.info("No run is complete yet, so nothing is ranked.", icon=":material/hourglass:")
    notices.not_ranked(listing)
    if listing.of("running"):
        st.page_link("views/training.py", label="Watch them train")
    return None


def bar(listing: run_cache.Listing, runs: Sequence[Any], *, picked: bool) -> None:
    """The line on every page that names its runs, and leads to the choice of others.

    Args:
        listing: All runs of the folder.
        runs: The runs that the page shows.
        picked: Whether the address names them.
    """
    count = f"**{len(runs)} of {len(listing.runs)} run{'s' if len(listing.runs) > 1 else ''}**"
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        st.markdown(f"{count} · {plain(in_short(runs))}", width="content")
        st.page_link(
            "views/runs.py", label="Edit", icon=":material/edit:", width="content",
            query_params=carried(runs=",".join(run.id for run in runs)) if picked else carried(),
        )  # fmt: skip
        if picked:
            st.button("Show all", key="show_all", type="tertiary", on_click=_show_all)


def _show_all() -> None:
    put(dict.fromkeys(("runs", "run", "image", "page")))


def in_short(runs: Sequence[Any]) -> str:
    """Runs in a few words: `cbam s0, mha s2`, or the names of many variants."""
    if len(runs) <= _NAMED:
        seeds = ("" if run.seed is None else f" s{run.seed}" for run in runs)
        return ", ".join(f"{run.variant}{seed}" for run, seed in zip(runs, seeds, strict=True))
    names = list(dict.fromkeys(str(run.variant) for run in runs))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def one_group(found: Sequence[Cohort]) -> Cohort:
    """The largest group, or the one that the address names."""
    if len(found) == 1:
        return found[0]
    named = {_name(one): one for one in found}
    words = {name: _in_words(one) for name, one in named.items()}
    return named[
        chooser(
            "Question and test images",
            "data",
            words,
            next(iter(named)),
            forget=("image",),
            help="Runs on other test images, or with another question, are not ranked together.",
        )
    ]


def _cohort_of(listing: run_cache.Listing, found: Sequence[Cohort]) -> Chosen:
    group = one_group(found)
    if len(found) == 1:
        return Chosen(listing, group.runs, group)
    others = len(found) - 1
    counted = "1 other group of runs is" if others == 1 else f"{others} other groups of runs are"
    with st.expander(f"{counted} not ranked with these"):
        st.markdown("They differ in:")
        st.dataframe(differences([one.runs[0] for one in found]), alt="Settings that differ")
    return Chosen(listing, group.runs, group)


def _name(cohort: Cohort) -> str:
    question = hashlib.sha256(repr(cohort.question).encode()).hexdigest()[:4]
    return f"{cohort.dataset[:10]}-{question}"


def _in_words(cohort: Cohort) -> str:
    names = list(cohort.variants)
    count = f"{len(names)} variants" if len(names) > 2 else " and ".join(names)
    parts = (question_in_words(cohort.question), count, cohort.dataset[:10])
    return " · ".join(part for part in parts if part)


def ranked(choice: Chosen, metric: str) -> run_cache.Job | None:
    """The ranking under way; None, with what differs, where the runs may not be ranked together."""
    [job] = run_cache.comparisons(choice.groups, [metric])
    try:
        job.result(run_cache.INTERVALS)
        return job
    except ValueError as error:  # compare's own InputError is one
        st.warning(f"Not ranked: {plain(error)}", icon=":material/rule:")
        odd = differences(choice.runs)
        if not odd.empty:
            st.dataframe(odd, alt="The settings that differ between these runs")
    except OSError as error:
        notices.broken(error)
    return None


def in_time(job: run_cache.Job) -> run_cache.Ranking | None:
    """The ranking; None while it runs, with its progress, after which the page runs again."""
    found = job.result(0)
    if found is None:
        st.fragment(lambda: _progress(job), run_every=0.5)()
    return found


def _progress(job: run_cache.Job) -> None:
    assert job.future is not None, "started by comparisons"
    if job.future.done():
        st.rerun()
    share = job.done / max(job.total, 1)
    st.progress(share, text=f"Intervals are being computed: {job.done} of {job.total} runs read")


def limited(choice: Chosen) -> Chosen:
    """The first variants of many, with a line that says so; that of the address's run is kept."""
    groups = choice.groups
    if len(groups) <= MOST:
        return choice
    named = params().get("run")
    first = [name for name, runs in groups.items() if any(run.id == named for run in runs)]
    names = list(dict.fromkeys([*first, *groups]))[:MOST]
    st.caption(f"{MOST} of {len(groups)} variants; choose others on Runs.")
    kept = tuple(run for name in names for run in groups[name])
    return Chosen(choice.listing, kept, choice.cohort)


def page_of_a_run(title: str) -> tuple[Chosen, Any] | None:
    """A page's title, the runs that it compares, and the one that it shows; None without any."""
    st.title(title)
    choice = chosen()
    run = None if choice is None else one_run(choice)
    return None if choice is None or run is None else (choice, run)


def tables_of(runs: Iterable[Any]) -> dict[str, pd.DataFrame]:
    """The sample tables of all runs that can be read, by id; a fault in one leaves the others."""
    found = {
        run.id: notices.readable(lambda run=run: run_cache.samples(run), run) for run in runs
    }  # fmt: skip
    return {run_id: table for run_id, table in found.items() if table is not None}


def one_run(choice: Chosen) -> Any | None:
    """The run that the address names, or the first; chosen among the complete ones."""
    listing = choice.listing
    requested = params().get("run")
    named = listing.find(requested) if requested else None
    if requested and named is not None and named.state != "complete":
        state = notices.state_in_words(named.state)
        st.warning(f"`{named.id}`: {state}. {plain(named.reason)}", icon=":material/pending:")
        if named.state in ("running", "stale", "stopped"):
            st.page_link(
                "views/training.py", label="Its curves so far", query_params={"run": named.id}
            )
        return None
    runs = {run.id: run for run in choice.runs[:_LISTED]}
    if named is not None:
        runs.setdefault(named.id, named)
    words = {run.id: f"{run.variant} · seed {run.seed} · {run.id}" for run in runs.values()}
    more = len(choice.runs) - _LISTED
    key = chooser(
        "Run", "run", words, next(iter(runs)), forget=("map", "tau", "page"),
        help=f"The first {_LISTED}; {more} more are listed on Runs." if more > 0 else None,
    )  # fmt: skip
    return runs[key]
