"""Models and input images from command-line arguments.

A model is `module:callable`, `torchvision:name`, `timm:name`, `attnviz:name` or `hf:folder`, a
folder of Hugging Face; anything else is an error that names the nearest valid form. Importing a
user's module runs its code, as in Python; no file but the named one is read.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnviz.cli.argument_types import size
from attnviz.cli.devices import add_device
from attnviz.cli.pairs import pairs
from attnviz.cli.shared_options import add_weights
from attnviz.errors import AttnvizError, InputError, RunError, unknown_name
from attnviz.image_files import SUFFIXES, fitted, photograph
from attnviz.model_state import misfit
from attnviz.models import build_model
from attnviz.text import first_line

FORMS = "module:callable, timm:name, torchvision:name, hf:folder or attnviz:name"

RANGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "symmetric": ((0.5,) * 3, (0.5,) * 3),
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""How images are normalised: mean and standard deviation per channel, of pixels from 0 to 1."""

SIDE = 224
"""Side of the images for a model that does not declare its input size."""

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that builds a model and prepares images for it."""
    add_weights(parser)
    add_setting(parser)
    parser.add_argument(
        "--size", type=size, metavar="PIXELS",
        help="of the images, 224 or height × width as 80x112 (default: the model's own)",
    )  # fmt: skip
    add_scale(parser)
    add_device(parser)


def add_setting(parser: argparse.ArgumentParser) -> None:
    """The arguments of a factory."""
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE",
        help="an argument of the factory, such as num_classes=10; may be repeated",
    )  # fmt: skip


def add_scale(parser: argparse.ArgumentParser) -> None:
    """How images are normalised."""
    parser.add_argument(
        "--normalise", metavar="HOW",
        help=f"{', '.join(RANGES)} (default: the model's own)",
    )  # fmt: skip
    for flag, what in (("--mean", "subtracted from"), ("--std", "that divides")):
        parser.add_argument(
            flag, nargs="+", type=float, metavar="X",
            help=f"number {what} the channels, of pixels from 0 to 1: one, or one per channel",
        )  # fmt: skip


@dataclass(frozen=True)
class Preparation:
    """From a picture to what a model takes: the middle of it at a size, normalised.

    Attributes:
        size: Height and width; None leaves pictures at their own size.
        mean: Of each channel, of pixels from 0 to 1.
        std: Of each channel.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> Tensor:
        """`(3, h, w)`, floating point."""
        pixels = np.array(picture) if self.size is None else fitted(picture, *self.size)
        shares = torch.tensor(pixels).permute(2, 0, 1).float() / 255
        return (shares - _channels(self.mean)) / _channels(self.std)

    def pixels(self, images: Tensor) -> np.ndarray:
        """Prepared images as they were before they were normalised, `(n, h, w, 3)` bytes."""
        shares = images.cpu() * _channels(self.std) + _channels(self.mean)
        return (shares.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _channels(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers).view(-1, 1, 1)


def preparation(args: argparse.Namespace, model: nn.Module, spec: str) -> Preparation:
    """How images are prepared for a model: by the arguments, else by the model's own settings.

    Args:
        args: With `size`, `normalise`, `mean` and `std`.
        model: The model.
        spec: The word that it was built from.

    Raises:
        InputError: `--mean` without `--std`, numbers that are no mean or standard deviation, or a
            model without a known normalisation.
    """
    own = _expected(model, spec)
    scale = scale_of(args) or own.normalise
    if scale is None:
        raise InputError(
            f"{spec} has no known normalisation: give --mean and --std, or "
            f"--normalise {', '.join(RANGES)}"
        )
    mean, std = scale
    return Preparation(args.size or own.size, mean, std)


def scale_of(args: argparse.Namespace) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that the arguments give; None where they give none.

    Raises:
        InputError: `--mean` without `--std`, numbers that are none, or an unknown `--normalise`.
    """
    if args.mean or args.std:
        if args.normalise or not (args.mean and args.std):
            raise InputError("expected both --mean and --std, or --normalise alone")
        mean, std = _three("--mean", args.mean), _three("--std", args.std)
        if min(std) <= 0:
            raise InputError(f"--std: expected positive numbers, got {std}")
        for flag, numbers in (("--mean", mean), ("--std", std)):
            if min(numbers) < 0 or max(numbers) > 1:
                raise InputError(
                    f"{flag}: expected numbers from 0 to 1, of pixels from 0 to 1, got {numbers}; "
                    "divide those of pixels from 0 to 255 by 255"
                )
        return mean, std
    if args.normalise is None:
        return None
    if args.normalise not in RANGES:
        raise unknown_name("way to normalise", args.normalise, RANGES)
    return RANGES[args.normalise]


def _three(flag: str, numbers: list[float]) -> tuple[float, ...]:
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise InputError(f"{flag}: expected one finite number, or one per channel, got {numbers}")
    return tuple(numbers) * (3 // len(numbers))


@dataclass(frozen=True)
class _Expected:
    """A model's own settings for its images; None where it has none."""

    size: tuple[int, int] | None
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None


def _expected(model: nn.Module, spec: str) -> _Expected:
    source, _, name = spec.partition(":")
    if source == "hf":
        return _of_processor(Path(name), model)
    if source == "attnviz":
        return _Expected((96, 96), RANGES["symmetric"])
    if source == "torchvision":
        return _Expected(_own_size(model), RANGES["imagenet"])
    config = getattr(model, "pretrained_cfg", None) or {}
    stated = "mean" in config and "std" in config
    normalise = (tuple(config["mean"]), tuple(config["std"])) if stated else None
    return _Expected(_own_size(model), normalise)


def _own_size(model: nn.Module) -> tuple[int, int] | None:
    """The size of images that a model is built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    sizes = (
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        tuple(config.get("input_size", ()))[-2:] or None,
        getattr(model, "image_size", None),
        getattr(getattr(model, "config", None), "image_size", None),
    )
    for found in sizes:
        if isinstance(found, int):
            return found, found
        if isinstance(found, tuple | list) and len(found) == 2:
            return int(found[0]), int(found[1])
    return None


def _of_processor(folder: Path, model: nn.Module) -> _Expected:
    """The settings in the `preprocessor_config.json` of a Hugging Face model."""
    file = folder / "preprocessor_config.json"
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file}: expected JSON ({error})") from error
    stated = "image_mean" in found and "image_std" in found
    normalise = (tuple(found["image_mean"]), tuple(found["image_std"])) if stated else None
    asked = found.get("size")
    if isinstance(asked, dict) and {"height", "width"} <= set(asked):
        return _Expected((int(asked["height"]), int(asked["width"])), normalise)
    return _Expected(_own_size(model), normalise)


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
            `attnviz:cbam`, or `hf:folder`.
        settings: Arguments of the callable.

    Raises:
        InputError: There is no such module, callable or model, or what came back is no module.
    """
    source, colon, name = spec.partition(":")
    if not colon or not source or not name:
        raise InputError(f"model: expected {FORMS}, got {spec!r}")
    makers: dict[str, Callable[..., Any]] = {
        "attnviz": build_model, "timm": _timm, "torchvision": _torchvision, "hf": _hugging_face,
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


def images_of(args: argparse.Namespace, model: nn.Module, spec: str) -> tuple[Tensor, Preparation]:
    """Images for a model, from a folder or a few photographs, and how they were prepared.

    Images are normalised to [−1, 1] for a model without a known normalisation.

    Returns:
        `(count, 3, h, w)`.

    Raises:
        InputError: The folder has no pictures or one that cannot be read, or the model fails on
            the images.
    """
    silent = _expected(model, spec).normalise is None and not (args.mean or args.std)
    if silent and args.normalise is None:
        args = argparse.Namespace(**{**vars(args), "normalise": "symmetric"})
    prepared = preparation(args, model, spec)
    prepared = replace(prepared, size=prepared.size or (SIDE, SIDE))
    pictures = _pictures(Path(args.images), args.count) if args.images else _photographs(args.count)
    images = torch.stack([prepared(picture) for picture in pictures]).to(args.device)
    _try(model, images)
    return images, prepared


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


def _hugging_face(name: str, **settings: Any) -> Any:
    """An image classifier from a folder; its weights are read from safetensors only."""
    folder = Path(name)
    if settings:
        raise InputError(f"model: hf:{name} takes no --setting, got {', '.join(settings)}")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model: expected hf:<folder> with config.json and weights as .safetensors, as "
            f"save_pretrained writes them, got {name!r}"
        )
    transformers = _installed("transformers")
    return transformers.AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )


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


