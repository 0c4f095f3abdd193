"""The main tutorial's own protocol, its published losses beside ours.

The tutorial trains on 4,000 images and tests on 1,000 after each of 50 epochs, with Adam at a
constant 1e-4, and gives the lowest test loss of all epochs: a number that was chosen on the test
images. It stands here beside the test loss at the epoch that the validation images chose. Its
patches are seeded by the place in the batch, so that training and test share their few places;
`places="image"` draws them properly, and the difference is what the leak was worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnviz.runs import Run, open_run
from attnviz.text import table
from experiments.settings import Settings

PUBLISHED = {
    "cnn": 0.0541,
    "mha_reshape": 0.0421,
    "mha_conv1d": 0.0143,
    "cbam_channel": 0.0280,
}
"""The lowest test loss of each published system, by the name of the variant that computes it."""

OPEN = ("data", "path", "seed", "data_seed", "side", "size", "places", "batch", "precision",
        "follow", "faithful", "device", "threads")  # fmt: skip
"""The settings that the protocol leaves open."""

IMAGES, EPOCHS = 4000, 50
_TESTED = 4  # training images for each one that is tested on


def protocol(
    data: str, *, images: int = IMAGES, epochs: int = EPOCHS, **given: Any
) -> list[Settings]:
    """A run of each published system.

    Args:
        data: `"stl10"`, as published, or `"photos"` or `"folder"`.
        images: To train on; a quarter as many are tested on, and as many validate.
        epochs: How many, all of which are run.
        given: Other settings, such as `path`, `seed` or `places`.

    Raises:
        InputError: Settings out of range.
    """
    quarter = max(1, images // _TESTED)
    settings: dict[str, Any] = {
        "train_images": images, "val_images": quarter, "test_images": quarter, "epochs": epochs,
        "patience": epochs, "lr": 1e-4, "schedule": "constant", "redraw": False,
        "averaging": 0.0, "places": "batch", "test_curve": True,
    }  # fmt: skip
    return [
        Settings(**{**settings, "data": data, **given, "variant": variant}) for variant in PUBLISHED
    ]


def report(root: Path, plan: Sequence[Settings]) -> str:
    """The published losses beside those of complete runs, and what differs from the protocol."""
    runs = [open_run(root / settings.run_id) for settings in plan]
    head = ("variant", "published", "lowest test loss", "at epoch", "at the epoch val chose",
            "accuracy", "energy", "chance", "train s")  # fmt: skip
    settings = plan[0]
    lines = [
        f"{settings.train_images:,} / {settings.test_images:,} images of {settings.data}, "
        f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}, Adam {settings.lr:g}, "
        f"batch {settings.batch}, {runs[0].environment.get('device')}",
        table(head, [_row(run) for run in runs]),
        *_differences(settings),
        f"The split: {_leak(runs[0])}",
    ]
    return "\n\n".join(lines)


def _row(run: Run) -> tuple[str, ...]:
    losses = run.curves()["test_loss"]
    energy = run.summary["metrics"][run.summary["map"]]["energy_pointing_game"]
    return (
        run.variant,
        f"{PUBLISHED[run.variant]:.4f}",
        f"{losses.min():.4f}",
        str(int(losses.argmin()) + 1),
        f"{run.summary['loss']:.4f}",
        f"{run.summary['accuracy']:.3f}",
        f"{energy['mean']:.3f}",
        f"{energy['chance']:.3f}",
        f"{run.summary['seconds']:.0f}",
    )


def _differences(settings: Settings) -> list[str]:
    """What keeps the two columns from being the same experiment."""
    found = []
    if settings.data != "stl10":
        found.append(f"The published losses are of STL-10, ours of {settings.data}.")
    if settings.train_images < IMAGES or settings.epochs < EPOCHS:
        found.append(f"Smaller than published: {IMAGES:,} images and {EPOCHS} epochs there.")
    return [" ".join(found)] if found else []


def _leak(run: Run) -> str:
    found = [one for one in run.summary["findings"] if one["where"] == "data"]
    return " ".join(f"{one['code']}: {one['meaning']}." for one in found) or "shares nothing."
