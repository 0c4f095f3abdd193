"""Maps of gates, against loops that read like the formulas."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import attnviz as av
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


class Gated(nn.Module):
    """A gate whose value at each cell is the sigmoid of what the stem sees there."""

    def __init__(self, stem, before=lambda x: x, after=lambda x: x, *, channel=False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.before, self.after, self.channel = stem, before, after, channel
        self.eval()

    def forward(self, x):
        y = self.after(self.stem(self.before(x)))
        gate = y.mean((2, 3), keepdim=True) if self.channel else y.mean(1, keepdim=True)
        return (y * gate.sigmoid()).flatten(2).mean(2)


def patches(step):
    return nn.Conv2d(3, 8, step, step)


def elsewhere(x):
    """The same features, in a tensor of which nothing is known."""
    return torch.from_numpy(x.numpy().copy())


GATED = {
    "plain": (patches(16), {}, (96, 64)),
    "strides": (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)), {}, (32, 48)),
    "a rest": (patches(16), {}, (100, 60)),
    "a larger rest": (patches(16), {}, (95, 62)),
    "cropped": (patches(8), {"before": lambda x: x[..., 16:48, 8:56]}, (64, 64)),
    "cropped features": (patches(8), {"after": lambda x: x[..., 1:5, 2:6]}, (64, 64)),
    "padded": (patches(8), {"before": lambda x: F.pad(x, (16, 16, 0, 0))}, (32, 32)),
    "around": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2),
                             nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3, 2)), {}, (32, 48)),
    "negative": (patches(8), {"before": lambda x: F.pad(x, (-8, -16, -16, 0))}, (64, 64)),
    "mirrored": (patches(8), {"before": lambda x: x.flip(-1)}, (32, 48)),
    "mirrored features": (patches(8), {"after": lambda x: x.flip(-1)}, (32, 48)),
    "rolled": (patches(8), {"after": lambda x: x.roll((1, 2), (2, 3))}, (32, 48)),
    "turned": (patches(8), {"before": lambda x: x.transpose(2, 3)}, (32, 48)),
    "elsewhere": (patches(8), {"after": elsewhere}, (32, 48)),
    "mirrored elsewhere": (patches(8), {"after": lambda x: elsewhere(x).flip(-1)}, (32, 48)),
    "resized": (patches(8), {"before": lambda x: F.interpolate(x, (64, 64))}, (48, 96)),
    "pixel shuffle": (patches(16), {"after": lambda x: F.pixel_shuffle(x, 2)}, (64, 96)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "channel"),
    [(way, False) for way in GATED]
    + [(way, True) for way in ("a rest", "cropped", "mirrored elsewhere")],
)
def test_a_gates_map_lies_where_the_pixels_that_move_it_are(way, channel):
    """One part of the image is changed: the map changes there."""
    stem, options, (h, w) = GATED[way]
    model, image = Gated(stem, **options, channel=channel), torch.randn(1, 3, h, w)
    layout = av.locate(model, image)
    draw = maps.channel_gated if channel else maps.gate_map

    def drawn(x):
        with torch.no_grad(), av.watch(model, features=channel) as seen:
            model(x)
        (record,) = seen.gates.values()
        if channel:  # the gate itself sees the whole image
            record = dataclasses.replace(record, scale=torch.arange(8.0).view(1, 8, 1, 1))
        return draw(record, size=(h, w), interpolation="nearest", layout=layout)[0]

    base, compared = drawn(image), 0
    for down, right in [(0.5, 0.5), (0.3, 0.7), (0.7, 0.3), (0.2, 0.2), (0.99, 0.99)]:
        top, left = int(down * (h - 8)), int(right * (w - 8))
        changed = image.clone()
        changed[..., top : top + 8, left : left + 8] += 5
        moved = (drawn(changed) - base).abs()
        if float(moved.max()) < 1e-3:
            continue  # it was cut off
        compared += 1
        y, x = (
            moved.sum(1 - axis) @ torch.arange(float(moved.shape[axis])) / moved.sum()
            for axis in (0, 1)
        )
        assert abs(float(y) - top - 3.5) < 12
        assert abs(float(x) - left - 3.5) < 12
    assert compared > 2


def test_a_watched_gate_whose_places_are_unknown_is_refused():
    model, image = Gated(patches(8), after=elsewhere), torch.randn(1, 3, 32, 48)
    with torch.no_grad(), av.watch(model) as seen:
        model(image)
    (record,) = seen.gates.values()
    with pytest.raises(InputError, match=r"where the feature map that it gates lies.*av.locate"):
        maps.gate_map(record)
    assert maps.gate_map(record, layout=av.locate(model, image)).shape == (1, 4, 6)
    assert maps.gate_map(record.scale).shape == (1, 4, 6)


def test_explicit_padding_before_a_convolution_is_followed():
    """No measurement is needed for the gates of such networks."""
    stem, options, (h, w) = GATED["around"]
    model = Gated(stem, **options)
    with torch.no_grad(), av.watch(model) as seen:
        model(torch.randn(1, 3, h, w))
    (record,) = seen.gates.values()
    assert record.places.keys.status == "proven"
    assert record.places.keys.grid == tuple(record.scale.shape[2:])
