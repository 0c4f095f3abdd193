"""`python -m experiments …`: train, measure, compare."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnviz.cli import Parser, complain
from attnviz.cli.argument_types import folder, whole
from attnviz.cli.worker_arguments import add_workers, chosen_workers
from experiments.axes import SINGLE, add_axes, chosen_axes, grid
from experiments.settings import Settings, add_arguments, chosen

if TYPE_CHECKING:
    from experiments.running import Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if all went well, 1 if a run failed, 2 for input that is not right, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = _parser().parse_args(words)
        code: int = args.command(args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in words:
            raise
        return complain(error, "experiments")
    return code


def _parser() -> argparse.ArgumentParser:
    from experiments.quickstart import SETTINGS

    parser = Parser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    quick = commands.add_parser(
        "quickstart", help="train six variants once each and show where their maps lie"
    )
    quick.set_defaults(command=_quickstart)
    add_arguments(quick, leave_out=("variant",), defaults=SETTINGS)
    one = commands.add_parser("train", help="train and measure one variant")
    one.set_defaults(command=_train)
    one.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    add_arguments(one)
    many = commands.add_parser(
        "sweep", help="train and measure a grid of runs, on one machine or many", allow_abbrev=False
    )
    many.set_defaults(command=_sweep)
    _add_presets(many)
    add_axes(many)
    again = commands.add_parser(
        "reproduce", help="the main tutorial's protocol, its published losses beside ours"
    )
    again.set_defaults(command=_reproduce)
    _add_protocol(again)
    for command in (quick, one, many, again):
        command.add_argument(
            "--runs", "--out", type=folder, default=Path("runs"), metavar="FOLDER",
            help="where runs go (default: %(default)s)",
        )  # fmt: skip
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    for command in (quick, many, again):
        add_workers(command, default="one per core, or per GPU")
    return parser


def _add_presets(parser: argparse.ArgumentParser) -> None:
    from experiments.presets import PRESETS, QUICK

    lines = "; ".join(f"{preset.name}: {preset.help}" for preset in PRESETS.values())
    parser.add_argument(
        "--preset", type=_names, metavar="NAME[,NAME…]",
        help=f"questions, each a grid of its own. {lines}",
    )  # fmt: skip
    small = ", ".join(f"{name} {value}" for name, value in QUICK.items())
    parser.add_argument("--quick", action="store_true", help=f"small images: {small}")


def _names(text: str) -> list[str]:
    names = [word.strip() for word in text.split(",") if word.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"expected 1 or more names, got {text!r}")
    return names


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    from experiments.reproduction import EPOCHS, IMAGES, OPEN

    parser.add_argument(
        "--images", type=whole(1), default=IMAGES,
        help="to train on; a quarter as many test (default: %(default)s, as published)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=whole(1), default=EPOCHS, help="default: %(default)s, as published"
    )
    fixed = tuple(entry.name for entry in dataclasses.fields(Settings) if entry.name not in OPEN)
    add_arguments(parser, leave_out=fixed)


def _quickstart(args: argparse.Namespace) -> int:
    from experiments.quickstart import SETTINGS, VARIANTS, show

    plan = grid(Settings(**{**SETTINGS, **chosen(args)}), {"variant": VARIANTS})
    if not _all_run(plan, args):
        return 1
    print(show(args.runs, [settings.run_id for settings in plan]))
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from experiments.loading import load_images
    from experiments.reproduction import protocol, report

    given = {"data": "stl10", **chosen(args)}
    plan = protocol(**{**given, "images": args.images, "epochs": args.epochs})
    load_images(plan[0], "test")  # one complaint of missing images, not one from each run
    if not _all_run(plan, args):
        return 1
    print(report(args.runs, plan))
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from experiments.presets import QUICK, planned
    from experiments.ranking import report
    from experiments.sweep import run_all

    if args.preset:
        plan = planned(args.preset, chosen(args, SINGLE), chosen_axes(args), quick=args.quick)
    else:
        small = QUICK if args.quick else {}
        plan = grid(Settings(**{**small, **chosen(args, SINGLE)}), chosen_axes(args))
    for note in plan.notes:
        print(f"experiments: {note}", file=sys.stderr)
    outcomes = run_all(plan, args.runs, workers=chosen_workers(args))
    print(report(plan, args.runs, outcomes))
    return 0 if _all_well(outcomes) else 1


def _all_run(plan: Sequence[Settings], args: argparse.Namespace) -> bool:
    """Whether every run of a plan is complete; prints the reasons of the others."""
    from experiments.sweep import run_all

    return _all_well(run_all(plan, args.runs, workers=chosen_workers(args)))


def _all_well(outcomes: Sequence[Outcome]) -> bool:
    unwell = [one for one in outcomes if one.state not in ("done", "reused")]
    for one in unwell:
        print(f"experiments: {one.settings.run_id} {one.state}: {one.reason}", file=sys.stderr)
    return not unwell


def _train(args: argparse.Namespace) -> int:
    from experiments.quickstart import table
    from experiments.running import run_training

    settings = dataclasses.replace(Settings(), **chosen(args))
    print(table([run_training(settings, args.runs, resume=args.resume)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
