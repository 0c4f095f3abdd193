"""A monitor measures during a training, and the training does not notice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import attnviz as av
from tests.training.made import Attending, Gated, Plain, epoch_of, scenes


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """A model whose forward takes so many seconds of a clock per image."""

    def __init__(self, model: nn.Module, clock: Clock, each: float) -> None:
        super().__init__()
        self.model, self.clock, self.each = model, clock, each

    def forward(self, images):
        self.clock.now += self.each * len(images)
        return self.model(images)


def trained(kind, monitor=None, epochs=3, rows=None):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that a training may draw from
    random.seed(0)
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(1, epochs + 1):
        loss = epoch_of(model, optimizer)
        if monitor is not None:
            row = monitor(model, epoch, train_loss=loss)
            if rows is not None:
                rows.append(row)
    return model, optimizer


@pytest.mark.parametrize("kind", [Gated, Attending, Plain])
def test_the_training_is_the_same_to_the_last_bit(kind):
    class Shaky(list):
        """A data set that draws random numbers whenever an image is read."""

        def __getitem__(self, index):
            torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002 - it must not matter
            return super().__getitem__(index)

    plain, plain_optimizer = trained(kind)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(0)
    watched, optimizer = trained(kind, av.Monitor(Shaky(scenes()), budget=None))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])  # noqa: NPY002
    assert all(module.training for module in watched.modules())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
        for key, value in plain_optimizer.state[one].items():
            assert torch.equal(value, optimizer.state[other][key])


@pytest.mark.parametrize(
    ("kind", "name"), [(Gated, "gate_map"), (Attending, "received"), (Plain, "layer_gradcam")]
)
def test_scores_are_those_of_an_evaluation_of_the_same_model(kind, name, tmp_path):
    data = scenes()
    rows: list[dict] = []
    with av.start_run(tmp_path / "run", seed=0) as run:
        model, _ = trained(kind, av.Monitor(data, run=run, budget=None), rows=rows)
    result = av.evaluate(model, data, findings=False)
    assert result.primary == name
    for key in ("energy_pointing_game", "pointing_game"):
        expected = result.summary[name][key]["mean"]
        assert rows[-1][f"val_{key}"] == pytest.approx(expected, abs=1e-6)
    assert rows[-1]["val_accuracy"] == pytest.approx(result.accuracy)
    found = av.open_run(tmp_path / "run")
    assert found.state == "complete"
    assert found.summary["map"] == name
    chance = found.summary["metrics"][name]["energy_pointing_game"]["chance"]
    assert chance == pytest.approx(result.summary[name]["energy_pointing_game"]["chance"])
    assert found.curves()["train_loss"].notna().all()
    assert found.test_set().images().shape == (8, 16, 16, 3)
    last = found.maps(f"{name}@0003")
    assert last.shape[0] == 4
    assert found.about(f"maps/{name}@0003")["images"] == [0, 2, 4, 6]
    assert np.allclose(last, result.raw(name)[[0, 2, 4, 6]], atol=1e-3)
    assert np.allclose(found.maps(name), result.raw(name), atol=1e-3)


def measured(share, each, epochs=24, seconds=25.0):
    clock = Clock()
    model = Timed(Attending(), clock, each)
    monitor = av.Monitor(scenes(16), budget=share, findings=False, clock=clock)
    rows = []
    for epoch in range(1, epochs + 1):
        clock.now += seconds
        rows.append(monitor(model, epoch))
    return monitor, rows


@pytest.mark.parametrize(("share", "each"), [(0.03, 0.004), (0.03, 0.05), (0.01, 0.1), (0.2, 0.01)])
def test_the_cost_stays_under_the_share_of_the_training_time(share, each):
    monitor, rows = measured(share, each)
    looked = [row["monitor_images"] for row in rows if "monitor_images" in row]
    assert monitor.budget.spent <= share * monitor.budget.trained
    assert monitor.budget.trained == pytest.approx(600.0)
    assert looked[0] == 4
    assert len(looked) > 1


def test_a_dear_model_is_seen_on_fewer_images_or_less_often():
    cheap, some = measured(0.03, 0.004)[1], measured(0.03, 0.06)[1]
    dear = measured(0.03, 0.3)[1]
    images = [sum(row.get("monitor_images", 0) for row in rows) for rows in (cheap, some, dear)]
    times = [sum("monitor_images" in row for row in rows) for rows in (cheap, some, dear)]
    assert images[0] > images[1] > images[2]
    assert cheap[-1]["monitor_images"] == 16
    assert times[2] < times[0]


def test_without_a_limit_every_epoch_is_measured_on_all_images():
    rows = measured(None, 5.0, epochs=3)[1]
    assert [row["monitor_images"] for row in rows] == [16] * 3


def test_every_second_epoch_and_the_first():
    clock = Clock()
    monitor = av.Monitor(scenes(), every=3, budget=None, clock=clock)
    rows = [monitor(Attending(), epoch) for epoch in range(1, 2)]
    model = Attending()
    rows = [monitor(model, epoch) for epoch in range(1, 8)]
    assert [row["epoch"] for row in rows if "monitor_images" in row] == [3, 6]


def test_an_interrupted_training_leaves_one_consistent_curve(tmp_path):
    def session(first, last, dies=None):
        model = Attending()
        with av.start_run(tmp_path / "run", seed=3, settings={"lr": (0.1, 2)}) as run:
            monitor = av.Monitor(scenes(), run=run, budget=None)
            for epoch in range(first, last + 1):
                if epoch == dies:
                    raise KeyboardInterrupt
                monitor(model, epoch, tag=float(first))

    with pytest.raises(KeyboardInterrupt):
        session(1, 5, dies=5)
    assert av.open_run(tmp_path / "run").state == "stopped"
    session(3, 6)  # from the checkpoint of epoch 2
    found = av.open_run(tmp_path / "run")
    curves = found.curves()
    assert curves["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert curves["tag"].tolist() == [1, 1, 3, 3, 3, 3]
    assert [n for n in found.map_names if "@" in n] == [f"received@{e:04d}" for e in range(1, 7)]
    assert not found.verify()


def test_a_run_that_was_begun_otherwise_or_is_complete_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), av.start_run(tmp_path / "run", seed=1):
        raise RuntimeError("stop")
    with pytest.raises(av.RunError, match="begun with another seed"):
        av.start_run(tmp_path / "run", seed=2).__enter__()
    with av.start_run(tmp_path / "run", seed=1):
        pass
    with pytest.raises(av.RunError, match="complete run"):
        av.start_run(tmp_path / "run", seed=1).__enter__()


def test_findings_are_noted_at_the_epoch_at_which_they_appear(tmp_path):
    torch.manual_seed(0)
    model = Gated()
    with torch.no_grad():
        model.gate.weight.mul_(20)  # an open gate that varies
    with av.start_run(tmp_path / "run") as run:
        monitor = av.Monitor(scenes(), run=run, budget=None)
        healthy = monitor(model, 1)
        with torch.no_grad():
            model.gate.bias.fill_(-500.0)
        closed = monitor(model, 2)
        with torch.no_grad():
            model.head.weight[0, 0] = float("nan")
        broken = monitor(model, 3)
        written = av.open_run(tmp_path / "run").summary["findings"]
    assert healthy["findings"] == 0
    assert closed["findings"] == 1
    assert broken["findings"] == 2
    appeared = [(one["code"], one["epoch"]) for one in monitor.findings]
    assert appeared == [("gate-closed", 2), ("not-finite", 3)]
    assert [one["code"] for one in written] == ["gate-closed", "not-finite"]
    assert av.open_run(tmp_path / "run").summary["findings"] == monitor.findings


def test_heads_that_collapse_are_found_without_measuring_the_tokens_again():
    model = Attending()
    monitor = av.Monitor(scenes(), budget=None)
    assert monitor(model, 1)["findings"] <= 1  # of random weights: near-uniform
    counted = []
    handle = model.patches.register_forward_hook(lambda *_: counted.append(1))
    monitor(model, 2)
    handle.remove()
    assert len(counted) <= 3  # measuring the tokens takes four more
    with torch.no_grad():
        model.patches.bias[0] = 100.0  # one direction rules every key
        model.attend.in_proj_weight.zero_()
        model.attend.in_proj_weight[8, 1:] = 500.0
        model.attend.in_proj_weight[0, 0] = 50.0
    assert monitor(model, 3)["findings"] >= 1
    assert {one["code"] for one in monitor.findings} & {"collapsed-heads", "saturated-heads"}


def test_what_cannot_be_right_is_refused():
    data = scenes()
    with pytest.raises(av.InputError, match="between 0 and 1"):
        av.Monitor(data, budget=3)
    with pytest.raises(av.InputError, match="needs a threshold"):
        av.Monitor(data, metrics=["iou"])
    with pytest.raises(av.InputError, match="unknown metric"):
        av.Monitor(data, metrics=["energie"])
    with pytest.raises(av.InputError, match="at least one image"):
        av.Monitor([])
    with pytest.raises(av.InputError, match="pinned images from 0 to 7"):
        av.Monitor(data, pinned=[8])
    with pytest.raises(av.InputError, match="every to be 1 or more"):
        av.Monitor(data, every=0)
    with pytest.raises(av.InputError, match="number of an epoch"):
        av.Monitor(data)(Attending(), -1)


def test_images_without_masks_or_labels_give_maps_and_findings():
    images = [{"image": one["image"]} for one in scenes()]
    row = av.Monitor(images, budget=None)(Attending(), 1)
    assert set(row) == {"epoch", "monitor_images", "monitor_seconds", "findings"}
