"""A summary that may hold anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.summaries import cleaned, knockouts, level

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
KEYS = ("accuracy", "map", "threshold", "metrics", "findings", "knockout", "seconds", "other")


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_whatever_was_written_each_part_has_its_type_or_is_left_out(summary):
    found = cleaned(summary)
    assert isinstance(found.get("accuracy", 0.0), float)
    assert isinstance(found.get("map", ""), str)
    assert all(isinstance(value, float) for value in found["threshold"].values())
    for metrics in found["metrics"].values():
        for levels in metrics.values():
            assert all(isinstance(value, float) for value in levels.values())
    assert all(isinstance(one, dict) for one in found.get("findings", []))
    assert len(knockouts(SimpleNamespace(summary=found))) == len(found["knockout"])
    assert cleaned(found) == found


@pytest.mark.parametrize("summary", [None, [], 3, "x", {}])
def test_no_summary_is_an_empty_one(summary):
    found = cleaned(summary)
    assert found.pop("knockout") == []
    assert set(found) == {"threshold", "thresholds", "metrics", "layers", "about"}
    assert not any(found.values())


def test_levels_are_found_or_none():
    summary = {"metrics": {"received": {"iou": {"chance": 0.03, "mean": None, "low": "x"}}}}
    run = type("R", (), {"summary": cleaned(summary)})()
    assert level(run, "received", "iou", "chance") == 0.03
    for asked in (("received", "iou", "mean"), ("received", "x", "chance"), (None, "iou", "low")):
        assert level(run, *asked) is None


def test_a_knockout_is_named_by_what_was_cut_and_how():
    cut = {"name": "attend", "head": 2, "way": "zero", "effect": -0.5, "low": -0.6, "high": -0.4}
    gate = {**cut, "name": "gate", "head": None, "way": "open", "high": 0.1, "images": 16}
    broken = [{**cut, "effect": None}, {**cut, "name": 3}, "x"]
    run = SimpleNamespace(summary=cleaned({"knockout": [cut, *broken, gate]}))
    found = knockouts(run)
    assert list(found["what"]) == ["attend head 2 zero", "gate open"]
    assert list(found["clear"]) == [True, False]
    assert found["images"].max() == 16
