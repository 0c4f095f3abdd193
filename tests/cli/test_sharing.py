"""`measure` and `attribute` by several workers: the same numbers, whoever works on which images."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from attnviz.cli import run
from attnviz.errors import RunError
from attnviz.executors import processes, spread
from attnviz.runs import open_run
from tests.cli.trained import write_trained
from tests.cluster import cluster

ATTRIBUTE = ["--method", "integrated_gradients", "--option", "n_steps=4"]
MEASURE = [
    *("--metrics", "energy_pointing_game", "pointing_game", "--agree-with", "integrated_gradients"),
    *("--faithfulness", "deletion_auc", "road_morf", "--steps", "3", "--images", "3"),
    *("--mprt", "--knockout"),
]


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of two images, of which the model is asked about three in all."""
    for command in ("attribute", "measure"):
        monkeypatch.setattr(f"attnviz.cli.{command}.PIECE", 2)


def both(root, *words):
    assert run(["attribute", str(root), *ATTRIBUTE, *words]) == 0
    assert run(["measure", str(root), *MEASURE, *words]) == 0
    return open_run(root / "mha-0")


def same(one, other):
    assert_frame_equal(one.samples(), other.samples(), check_exact=True)
    assert one.summary == other.summary
    maps = (found.maps("integrated_gradients") for found in (one, other))
    np.testing.assert_array_equal(*maps)
    assert other.state == "complete"
    assert not other.verify()


@pytest.mark.usefixtures("small_pieces")
def test_processes_and_a_cluster_give_the_same_numbers(tmp_path, capsys):
    for name in ("alone", "processes", "cluster"):
        write_trained(tmp_path / name)
    alone = both(tmp_path / "alone")
    samples = alone.samples()
    assert samples["received/deletion_auc"].notna().tolist() == [True] * 3 + [False] * 3
    assert samples["integrated_gradients/mprt"].notna().sum() == 3
    assert samples["received/agreement_spearman"].notna().any()
    told = capsys.readouterr().out
    same(alone, both(tmp_path / "processes", "--workers", "2"))
    assert capsys.readouterr().out == told
    with cluster(tmp_path, workers=1) as address:
        same(alone, both(tmp_path / "cluster", "--scheduler", address))
    assert capsys.readouterr().out == told


@pytest.mark.usefixtures("small_pieces")
def test_a_mistake_in_a_worker_is_one_line_and_leaves_the_run_alone(tmp_path, capsys):
    found = write_trained(tmp_path)
    before = (found.path / "run.json").read_bytes()
    assert run(["measure", str(tmp_path), "--metrics", "pointing", "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "unknown metric 'pointing'" in error
    assert error.count("\n") == 1
    assert (found.path / "run.json").read_bytes() == before


def test_a_worker_that_is_killed_is_said_to_be():
    with (
        pytest.raises(RunError, match=r"job: a worker process was killed.*fewer --workers"),
        processes(1) as executor,
    ):
        spread(os._exit, [signal.SIGKILL], executor, label="job")


def test_parts_keep_their_order():
    assert spread(abs, [-3, 1, -2], None, label="job") == [3, 1, 2]
    with processes(2) as executor:
        assert spread(abs, range(-5, 0), executor, label="job") == [5, 4, 3, 2, 1]
