"""The doctor during a training: faults that a pass or two show, examined repeatedly."""

from __future__ import annotations

import torch
from torch import nn

from attnviz.diagnosis.examination import Examination
from attnviz.diagnosis.findings import Findings
from attnviz.diagnosis.registry import findings_of
from attnviz.diagnosis.token_axes import Probes, Tokens, tokens_of
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
"""Findings that training can bring about, and that need no perturbation."""


class Recurring:
    """Examine one model repeatedly while it trains.

    An examination takes a pass for weights and gates and, where a rule needs them, one for the
    products of features. The first takes one more: whether an attention runs over the images of the
    batch does not change with the weights, and is remembered.

    Args:
        codes: The findings to look for.
    """

    def __init__(self, codes: tuple[str, ...] = ONE_PASS) -> None:
        self.codes = codes
        self._tokens: dict[int, Tokens] = {}

    def __call__(self, model: nn.Module, images: Images) -> Findings:
        """The findings of the model as it is now; its state is restored.

        Args:
            model: The same module each time.
            images: `(b, c, h, w)`, all of which are used.
        """
        images = images.detach()
        with frozen(model):
            case = Examination(model, images, trained=True)
            case.few = images if len(images) > 1 else torch.cat([images, images.flip(-1)])
            known = {i for i, _ in case.attention()} <= set(self._tokens)
            case.tokens = self._tokens if known else _axes(case)
            found = findings_of("model", case, codes=self.codes)
            if case.is_finite:
                self._tokens = case.tokens
        counts = {"attention": len(case.attention()), "gates": len(case.gates())}
        return Findings(found, checked=counts)


def _axes(case: Examination) -> dict[int, Tokens]:
    """Which attention runs over the images of the batch, as a smaller batch shows."""
    fewer, images = case.paired(case.fewer), (len(case.few), len(case.some))
    return {
        i: tokens_of(i, record, Probes(images, fewer[i], None, False, None))
        for i, record in case.attention()
    }
