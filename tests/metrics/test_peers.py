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


def test_torchmetrics_ties_neighbours_once_a_value_passes_one_and_we_do_not() -> None:
    """Its sigmoid is taken in float32, where values near one another become the same."""
    near = torch.tensor(0.9)
    inside = torch.nextafter(near, torch.tensor(1.0))
    for highest, theirs in ((1.0, 1 / 2), (1.3, 1 / 3)):  # 1/3: both neighbours enter together
        values, mask = torch.stack([inside, near, torch.tensor(highest)]), torch.tensor([1, 0, 0])
        found = binary_average_precision(values, mask).item()
        assert found == pytest.approx(theirs)
        assert pixel_ap(values.view(1, 1, 3), mask.bool().view(1, 1, 3)).tolist() == [0.5]
        assert average_precision_score(mask.numpy(), values.numpy()) == 0.5


def test_torchmetrics_is_off_by_what_its_sigmoid_ties_and_by_nothing_else() -> None:
    maps, masks = made.noise(20, 96, 96), made.boxes(20)
    maps = maps + 0.3 * masks
    squashed = maps.sigmoid()
    assert all(s.unique().numel() < a.unique().numel() for a, s in zip(maps, squashed, strict=True))
    for values, mask, score in zip(maps, masks, pixel_ap(squashed, masks), strict=True):
        theirs = binary_average_precision(values.view(-1), mask.view(-1).long()).item()
        assert theirs == pytest.approx(score.item(), abs=1e-6)


def test_torchmetrics_takes_ties_as_its_sort_leaves_them_and_we_expect() -> None:
    maps, masks = torch.full((40, 96, 96), 0.5), made.boxes(40)
    theirs = {
        retrieval_r_precision(values.view(-1), mask.view(-1)).item()
        for values, mask in zip(maps, masks, strict=True)
    }
    assert len(theirs) > 1  # the score of a constant map depends on where the mask is
    assert set(relevance_rank_accuracy(maps, masks).tolist()) == {256 / 9216}


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_torchmetrics_counts_an_empty_mask_as_zero_and_we_do_not() -> None:
    maps, masks = made.noise(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    assert pixel_auroc(maps, masks).isnan().all()
    assert binary_auroc(maps.view(-1), masks.view(-1).long()).item() == 0.0
