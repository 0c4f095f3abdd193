"""Models and input images from command-line arguments.

A model is `module:callable`, `torchvision:name`, `timm:name` or `attnviz:name`; anything else is an
error that names the nearest valid form. Importing a user's module runs its code, as in Python; no
file but the named one is read.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.cli.argument_types import whole, word
from attnviz.cli.devices import add_device
from attnviz.cli.pairs import pairs
from attnviz.errors import AttnvizError, InputError, RunError, unknown_name
from attnviz.image_files import SUFFIXES, photograph, square
from attnviz.models import build_model
from attnviz.text import first_line

FORMS = "module:callable, timm:name, torchvision:name or attnviz:name"

RANGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "symmetric": ((0.5,) * 3, (0.5,) * 3),
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""How images are normalised: mean and standard deviation per channel, of pixels from 0 to 1."""

SIDE = 224
"""Side of the images for a model that does not declare its input size."""

LARGEST = 4096
"""The largest side: eight images of this size take 1.6 GB before the first layer."""

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that takes a model and images."""
    parser.add_argument(
        "--weights", type=word, metavar="FILE", help="a state dict, .safetensors or .pt"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE",
        help="an argument of the factory, such as num_classes=10; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=word, metavar="FOLDER", help="of pictures; some photographs if not"
    )
    parser.add_argument("--count", type=whole(1), default=8, help="how many (default: %(default)s)")
    parser.add_argument(
        "--size", type=whole(1, LARGEST), metavar="PIXELS",
        help=f"side of the images; the model's own, or {SIDE}",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", default="symmetric", metavar="HOW",
        help=f"{', '.join(RANGES)} (default: %(default)s, −1 to 1)",
    )  # fmt: skip
    add_device(parser)


def is_factory(word: str) -> bool:
    """Whether an argument names a model rather than a folder or an address."""
    return ":" in word and "://" not in word and not Path(word).exists()


def model_of(args: argparse.Namespace, spec: str) -> nn.Module:
    """The model named by a command's arguments, with its weights, on its device, in eval mode.

    Raises:
        InputError: There is no such module, callable or model, or it is none.
        RunError: The weights cannot be read, or do not fit.
    """
    settings = pairs("--setting", args.setting)
    model = build(spec, **settings)
    if args.weights:
        _load(model, Path(args.weights))
    return model.to(args.device).eval()


def build(spec: str, **settings: Any) -> nn.Module:
    """A model from its name.

    Args:
        spec: `package.module:callable`, `timm:vit_tiny_patch16_224`, `torchvision:resnet18` or
            `attnviz:cbam`.
        settings: Arguments of the callable.

    Raises:
        InputError: There is no such module, callable or model, or what came back is no module.
    """
    source, colon, name = spec.partition(":")
    if not colon or not source or not name:
        raise InputError(f"model: expected {FORMS}, got {spec!r}")
    makers: dict[str, Callable[..., Any]] = {
        "attnviz": build_model, "timm": _timm, "torchvision": _torchvision,
    }  # fmt: skip
    try:
        model = makers[source](name, **settings) if source in makers else _own(source, name)(
            **settings)  # fmt: skip
    except AttnvizError:
        raise
    except TypeError as error:
        raise InputError(f"model: {spec} did not take {settings or 'no arguments'}: {error}") from (
            error
        )
    except Exception as error:  # user code may raise anything
        raise InputError(
            f"model: {spec} fails with {settings or 'no arguments'}: {type(error).__name__}: "
            f"{first_line(error)}; --debug shows where"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: expected {spec} to return a torch module, got {type(model).__name__}"
        )
    return model


def images_of(args: argparse.Namespace, model: nn.Module) -> Tensor:
    """Images for a model: from a folder, or a few photographs.

    Returns:
        `(count, 3, size, size)`, normalised.

    Raises:
        InputError: The folder has no pictures or one that cannot be read, there is no such way to
            normalise, or the model fails on the images.
    """
    if args.normalise not in RANGES:
        raise unknown_name("way to normalise", args.normalise, RANGES)
    side = args.size or _own_size(model) or SIDE
    pixels = _pictures(Path(args.images), args.count, side) if args.images else _crops(
        args.count, side)  # fmt: skip
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in RANGES[args.normalise])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    images = images.to(args.device)
    _try(model, images)
    return images


def _try(model: nn.Module, images: Tensor) -> None:
    """Run one image through the model, so that the model's own errors are reported as such."""
    try:
        with torch.no_grad():
            model(images[:1])
    except Exception as error:  # a user's forward may raise anything
        raise InputError(
            f"model: {type(model).__name__} fails on images {tuple(images[:1].shape)}: "
            f"{type(error).__name__}: {first_line(error)}; --debug shows where"
        ) from error


def _timm(name: str, **settings: Any) -> Any:
    timm = _installed("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return timm.create_model(name, **settings)


def _torchvision(name: str, **settings: Any) -> Any:
    models: Any = importlib.import_module("torchvision.models")
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    return models.get_model(name, **settings)


def _unknown(library: str, name: str, known: list[str]) -> InputError:
    """An error for an unknown model name, with the nearest known ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; nearest are {', '.join(near)}" if near else ""
    return InputError(f"model: {library} has no model {name!r}{hint}")


def _own(source: str, name: str) -> Callable[..., Any]:
    """Import a user's callable, from the current folder too, as with `python -m`."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(source)
    except ImportError as error:
        raise InputError(
            f"model: cannot import {source!r}: {error}; expected {FORMS}, seen from "
            "the current folder"
        ) from error
    except Exception as error:  # importing runs user code
        raise InputError(
            f"model: importing {source!r} fails: {type(error).__name__}: {first_line(error)}; "
            "--debug shows where"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise unknown_name(f"name in {source}", part, [x for x in dir(found) if x[0] != "_"])
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return lambda: found
    if not callable(found):
        raise InputError(f"model: expected {source}:{name} to be callable, got {found!r:.60}")
    made: Callable[..., Any] = found
    return made


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"model: {package} is not installed; pip install {package}") from error


def _own_size(model: nn.Module) -> int | None:
    """The side of the input images that a model declares."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in config:
        return int(config["input_size"][-1])
    if type(model).__module__.startswith("attnviz."):
        return 96
    size = getattr(model, "image_size", None)
    return size if isinstance(size, int) else None


def _load(model: nn.Module, file: Path) -> None:
    """Load weights from a file format that cannot run code."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except Exception as error:
        raise RunError(
            f"--weights: {file} cannot be loaded: {first_line(error, 90)}; expected a state dict, "
            ".safetensors or saved by torch.save"
        ) from error


def _pictures(folder: Path, count: int, side: int) -> np.ndarray:
    if os.path.isfile(folder):
        files = [folder]
    elif not os.path.isdir(folder):  # pathlib raises where a name is too long
        files = []
    else:
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise InputError(
            f"--images: expected a picture or a folder of some, found none: {str(folder)[:200]}"
        )
    return np.stack([square(photograph(file, name=str(file)), side) for file in files[:count]])


def _crops(count: int, side: int) -> np.ndarray:
    """Distinct square crops of the photographs in the scikit-image package."""
    from PIL import Image
    from skimage import data

    whole = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
    found = []
    for number in range(count):
        photo = whole[number % len(whole)]
        shift, shorter = number // len(whole), min(photo.size)
        edge = max(shorter - 24 * (shift % 8), shorter // 2)
        x, y = photo.width - edge, (photo.height - edge) * (shift % 2)
        found.append(square(photo.crop((x, y, x + edge, y + edge)), side))
    return np.stack(found)
