"""Captum's methods as maps: `(b, h, w)`, raw float32, one per image.

The only package that imports Captum. A method is given by name (`methods()` lists them) or as a
Captum object of one's own. The output that is explained, the reduction of channels and the sign are
arguments, and how much runs at once follows from a memory budget.

The numbers are Captum's own. A model or layer for which they would be another method's numbers is
refused: functional activations under DeepLIFT and guided backpropagation, layers whose places are
not proved. Two defaults differ from Captum's, since they would hide a decision: `saliency` is
signed (`sign="abs", channels="max_abs"` is Simonyan's map), and regressions of `kernel_shap` draw
512 samples instead of 25.
"""

from __future__ import annotations

from attnviz.attribution.attribution import MEMORY, attribute
from attnviz.attribution.completeness import Attribution
from attnviz.attribution.explanation_metrics import infidelity, sensitivity
from attnviz.attribution.layer_layout import Layout
from attnviz.attribution.layers import default_layer, find_layer, last_convolution
from attnviz.attribution.method_table import methods
from attnviz.attribution.regions import superpixels

__all__ = [
    "MEMORY",
    "Attribution",
    "Layout",
    "attribute",
    "default_layer",
    "find_layer",
    "infidelity",
    "last_convolution",
    "methods",
    "sensitivity",
    "superpixels",
]
