"""What every metric is stands once; levels of earlier versions are read under their present key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import attnviz as av
from attnviz import definitions
from attnviz.comparison import compare
from attnviz.definitions import (
    DEFINITIONS,
    LEVELS,
    MetricDefinition,
    added,
    adopt,
    define,
    is_lower_better,
    limits_of,
    metric_title,
    renamed_levels,
)
from attnviz.errors import InputError
from tests.runs import made

OLD = {"mean": 0.5, "low": 0.4, "high": 0.6, "chance": 0.03, "ceiling": 0.8}


class TestLevels:
    def test_a_run_of_an_earlier_version_says_ceiling_and_is_read_as_redrawn(
        self, tmp_path: Path
    ) -> None:
        made.make(tmp_path / "a")
        made.edit(tmp_path / "a", summary={"map": "m", "metrics": {"m": {"iou": OLD}}})
        level = av.open_run(tmp_path / "a").summary["metrics"]["m"]["iou"]
        assert level == {k: v for k, v in OLD.items() if k != "ceiling"} | {"redrawn": 0.8}
        (listed,) = av.list_runs(tmp_path)
        assert listed.summary["metrics"]["m"]["iou"] == level

    def test_the_present_key_wins_over_the_former(self) -> None:
        both = {"metrics": {"m": {"iou": {"ceiling": 0.1, "redrawn": 0.2}}}}
        assert renamed_levels(both) == {"metrics": {"m": {"iou": {"redrawn": 0.2}}}}

    @pytest.mark.parametrize(
        "summary",
        [{}, {"ceiling": 1}, {"metrics": 3}, {"metrics": {"m": [1]}}, {"metrics": {"m": {"k": 2}}}],
    )
    def test_what_has_another_form_is_left_as_it_is(self, summary: dict[str, Any]) -> None:
        assert renamed_levels(summary) == summary

    def test_baselines_that_say_ceiling_are_read_as_redrawn(self) -> None:
        scores = {"a": [[0.5, 0.6, 0.7]]}
        for given in ({"ceiling": {"iou": 0.8}}, {"iou": {"ceiling": 0.8}}):
            table = compare(scores, primary="iou", resamples=10, baselines=given).table
            assert table["redrawn"].tolist() == [0.8]
            assert "ceiling" not in table

    def test_every_level_says_what_it_is(self) -> None:
        assert tuple(LEVELS) == ("chance", "centre", "fixed", "redrawn", "bound")
        assert "No upper bound" in LEVELS["redrawn"].meaning
        assert "Gaussian" in LEVELS["centre"].title


def own(**changes: Any) -> MetricDefinition:
    """A definition as a user writes it."""
    given: dict[str, Any] = {
        "key": "edge_share",
        "title": "edge share",
        "meaning": "The share of the map's mass on the border of the mask.",
        "source": "here",
        "better": "lower",
    }
    return MetricDefinition(**given | changes)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Definitions that a test adds are gone after it."""
    before = dict(definitions._DEFINED)
    yield
    definitions._DEFINED.clear()
    definitions._DEFINED.update(before)


class TestDefinitions:
    def test_iou_has_one_name(self) -> None:
        assert metric_title("iou") == DEFINITIONS["iou"].title == "IoU at a threshold"

    def test_an_unknown_key_becomes_words(self) -> None:
        assert metric_title("my_own_auroc") == "my own AUROC"
        assert not is_lower_better("my_own_auroc")
        assert limits_of("my_own_auroc") == (-math.inf, math.inf)

    def test_a_key_of_the_package_cannot_be_defined_again(self) -> None:
        with pytest.raises(InputError, match="the package has a metric of that key"):
            define(own(key="iou"))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"key": "a/b"}, "expected lower-case letters, digits and underscores"),
            ({"better": "more"}, "better: expected one of higher, lower, got 'more'"),
            ({"family": "x"}, "family: expected one of localization"),
            ({"low": 1.0}, "expected low < high, got 1.0 and 1.0"),
        ],
    )
    def test_a_wrong_definition_says_what_was_expected(
        self, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            own(**changes)

    def test_range_chance_and_bound_are_said_together(self) -> None:
        assert own(high=math.inf).scale == "0 upwards, lower is better; bound: unknown"
        said = DEFINITIONS["pixel_auroc"].scale
        assert said == "0 to 1, higher is better; chance is 0.5; bound: 1"
        assert own(low=-math.inf).limits == "up to 1"

    @pytest.mark.usefixtures("forgotten")
    def test_a_definition_survives_the_run_folder(self) -> None:
        told = own(high=math.inf, bound=0.0, threshold=True, family="other")
        define(told)
        document = json.loads(json.dumps(added(), allow_nan=False))
        del definitions._DEFINED["edge_share"]
        adopt(document)
        assert DEFINITIONS["edge_share"] == told

    @pytest.mark.usefixtures("forgotten")
    def test_a_run_cannot_redefine_what_is_known(self) -> None:
        define(own())
        adopt({"edge_share": {**asdict(own(title="other")), "better": "higher"}})
        adopt({"iou": {**asdict(own(key="iou")), "better": "lower"}})
        assert is_lower_better("edge_share")
        assert DEFINITIONS["edge_share"].title == "edge share"
        assert not is_lower_better("iou")

    @pytest.mark.usefixtures("forgotten")
    def test_text_from_a_run_cannot_act_on_a_page_or_a_terminal(self) -> None:
        hostile = "![i](http://x/b) <b>*x*</b> `c` $d$ \x1b[31m " + "a" * 5000
        adopt({"edge_share": {**asdict(own()), "title": hostile, "low": 0, "high": 2}})
        title = DEFINITIONS["edge_share"].title
        assert not set(title) & set("[]<>`*_|!\\#$\x1b")
        assert "://" not in title
        assert len(title) <= 300
        assert limits_of("edge_share") == (0, 2)

    @pytest.mark.usefixtures("forgotten", "unchecked")
    @pytest.mark.parametrize(
        "document",
        [None, 3, [], {"k": 3}, {"a/b": asdict(own())}, {"k": {"title": "only"}},
         {"k": {**asdict(own()), "better": "sideways"}}, {"k": {**asdict(own()), "low": 7}}],
    )  # fmt: skip
    def test_what_makes_no_definition_is_left_out(self, document: Any) -> None:
        adopt(document)
        assert set(DEFINITIONS) == set(definitions._OWN)
