"""Object queries of a detector: one row each, with the box that it predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnviz as av
from attnviz.capture import SamplingPoints
from attnviz.errors import InputError
from tests.capture.test_sampling_points import Deformable
from tests.places.nets import WIDTH, Block, Cross

QUERIES = 5


class Detector(nn.Module):
    """An encoder of patches, and learned queries that meet them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder = nn.Conv2d(3, WIDTH, 8, 8), Block()
        self.queries = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.decoder, self.boxes = Cross(), nn.Linear(WIDTH, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        memory = self.encoder(self.stem(images).flatten(2).mT)
        found = self.decoder(self.queries.expand(len(images), -1, -1), memory)
        return {"pred_boxes": self.boxes(found).sigmoid()}


def seen() -> tuple[av.Capture, dict[str, Tensor], av.Layout]:
    torch.manual_seed(0)
    model, images = Detector().eval(), torch.randn(2, 3, 32, 48)
    layout = av.locate(model, images)
    with torch.no_grad(), av.watch(model) as capture:
        output = model(images)
    return capture, output, layout


def test_each_object_query_has_its_row_and_its_box() -> None:
    capture, output, layout = seen()
    found = av.object_maps(capture["decoder"], output, layout=layout)
    weights = capture["decoder"].weights
    assert weights is not None
    torch.testing.assert_close(found.maps, weights.mean(1).view(2, QUERIES, 4, 6))
    x, y, w, h = output["pred_boxes"][1, 3].tolist()
    corners = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(found.boxes[1, 3], corners)
    some = av.object_maps(
        capture["decoder"], output["pred_boxes"], queries=[4, 1], layout=layout, heads=2,
        size=(32, 48),
    )  # fmt: skip
    assert some.maps.shape == (2, 2, 32, 48)
    assert (some.queries, len(some)) == ((4, 1), 2)
    torch.testing.assert_close(some.boxes, found.boxes[:, [4, 1]])


def test_maps_of_sampling_points_are_what_they_read_of_each_place() -> None:
    """Applied to the feature maps, the map of each head and level gives what the layer computed."""
    torch.manual_seed(0)
    model, images = Deformable("plain").eval(), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), av.watch(model) as capture:
        out = model(images)
    (record,) = capture.values()
    found = av.object_maps(record, torch.rand(2, QUERIES, 4), heads="each", queries=[4, 0])
    assert found.points is not None
    torch.testing.assert_close(found.points, model.at.transpose(1, 2)[:, [4, 0]])
    assert found.weights is not None
    assert torch.equal(found.weights, model.weights.transpose(1, 2)[:, [4, 0]])
    points, weights = record.points, record.weights
    assert points is not None
    assert weights is not None
    with torch.no_grad():
        values = model.stem(images)
    total = torch.zeros_like(out)
    for level, side in enumerate(points.sides):
        keys = [i for i, one in enumerate(points.level) if one == level]
        alone = SamplingPoints(points.at[..., keys, :], (0,) * len(keys), (side,))
        maps = av.object_maps(weights[..., keys], points=alone, heads="each").maps
        pooled = F.adaptive_avg_pool2d(values, side).view(2, 2, -1, *side)
        total += torch.einsum("bnchw,bnqhw->bncq", pooled, maps.transpose(1, 2)).flatten(0, 1)
        assert maps.shape == (2, QUERIES, 2, *side)
    torch.testing.assert_close(total, out, rtol=1e-4, atol=1e-5)


def test_levels_are_spread_over_the_finest_one() -> None:
    at = torch.tensor([[0.25, 0.25], [0.75, 0.75], [3.0, 0.5]]).view(1, 1, 1, 3, 2)
    weights = torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 1, 3)
    points = SamplingPoints(at, (0, 1, 0), ((2, 2), (4, 4)))
    found = av.object_maps(weights, points=points, interpolation="nearest")
    hand = torch.zeros(4, 4)
    hand[:2, :2] += 0.5 / 4  # at the centre of the coarse place
    hand[2:, 2:] += 0.25 / 4  # between four fine ones
    torch.testing.assert_close(found.maps[0, 0], hand)  # what lies outside is lost
    assert found.boxes is None
    assert found.level == (0, 1, 0)
    with pytest.raises(InputError, match="with 2 levels do not fit"):
        av.object_maps(weights, points=SamplingPoints(at, (0, 1), ((2, 2), (4, 4))))
    with pytest.raises(InputError, match="a number below 1 for the given tensor, got 4"):
        av.object_maps(weights, points=points, heads=4)


