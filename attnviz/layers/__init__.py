"""Attention and gate layers that can be looked into.

Each names its softmax or its gate as a submodule, so that any forward hook, not only ours, sees
what the layer looks at.
"""

from __future__ import annotations

from attnviz.layers.attention import Attend, ConvAttention, MultiHeadAttention
from attnviz.layers.gates import CBAM, ChannelGate, SpatialGate

__all__ = ["CBAM", "Attend", "ChannelGate", "ConvAttention", "MultiHeadAttention", "SpatialGate"]
