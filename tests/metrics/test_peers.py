"""scikit-learn and torchmetrics compute the same numbers where their conventions are ours."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score

from attnviz.metrics import (
    iou,
    pixel_ap,
    pixel_auroc,
    relevance_rank_accuracy,
    topk_intersection,
)
from tests.metrics import made

torchmetrics = pytest.importorskip("torchmetrics")
from torchmetrics.functional.classification import (  # noqa: E402  # after the skip
    binary_auroc,
    binary_average_precision,
)
from torchmetrics.functional.retrieval import (  # noqa: E402  # after the skip
    retrieval_precision,
    retrieval_r_precision,
)

MASKS = made.noise(12, 30, 30, seed=1) > 0.8
KINDS = {
    "distinct": made.noise(12, 30, 30),
    "tied": (made.noise(12, 30, 30) * 5).round() / 5,
    "half": made.noise(12, 30, 30).half().float(),
    "double": made.noise(12, 30, 30).double(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learn(kind: str) -> None:
    maps = KINDS[kind]
    for values, mask, roc, ap in zip(
        maps, MASKS, pixel_auroc(maps, MASKS), pixel_ap(maps, MASKS), strict=True
    ):
        label, guess = mask.view(-1).numpy(), values.view(-1).numpy()
        assert roc.item() == pytest.approx(roc_auc_score(label, guess), abs=1e-9)
        assert ap.item() == pytest.approx(average_precision_score(label, guess), abs=1e-9)


def test_scikit_learn_jaccard() -> None:
    maps = KINDS["double"]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    chosen = (maps - low) / (high - low) >= 0.7
    for score, mask, places in zip(iou(maps, MASKS, threshold=0.7), MASKS, chosen, strict=True):
        expected = jaccard_score(mask.view(-1).numpy(), places.view(-1).numpy())
        assert score.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["distinct", "tied", "half"])
def test_torchmetrics_curves(kind: str) -> None:
    maps = KINDS[kind]
    for values, mask, roc, ap in zip(
        maps, MASKS, pixel_auroc(maps, MASKS), pixel_ap(maps, MASKS), strict=True
    ):
        args = values.view(-1), mask.view(-1).long()
        assert roc.item() == pytest.approx(binary_auroc(*args).item(), abs=1e-6)
        assert ap.item() == pytest.approx(binary_average_precision(*args).item(), abs=1e-6)


def test_torchmetrics_retrieval() -> None:
    maps = KINDS["double"]
    ranks, tops = relevance_rank_accuracy(maps, MASKS), topk_intersection(maps, MASKS, k=50)
    for values, mask, rank, top in zip(maps, MASKS, ranks, tops, strict=True):
        args = values.view(-1), mask.view(-1)
        assert rank.item() == pytest.approx(retrieval_r_precision(*args).item(), abs=1e-6)
        assert top.item() == pytest.approx(retrieval_precision(*args, top_k=50).item(), abs=1e-6)


def test_torchmetrics_squashes_what_lies_outside_the_unit_interval_and_we_do_not() -> None:
    logits = torch.tensor([[[-40.0, 40.0, 60.0]]])
    masks = torch.tensor([[[False, False, True]]])
    assert pixel_auroc(logits, masks).item() == 1.0
    assert binary_auroc(logits.view(-1), masks.view(-1).long()).item() == 0.75


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_torchmetrics_counts_an_empty_mask_as_zero_and_we_do_not() -> None:
    maps, masks = made.noise(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    assert pixel_auroc(maps, masks).isnan().all()
    assert binary_auroc(maps.view(-1), masks.view(-1).long()).item() == 0.0
