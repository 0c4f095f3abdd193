"""The settings in which runs differ, and no other."""

from __future__ import annotations

from pathlib import Path

from attnviz.runs import ABSENT, differing
from tests.runs.made import make


def test_only_what_differs_is_told_by_dotted_name(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "a", settings={"lr": 0.1, "patch": {"size": 16, "shape": "square"}}),
        make(tmp_path / "b", settings={"lr": 0.1, "patch": {"size": 8, "shape": "square"}}),
        make(tmp_path / "c", settings={"lr": 0.1, "patch": {}, "extra": None}),
    ]
    assert differing(runs) == {
        "patch.size": (16, 8, ABSENT),
        "patch.shape": ("square", "square", ABSENT),
        "extra": (ABSENT, ABSENT, None),
    }
    assert differing(runs[:1]) == {}
    assert differing([]) == {}


def test_true_and_one_are_not_the_same_setting(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, settings={"x": x}) for name, x in (("a", True), ("b", 1))]
    assert differing(runs) == {"x": (True, 1)}
    runs = [make(tmp_path / name, settings={"x": x}) for name, x in (("c", 1), ("d", 1.0))]
    assert differing(runs) == {}
