"""A monitor measures during a training, and the training does not notice."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import attnviz as av
from attnviz.errors import InputError
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


@cache
def measured(share, each, epochs=24, seconds=25.0):
    """A training of ten minutes, and the share of it that was spent at every epoch."""
    clock = Clock()
    model = Timed(Attending(), clock, each)
    monitor = av.Monitor(scenes(16), budget=share, findings=False, clock=clock)
    rows, shares = [], []
    for epoch in range(1, epochs + 1):
        clock.now += seconds
        rows.append(monitor(model, epoch))
        shares.append(monitor.budget.spent / monitor.budget.trained)
    return monitor, rows, shares


@pytest.mark.parametrize(
    ("share", "each"), [(0.03, 0.004), (0.03, 0.06), (0.03, 0.3), (0.01, 0.1), (0.2, 0.01)]
)
def test_the_cost_is_under_the_share_of_the_training_time_at_every_epoch(share, each):
    monitor, rows, shares = measured(share, each)
    looked = [row["monitor_images"] for row in rows if "monitor_images" in row]
    assert max(shares) <= share
    assert monitor.budget.trained == pytest.approx(600.0)
    assert len(looked) > 1
    assert min(looked) >= 4


def test_a_dear_model_is_seen_on_fewer_images_or_less_often_and_later():
    cheap, some, dear = (measured(0.03, each)[1] for each in (0.004, 0.06, 0.3))
    images = [sum(row.get("monitor_images", 0) for row in rows) for rows in (cheap, some, dear)]
    first = [
        next(row["epoch"] for row in rows if "monitor_images" in row) for rows in (cheap, dear)
    ]
    assert images[0] > images[1] > images[2]
    assert cheap[-1]["monitor_images"] == 16
    assert first[0] < first[1]


def test_what_is_not_measured_yet_is_told_until_it_is(tmp_path):
    clock = Clock()
    with av.start_run(tmp_path / "run") as run:
        monitor = av.Monitor(scenes(16), run=run, clock=clock)
        model, told, waits = Timed(Attending(), clock, 0.05), [], []
        for epoch in range(1, 16):
            clock.now += 10.0
            monitor(model, epoch)
            told.append(set(monitor.not_measured))
            waits += [monitor.not_measured.get("maps and scores", "")]
            assert monitor.budget.spent <= 0.03 * monitor.budget.trained
            assert set(run.summary["not_measured"]) == told[-1]
    assert told[0] == {"maps and scores", "findings"}
    assert told[-1] == set()
    assert {"findings"} in told  # scores come first
    assert waits[0].startswith("finding the map: about ")
    assert " s, which 0.03 of " in waits[0]
    assert "s of training pays for (10 s so far)" in waits[0]
    assert repr(monitor).startswith("Monitor: ")
    summary = av.open_run(tmp_path / "run").summary
    assert summary["not_measured"] == {}
    last = [row for row in monitor.rows if "monitor_images" in row][-1]
    assert summary["measured_at"] == {"epoch": last["epoch"], "images": last["monitor_images"]}


def test_places_that_are_not_proven_are_measured_once_that_has_been_earned(monkeypatch):
    monkeypatch.setattr("attnviz.training.preparation.are_proven", lambda seen: False)
    clock = Clock()
    monitor = av.Monitor(scenes(), clock=clock, findings=False)
    model, told = Timed(Attending(), clock, 0.05), []
    for epoch in range(1, 9):
        clock.now += 20.0
        monitor(model, epoch)
        told.append(monitor.not_measured.get("maps and scores", ""))
    assert any(why.startswith("measuring the places of tokens: about 3 s") for why in told)
    assert told[-1] == ""
    assert monitor.budget.spent <= 0.03 * monitor.budget.trained


def test_a_short_training_is_measured_at_its_end_only_where_that_is_wanted(tmp_path):
    def short(name, **how):
        clock = Clock()
        with av.start_run(tmp_path / name) as run:
            monitor = av.Monitor(scenes(), run=run, clock=clock, **how)
            model = Timed(Attending(), clock, 0.01)
            for epoch in (1, 2):
                clock.now += 2.0
                monitor(model, epoch, train_loss=1.0 / epoch)
        return monitor, av.open_run(tmp_path / name)

    with pytest.warns(UserWarning, match="maps and scores were not measured in this training"):
        monitor, run = short("within")
    assert "val_accuracy" not in run.curves()
    assert set(run.summary["not_measured"]) == {"maps and scores", "findings"}
    assert "metrics" not in run.summary
    assert "not measured yet: findings" in repr(monitor)
    monitor, run = short("final", final=True)
    assert [row.get("monitor_images") for row in monitor.rows] == [None, 8]
    assert monitor.rows[-1]["train_loss"] == 0.5
    assert run.curves()["train_loss"].tolist() == [1.0, 0.5]
    assert run.curves()["val_energy_pointing_game"].notna().tolist() == [False, True]
    assert run.summary["measured_at"] == {"epoch": 2, "images": 8}
    assert run.maps("received").shape[0] == 8


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


def session(path, first, last, *, dies=None, trackers=()):
    """Epochs of a training from a checkpoint on; each row has the number of its first epoch."""
    model = Attending()
    with av.start_run(path, seed=3, settings={"lr": (0.1, 2)}) as run:
        monitor = av.Monitor(scenes(4), run=run, budget=None, trackers=trackers, pinned=2)
        for epoch in range(first, last + 1):
            if epoch == dies:
                raise KeyboardInterrupt
            monitor(model, epoch, tag=float(first))


def is_one_curve(path, tags):
    """Each epoch once, each with its maps, and every file as it was written."""
    found = av.open_run(path)
    epochs = range(1, len(tags) + 1)
    assert found.state == "complete"
    assert found.curves()["epoch"].tolist() == list(epochs)
    assert found.curves()["tag"].tolist() == tags
    assert found.curves()["val_energy_pointing_game"].notna().all()
    assert [n for n in found.map_names if "@" in n] == [f"received@{e:04d}" for e in epochs]
    assert not found.verify()


def test_an_interrupted_training_leaves_one_consistent_curve(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "run", 1, 5, dies=5)
    assert av.open_run(tmp_path / "run").state == "stopped"
    session(tmp_path / "run", 3, 6)  # from the checkpoint of epoch 2
    is_one_curve(tmp_path / "run", [1, 1, 3, 3, 3, 3])


def test_a_kill_at_any_moment_of_an_epoch_leaves_what_can_be_gone_on_with(tmp_path, monkeypatch):
    """The folder after each of the renames of the third epoch is what a kill would leave there."""
    kept, replace, folder = [], Path.replace, tmp_path / "run"

    def copying(self, target):
        found = replace(self, target)
        curves = folder / "curves.jsonl"
        if curves.exists() and curves.read_text().count("\n") >= 2:
            kept.append(shutil.copytree(folder, tmp_path / f"killed-{len(kept)}"))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", copying)
        with pytest.raises(KeyboardInterrupt):
            session(folder, 1, 4, dies=4)
    assert len(kept) >= 3
    for folder in kept:
        session(folder, 3, 4)
        is_one_curve(folder, [1, 1, 3, 3])


def test_a_run_that_was_begun_otherwise_or_is_complete_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), av.start_run(tmp_path / "run", seed=1):
        raise RuntimeError("stop")
    with pytest.raises(av.RunError, match="begun with another seed"):
        av.start_run(tmp_path / "run", seed=2).__enter__()
    with pytest.raises(av.RunError, match="begun with another variant, classes, thing; choose"):
        av.start_run(
            tmp_path / "run", variant="cnn", seed=1, classes=["cat"], thing="cat"
        ).__enter__()
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
    assert len(counted) == 3  # for the scores, for weights and gates, for gates that are zero
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


def test_chance_is_of_the_pixels_that_count_and_the_run_notes_what_it_lacks(tmp_path):
    """Also with output 0 as target, which is no missing target."""
    ignore = torch.zeros(16, 16, dtype=torch.bool)
    ignore[12:] = True
    data = [{**one, "mask": one["mask"] & ~ignore, "ignore": ignore} for one in scenes(6)]
    with av.start_run(tmp_path / "run") as run:
        monitor = av.Monitor(data, run=run, budget=None, findings=False, target=0)
        assert monitor._ready.target == 0
        monitor(Gated(), 1)
    found = av.open_run(tmp_path / "run")
    shares = [float(one["mask"].sum() / (~ignore).sum()) for one in data if one["mask"].any()]
    (scores,) = found.summary["metrics"].values()
    assert scores["energy_pointing_game"]["chance"] == pytest.approx(np.mean(shares))
    assert found.summary["lacks"] == ["ignored pixels"]
    with pytest.raises(InputError, match="unknown target 'lable': did you mean 'label'"):
        av.Monitor(data, target="lable")
