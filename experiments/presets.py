"""Named experiments: each a base of settings and axes of a grid.

They vary the patch (compact, thin, faint, scattered), the task (two patches that must be compared)
and the place of the attention layer. Settings from the command line override those of a preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnviz.errors import unknown_name
from experiments.axes import Grid, grid, joined, shown
from experiments.quickstart import VARIANTS
from experiments.settings import Settings


@dataclass(frozen=True)
class Preset:
    """One question.

    Attributes:
        name: What `--preset` takes.
        help: The question in one line.
        base: Settings that differ from the defaults.
        axes: Setting → values, all combinations of which are run.
    """

    name: str
    help: str
    base: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)


ATTENDING = ("mha", "mha_conv1d", "pointwise", "cbam")
"""Variants that `placement` moves: two multi-head attentions, one without heads, one gate."""

LONG: Mapping[str, Any] = {"epochs": 30, "patience": 30}
"""For two patches, of which neither alone determines the label: the loss falls late."""

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("square", "is there a white square? the main tutorial's question"),
        Preset("disc", "a disc", {"shape": "disc"}),
        Preset("ring", "a ring, whose middle shows the photograph", {"shape": "ring"}),
        Preset("bar", "a bar across the patch's box", {"shape": "bar"}),
        Preset("cross", "an upright cross", {"shape": "cross"}),
        Preset("dots", "dots scattered over the box, anew in each image", {"shape": "dots"}),
        Preset("L", "two strokes that meet in a corner", {"shape": "L"}),
        Preset("line", "a diagonal line, one pixel wide", {"shape": "line"}),
        Preset("texture", "every other pixel at random, anew in each image", {"shape": "texture"}),
        Preset("low_contrast", "a square of a quarter of the opacity", {"opacity": 0.25}),
        Preset("both", "two patches: are both kinds there, a square and a ring? relational",
               {"question": "both", **LONG}),
        Preset("larger", "two patches: is the larger one the bright one?", {"question": "larger"}),
        Preset("placement", "attention before, between and after the convolutions; quick on a CPU",
               axes={"variant": ATTENDING, "placement": (0, 1, 2, 3)}),
    )
}  # fmt: skip

ASKING = ("question", "shape", "opacity")
"""The settings in which the presets' questions differ."""

QUICK: Mapping[str, Any] = {"side": 48, "size": 8}
"""Images of half the side: a convolution costs a quarter, attention between pixels a sixteenth."""


def asked(settings: Settings) -> str:
    """The name of the preset of the same task, whatever the size; its settings if there is none."""
    for preset in PRESETS.values():
        asks = Settings(**preset.base)
        if all(getattr(asks, name) == getattr(settings, name) for name in ASKING):
            return preset.name
    return ", ".join(f"{name} {shown(getattr(settings, name))}" for name in ASKING)


def planned(
    names: Sequence[str],
    given: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    *,
    quick: bool = False,
) -> Grid:
    """The runs of some presets, one preset after the other, of the six variants if of no others.

    Args:
        names: Of the presets.
        given: Settings that override those of a preset.
        axes: Setting → values; they take the place of a preset's own axis of that name.
        quick: Whether to take `QUICK` where nothing else is said.

    Raises:
        InputError: An unknown preset (the nearest one is offered), or settings out of range.
    """
    plan: list[Grid] = []
    for name in names:
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        preset = PRESETS[name]
        base = Settings(**{**(QUICK if quick else {}), **preset.base, **given})
        own = {"variant": VARIANTS, **preset.axes}
        own = {axis: values for axis, values in own.items() if axis not in given}
        plan.append(grid(base, {**own, **axes}))
    return joined(plan)
