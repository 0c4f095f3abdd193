"""`--device`: check that torch supports the device and can compute on it, before reading input."""

from __future__ import annotations

import argparse

import torch

from attnviz.errors import InputError
from attnviz.text import first_line


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device` to a command that runs a model."""
    parser.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)"
    )


def computing(word: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: There is none, or nothing can be computed on it.
    """
    try:
        torch.zeros(1, device=word).item()
    except Exception as error:  # torch raises several kinds, by device and build
        raise InputError(
            f"--device: expected cpu or a device that is there, got {word!r} ({first_line(error)})"
        ) from error
    return torch.device(word)


def _device(word: str) -> str:
    try:
        computing(word)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device: ")) from error
    return word
