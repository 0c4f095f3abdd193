"""One self-contained HTML report of a comparison.

No script, and no request to anywhere: the style is inline, pictures are data, and a content
security policy in the page forbids the rest. Whatever comes out of a run is escaped
(`markup.tag`). A part that cannot be made, such as one corrupt map, is replaced by the error; the
rest of the page is written. The same runs give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from attnviz.comparison.board import answer
from attnviz.comparison.inputs import Source
from attnviz.comparison.text import begun
from attnviz.errors import AttnvizError
from attnviz.report import sections
from attnviz.report.amounts import AMOUNTS, LIMIT
from attnviz.report.markup import Html, joined, raw, tag
from attnviz.report.study import Study, studies_of, study_of
from attnviz.report.style import STYLE

__all__ = ["Study", "page_of", "study_of", "write_report"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_SECTIONS: tuple[tuple[str, str, Callable[[Study], Html | None]], ...] = (
    ("ranking", "Ranking", sections.ranking),
    ("board", "By several metrics", sections.metric_board),
    ("strip", "The same images in every variant", sections.strip),
    ("differences", "Differences", sections.differences),
    ("extremes", "Worst and best images", sections.extremes),
    ("training", "Training", sections.training),
    ("findings", "Findings", sections.findings),
    ("settings", "Settings", sections.settings),
    ("runs", "Runs", sections.runs),
    ("words", "What the words mean", sections.words),
)


def write_report(
    runs: Source,
    out: str | os.PathLike[str],
    *,
    primary: str = "energy_pointing_game",
    map_name: str | None = None,
    title: str | None = None,
) -> Study:
    """Write one HTML report about some runs, atomically; of at most 5 MB.

    Runs that answer several questions, or were measured on several sets of images, have a section
    each.

    Args:
        runs: A folder of runs, a list of runs or paths, or either by variant.
        out: Where to; replaced if it is there.
        primary: The metric that ranks.
        map_name: The map that is scored; each run's primary map by default.
        title: Of the page; by default its question.

    Returns:
        The content of the page, of several questions the largest, or the first that has no
        ranking; `.refusal` is the reason for that.

    Raises:
        InputError: There is no complete run, or the path is inside a run's folder.
        RunError: There is no such folder, or the page cannot be written.
    """
    from attnviz.runs.outputs import write_output

    studies = studies_of(runs, primary=primary, map_name=map_name)
    for amount in AMOUNTS:
        shown = [replace(study, amount=amount) for study in studies]
        page = page_of(shown, title=title or studies[0].question).encode()
        if len(page) <= LIMIT:
            break
    write_output(Path(out), page)
    return next((study for study in studies if study.refusal), studies[0])


def page_of(studies: Sequence[Study], *, title: str) -> str:
    """The page's HTML: a section per question where there are several."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", raw(STYLE)),
    )
    if len(studies) == 1:
        content = _study(studies[0], "", "h2")
    else:
        named = [(f"question-{n}", one) for n, one in enumerate(studies, 1)]
        links = tag("nav", (tag("a", one.name, href=f"#{key}") for key, one in named))
        content = joined([links, *(_question(key, one) for key, one in named)])
    body = tag("main", tag("h1", title), content, tag("p", _foot(studies), class_="soft"))
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _question(key: str, study: Study) -> Html:
    """A question of several: its name, its answer and its sections."""
    return tag(
        "section", tag("h2", study.name, id=f"{key}-title"), _study(study, f"{key}-", "h3"),
        id=key, aria_labelledby=f"{key}-title",
    )  # fmt: skip


def _study(study: Study, prefix: str, heading: str) -> Html:
    """The answer, links, and the sections that have content."""
    made = [(prefix + key, name, _guarded(make, study)) for key, name, make in _SECTIONS]
    kept = [(key, name, body) for key, name, body in made if body]
    return joined(
        [
            tag("p", _answer(study), class_="answer"),
            tag("nav", (tag("a", name, href=f"#{key}") for key, name, _ in kept)),
            *(
                tag("section", tag(heading, name, id=f"{key}-title"), content, id=key,
                    aria_labelledby=f"{key}-title")
                for key, name, content in kept
            ),
        ]
    )  # fmt: skip


def _guarded(make: Callable[[Study], Html | None], study: Study) -> Html | None:
    """A section, or the reason why it cannot be shown."""
    try:
        return make(study)
    except AttnvizError as error:
        return sections.fault(error)


def _answer(study: Study) -> Html:
    if study.comparison is None:
        return joined([tag("strong", "Not ranked. "), study.refusal])
    if study.board is None:
        return tag("span", begun(study.comparison.sentence, study.comparison.variants))
    return tag("span", answer(study.comparison, study.board))


def _foot(studies: Sequence[Study]) -> str:
    from importlib.metadata import version

    kept = sum(len(study.complete) for study in studies)
    total = sum(len(study.runs) for study in studies)
    left = f", {total - kept} left out" if total > kept else ""
    made = f"Made by attnviz {version('attnviz')} from the run folders alone."
    smaller = "" if studies[0].amount is AMOUNTS[0] else (
        " Pictures are fewer and smaller than usual, so that this file stays below "
        f"{LIMIT // 1_000_000} MB; a report of fewer runs has more."
    )  # fmt: skip
    return f"{kept} complete runs{left}. {made}{smaller}"
