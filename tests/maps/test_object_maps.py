"""Object queries of a detector: one row each, with the box that it predicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.errors import InputError
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


def test_other_records_and_outputs_are_refused() -> None:
    capture, output, layout = seen()
    with pytest.raises(InputError, match="has 2 · 24 queries and the output 2 · 5 boxes"):
        av.object_maps(capture["encoder"], output, layout=layout)
    with pytest.raises(InputError, match="expected queries from 0 to 4"):
        av.object_maps(capture["decoder"], output, queries=[5], layout=layout)
    with pytest.raises(InputError, match="expected the detector's output with pred_boxes"):
        av.object_maps(capture["decoder"], {"logits": torch.zeros(2, 5, 3)}, layout=layout)
