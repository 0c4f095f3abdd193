"""`attnviz show RUN`: print a run's header."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from attnviz.cli.json_output import as_json
from attnviz.cli.ls import as_dict
from attnviz.definitions import SHOWN_LEVELS
from attnviz.runs import Run, flat, open_run
from attnviz.text import printable, table

_APART = ("metrics", "findings", "knockout")
_SCORE = ("map", "metric", "mean", "low", "high", *SHOWN_LEVELS)
_CUT = ("name", "head", "way", "effect", "low", "high", "size", "images")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", help="the folder of a run, or its address")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the header; 1 for a run that is broken or newer."""
    found = open_run(args.run)
    if args.json:
        print(as_json(_document(found)))
    else:
        print("\n\n".join(_sections(found)))
    return 1 if found.state in ("broken", "newer") else 0


def _document(run: Run) -> dict[str, Any]:
    return as_dict(run) | {
        "location": run.location,
        "heartbeat": run.heartbeat,
        "schema": run.schema,
        "settings": dict(run.settings),
        "environment": dict(run.environment),
        "summary": dict(run.summary),
        "files": {name: asdict(file) for name, file in run.files.items()},
    }


def _sections(run: Run) -> Iterator[str]:
    state = f"{run.state} ({run.reason})" if run.reason else run.state
    yield printable(f"{run.id}: {state}")
    facts = {"variant": run.variant, "seed": run.seed, "created": run.created}
    facts |= {"dataset": run.dataset} | flat(run.progress, "progress.")
    yield table(("run", "value"), facts.items())
    summary = {k: v for k, v in run.summary.items() if k not in _APART}
    for title, values in (("settings", run.settings), ("summary", summary)):
        if values:
            yield table((title, "value"), flat(values).items())
    scored = [[one.get(key) for key in _SCORE] for one in scores(run)]
    if scored:
        yield table(_SCORE, scored)
    cuts = [one for one in _listed(run.summary.get("knockout")) if isinstance(one, Mapping)]
    if cuts:
        yield table(_CUT, ([one.get(key) for key in _CUT] for one in cuts))
    if run.files:
        rows = ((name, f.size, _shape(f.shape)) for name, f in run.files.items())
        yield table(("file", "bytes", "shape"), rows)


def scores(run: Run) -> Iterator[dict[str, Any]]:
    """The summary's metrics, one by one; malformed entries are left out."""
    for name, entries in _items(run.summary.get("metrics")):
        for metric, score in _items(entries):
            if isinstance(score, Mapping):
                yield {"map": name, "metric": metric, **score}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _items(value: object) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _shape(shape: tuple[int, ...] | None) -> str:
    return " × ".join(map(str, shape)) if shape is not None else ""
