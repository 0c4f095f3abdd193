"""The doctor during a training: faults that one forward pass shows, examined repeatedly."""

from __future__ import annotations

from typing import Any

from torch import nn

from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Findings
from attnviz.diagnosis.registry import findings_of
from attnviz.model_state import frozen
from attnviz.shapes import Images

ONE_PASS = (
    "not-finite",
    "gate-closed",
    "gate-open",
    "gate-constant",
    "near-uniform",
    "saturated-heads",
    "collapsed-heads",
    "duplicate-heads",
    "class-token-only",
)
"""Findings that training can bring about, and that weights and gates of one pass show."""


class Recurring:
    """Examine one model repeatedly while it trains.

    What its tokens are does not change with the weights: it is measured at the first examination
    and kept, so that every later one takes a single forward pass.

    Args:
        codes: The findings to look for.
    """

    def __init__(self, codes: tuple[str, ...] = ONE_PASS) -> None:
        self.codes = codes
        self._tokens: dict[int, Any] | None = None

    @property
    def is_new(self) -> bool:
        """Whether the tokens have still to be measured."""
        return self._tokens is None

    def __call__(self, model: nn.Module, images: Images) -> Findings:
        """The findings of the model as it is now; its state is restored.

        Args:
            model: The same module each time.
            images: `(b, c, h, w)`; the first eight are used.
        """
        with frozen(model):
            case = Examination(model, images.detach(), trained=True)
            if self._tokens is not None and len(self._tokens) == len(case.attention()):
                case.tokens = self._tokens
            found = findings_of("model", case, codes=self.codes)
            if case.is_finite:
                self._tokens = case.tokens
        counts = {"attention": len(case.attention()), "gates": len(case.gates())}
        return Findings(found, checked=counts)
