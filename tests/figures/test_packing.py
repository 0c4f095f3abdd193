"""The block of bytes that the browser unpacks."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attnviz.figures.packing import (
    MapLayer,
    Settings,
    Tile,
    coverage,
    pack,
    pack_image,
    pack_rows,
    scaled_integers,
    with_settings,
)


def unpacked(block: bytes) -> tuple[dict, memoryview]:
    length, check = struct.unpack("<II", block[:8])
    head = json.loads(block[8 : 8 + length])
    shown = {name: value for name, value in head.items() if name not in {"settings", "change"}}
    assert zlib.crc32(json.dumps(shown).encode() + block[8 + length :]) == check
    return head, memoryview(block)[8 + length :]


def part(body: memoryview, place: dict) -> bytes:
    return bytes(body[place["offset"] : place["offset"] + place["length"]])


def gallery(n: int, side: int = 8) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = np.full((n, side, side, 3), 200, np.uint8)
    images[np.arange(n), :, :, 0] = np.arange(n)[:, None, None] * 3
    maps, masks = rng.normal(size=(n, 3, 5)), rng.random((n, side, side)) < 0.2
    tiles = [Tile(str(i), f"#{i}", (), f"image {i}", i) for i in range(n)]
    layers = [MapLayer("m", "m", maps, 0.3, tuple(map(str, range(n))))]
    block = pack(images, tiles, layers, masks, settings=Settings(), label="l")
    return block, images, maps, masks


def test_masks_and_maps_come_out_as_they_went_in():
    block, _, maps, masks = gallery(11)
    head, body = unpacked(block)
    bits = np.unpackbits(np.frombuffer(part(body, head["masks"]), np.uint8))
    assert (bits[: masks.size].reshape(masks.shape) == masks).all()
    (layer,) = head["maps"]
    values = np.frombuffer(part(body, layer), "<u2").reshape(maps.shape) / 65535
    low, span = maps.min((1, 2), keepdims=True), np.ptp(maps, (1, 2), keepdims=True)
    np.testing.assert_allclose(values, (maps - low) / span, atol=1 / 65535)


def test_other_settings_are_no_other_tiles():
    block, *_ = gallery(3)
    other = with_settings(block, Settings(threshold=0.9, colours="viridis"), change=7)
    assert other[4:8] == block[4:8]
    head, body = unpacked(other)
    assert (head["settings"]["threshold"], head["change"]) == (0.9, 7)
    assert bytes(body) == bytes(unpacked(block)[1])


def test_a_shared_scale_keeps_the_order_of_the_maps():
    maps = np.stack([np.full((2, 2), 0.25), np.full((2, 2), 1.0)])
    assert scaled_integers(maps, 8, shared=True).reshape(2, -1).max(1).tolist() == [64, 255]


def test_images_lie_in_rows_of_eight():
    block, images, _, _ = gallery(11)
    head, body = unpacked(block)
    atlas = np.asarray(Image.open(io.BytesIO(part(body, head["atlas"]))).convert("RGB"))
    assert atlas.shape == (16, 64, 3)
    y, x = divmod(9, 8)
    tile = atlas[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8].astype(int)
    assert abs(tile.mean((0, 1)) - images[9].mean((0, 1))).max() < 12  # WebP is lossy


def test_many_large_maps_travel_in_eight_bits():
    tiles = [Tile("0", "", (), "", 0)]
    maps = np.random.default_rng(0).random((1, 1100, 1000))
    layers = [MapLayer("m", "m", maps)]
    image = np.zeros((1, 8, 8, 3), np.uint8)
    head, body = unpacked(pack(image, tiles, layers, None, settings=Settings(), label=""))
    assert head["maps"][0]["bits"] == 8
    values = np.frombuffer(part(body, head["maps"][0]), np.uint8)
    np.testing.assert_allclose(
        values / 255, (maps.ravel() - maps.min()) / np.ptp(maps), atol=1 / 255
    )


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_a_map_without_a_range_is_zeros(value):
    maps = np.full((1, 3, 3), value)
    assert not scaled_integers(maps, 16).any()
    maps[0, 0, 0] = 1.0 if np.isfinite(value) else 0.0
    assert scaled_integers(maps, 16).any() == np.isfinite(value)


def test_from_zero_leaves_out_what_is_negative():
    maps = np.array(
        [[[-1.0, 0.0], [0.5, 2.0]], [[-3.0, -1.0], [-2.0, -0.5]], [[1.0, 1.0], [1.0, 1.0]]]
    )
    found = scaled_integers(maps, 8, from_zero=True)
    assert found[0].tolist() == [[0, 0], [64, 255]]
    assert not found[1].any()
    assert (found[2] == 255).all()


def test_equal_content_has_an_equal_checksum_and_other_content_another():
    one, again = gallery(3)[0], gallery(3)[0]
    assert one == again
    assert gallery(4)[0][4:8] != one[4:8]


def test_names_are_json_and_nothing_else():
    evil = '</script><img src=x onerror=1>"\\'
    tiles = [Tile(evil, evil, (evil,), evil, 0)]
    image = np.zeros((1, 4, 4, 3), np.uint8)
    layers = [MapLayer(evil, evil, np.zeros((1, 1, 1)))]
    head, _ = unpacked(pack(image, tiles, layers, None, settings=Settings(), label=evil))
    assert head["tiles"][0]["title"] == evil


class TestRows:
    def test_rows_keep_their_shape_and_their_share_on_the_patch(self):
        rng = np.random.default_rng(0)
        rows = rng.dirichlet(np.ones(36), (2, 36)).astype(np.float32)
        image = np.zeros((12, 12, 3), np.uint8)
        block = pack_rows(image, rows, query_grid=(6, 6), key_grid=(6, 6), box=(2, 2, 6, 6))
        head, body = unpacked(block)
        values = np.frombuffer(part(body, head["rows"]), np.uint8).reshape(2, 36, 36)
        top = rows.max(-1, keepdims=True)
        np.testing.assert_allclose(values / 255, rows / top, atol=0.5 / 255 + 1e-6)
        shares = np.frombuffer(part(body, head["shares"]), "<f4").reshape(2, 36)
        cover = coverage((2, 2, 6, 6), (12, 12), (6, 6)).ravel()
        np.testing.assert_allclose(shares, (rows * cover).sum(-1), rtol=1e-5)
        assert head["inside"] == [7, 8, 13, 14]
        assert len(head["outside"]) == 32
        assert head["place"] == [2, 2]
        assert head["chance"] == pytest.approx(4 / 36)

    def test_class_tokens_are_counted_apart(self):
        rows = np.full((1, 10, 10), 0.1, np.float32)
        image = np.zeros((9, 9, 3), np.uint8)
        block = pack_rows(
            image, rows, query_grid=(3, 3), key_grid=(3, 3), prefix=1, box=(0, 0, 3, 3)
        )
        head, _ = unpacked(block)
        assert (head["prefix"], head["prefix_q"]) == (1, 1)
        assert head["inside"] == [1]

    def test_grids_that_do_not_fit_are_refused(self):
        rows = np.zeros((1, 10, 10), np.float32)
        with pytest.raises(ValueError, match=r"10 places to 10 does not fit the grids \(3, 3\)"):
            pack_rows(np.zeros((9, 9, 3), np.uint8), rows, query_grid=(3, 3), key_grid=(3, 3))

    def test_without_a_patch_there_is_no_inside(self):
        rows = np.full((1, 4, 4), 0.25, np.float32)
        head, _ = unpacked(
            pack_rows(np.zeros((4, 4, 3), np.uint8), rows, query_grid=(2, 2), key_grid=(2, 2))
        )
        assert head["inside"] == head["outside"] == []
        assert head["box"] is None

    def test_coverage_is_the_share_of_each_place(self):
        cover = coverage((1, 0, 4, 2), (4, 4), (2, 2))
        np.testing.assert_allclose(cover, [[0.5, 1.0], [0.0, 0.0]])
        assert cover.sum() * 4 == pytest.approx(3 * 2)


def test_the_pointer_gets_its_picture_and_place():
    head, body = unpacked(pack_image(np.zeros((5, 7, 3), np.uint8), x=1, y=2, size=3))
    assert (head["x"], head["y"], head["size"]) == (1, 2, 3)
    assert Image.open(io.BytesIO(part(body, head["image"]))).size == (7, 5)
