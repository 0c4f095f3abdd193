"""Completeness: whether attributions add up to the change of the output that they explain.

`Σ a = f(x) − f(baseline)` is an axiom of integrated gradients and DeepLIFT (Sundararajan et al.
2017, proposition 1; Shrikumar et al. 2017, summation to delta). The error is the one number that
distinguishes a map of these methods from one that only looks like it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnviz.errors import CompletenessWarning
from attnviz.shapes import Maps, Scores

RELATIVE, ROUNDING = 1e-2, 1e-4
"""Tolerances: of the output's change, and of the attributions' absolute sum in single precision."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Maps with their completeness, as `attribute(..., check=True)` returns them.

    Attributes:
        maps: `(b, H, W)`, as without `check`.
        total: `(b,)` sum of the attributions over channels and places, before sign and size.
        change: `(b,)` change of the explained output, `f(x) − f(baseline)`; of several baselines
            their mean.
        magnitude: `(b,)` sum of the attributions' absolute values.
    """

    maps: Maps
    total: Float[Tensor, " b"]
    change: Float[Tensor, " b"]
    magnitude: Float[Tensor, " b"]

    @property
    def error(self) -> Scores:
        """`(b,)` completeness error, total − change, in the output's unit; 0 is complete."""
        return self.total - self.change

    @property
    def relative_error(self) -> Scores:
        """`(b,)` |error| / |change|; infinite or NaN where the output does not change."""
        return self.error.abs() / self.change.abs()

    @property
    def complete(self) -> Bool[Tensor, " b"]:
        """`(b,)`, whether the error is within 1 % of the change, or within rounding."""
        allowed = RELATIVE * self.change.abs() + ROUNDING * self.magnitude
        return self.error.abs() <= allowed

    def __repr__(self) -> str:
        shape = tuple(self.maps.shape)
        if not len(self.error):
            return f"Attribution: maps {shape}"
        worst = int(self.error.abs().nan_to_num(torch.inf).argmax())
        return (
            f"Attribution: maps {shape}; {int(self.complete.sum())} of {len(self.error)} complete; "
            f"largest error {float(self.error[worst]):+.3g} where the output changes by "
            f"{float(self.change[worst]):+.3g}"
        )


def warn_if_incomplete(name: str, attribution: Attribution) -> None:
    """Warn with the error where attributions that should be complete are not.

    Args:
        name: The method.
        attribution: Its maps and sums.
    """
    broken = int((~attribution.complete).sum())
    if broken:
        warnings.warn(
            f"{name}: expected attributions that add up to the change of the output, and those of "
            f"{broken} of {len(attribution.error)} images do not ({attribution!r}); layers "
            "without an exact rule (attention, gates, layer norm, max-pooling whose maximum moves) "
            "do that: use method='integrated_gradients'",
            CompletenessWarning,
            stacklevel=3,
        )
