"""Settings of a training: one frozen dataclass, which also defines the command line."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from attnviz.errors import InputError, unknown_name
from experiments.data.registry import sources

INCIDENTAL = frozenset({"device", "threads"})
"""Settings that do not change the result, and so not the name of a run."""

SIZED = frozenset({"linear_tokens_channels"})
"""Models whose weights fit images of one size only."""

_LEAST = {
    **dict.fromkeys(("train_images", "val_images", "test_images", "side", "size"), 1),
    **dict.fromkeys(("epochs", "patience", "batch"), 1),
    **dict.fromkeys(("seed", "data_seed", "follow", "faithful", "threads"), 0),
}


def _setting(default: Any, meaning: str, *, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """One training: the question, the data, the model and how it is trained.

    Raises:
        InputError: A number out of its range.
    """

    variant: str = _setting("mha", "the model, one of attnviz.models.variants()")
    seed: int = _setting(0, "of the weights, the order of the images and the training patches")
    placement: int | None = _setting(None, "where the attention sits, 0 to 3; the model's own")

    data: str = _setting("photos", "where images come from", choices=tuple(sources()))
    path: str | None = _setting(None, "the folder of images, or the one that holds STL-10")
    train_images: int = _setting(960, "how many images to train on")
    val_images: int = _setting(200, "how many images choose the epoch and the thresholds")
    test_images: int = _setting(400, "how many images are reported on")
    side: int = _setting(96, "of an image, in pixels")
    data_seed: int = _setting(0, "which crops, and where the patches of val and test are")

    question: str = _setting("patch", "the task", choices=("patch", "both", "larger"))
    shape: str = _setting("square", "of a patch, one of attnviz.patches.SHAPES")
    size: int = _setting(16, "of a patch, in pixels")
    fill: float = _setting(1.0, "a patch's grey, from -1 (black) to 1 (white)")
    opacity: float = _setting(1.0, "1 covers the image")
    redraw: bool = _setting(True, "put the training patches elsewhere in every epoch")

    places: str = _setting(
        "image", "what draws a patch's place; batch: its place in the batch, as published, the same"
        " for every split", choices=("image", "batch")
    )  # fmt: skip

    epochs: int = _setting(8, "how many at most")
    patience: int = _setting(20, "stop after so many epochs without a better validation loss")
    batch: int = _setting(32, "images a step")
    lr: float = _setting(2e-3, "Adam's, the highest of its schedule")
    schedule: str = _setting("one_cycle", "of the learning rate", choices=("one_cycle", "constant"))
    test_curve: bool = _setting(False, "with follow: the loss of the test images after each epoch")
    averaging: float = _setting(
        0.9, "decay of the running mean of the weights that is judged and kept; 0: the weights"
    )  # fmt: skip
    follow: int = _setting(32, "validation images whose maps are scored each epoch; 0: none")
    faithful: int = _setting(16, "test images for deletion, ROAD … and knockout; 0: none")
    precision: str = _setting(
        "auto", "of convolutions; auto: bf16 where it pays", choices=("auto", "bf16", "fp32")
    )  # fmt: skip
    compile: bool = _setting(False, "torch.compile the training step; pays for long trainings")
    device: str = _setting("auto", "cpu, cuda, cuda:1 …; auto takes a GPU where there is one")
    threads: int = _setting(0, "of the CPU; 0 leaves it to torch")

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                got = getattr(self, name)
                raise InputError(f"{flag_of(name)}: expected {least} or more, got {got}")
        for name in ("seed", "data_seed"):
            if getattr(self, name) >= 2**32:
                raise InputError(
                    f"{flag_of(name)}: expected less than 2³², got {getattr(self, name)}"
                )
        if self.size > self.side:
            raise InputError(
                f"--size: expected at most the image's side of {self.side}, got {self.size}"
            )
        if self.question == "larger" and self.size < 4:
            raise InputError(
                "--size: expected 4 pixels or more, of which a smaller patch can be told, "
                f"got {self.size}"
            )
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr: expected a positive number, got {self.lr}")
        if not -1 <= self.fill <= 1:
            raise InputError(f"--fill: expected a number from -1 to 1, got {self.fill}")
        if not 0 <= self.averaging < 1:
            raise InputError(f"--averaging: expected a number in [0, 1), got {self.averaging}")
        if not 0 < self.opacity <= 1:
            raise InputError(f"--opacity: expected a number in (0, 1], got {self.opacity}")
        if self.batch > self.train_images:
            raise InputError(
                f"--batch: expected at most the {self.train_images} training images, "
                f"got {self.batch}"
            )
        if self.path == "":
            raise InputError("--path: expected a folder, got an empty word")
        for entry in fields(self):
            choices = entry.metadata["choices"]
            if choices and getattr(self, entry.name) not in choices:
                raise unknown_name(flag_of(entry.name), str(getattr(self, entry.name)), choices)

    @property
    def model(self) -> dict[str, Any]:
        """What `build_model` takes besides the name."""
        own: dict[str, Any] = {} if self.placement is None else {"placement": self.placement}
        return own | ({"side": self.side} if self.variant in SIZED else {})

    @property
    def run_id(self) -> str:
        """The run's name: variant, seed, and a digest of every setting that changes the result."""
        content = {k: v for k, v in self.as_dict().items() if k not in INCIDENTAL}
        revision = sources()[self.data].revision
        content |= {self.data: revision} if revision else {}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.variant}-s{self.seed}-{digest[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """What a run folder keeps, `model` included."""
        return {**dataclasses.asdict(self), "model": self.model}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Settings:
        """The settings that a run folder kept."""
        return cls(
            **{name: value for name, value in content.items() if name not in ("model", "factory")}
        )


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    leave_out: tuple[str, ...] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Every setting as a flag, with its meaning and its default, the command's own where given."""
    group = parser.add_argument_group("settings")
    for entry in fields(Settings):
        if entry.name in leave_out:
            continue
        default = defaults.get(entry.name, entry.default)
        shown = "" if default is None else f" (default: {default})"
        options: dict[str, Any] = {
            "help": entry.metadata["help"] + shown,
            "default": argparse.SUPPRESS,
        }
        if isinstance(entry.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = type_of(entry)
            options["choices"] = entry.metadata["choices"]
        group.add_argument(flag_of(entry.name), **options)


def chosen(args: argparse.Namespace, only: Collection[str] | None = None) -> dict[str, Any]:
    """The settings that were given on the command line, all or only some."""
    names = {entry.name for entry in fields(Settings)} if only is None else only
    return {name: value for name, value in vars(args).items() if name in names}


def type_of(entry: dataclasses.Field[Any]) -> type:
    """The type that parses a setting's value from the command line."""
    return {"int": int, "int | None": int, "float": float}.get(str(entry.type), str)


def flag_of(name: str) -> str:
    """A setting's flag."""
    return "--" + name.replace("_", "-")
