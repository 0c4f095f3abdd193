"""The reference models, by name.

All output one logit for a binary question about a 96 × 96 image, such as whether there is a patch.
All but `vit` have the same three convolutions and differ only in the attention before, between or
after them. A model is rebuilt from `(name, settings)`, never from an import path that a file names.
"""

from __future__ import annotations

from attnviz.models.reference import PatchNet
from attnviz.models.registry import Variant, build_model, rebuild_model, reference_of, variants
from attnviz.models.transformer import VisionTransformer

__all__ = [
    "PatchNet",
    "Variant",
    "VisionTransformer",
    "build_model",
    "rebuild_model",
    "reference_of",
    "variants",
]
