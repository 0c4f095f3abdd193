"""Options that several commands take with the same meaning."""

from __future__ import annotations

import argparse

from attnviz.cli.argument_types import target, whole, word


def add_weights(parser: argparse._ActionsContainer) -> None:
    """The weights of the model that a command builds."""
    parser.add_argument(
        "--weights", type=word, metavar="FILE", help="a state dict, .safetensors or .pt"
    )


def add_images(parser: argparse._ActionsContainer, *, most: int = 2**31) -> None:
    """The arguments of a command that shows a model a few images.

    Args:
        parser: The parser to extend.
        most: The most images.
    """
    parser.add_argument(
        "--images", type=word, metavar="FOLDER", help="of pictures; some photographs if not"
    )
    parser.add_argument(
        "--count", type=whole(1, most), default=8, help="how many (default: %(default)s)"
    )


def add_target(parser: argparse._ActionsContainer) -> None:
    """Which output is explained."""
    parser.add_argument(
        "--target", type=target, metavar="WHICH",
        help="output of several that is explained: label, predicted, an index or a class's name "
        "(default: label, or predicted where there are no labels)",
    )  # fmt: skip


def add_json(parser: argparse._ActionsContainer) -> None:
    """JSON in place of text."""
    parser.add_argument("--json", action="store_true", help="print JSON")
