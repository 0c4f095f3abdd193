"""Records of a watch are kept as they are, and what the numbers of a run stand for beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import attnviz as av
from attnviz.errors import InputError
from attnviz.runs import amend_run, open_run, save_run, start_run
from tests.runs.made import edit, everything, make


class Twice(nn.Module):
    """One attention that is used twice, and a channel gate."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.squeeze = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(x, x, x)[0]
        x = self.attend(x, x, x)[0]
        x = x.transpose(1, 2).reshape(len(x), 8, 3, 5)
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[:, :, None, None]


@pytest.fixture(scope="module")
def seen() -> av.Capture:
    torch.manual_seed(0)
    model = Twice().eval()
    with torch.no_grad(), av.watch(model) as capture:
        model(torch.randn(4, 15, 8))
    return capture


def saved(path: Path, **given: object) -> av.runs.Run:
    samples = pd.DataFrame({"index": range(4)})
    return save_run(path, variant="m", settings={}, seed=0, samples=samples, **given)


def test_records_are_kept_under_the_names_that_watch_gives(
    tmp_path: Path, seen: av.Capture
) -> None:
    run = saved(tmp_path / "a", records=seen.values())
    assert set(run.row_names) == {"attend#0", "attend#1"}
    assert run.gate_names
    for name in run.row_names:
        weights = seen[name].weights
        assert weights is not None
        np.testing.assert_allclose(run.rows(name), weights.numpy(), atol=2**-11)
        assert run.row_images(name) == (0, 1, 2, 3)
        assert run.about(f"rows/{name}")["layer"] == name
        assert run.about(f"rows/{name}")["prefix"] == seen[name].prefix
    (gate,) = run.gate_names
    scale = seen[gate].scale
    assert scale is not None
    np.testing.assert_allclose(run.gates(gate), scale.numpy()[:, :, 0, 0], rtol=2**-10)
    assert run.verify() == []


def test_a_record_may_be_of_any_precision_and_have_a_graph(
    tmp_path: Path, seen: av.Capture
) -> None:
    record = seen["attend#0"]
    assert record.weights is not None
    for number, weights in enumerate(
        (record.weights.bfloat16(), record.weights.half(), record.weights.clone().requires_grad_())
    ):
        run = saved(tmp_path / str(number), records=[replace(record, weights=weights)])
        np.testing.assert_allclose(run.rows("attend#0"), record.weights.numpy(), atol=2**-8)


def test_a_record_without_values_is_passed_over(tmp_path: Path, seen: av.Capture) -> None:
    run = saved(tmp_path / "a", records=[replace(seen["attend#0"], weights=None)])
    assert run.row_names == ()


def test_what_is_no_record_is_refused_and_nothing_is_written(
    tmp_path: Path, seen: av.Capture
) -> None:
    for wrong in ([3], seen, [torch.zeros(2)]):
        with pytest.raises(InputError, match=r"^records: expected records of a watch, got"):
            saved(tmp_path / "runs" / "a", records=wrong)
    assert everything(tmp_path) == {}


def test_a_gate_may_be_by_channel_by_place_or_both(tmp_path: Path, seen: av.Capture) -> None:
    (name,) = (name for name, record in seen.items() if record.kind == "gate")
    shapes = {(2, 3, 1, 1): (2, 3), (2, 1, 4, 6): (2, 4, 6), (2, 3, 4, 6): (2, 3, 4, 6)}
    for number, (shape, kept) in enumerate(shapes.items()):
        values = torch.rand(shape)
        run = saved(tmp_path / str(number), records=[replace(seen[name], scale=values)])
        np.testing.assert_allclose(run.gates(name), values.numpy().reshape(kept), rtol=2**-10)


@dataclass(frozen=True)
class Places:
    """As `attnviz.places` tells them."""

    grid: tuple[int, ...] | None
    cell: tuple[int, ...]
    role: tuple[str, ...]


def test_classes_groups_and_layouts_come_back(tmp_path: Path) -> None:
    places = Places((1, 2), (-1, 0, 1), ("class", "place", "place"))
    samples = pd.DataFrame(
        {
            "label": [0, 2], "predicted": [2, 2], "group": ["patient 7", "patient 9"],
            "probabilities": [np.array([0.25, 0.25, 0.5]), np.array([0.0, 0.0, 1.0])],
        }
    )  # fmt: skip
    run = save_run(
        tmp_path / "a", variant="m", settings={}, seed=0, samples=samples, thing="lesion",
        classes=["naevus", "größe", "3"], layouts={"attend#0": {"queries": places, "keys": places}},
    )  # fmt: skip
    assert (run.thing, run.classes) == ("lesion", ("naevus", "größe", "3"))
    assert run.layouts["attend#0"]["keys"] == {
        "grid": [1, 2], "cell": [-1, 0, 1], "role": ["class", "place", "place"],
    }  # fmt: skip
    table = run.samples()
    assert table["group"].tolist() == ["patient 7", "patient 9"]
    np.testing.assert_array_equal(
        np.stack(table["probabilities"]), np.stack(samples["probabilities"])
    )
    assert run.verify() == []
    with amend_run(run.path) as writer:
        writer.layouts({})
    after = open_run(run.path)
    assert (after.layouts, after.thing, after.classes) == ({}, run.thing, run.classes)


def test_a_run_without_them_reads_as_before(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path
    for name in ("classes", "thing", "mean", "std"):
        edit(path, **{name: None})
    run = open_run(path)
    assert (run.state, run.thing, run.classes, run.layouts) == ("complete", "object", (), {})
    assert (run.mean, run.std) == (None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": "ab"}, r"^classes: expected a list of names, got 'ab'"),
        ({"classes": [1, 2]}, r"^classes: expected a list of names, got \[1, 2\]"),
        ({"thing": " "}, r"^thing: expected a word, got ' '"),
        ({"mean": (1, 2)}, r"^mean: expected three numbers, one for each channel"),
    ],
)
def test_names_that_make_no_sense_are_refused(
    tmp_path: Path, given: dict[str, object], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        start_run(tmp_path, "a", variant="m", settings={}, seed=0, **given)
    with pytest.raises(InputError, match=message):
        saved(tmp_path / "a", **given)
    with pytest.raises(InputError, match=r"^layouts\['x'\]: expected a grid, cells and roles"):
        saved(tmp_path / "a", layouts={"x": 3})
    assert everything(tmp_path) == {}