def _load(model: nn.Module, file: Path) -> None:
    """Load weights from a file format that cannot run code."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        weights = _weights(state)
    except Exception as error:
        raise RunError(
            f"--weights: {file} cannot be loaded: {first_line(error, 90)}; expected a state dict, "
            ".safetensors or saved by torch.save"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        why = misfit(model, weights) or first_line(error, 200)
        raise RunError(
            f"--weights: {file} holds those of another model than {type(model).__name__}: {why}"
        ) from error


_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which checkpoints of trainings hold the weights."""

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes of names that DataParallel, torch.compile and Lightning add."""


def _weights(state: Any) -> dict[str, Any]:
    """The state dict of a checkpoint, which may be nested or have a wrapper's prefix."""
    nested = (state[key] for key in _NESTED if isinstance(state.get(key), dict))
    found: dict[str, Any] = next(nested, state)
    for prefix in _WRAPPERS:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _pictures(folder: Path, count: int) -> list[Image.Image]:
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
    return [photograph(file, name=str(file)) for file in files[:count]]


def _photographs(count: int) -> list[Image.Image]:
    """Distinct square crops of the photographs in the scikit-image package."""
    from skimage import data

    whole = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
    found = []
    for number in range(count):
        photo = whole[number % len(whole)]
        shift, shorter = number // len(whole), min(photo.size)
        edge = max(shorter - 24 * (shift % 8), shorter // 2)
        x, y = photo.width - edge, (photo.height - edge) * (shift % 2)
        found.append(photo.crop((x, y, x + edge, y + edge)))
    return found
