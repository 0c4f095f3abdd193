"""Descriptions of the arguments that faithfulness metrics share, each written once.

`documented` puts them into a function's docstring, so that its help is complete.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

ARGUMENTS = {
    "model": "Any module from images to `(b,)`, `(b, 1)` or `(b, n)` outputs; it runs in "
    "evaluation mode and is left as it was.",
    "images": "`(b, c, h, w)`, square or not.",
    "maps": "`(b, h, w)` at the images' size, tensor or numpy.",
    "target": "Which output, for all images or one index per image; needed for `n > 1`.",
    "baseline": "What stands where a place is removed: a name of "
    "`attnviz.baseline_images.BLANKS`, a number, an image or images.",
    "value_range": "Black and white in the images' own units, each one number or one per channel; "
    "`attnviz.baseline_images.black_and_white(mean=, std=)` gives those of normalised images.",
    "steps": "Into how many steps the places are divided.",
    "percentiles": "Shares of the places that are removed, in percent, between 0 and 100.",
    "noise": "Standard deviation of the imputation's noise, in the images' unit.",
    "output": '`"probability"` (sigmoid of a single output, softmax over several) or `"logit"`.',
    "rows": "Images in one forward.",
    "seed": "Of random numbers, and of the order among tied places.",
}
"""Argument → description."""


def documented(**own: str) -> Callable[[Function], Function]:
    """A decorator that adds the section `Args:` to a docstring, before `Returns:`.

    Args:
        **own: Descriptions of arguments that the function does not share, or means otherwise.
    """

    def add(function: Function) -> Function:
        described = ARGUMENTS | own
        names = inspect.signature(function).parameters
        lines = [
            textwrap.fill(
                f"{name}: {described[name]}",
                width=96,
                initial_indent=" " * 4,
                subsequent_indent=" " * 8,
                break_on_hyphens=False,
            )
            for name in names
        ]
        if function.__doc__:  # python -OO has none
            before, heading, after = inspect.cleandoc(function.__doc__).partition("Returns:\n")
            function.__doc__ = "\n".join([f"{before}Args:", *lines, "", heading + after])
        return function

    return add
