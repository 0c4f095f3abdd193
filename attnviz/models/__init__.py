"""The reference models, by name.

All ask the same question of a 96 × 96 image, is there a patch, with the same three convolutions,
and differ only in the attention between the last convolution and the global mean. A model is
rebuilt from `(name, settings)`, never from an import path that a file names.
"""

from __future__ import annotations

from attnviz.models.reference import PatchNet
from attnviz.models.registry import Variant, build_model, variants

__all__ = ["PatchNet", "Variant", "build_model", "variants"]
