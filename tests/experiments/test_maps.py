"""What a run keeps of a model's attention, and what it leaves out where it would be too much."""

from __future__ import annotations

import pytest
import torch

import attnviz as av
from experiments import evaluation, maps
from experiments.maps import look
from experiments.questions import Asked
from experiments.settings import Settings
from experiments.training import Loader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loader() -> Loader:
    settings = Settings(side=32, size=8, train_images=8, val_images=4, test_images=30, batch=4)
    return Loader(settings, "test", CPU)  # more images than a watch's batch


def model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return av.build_model(name).eval()


def test_a_class_token_gives_its_rows_and_their_rollout(loader: Loader) -> None:
    vit = model("vit")
    seen = look(vit, loader, rows=3)
    blocks = ["class_row.blocks.0.attend", "class_row.blocks.1.attend", "class_row"]
    assert set(seen.maps) == {*blocks, "rollout", "layer_gradcam"}
    assert all(seen.maps[name].shape == (30, 4, 4) for name in seen.maps)
    with torch.no_grad(), av.watch(vit) as capture:
        vit(loader.batch(torch.arange(30)).images)
    for name, record in zip(blocks, capture.values(), strict=True):
        torch.testing.assert_close(seen.maps[name], av.class_row(record))
        assert seen.layers[name] == record.name
        assert record.weights is not None
        torch.testing.assert_close(seen.rows[name], record.weights[:3])
        assert seen.grids[name]["prefix"] == 1
        assert seen.grids[name]["query_grid"] == [4, 4]
    torch.testing.assert_close(seen.maps["rollout"], av.rollout(capture))


def test_whole_attention_is_kept_for_as_many_images_as_there_is_room(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    mha = model("mha")
    assert look(mha, loader, rows=3).rows["received"].shape == (3, 4, 64, 64)
    assert look(mha, loader).whole == 4 * 4 * 64 * 64
    monkeypatch.setattr(maps, "ROWS_BYTES", 2 * 4 * 4 * 64 * 64 + 1)
    assert look(mha, loader, rows=3).rows["received"].shape == (2, 4, 64, 64)
    monkeypatch.setattr(maps, "ROWS_BYTES", 100)
    assert look(mha, loader, rows=3).rows == {}


def test_one_learned_query_is_a_grid_of_one_place(loader: Loader) -> None:
    seen = look(model("learned_query"), loader, rows=1)
    assert seen.rows["received"].shape == (1, 4, 1, 64)
    assert seen.grids["received"]["query_grid"] == [1, 1]
    assert seen.grids["received"]["key_grid"] == [8, 8]


def test_attention_between_channels_has_no_map_and_no_rows(loader: Loader) -> None:
    seen = look(model("pointwise_channels"), loader, rows=1)
    assert set(seen.maps) == {"layer_gradcam"}
    assert seen.rows == {}


def test_the_doctor_sees_crops_around_the_patches_where_weights_are_large() -> None:
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    boxes = torch.tensor([[50, 0, 60, 10], [27, 40, 37, 50], [0, 0, 0, 0]])
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    asked = Asked(masks[:, None].expand(-1, 3, -1, -1).float(), masks, boxes, torch.zeros(3))
    for whole, side in ((evaluation.WHOLE_BYTES, 64), (evaluation.WHOLE_BYTES * 17, 16)):
        images, kept = evaluation._cropped(asked, whole)
        assert images.shape == (3, 3, side, side)
        assert kept.flatten(1).sum(1).tolist() == [100, 100, 0]
        assert torch.equal(images[:, 0].bool(), kept)
