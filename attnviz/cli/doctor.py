"""`attnviz doctor RUN | FACTORY`: what is wrong with a model's attention, and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from attnviz.cli.argument_types import word
from attnviz.cli.json_output import as_json
from attnviz.cli.model_arguments import (
    FORMS,
    add_images,
    add_model,
    images_of,
    is_factory,
    model_of,
)
from attnviz.cli.scoring import stored
from attnviz.diagnosis import Findings, diagnose, diagnose_run
from attnviz.errors import InputError, unknown_name
from attnviz.runs import Run, list_runs, open_run

_SHOWN = 64  # test images of a run that the doctor sees
_TRAINED = {"yes": True, "no": False, "auto": None}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "what", nargs="+", help=f"folders of runs, or models as {FORMS}", metavar="RUN|FACTORY"
    )
    add_model(parser)
    add_images(parser)
    parser.add_argument(
        "--model", type=word, metavar="FACTORY", help="that built the model of runs of one's own"
    )
    parser.add_argument(
        "--trained", default="auto", help="yes, no or auto: whether a model's weights are trained"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them is an error."""
    if args.trained not in _TRAINED:
        raise unknown_name("answer to --trained", args.trained, _TRAINED)
    found = [one for word in args.what for one in _of(word, args)]
    if args.json:
        print(as_json({"examined": [_as_dict(one) for one in found]}))
    else:
        print("\n\n".join(map(str, found)))
    return 1 if any(one.errors for one in found) else 0


def _of(word: str, args: argparse.Namespace) -> Iterator[Findings]:
    if is_factory(word):
        model = model_of(args, word)
        images, _ = images_of(args, model, word)
        yield diagnose(model, images, trained=_TRAINED[args.trained], name=word)
        return
    runs = list_runs(word)
    if not runs:
        raise InputError(f"doctor: expected runs or a model ({FORMS}), found none at {word}")
    for one in runs:
        yield _of_run(open_run(one.location), args)


def _of_run(found: Run, args: argparse.Namespace) -> Findings:
    """The training, and the trained model on its own test images."""
    training = diagnose_run(found)
    if found.state != "complete" or "model.safetensors" not in found.files:
        return training
    bench = stored(args, found.path)
    batch = bench.batch(range(min(_SHOWN, bench.dataset.count)))
    looked = diagnose(
        bench.model, batch.images, batch.masks.to(args.device), trained=_TRAINED[args.trained],
        name=found.id,
    )  # fmt: skip
    return looked + training


def _as_dict(found: Findings) -> dict[str, object]:
    return {
        "name": found.name,
        "headline": found.headline,
        "checked": dict(found.checked),
        "findings": found.as_dicts(),
    }
