"""`--device`, checked before anything is read: that torch knows it and that it is there."""

from __future__ import annotations

import argparse

import torch

from attnviz.cli.tables import first_line


def add_device(parser: argparse.ArgumentParser) -> None:
    """The argument of every command that runs a model."""
    parser.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)"
    )


def _device(word: str) -> str:
    try:
        torch.empty(0, device=word)
    except Exception as error:  # torch raises several kinds, by device and build
        raise argparse.ArgumentTypeError(
            f"expected cpu or a device that is there, got {word!r} ({first_line(error)})"
        ) from error
    return word
