"""`attnviz evaluate FACTORY --images DIR --masks DIR`: score every map that a model gives."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnviz.cli.argument_types import seed, whole, word
from attnviz.cli.json_output import as_json
from attnviz.cli.model_arguments import FORMS, Preparation, add_model, model_of, preparation
from attnviz.cli.pairs import pairs
from attnviz.cli.shared_options import add_json, add_target
from attnviz.cli.worker_arguments import add_workers, chosen_workers
from attnviz.comparison.text import records
from attnviz.data import coco, mask_folder
from attnviz.data.samples import Samples
from attnviz.errors import InputError
from attnviz.evaluation import Evaluation, evaluate
from attnviz.text import printable

_EMPTY = ("", "nan")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")  # `float` takes 4_6 for 46
"""What a cell of a CSV file without a value holds, as pandas and others write it."""
_WITHOUT = ("error", "empty", "unknown")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", help=FORMS, metavar="FACTORY")
    add_model(parser)
    _add_data(parser)
    _add_measures(parser)
    parser.add_argument("--out", type=word, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--variant", type=word, metavar="NAME",
        help="the model's name in tables (default: the factory's)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, help="of the model's training, where it is known")
    add_json(parser)
    add_workers(parser, default="none, all is computed in this process")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument("--images", type=word, required=True, metavar="FOLDER", help="of pictures")
    where = group.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--masks", type=word, metavar="FOLDER", help="of masks with the images' names"
    )
    where.add_argument("--coco", type=word, metavar="FILE", help="of annotations in COCO's format")
    group.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="in the order of the model's outputs (default: alphabetical, or by COCO's ids)",
    )  # fmt: skip
    group.add_argument(
        "--labels", type=word, metavar="HOW",
        help="folder (an image's folder is its class), or a CSV file with columns name (an image's "
        "path in its folder, or its mere name where only one has it) and label",
    )  # fmt: skip
    group.add_argument(
        "--group", type=word, metavar="HOW",
        help="what images belong to: folder, or a CSV file with columns name and group; with "
        "--coco a key of its images",
    )  # fmt: skip
    group.add_argument(
        "--categories", nargs="+", metavar="NAME", help="of --coco that are looked for"
    )
    group.add_argument("--thing", type=word, metavar="WORD", help="what the masks show")
    group.add_argument(
        "--inside", nargs="+", type=int, metavar="VALUE", help="of label maps that is the thing"
    )
    group.add_argument(
        "--ignore", nargs="+", type=int, default=[], metavar="VALUE", help="that counts neither way"
    )
    group.add_argument(
        "--without", choices=_WITHOUT, default="error",
        help="what an image without a mask file is (default: %(default)s)",
    )  # fmt: skip
    for what in ("images", "masks", "coco"):
        group.add_argument(
            f"--calibration-{what}", type=word, metavar="PATH",
            help=f"{what} of the split that chooses thresholds",
        )  # fmt: skip


def _add_measures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measures")
    group.add_argument(
        "--maps", nargs="+", metavar="KEY", help="constructions (default: the primary ones)"
    )
    group.add_argument("--attributions", nargs="+", default=[], metavar="METHOD", help="of Captum")
    group.add_argument("--metrics", nargs="+", metavar="KEY", help="localisation (default: all)")
    add_target(group)
    for flag, what in (
        ("faithfulness", "images that faithfulness is computed on"),
        ("knockout", "images that heads and gates are knocked out on"),
        ("rows", "images whose whole attention is kept"),
    ):
        group.add_argument(f"--{flag}", type=whole(0), default=0, metavar="K", help=what)
    group.add_argument(
        "--batch", type=whole(1), default=32, metavar="N",
        help="images per forward pass (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--layers", action="store_true", help="score every layer, not only the last")
    group.add_argument("--heads", action="store_true", help="score every head as well")
    group.add_argument("--no-findings", action="store_true", help="without the doctor")


def _explained(args: argparse.Namespace) -> Any:
    """The output that is explained: the label's where there are labels."""
    if args.target is not None:
        return args.target
    return "label" if args.labels or args.coco else "predicted"


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, and keep the run if it is wanted."""
    model = model_of(args, args.model)
    prepared = preparation(args, model, args.model)
    data = _data(args, prepared, args.images, args.masks, args.coco)
    workers = chosen_workers(args)
    result = evaluate(
        model,
        data,
        calibration=_calibration(args, prepared),
        maps=args.maps,
        attributions=args.attributions,
        metrics=args.metrics,
        target=_explained(args),
        classes=args.classes,
        thing=args.thing,
        faithfulness=args.faithfulness,
        knockout=args.knockout,
        findings=not args.no_findings,
        rows=args.rows,
        layers=args.layers,
        heads=args.heads,
        batch=args.batch,
        save=args.out,
        variant=args.variant or args.model.rpartition(":")[2].rpartition("/")[2],
        seed=args.seed,
        settings={"factory": args.model, "model": pairs("--setting", args.setting)},
        workers=workers if workers.given else None,
        progress=False if args.json else None,
    )
    print(as_json(_as_dict(result, args)) if args.json else _text(result, args))
    return 0


def _data(
    args: argparse.Namespace,
    prepared: Preparation,
    images: str,
    masks: str | None,
    annotations: str | None,
) -> Samples:
    if annotations is not None:
        if args.labels is not None:
            raise InputError("--labels: with --coco an image's label is its largest object's")
        return coco(
            annotations, images, transform=prepared, thing=args.categories, classes=args.classes,
            group=args.group,
        )  # fmt: skip
    if args.categories:
        raise InputError(
            "--categories: belongs to --coco; the masks' values are chosen with --inside"
        )
    return mask_folder(
        images, masks, transform=prepared, labels=_by_file(args.labels, "label"),
        classes=args.classes, group=_by_file(args.group, "group"), inside=args.inside,
        ignore=tuple(args.ignore), without=args.without,
    )  # fmt: skip


def _calibration(args: argparse.Namespace, prepared: Preparation) -> Samples | None:
    images, masks, annotations = (
        getattr(args, f"calibration_{what}") for what in ("images", "masks", "coco")
    )
    if images is None and masks is None and annotations is None:
        return None
    if images is None or (masks is None) == (annotations is None):
        raise InputError(
            "expected --calibration-images with either --calibration-masks or --calibration-coco"
        )
    return _data(args, prepared, images, masks, annotations)


def _by_file(how: str | None, column: str) -> Any:
    """`"folder"`, or a column of a CSV file by the image's name."""
    if how is None or how == "folder":
        return how
    try:
        with Path(how).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{how}: expected 'folder' or a CSV file ({error})") from error
    if not rows or not {"name", column} <= set(rows[0]):
        raise InputError(f"{how}: expected a CSV file with the columns name and {column}")
    found: dict[str, str | None] = {}
    for row in rows:
        name = (row["name"] or "").replace("\\", "/").removeprefix("./")
        value = None if (row[column] or "").strip().lower() in _EMPTY else row[column].strip()
        if found.setdefault(name, value) != value:
            raise InputError(
                f"{how}: expected one {column} for each name, {name} has {found[name]} and {value}"
            )
    return _numbers(found) if column == "label" else found


