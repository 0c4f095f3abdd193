"""A faithfulness metric from outside the package is known by its key; what is wrong is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from attnviz import definitions, faithfulness
from attnviz.definitions import DEFINITIONS, MetricDefinition
from attnviz.errors import InputError
from attnviz.faithfulness import METRICS, faithfulness_scores
from attnviz.metrics import metric as map_metric
from tests.faithfulness.nets import Corner, corner_images, corner_maps


def defined(**other: Any) -> MetricDefinition:
    known = {"key": "mean_kept", "title": "mean kept", "meaning": "…", "source": "here"}
    return MetricDefinition(**{**known, "family": "faithfulness", **other})


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    kept, known = dict(METRICS), dict(definitions._DEFINED)
    yield
    for table, before in ((METRICS, kept), (definitions._DEFINED, known)):
        table.clear()
        table.update(before)


def test_each_metric_of_the_package_is_bound_to_its_definition_in_their_order() -> None:
    assert [one.definition for one in METRICS.values()] == [DEFINITIONS[key] for key in METRICS]
    keys = list(DEFINITIONS)
    assert sorted(METRICS, key=keys.index) == list(METRICS)
    for key, one in METRICS.items():
        assert one.function is getattr(faithfulness, key)


def test_one_function_gets_the_options_that_it_names() -> None:
    given: dict[str, Any] = {}

    @faithfulness.metric(defined())
    def mean_kept(model, images, maps, *, target=None, steps, weight=2.0):
        given.update(target=target, steps=steps, weight=weight)
        return (maps.mean((1, 2)) * weight).numpy()

    images, maps = corner_images(), corner_maps()
    found = faithfulness_scores(
        Corner(), images, maps, metrics=["mean_kept", "avg_drop"], target=1, steps=5
    )
    assert list(found) == ["mean_kept", "avg_drop"]
    assert given == {"target": 1, "steps": 5, "weight": 2.0}
    assert_close(found["mean_kept"], 2 * maps.mean((1, 2)).float())


def test_a_metric_follows_from_others_that_are_computed_once() -> None:
    calls = []

    @faithfulness.metric(defined(key="first"))
    def first(model, images, maps):
        calls.append(1)
        return maps.mean((1, 2))

    @faithfulness.metric(defined(key="second"), of=("first",), combine=lambda one: 3 * one)
    def second(model, images, maps):
        return 3 * first(model, images, maps)

    images, maps = corner_images(), corner_maps()
    found = faithfulness_scores(Corner(), images, maps, metrics=["second", "first"])
    assert_close(found["second"], 3 * found["first"])
    assert len(calls) == 1


def test_what_cannot_be_a_metric_is_refused() -> None:
    with pytest.raises(InputError, match="the package has a metric of that key"):
        faithfulness.metric(defined(key="avg_drop"))(lambda model, images, maps: maps)
    with pytest.raises(InputError, match="expected the family faithfulness, got localization"):
        faithfulness.metric(defined(family="localization"))
    with pytest.raises(InputError, match="threshold: expected a default, or one of target, "):
        faithfulness.metric(defined())(lambda model, images, maps, threshold: maps)
    with pytest.raises(InputError, match=r"attnviz\.faithfulness\.metric"):
        map_metric(defined())
    faithfulness.metric(defined())(lambda model, images, maps: maps)
    with pytest.raises(InputError, match=r"mean_kept: expected one score per image, \(3,\), got"):
        faithfulness_scores(Corner(), corner_images(), corner_maps(), metrics=["mean_kept"])


def test_torch_is_all_that_a_metric_needs() -> None:
    @faithfulness.metric(defined())
    def output(model, images, maps, **options):
        return model(images)[:, options["target"]]

    images, maps = corner_images(), corner_maps()
    with torch.no_grad():
        expected = Corner()(images)[:, 1]
        found = faithfulness_scores(Corner(), images, maps, metrics=["mean_kept"], target=1)
    assert_close(found["mean_kept"], expected.float())
