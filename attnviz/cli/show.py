"""`attnviz show RUN`: print a run's header; `attnviz show MODEL`: write a page of its maps.

A model needs no run folder: it is run on pictures, and images, maps, heads and attention become one
page for a browser, which needs neither a server nor a network.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnviz.cli.argument_types import file
from attnviz.cli.json_output import as_json
from attnviz.cli.ls import as_dict
from attnviz.cli.shared_options import add_images, add_json, add_weights
from attnviz.definitions import SHOWN_LEVELS
from attnviz.runs import Run, flat, open_run
from attnviz.text import printable, table

_APART = ("metrics", "findings", "knockout")
_SCORE = ("map", "metric", "mean", "low", "high", *SHOWN_LEVELS)
_CUT = ("name", "head", "way", "effect", "low", "high", "size", "images")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "run", metavar="RUN|MODEL",
        help="a run's folder or address; or a model, as `attnviz watch` takes it",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=file(".html"), default="view.html", metavar="FILE",
        help="of a model: the page to write (default: %(default)s)",
    )  # fmt: skip
    of_model = parser.add_argument_group("of a model")
    add_images(of_model, most=64)
    add_weights(of_model)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the header, or write the page; 1 for a run that is broken or newer."""
    if ":" in args.run and "://" not in args.run and not Path(args.run).exists():
        return _write_page(args)
    found = open_run(args.run)
    if args.json:
        print(as_json(_document(found)))
    else:
        print("\n\n".join(_sections(found)))
    return 1 if found.state in ("broken", "newer") else 0


def _write_page(args: argparse.Namespace) -> int:
    """Run a model on pictures, and write what it looks at as one page."""
    import torch

    from attnviz.capture import watch
    from attnviz.cli.model_arguments import images_of, model_of
    from attnviz.notebook import show
    from attnviz.places import placed

    plain: dict[str, Any] = {
        "setting": [],
        "size": None,
        "normalise": None,
        "mean": None,
        "std": None,
    }
    args = argparse.Namespace(**{**vars(args), **plain, "device": "cpu"})
    model = model_of(args, args.run)
    images, prepared = images_of(args, model, args.run)
    with torch.no_grad(), watch(model, features=True) as seen:
        model(images)
    title = f"Maps of {args.run} on {len(images)} images"
    view = show(prepared.pixels(images), placed(model, images, seen), title=title)
    print(f"{view.save(args.page)}: {title}; open it in a browser")
    return 0


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
