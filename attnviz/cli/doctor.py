"""`attnviz doctor RUN | FACTORY`: faults of a model's attention and gates, and what to do.

Exit codes: 1 if a finding is an error; otherwise 2 if something was not examined; otherwise 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from attnviz.cli.argument_types import word
from attnviz.cli.json_output import as_json
from attnviz.cli.model_arguments import (
    FORMS,
    add_model,
    images_of,
    is_factory,
    model_of,
)
from attnviz.cli.scoring import stored
from attnviz.cli.shared_options import add_images
from attnviz.diagnosis import Findings, as_sarif, diagnose, diagnose_run
from attnviz.errors import AttnvizError, InputError, unknown_name
from attnviz.runs import Run, list_runs, open_run

_EXAMINED = 64  # test images of a run
_TRAINED = {"yes": True, "no": False, "auto": None}
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
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
    parser.add_argument("--format", default="text", help=f"{', '.join(_FORMATS)} (default: text)")
    parser.add_argument(
        "--json",
        action="store_const",
        const="json",
        dest="format",
        help="the same as --format json",
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one is an error, 2 if something was not examined."""
    if args.trained not in _TRAINED:
        raise unknown_name("answer to --trained", args.trained, _TRAINED)
    if args.format not in _FORMATS:
        raise unknown_name("format", args.format, _FORMATS)
    found = [one for word in args.what for one in _examined(word, args)]
    print(_FORMATS[args.format](found))
    if any(one.errors for one in found):
        return 1
    return 2 if any(one.unexamined for one in found) else 0


def _examined(word: str, args: argparse.Namespace) -> Iterator[Findings]:
    """The findings of a word; an error is a reason where others, or a program, wait for more."""
    try:
        yield from _of(word, args)
    except AttnvizError as error:
        if len(args.what) == 1 and args.format == "text":
            raise
        yield Findings(name=word, unexamined=(str(error),))


def _of(word: str, args: argparse.Namespace) -> Iterator[Findings]:
    if is_factory(word):
        model = model_of(args, word)
        images, _ = images_of(args, model, word)
        yield diagnose(model, images, trained=_TRAINED[args.trained], name=word)
        return
    if Path(word).suffix in _CHECKPOINTS and Path(word).is_file():
        raise InputError(
            f"doctor: {word} holds weights without their model; "
            f"attnviz doctor FACTORY --weights {word}, with FACTORY as {FORMS}"
        )
    runs = list_runs(word)
    if not runs:
        raise InputError(f"doctor: expected runs or a model ({FORMS}), found none at {word}")
    for one in runs:
        yield _of_run(open_run(one.location), args)


def _of_run(found: Run, args: argparse.Namespace) -> Findings:
    """The training, and the trained model on its own test images."""
    training = diagnose_run(found)
    if found.state != "complete":
        return training + Findings(unexamined=(f"the run is {found.state}, not complete",))
    if "model.safetensors" not in found.files:
        return training + Findings(
            unexamined=("the run has no weights (model.safetensors): only its training was read",)
        )
    kept = stored(args, found.path)
    alike = max(kept.by_size(range(min(_EXAMINED, kept.dataset.count))), key=len)
    batch = kept.batch(alike)
    model = diagnose(
        kept.model, batch.images, batch.masks.to(args.device), trained=_TRAINED[args.trained],
        name=found.id,
    )  # fmt: skip
    return model + training


def _as_json(found: list[Findings]) -> str:
    return as_json({"examined": [_as_dict(one) for one in found]})


def _as_dict(found: Findings) -> dict[str, object]:
    return {
        "name": found.name,
        "headline": found.headline,
        "checked": dict(found.checked),
        "not_examined": list(found.unexamined),
        "findings": found.as_dicts(),
    }


_FORMATS: dict[str, Callable[[list[Findings]], str]] = {
    "text": lambda found: "\n\n".join(map(str, found)),
    "json": _as_json,
    "sarif": lambda found: as_json(as_sarif(found)),
}
