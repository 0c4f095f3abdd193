"""Sinks are typed by their values, and an edit takes their weight off the places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attnviz as av
from attnviz.diagnosis import attention_sinks, diagnose, try_registers, without_sinks
from attnviz.diagnosis.registers import sink_keys
from attnviz.errors import InputError
from tests.diagnosis.twins import TWINS


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("attention sink, broadcast", "a broadcast of its value;"),
        ("attention sink, null operation", "a null operation;"),
    ],
)
def test_a_planted_sink_is_typed_by_its_value(name: str, word: str) -> None:
    (sink,) = (one for one in TWINS[name].findings(mended=False) if one.code == "attention-sink")
    assert word in sink.meaning
    assert sink.evidence["heads"] == 4
    assert sink.evidence["share"] > 0.7
    null = "null" in name
    assert (sink.evidence["value"] < 0.05) == null
    assert (sink.evidence["contribution"] < 0.2) == null


@pytest.mark.parametrize("kind", ["broadcast", "null operation"])
def test_sinks_are_listed_by_head_with_what_the_output_does_without_each(kind: str) -> None:
    twin = TWINS[f"attention sink, {kind}"]
    model, images = twin.make(mended=False), twin.images()
    found = attention_sinks(model, images)
    assert [(one.name, one.head, one.kind) for one in found] == [
        ("layer", head, kind) for head in range(4)
    ]
    with torch.no_grad():
        plain = model(images)
        edit = without_sinks(head=2)
        with av.watch(model, edit={"layer": edit}) as seen:
            edited = model(images)
    assert seen["layer"].weights[:, [0, 1, 3]].sum(-1).min() > 0.99
    assert seen["layer"].weights[:, 2].sum(-1).max() < 0.5
    change = float((edited - plain).norm() / plain.norm())
    assert found[2].change == pytest.approx(change, rel=1e-4)
    assert (found[2].value < 0.05) == (kind == "null operation")
    assert attention_sinks(twin.make(mended=True), images) == []


def test_registers_are_no_sinks_and_raise_no_alarm() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit3", num_classes=4).eval()
    images = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found = diagnose(model, images, trained=True)
    assert not {"attention-sink", "high-norm-tokens", "class-token-only"} & set(found.codes)


def test_the_edit_takes_the_sink_off_the_map_and_the_trial_says_what_it_changes() -> None:
    twin = TWINS["attention sink, null operation"]
    model, images = twin.make(mended=False), twin.images()
    (trial,) = try_registers(model, images)
    (before, low, high), (after, _, _) = trial.share
    assert low <= before <= high
    assert before > 0.7
    assert after < 0.1
    assert trial.lift is None
    with torch.no_grad():
        plain = model(images)
        with av.watch(model, edit={"layer": without_sinks()}) as seen:
            edited = model(images)
    expected = ((edited - plain).norm(dim=1) / plain.norm(dim=1)).mean()
    assert trial.change[0] == pytest.approx(float(expected), rel=1e-4)
    assert float(seen["layer"].weights.sum(-1).max()) < 0.5
    masks = torch.zeros(8, 32, 32, dtype=torch.bool)
    masks[:, :8, :8] = True
    (trial,) = try_registers(model, images, masks)
    assert trial.lift is not None
    assert trial.lift[0][0] < trial.lift[1][0]  # the sink is outside, and took the map


def test_without_a_sink_there_is_nothing_to_try() -> None:
    twin = TWINS["attention sink, broadcast"]
    assert try_registers(twin.make(mended=True), twin.images()) == []
    with pytest.raises(InputError, match="expected two images or more for intervals, got 1"):
        try_registers(nn.Identity(), torch.zeros(1, 3, 8, 8))


def test_the_share_of_a_sink_is_one_of_its_row_whatever_the_row_sums_to() -> None:
    weights = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    share, key = sink_keys(weights, 1)
    scaled, same = sink_keys(40 * weights, 1)
    assert torch.equal(key, same)
    torch.testing.assert_close(scaled, share)
    half, _ = sink_keys(weights / 2, 1)  # the rest went to a register
    torch.testing.assert_close(half, share / 2)


class TwoInputs(nn.Module):
    def forward(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)) + text


@pytest.mark.parametrize("function", [attention_sinks, try_registers])
def test_a_model_of_several_inputs_is_refused(function) -> None:
    with pytest.raises(InputError, match=f"{function.__name__}: expected a model that takes"):
        function(TwoInputs(), torch.rand(2, 3, 8, 8))
