"""What is written for a tracker is read back with the tracker's own reader."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attnviz as av
from attnviz.cli import run as command
from attnviz.trackers import Picture, tensorboard
from attnviz.trackers.adapters import mlflow, wandb
from tests.training.made import Attending, scenes

pytestmark = pytest.mark.filterwarnings("ignore")  # the trackers' own
METRIC = "val_energy_pointing_game"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short trainings that were monitored."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        torch.manual_seed(seed)
        with av.start_run(root / f"net-s{seed}", variant="net", seed=seed) as run:
            monitor = av.Monitor(scenes(), run=run, budget=None, pinned=2)
            for epoch in (1, 2):
                monitor(Attending(), epoch, train_loss=1.0 / epoch)
    return root


def curve(root, name=METRIC):
    return av.open_run(root / "net-s0").curves()[name].tolist()


def events(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_reads_the_scalars_pictures_and_tables_of_finished_runs(runs, tmp_path, capsys):
    assert command(["export", str(runs), "--to", "tensorboard", str(tmp_path / "logs")]) == 0
    found = events(tmp_path / "logs" / "net-s0")
    scalars = found.Scalars(METRIC)
    assert [one.step for one in scalars] == [1, 2]
    assert [one.value for one in scalars] == pytest.approx(curve(runs))
    pictures = found.Images("received/0")
    assert [one.step for one in pictures] == [1, 2]
    shown = np.asarray(Image.open(io.BytesIO(pictures[0].encoded_image_string)))
    assert shown.shape == (256, 256, 3)
    assert (shown == [0, 229, 255]).all(-1).any()  # the mask's edge
    table = found.Tensors("scores/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| received | energy_pointing_game |" in table
    assert "chance" in table.splitlines()[0]
    compared = events(tmp_path / "logs" / "comparison").Tensors("comparison/text_summary")[0]
    assert "net" in compared.tensor_proto.string_val[0].decode()


def test_a_monitor_gives_its_trackers_what_it_gives_its_run(tmp_path):
    tracker = tensorboard(tmp_path)
    monitor = av.Monitor(scenes(), budget=None, pinned=[2], trackers=[tracker])
    row = monitor(Attending(), 1, train_loss=0.5)
    monitor.finish()
    found = events(tmp_path)
    assert found.Scalars("train_loss")[0].value == 0.5
    assert found.Scalars(METRIC)[0].value == pytest.approx(row[METRIC])
    assert len(found.Images("received/0")) == 1
    assert found.Tensors("scores/text_summary")


def test_a_picture_draws_its_mask_or_else_its_boxes():
    image, map_ = np.zeros((8, 8, 3), np.uint8), np.eye(4)
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    bare = Picture.of(image, map_).drawn()
    for marked in (Picture.of(image, map_, mask=mask), Picture.of(image, map_, boxes=[2, 2, 4, 4])):
        assert (marked.drawn() != bare).any()
        assert (marked.drawn(outlines=False) == bare).all()
    broken = Picture.of(image, np.full((4, 4), np.nan)).drawn()
    assert broken.max() == 0
    assert not len(Picture.of(image, map_, boxes=[0, 0, 0, 0]).boxes)


def test_a_tool_that_is_unknown_and_a_folder_inside_a_run_are_refused(runs, tmp_path, capsys):
    assert command(["export", str(runs), "--to", "tensorbord", str(tmp_path)]) == 2
    assert "unknown tracker 'tensorbord': did you mean 'tensorboard'" in capsys.readouterr().err
    assert command(["export", str(tmp_path), "--to", "tensorboard", str(tmp_path / "logs")]) == 2
    assert "export: no run that can be read" in capsys.readouterr().err
    inside = str(runs / "net-s0" / "logs")
    assert command(["export", str(runs), "--to", "tensorboard", inside]) == 2


def test_mlflow_reads_metrics_pictures_and_tables(runs, tmp_path):
    library = pytest.importorskip("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert command(["export", str(runs), "--to", "mlflow", str(tmp_path / "ml")]) == 0
    client = library.MlflowClient(tracking_uri=(tmp_path / "ml").as_uri())
    experiment = client.get_experiment_by_name("attnviz").experiment_id
    found = {one.info.run_name: one for one in client.search_runs([experiment])}
    assert set(found) == {"net-s0", "net-s1", "comparison"}
    one = found["net-s0"].info
    history = client.get_metric_history(one.run_id, METRIC)
    assert [(value.step, value.value) for value in history] == list(
        zip((1, 2), pytest.approx(curve(runs)).expected, strict=True)
    )
    files = {file.path for file in client.list_artifacts(one.run_id, "maps/received")}
    assert files == {f"maps/received/{e:04d}-{n:02d}.png" for e in (1, 2) for n in (0, 1)}
    picture = library.artifacts.load_image(f"{one.artifact_uri}/maps/received/0001-00.png")
    assert picture.size == (256, 256)
    table = library.artifacts.load_dict(f"{one.artifact_uri}/scores.json")
    assert table["data"][0][:2] == ["received", "energy_pointing_game"]
    tracker = mlflow(one.run_id, client)
    tracker.scalars({"another": 2.0}, 3)
    assert client.get_metric_history(one.run_id, "another")[0].step == 3


def records(path: Path):
    """The records of a file of W&B, by its own protocol buffers; its frames are LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    content, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def test_weights_and_biases_reads_history_pictures_masks_and_tables(runs, tmp_path):
    library = pytest.importorskip("wandb")
    one = str(runs / "net-s0")
    assert command(["export", one, "--to", "wandb", str(tmp_path / "wb")]) == 0
    library.teardown()  # its service, another process, has then written everything
    (file,) = (tmp_path / "wb").glob("wandb/offline-run-*/*.wandb")
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
         for item in record.history.item}
        for record in records(file) if record.WhichOneof("record_type") == "history"
    ]  # fmt: skip
    scores = {row["epoch"]: row[METRIC] for row in history if METRIC in row}
    assert scores == dict(zip((1, 2), curve(runs), strict=True))
    pictures = [row for row in history if "maps/received/filenames" in row]
    assert [row["epoch"] for row in pictures] == [1, 2]
    assert pictures[0]["maps/received/captions"] == ["image 0", "image 4"]
    assert "object" in pictures[0]["maps/received/all_masks"][0]
    assert "object" in pictures[0]["maps/received/all_boxes"][0]
    shown = Image.open(file.parent / "files" / pictures[0]["maps/received/filenames"][0])
    assert shown.size == (256, 256)
    (table,) = [row for row in history if "scores/path" in row]
    content = json.loads((file.parent / "files" / table["scores/path"]).read_text())
    assert content["columns"][:3] == ["map", "metric", "mean"]


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """The folder that Trackio takes when it is imported, and its own reader."""
    folder = tmp_path_factory.mktemp("tracks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        pytest.importorskip("trackio")
        storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    return folder, storage


def logs(tracks, project, name):
    storage = tracks[1]
    (one,) = [one for one in storage.get_run_records(project) if one["name"] == name]
    return storage.get_logs(project, name, run_id=one["id"])


def test_trackio_reads_history_pictures_and_tables(runs, tracks, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")  # which would send the run away
    assert command(["export", str(runs), "--to", "trackio", str(tracks[0])]) == 0
    assert os.environ["TRACKIO_SPACE_ID"] == "someone/space"
    history = logs(tracks, "attnviz", "net-s0")
    scores = {row["epoch"]: row[METRIC] for row in history if METRIC in row}
    assert scores == dict(zip((1, 2), pytest.approx(curve(runs)).expected, strict=True))
    pictures = [row for row in history if "maps/received/0" in row]
    assert [row["epoch"] for row in pictures] == [1, 2]
    (file,) = (tracks[0] / "media").rglob(Path(pictures[0]["maps/received/0"]["file_path"]).name)
    assert Image.open(file).size == (256, 256)
    (table,) = [row["scores"] for row in history if "scores" in row]
    assert table["_value"][0]["map"] == "received"
    (compared,) = [row["comparison"] for row in logs(tracks, "attnviz", "comparison")]
    assert any(row["variant"] == "net" for row in compared["_value"])
    assert command(["export", str(runs), "--to", "trackio", str(tmp_path)]) == 2
    assert "trackio was imported before and writes to" in capsys.readouterr().err


def test_a_run_of_trackio_takes_what_a_monitor_gives(tracks):
    library = pytest.importorskip("trackio")
    run = library.init(project="live", name="one", embed=False, auto_log_gpu=False,
                       auto_log_cpu=False)  # fmt: skip
    monitor = av.Monitor(scenes(), budget=None, pinned=1, trackers=[wandb(run)])
    row = monitor(Attending(), 1)
    monitor.finish()
    library.finish()
    (scores,) = [one for one in logs(tracks, "live", "one") if METRIC in one]
    assert scores[METRIC] == pytest.approx(row[METRIC])


def test_nothing_is_exported_of_a_folder_without_runs(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    line = ["export", str(tmp_path / "runs"), "--to", "tensorboard", str(tmp_path / "out")]
    assert command(line) == 2
    assert "export: no run that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
