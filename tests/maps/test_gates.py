"""Maps of gates, against loops that read like the formulas."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from attnviz import maps
from attnviz.errors import InputError
from tests.maps.stand_ins import StandIn, attention, gate


def test_a_spatial_gates_map_is_its_scale():
    record = gate("spatial")
    assert torch.equal(maps.gate_map(record), record.scale[:, 0])
    assert torch.equal(maps.gate_map(record.scale), record.scale[:, 0])
    assert maps.gate_map(record, size=(9, 10)).shape == (2, 9, 10)


def test_a_gate_with_a_value_per_channel_and_place_is_averaged_over_channels():
    scale = torch.rand(2, 4, 3, 5)
    assert_close(maps.gate_map(StandIn(kind="gate", scale=scale)), scale.mean(1))


def test_channel_gated_centres_the_scales_and_averages_the_channels():
    record = gate("channel")
    b, c, h, w = record.features.shape
    expected = torch.zeros(b, h, w)
    for i in range(b):
        mean = sum(float(record.scale[i, j]) for j in range(c)) / c
        for y in range(h):
            for x in range(w):
                for j in range(c):
                    g = float(record.scale[i, j])
                    expected[i, y, x] += (g - mean) * record.features[i, j, y, x] / c
    assert_close(maps.channel_gated(record), expected)
    assert_close(maps.channel_gated(record.scale, record.features), expected)


def test_a_gate_without_a_preference_draws_nothing():
    features = torch.randn(2, 4, 3, 5)
    drawn = maps.channel_gated(torch.full((2, 4, 1, 1), 0.7), features)
    assert_close(drawn, torch.zeros(2, 3, 5), atol=1e-6, rtol=0)


def test_channel_gated_is_largest_where_the_preferred_channel_is_active():
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0, 1, 2] = 1.0
    features[0, 1, 3, 0] = 1.0
    drawn = maps.channel_gated(torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1), features)
    assert drawn[0].argmax() == 1 * 4 + 2
    assert drawn[0].argmin() == 3 * 4 + 0


def test_each_gate_is_sent_to_the_map_that_fits_it():
    channel, spatial = gate("channel"), gate("spatial")
    with pytest.raises(InputError, match=r"'block.gate' is a channel gate.*use channel_gated"):
        maps.gate_map(channel)
    with pytest.raises(InputError, match=r"'block.gate' is a spatial gate.*use gate_map"):
        maps.channel_gated(spatial)
    with pytest.raises(InputError, match=r"'block.attn' is attention.*use received"):
        maps.gate_map(attention())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("construction", [maps.received, maps.gate_map, maps.channel_gated])
def test_a_whole_capture_is_not_one_record(construction):
    with pytest.raises(InputError, match=r"expected one record or its tensor, got dict; take one"):
        construction({"block.gate": gate("channel")})


def test_features_that_are_missing_or_do_not_fit_are_named():
    record = gate("channel")
    with pytest.raises(InputError, match=r"watch with features=True, or pass features=\(b"):
        maps.channel_gated(record.scale)
    with pytest.raises(InputError, match=r"\(b, c\) = \(2, 4\).*got \(2, 3, 3, 5\)"):
        maps.channel_gated(record, record.features[:, :3])


def test_half_precision_gates_are_centred_in_float32():
    record = gate("channel")
    half = maps.channel_gated(record.scale.half(), record.features.half())
    assert half.dtype == torch.float32
    assert_close(half, maps.channel_gated(record), atol=2e-3, rtol=2e-3)
