"""A map never speaks of an output that nobody chose."""

from __future__ import annotations

import pytest
import torch

from attnviz.errors import InputError
from attnviz.targets import target_indices, target_scores

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize("outputs", [LOGITS[:, 0], LOGITS[:, :1]])
@pytest.mark.parametrize("target", [None, 0])
def test_a_single_output_needs_no_target(outputs, target):
    assert target_scores(outputs, target).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("target", [[2, 0], (2, 0), torch.tensor([2, 0])])
def test_each_image_may_have_its_own_target(target):
    assert target_scores(LOGITS, target).tolist() == [3.0, 4.0]


def test_one_index_speaks_for_all_images():
    assert target_scores(LOGITS, 1).tolist() == [2.0, 5.0]
    assert target_indices(2, 3, torch.tensor(1)).tolist() == [1, 1]


def test_the_graph_is_kept():
    logits = LOGITS.clone().requires_grad_()
    target_scores(logits, 1).sum().backward()
    assert logits.grad.tolist() == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "the model has 3 outputs, so choose one"),
        (3, "indices from 0 to 2"),
        (-1, "indices from 0 to 2"),
        ([0, 1, 2], r"one index or 2 of them \(one per image\), got shape \(3,\)"),
        (torch.tensor([0.0, 1.0]), "integer indices"),
        (torch.tensor([True, False]), "integer indices"),
        (lambda outputs: outputs.sum(), "got function; to explain anything else, wrap the model"),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(target, message):
    with pytest.raises(InputError, match=message):
        target_scores(LOGITS, target)


def test_outputs_that_are_no_rows_of_logits_are_refused():
    with pytest.raises(InputError, match=r"expected outputs \(b,\) or \(b, n\), got \(2, 3, 4\)"):
        target_scores(torch.rand(2, 3, 4))
