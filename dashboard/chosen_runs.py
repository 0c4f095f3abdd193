"""Runs that a page compares: those of the address, or the largest group that may be ranked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from attnviz.comparison.groups import thing_of
from dashboard import notices, run_cache
from dashboard.address import plain, several
from dashboard.cohorts import Cohort, cohorts, differences, question_in_words, variants
from dashboard.controls import chooser, root, value_or_warning


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

    @property
    def groups(self) -> dict[str, list[Any]]:
        """The runs by variant."""
        return variants(self.runs)

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
    """The runs to compare; None, with a notice on the page, where there are none."""
    listing = listed()
    if listing is None:
        return None
    wanted = value_or_warning(several(st.query_params, "runs", [run.id for run in listing.runs]))
    complete = listing.of("complete")
    if wanted:
        for run in listing.runs:
            if run.id in wanted and run.state != "complete":
                state = notices.state_in_words(run.state)
                st.warning(f"`{run.id}` is not ranked: {state}. {plain(run.reason)}")
        picked = tuple(run for run in complete if run.id in wanted)
        if picked:
            found = cohorts(picked)
            return Chosen(listing, picked, found[0] if len(found) == 1 else None)
    if not complete:
        st.info("No run is complete yet, so nothing is ranked.", icon=":material/hourglass:")
        notices.not_ranked(listing)
        if listing.of("running"):
            st.page_link("views/training.py", label="Watch them train")
        return None
    return _cohort_of(listing, cohorts(complete))


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


def ranked(choice: Chosen, metric: str) -> Any | None:
    """The comparison; None, with what differs, where the runs may not be ranked together."""
    try:
        return run_cache.comparison(choice.groups, metric)
    except ValueError as error:  # compare's own InputError is one
        st.warning(f"Not ranked: {plain(error)}", icon=":material/rule:")
        odd = differences(choice.runs)
        if not odd.empty:
            st.dataframe(odd, alt="The settings that differ between these runs")
    except OSError as error:
        notices.broken(error)
    return None


def one_run(choice: Chosen) -> Any | None:
    """The run that the address names, or the first; chosen among the complete ones."""
    listing = choice.listing
    requested = st.query_params.get("run")
    named = listing.find(requested) if requested else None
    if requested and named is not None and named.state != "complete":
        state = notices.state_in_words(named.state)
        st.warning(f"`{named.id}`: {state}. {plain(named.reason)}", icon=":material/pending:")
        if named.state in ("running", "stale", "stopped"):
            st.page_link(
                "views/training.py", label="Its curves so far", query_params={"run": named.id}
            )
        return None
    runs = {run.id: run for run in choice.runs}
    if named is not None:
        runs.setdefault(named.id, named)
    words = {run.id: f"{run.variant} · seed {run.seed} · {run.id}" for run in runs.values()}
    key = chooser("Run", "run", words, next(iter(runs)), forget=("map", "tau", "page"))
    return runs[key]
