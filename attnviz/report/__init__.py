"""One self-contained HTML report of a comparison.

No script, and no request to anywhere: the style is inline, pictures are data, and a content
security policy in the page forbids the rest. Whatever comes out of a run is escaped
(`markup.tag`). A part that cannot be made, such as one corrupt map, is replaced by the error; the
rest of the page is written. The same runs give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from attnviz.comparison.board import answer
from attnviz.comparison.inputs import Source
from attnviz.comparison.text import begun
from attnviz.errors import AttnvizError
from attnviz.report import sections
from attnviz.report.markup import Html, joined, raw, tag
from attnviz.report.study import Study, study_of
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
    """Write one HTML report about some runs, atomically.

    Args:
        runs: A folder of runs, a list of runs or paths, or either by variant.
        out: Where to; replaced if it is there.
        primary: The metric that ranks.
        map_name: The map that is scored; each run's primary map by default.
        title: Of the page; by default its question.

    Returns:
        The content of the page; `.refusal` is the reason if there is no ranking.

    Raises:
        InputError: There is no complete run, or the path is inside a run's folder.
        RunError: There is no such folder, or the page cannot be written.
    """
    from attnviz.runs.outputs import write_output

    study = study_of(runs, primary=primary, map_name=map_name)
    write_output(Path(out), page_of(study, title=title or study.question).encode())
    return study


def page_of(study: Study, *, title: str) -> str:
    """The page's HTML."""
    made = [(key, name, _guarded(make, study)) for key, name, make in _SECTIONS]
    kept = [(key, name, body) for key, name, body in made if body]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", raw(STYLE)),
    )
    links = tag("nav", (tag("a", name, href=f"#{key}") for key, name, _ in kept))
    body = tag(
        "main",
        tag("h1", title),
        tag("p", _answer(study), class_="answer"),
        links,
        (
            tag("section", tag("h2", name, id=f"{key}-title"), content, id=key,
                aria_labelledby=f"{key}-title")
            for key, name, content in kept
        ),
        tag("p", _foot(study), class_="soft"),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


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


def _foot(study: Study) -> str:
    from importlib.metadata import version

    kept, total = len(study.complete), len(study.runs)
    left = f", {total - kept} left out" if total > kept else ""
    made = f"Made by attnviz {version('attnviz')} from the run folders alone."
    return f"{kept} complete runs{left}. {made}"
