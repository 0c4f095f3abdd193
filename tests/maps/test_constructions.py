"""The table of constructions decides which maps there are, which is primary and what each needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import attnviz as av
from attnviz.errors import InputError
from attnviz.layers import CBAM, MultiHeadAttention
from attnviz.maps import CONSTRUCTIONS, construction, drawings, maps_of, primary, watch_options
from attnviz.models import build_model


def seen_of(model: nn.Module, **options: object) -> av.Capture:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), av.watch(model.eval(), **options) as seen:  # type: ignore[arg-type]
        model(images)
    return seen


class TwoLayers(nn.Module):
    """A stem, attention over its places, CBAM's two gates, attention again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.first, self.cbam, self.second = (
            MultiHeadAttention(16),
            CBAM(16),
            MultiHeadAttention(16),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.cbam(self.first(self.stem(x)))).mean((1, 2, 3))


def test_the_last_attention_has_the_plain_name_and_speaks_for_the_model() -> None:
    seen = seen_of(TwoLayers(), features=True)
    drawn = maps_of(seen, size=(32, 32))
    attention = [record.name for record in seen.values() if record.kind == "attention"]
    assert drawn.primary == "received"
    assert drawn.drawings["received"].layer == attention[-1]
    assert f"received.{attention[0]}" in drawn
    assert {"gate_map", "channel_gated"} <= set(drawn)
    assert torch.equal(drawn["received"], av.received(seen[attention[-1]], size=(32, 32)))
    assert all(one.shape == (2, 32, 32) for one in drawn.values())


def test_a_class_token_s_row_is_primary_and_brings_rollout() -> None:
    drawn = maps_of(seen_of(build_model("vit")))
    assert drawn.primary == "class_row"
    assert "rollout" in drawn
    assert not [name for name in drawn if name.startswith("received")]


@pytest.mark.parametrize(
    ("variant", "key"),
    [("mha", "received"), ("cbam", "gate_map"), ("cbam_channel", "channel_gated")],
)
def test_the_primary_map_of_a_reference_model(variant: str, key: str) -> None:
    assert maps_of(seen_of(build_model(variant), features=True)).primary == key


def test_what_cannot_be_drawn_says_why_and_raises_it_when_taken() -> None:
    drawn = maps_of(seen_of(build_model("cbam_channel")))  # features were not kept
    assert drawn.primary is None
    assert "features=True" in drawn.left_out["channel_gated"]
    with pytest.raises(InputError, match=r"no map 'channel_gated': .*features=True"):
        drawn["channel_gated"]
    with pytest.raises(InputError, match="unknown map 'recieved'"):
        drawn["recieved"]
    assert "no channel_gated" in str(drawn)


def test_chosen_constructions_are_drawn_of_every_record_they_fit() -> None:
    seen = seen_of(TwoLayers(), features=True)
    found = drawings(seen, ["received", "head_max"])
    assert [drawing.construction.key for drawing in found] == ["received", "head_max"] * 2
    with pytest.raises(InputError, match="did you mean 'received'"):
        drawings(seen, ["receved"])


def test_an_explanation_by_gradient_is_drawn_where_the_outputs_are_given() -> None:
    model = build_model("vit").eval()
    with av.watch(model, keep_graph=True) as seen:
        outputs = model(torch.randn(2, 3, 32, 32))
    drawn = maps_of(seen, ["gradient_weighted", "attention_gradcam"], outputs=outputs)
    assert "gradient_weighted" in drawn
    assert "attention_gradcam" in drawn
    without = maps_of(seen, ["gradient_weighted"])
    assert "outputs=" in without.left_out["gradient_weighted"]


def test_a_watch_keeps_no_more_than_the_constructions_need() -> None:
    table = CONSTRUCTIONS
    assert watch_options([table["class_row"], table["rollout"]]) == {
        "reduce": ("class_row", "rollout")
    }
    assert watch_options([table["received"], table["head_max"]]) == {}
    assert watch_options([table["channel_gated"]]) == {"features": True}
    assert watch_options([table["received"], table["gradient_weighted"]]) == {"keep_graph": True}


@pytest.mark.parametrize("variant", ["vit", "mha", "mha_reshape"])
def test_the_options_suffice_for_the_same_maps(variant: str) -> None:
    model = build_model(variant)
    whole = maps_of(seen_of(model))
    options = watch_options(drawing.construction for drawing in whole.drawings.values())
    reduced = maps_of(seen_of(model, **options))
    assert set(reduced) == set(whole)
    for name, one in whole.items():
        torch.testing.assert_close(reduced[name], one, rtol=1e-5, atol=1e-7)


@pytest.fixture
def own() -> Iterator[str]:
    @construction(title="strongest query", meaning="max over queries", subject="attention")
    def strongest_query(record, size=None, interpolation="bilinear"):  # type: ignore[no-untyped-def]
        columns = record.weights.amax(2, keepdim=True)
        return av.received(columns, size, interpolation, grid=record.key_grid)

    yield strongest_query.__name__
    del CONSTRUCTIONS[strongest_query.__name__]


def test_a_construction_from_outside_is_drawn_like_any_other(own: str) -> None:
    seen = seen_of(build_model("mha"))
    drawn = maps_of(seen, [own])
    record = next(record for record in seen.values() if record.kind == "attention")
    assert record.weights is not None
    assert torch.equal(drawn[own].flatten(1), record.weights.amax(2).mean(1))
    assert primary(record) is CONSTRUCTIONS["received"]  # it does not claim to be primary
    assert "strongest query" in str(drawn)


def test_a_name_is_taken_once_and_a_subject_is_known(own: str, unchecked: None) -> None:
    with pytest.raises(InputError, match="is registered already; choose another name"):
        construction(title="", meaning="", subject="attention")(CONSTRUCTIONS[own].draw)
    with pytest.raises(InputError, match="unknown construction: subject 'gates'"):
        construction(title="", meaning="", subject="gates")  # type: ignore[arg-type]