def test_boxes_of_padded_images_lie_where_the_images_do() -> None:
    weights = torch.rand(2, 1, 1, 6).softmax(-1)
    weights[1, ..., 3:] = 0
    mask = torch.ones(2, 40, 60)
    mask[1, 20:] = mask[1, :, 45:] = 0
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 0.5]]]).expand(2, 1, 4)
    places = {"grid": (2, 3)}
    with pytest.raises(InputError, match="the padding of images of different sizes is"):
        av.object_maps(weights, boxes, **places)
    found = av.object_maps(weights, boxes, mask=mask, **places).boxes
    assert found is not None
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 0.25, 1.0, 0.75]))
    torch.testing.assert_close(found[1, 0], torch.tensor([0.0, 0.125, 0.75, 0.375]))
    with pytest.raises(InputError, match=r"expected mask= \(b, H, W\) for 2 images"):
        av.object_maps(weights, boxes, mask=mask[0], **places)
    with pytest.raises(InputError, match="no rectangle from the upper left corner"):
        av.object_maps(weights, boxes, mask=mask.flip(1), **places)


def test_a_pretrained_kind_of_detector_shows_its_own_sampling_locations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deformable DETR on a padded batch, against what it gives to `grid_sample`."""
    import transformers as hub

    torch.manual_seed(0)
    backbone = hub.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        out_features=["stage1", "stage2"],
    )  # fmt: skip
    config = hub.DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, num_queries=3, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_feature_levels=3, disable_custom_kernels=True,
    )  # fmt: skip
    model, images = hub.DeformableDetrForObjectDetection(config).eval(), torch.randn(2, 3, 32, 48)
    mask = torch.ones(2, 32, 48, dtype=torch.long)
    mask[1, 16:] = mask[1, :, 36:] = 0
    grids: list[Tensor] = []

    def sample(values: Tensor, grid: Tensor, **options: Any) -> Tensor:
        grids.append(grid.view(2, -1, *grid.shape[1:]))
        return sampled(values, grid, **options)

    sampled = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", sample)
    with torch.no_grad(), av.watch(model, where="*1.encoder_attn*") as capture:
        output = model(pixel_values=images, pixel_mask=mask)
    (record,) = capture.values()
    with pytest.raises(InputError, match="pass mask=, the pixel_mask"):
        av.object_maps(record, output)
    found = av.object_maps(record, output, mask=mask)
    assert found.points is not None
    hand = (torch.cat(grids[-3:], 3).transpose(1, 2) + 1) / 2
    torch.testing.assert_close(found.points, hand, rtol=0, atol=1e-5)
    assert found.boxes is not None
    x, y, w, h = output.pred_boxes[1, 2].tolist()
    corners = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    share = torch.tensor([0.75, 0.5, 0.75, 0.5])
    torch.testing.assert_close(found.boxes[1, 2], corners * share)


def test_other_records_and_outputs_are_refused() -> None:
    capture, output, layout = seen()
    with pytest.raises(InputError, match="has 2 · 24 queries and the output 2 · 5 boxes"):
        av.object_maps(capture["encoder"], output, layout=layout)
    with pytest.raises(InputError, match="expected queries from 0 to 4"):
        av.object_maps(capture["decoder"], output, queries=[5], layout=layout)
    with pytest.raises(InputError, match="expected the detector's output with pred_boxes"):
        av.object_maps(capture["decoder"], {"logits": torch.zeros(2, 5, 3)}, layout=layout)
