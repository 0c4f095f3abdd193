"""The settings in which runs differ, and no other."""

from __future__ import annotations

from attnviz.runs import ABSENT, differing, in_words


def test_only_what_differs_is_told_by_dotted_name() -> None:
    settings = {
        "a": {"lr": 0.1, "patch": {"size": 16, "shape": "square"}},
        "b": {"lr": 0.1, "patch": {"size": 8, "shape": "square"}},
        "c": {"lr": 0.1, "patch": {}, "extra": None},
    }
    found = differing(settings)
    assert found == {
        "patch.size": {"a": 16, "b": 8, "c": ABSENT},
        "patch.shape": {"a": "square", "b": "square", "c": ABSENT},
        "extra": {"a": ABSENT, "b": ABSENT, "c": None},
    }
    assert in_words(found)["patch.size"] == {"a": "16", "b": "8", "c": ABSENT}
    assert differing({"a": settings["a"]}) == {}
    assert differing({}) == {}


def test_true_and_one_are_not_the_same_setting() -> None:
    assert differing({"a": {"x": True}, "b": {"x": 1}}) == {"x": {"a": True, "b": 1}}
    assert differing({"a": {"x": 1}, "b": {"x": 1.0}}) == {}
    assert differing({"a": {"x": [1, {}]}, "b": {"x": [1, {}]}}) == {}


def test_what_a_model_repeats_is_told_once() -> None:
    one = {"placement": 0, "model": {"placement": 0, "width": 8}}
    two = {"placement": 3, "model": {"placement": 3, "width": 16}}
    assert list(differing({"a": one, "b": two})) == ["placement", "model.width"]
    assert list(differing({"a": one, "b": one | {"model": {"placement": 9}}})) == [
        "model.placement", "model.width",
    ]  # fmt: skip
