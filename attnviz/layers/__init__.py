"""Attention and gate layers with observable weights.

Each names its softmax or its gate as a submodule, so that any forward hook can read its weights.
"""

from __future__ import annotations

from attnviz.layers.attention import (
    Attend,
    ConvAttention,
    LearnedQuery,
    MultiHeadAttention,
    NonLocal,
)
from attnviz.layers.gates import (
    CBAM,
    BottleneckGate,
    ChannelGate,
    EfficientChannelGate,
    SpatialGate,
    SqueezeExcite,
)
from attnviz.layers.tutorials import EarlyAttention, LinearTokens, PointwiseAttention, RawScores

__all__ = [
    "CBAM",
    "Attend",
    "BottleneckGate",
    "ChannelGate",
    "ConvAttention",
    "EarlyAttention",
    "EfficientChannelGate",
    "LearnedQuery",
    "LinearTokens",
    "MultiHeadAttention",
    "NonLocal",
    "PointwiseAttention",
    "RawScores",
    "SpatialGate",
    "SqueezeExcite",
]