def _numbers(cells: Mapping[str, str | None]) -> Mapping[str, Any]:
    """Labels as numbers where all are numbers, `1.0` as 1; empty cells are missing."""
    if not all(text is None or _NUMBER.fullmatch(text) for text in cells.values()):
        return cells
    numbers = {name: None if text is None else float(text) for name, text in cells.items()}
    if any(number is not None and not number.is_integer() for number in numbers.values()):
        return numbers
    return {name: None if number is None else int(number) for name, number in numbers.items()}


def _text(result: Evaluation, args: argparse.Namespace) -> str:
    lines = [*str(result).split("\n"), *([f"run: {args.out}"] if args.out else [])]
    return "\n".join(map(printable, lines))


def _as_dict(result: Evaluation, args: argparse.Namespace) -> dict[str, Any]:
    found = result.findings
    return {
        "variant": result.variant,
        "seed": result.seed,
        "images": len(result.samples),
        "accuracy": result.accuracy,
        "map": result.primary,
        "metrics": result.summary,
        "layers": dict(result.layers),
        "chosen": {key: dict(one) for key, one in result.chosen.items()},
        "heads": records(result.heads),
        "thresholds": {name: dict(taus) for name, taus in result.thresholds.items()},
        "left_out": dict(result.left_out),
        "findings": [] if found is None else found.as_dicts(),
        "run": args.out,
    }
