"""Captum's methods as maps: `(b, h, w)`, raw float32, one per image.

The only room that knows Captum. A method is asked by name (`methods()` lists them) or as a Captum
object of one's own; which output is explained is never guessed, how channels become one number and
which sign counts is said by argument, and how much runs at once follows from a memory budget.

The numbers are Captum's own; what is added is around them. Two of its defaults are changed, since
they would hide a decision: `saliency` is signed (`sign="abs", channels="max_abs"` is Simonyan's
map), and regressions of `kernel_shap` see 512 samples instead of 25.
"""

from __future__ import annotations

from attnviz.attribution.attribution import MEMORY, attribute
from attnviz.attribution.explanation_metrics import infidelity, sensitivity
from attnviz.attribution.layers import find_layer
from attnviz.attribution.method_table import methods
from attnviz.attribution.regions import superpixels

__all__ = [
    "MEMORY",
    "attribute",
    "find_layer",
    "infidelity",
    "methods",
    "sensitivity",
    "superpixels",
]
