"""Masks are read as a viewer shows them, and what has no clear meaning is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ToTensor

from attnviz.data import mask_folder, samples_of
from attnviz.data.mask_values import values_of_image
from attnviz.errors import InputError

H, W = 12, 18
INSIDE = np.zeros((H, W), dtype=bool)
INSIDE[1:5, 2:9] = True
GREY = INSIDE.astype(np.uint8) * 255


def coloured(inside: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(INSIDE[..., None], inside, outside).astype(np.uint8))


def palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette(colours)
    image.putdata(indices.astype(np.uint8).ravel().tolist())
    return image


def alpha(colour: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGB", (W, H), colour)
    image.putalpha(Image.fromarray(GREY))
    return image


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]

READ: dict[str, Image.Image] = {
    "grey": Image.fromarray(GREY),
    "one bit": Image.fromarray(INSIDE),
    "quantised, white is index 0": Image.fromarray(GREY).convert("RGB").quantize(2),
    "palette, white is index 0": palette(~INSIDE, [255, 255, 255, 0, 0, 0]),
    "palette, white is index 1": palette(INSIDE, [0, 0, 0, 255, 255, 255]),
    "label map with a palette of colours": palette(INSIDE * 2, VOC),
    "web palette": Image.fromarray(GREY).convert("RGB").convert("P"),
    "grey as RGB": Image.fromarray(GREY).convert("RGB"),
    "grey as RGBA": Image.fromarray(GREY).convert("RGBA"),
    "white on transparent black": coloured((255, 255, 255, 255), (0, 0, 0, 0)),
    "red on transparent black": coloured((255, 0, 0, 255), (0, 0, 0, 0)),
    "alpha over white": alpha((255, 255, 255)),
    "alpha over black": alpha((0, 0, 0)),
    "alpha over grey": alpha((255, 255, 255)).convert("LA"),
    "16 bits": Image.fromarray(INSIDE.astype(np.uint16) * 256),
    "big-endian 16 bits": Image.frombytes("I;16B", (W, H), (INSIDE * 256).astype(">u2").tobytes()),
    "32 bits": Image.fromarray(INSIDE.astype(np.int32) * 70000),
    "floats of 0 and 1": Image.fromarray(INSIDE.astype(np.float32)),
    "CMYK": Image.fromarray(GREY).convert("RGB").convert("CMYK"),
}


def folder(root: Path, mask: Image.Image, suffix: str = ".tif", **options: Any) -> Any:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    Image.new("RGB", (W, H)).save(root / "images/a.png")
    mask.save(root / f"masks/a{suffix}")
    return mask_folder(root / "images", root / "masks", transform=ToTensor(), **options)


def in_a_file(mask: Image.Image) -> str:
    return ".tif" if mask.mode[0] in "IFC" or mask.mode.endswith("A") else ".png"


@pytest.mark.parametrize("name", READ)
def test_a_mask_file_is_read_as_it_looks(name: str, tmp_path: Path) -> None:
    data = folder(tmp_path, READ[name], in_a_file(READ[name]))
    np.testing.assert_array_equal(data[0].mask.numpy(), INSIDE)


@pytest.mark.parametrize("name", READ)
def test_a_mask_in_memory_is_read_as_it_looks(name: str) -> None:
    picture = Image.new("RGB", (W, H))
    sample = samples_of([(picture, READ[name])], transform=ToTensor())[0]
    assert sample.mask is not None
    np.testing.assert_array_equal(sample.mask.numpy(), INSIDE)


def test_a_gif_of_two_colours_is_read_as_it_looks(tmp_path: Path) -> None:
    data = folder(tmp_path, Image.fromarray(GREY).convert("RGB"), ".gif")
    np.testing.assert_array_equal(data[0].mask.numpy(), INSIDE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (coloured((1, 0, 0), (0, 0, 0)), r"expected a grey mask, got the colours \(0, 0, 0\), \(1"),
        (coloured((0, 0, 255), (97, 0, 0)), "save it as a grey image of whole numbers"),
        (
            coloured((0, 0, 0, 255), (255, 255, 255, 0)),
            "a mask whose transparent pixels hide other colours",
        ),
        (palette(INSIDE, [255, 0, 0, 0, 0, 0]), "a palette whose index 0 is black, the background"),
        (palette(INSIDE, [255, 0, 0, 0, 9, 0]), "or say which indices are the thing"),
        (
            palette(INSIDE + np.eye(H, W), [0, 0, 0, 5, 5, 5, 5, 5, 5]),
            "a palette that gives several of the values",
        ),
        (Image.fromarray(INSIDE * np.float32(0.9)), "choose a threshold"),
        (Image.fromarray(np.where(INSIDE, np.float32(np.nan), 0)), "choose a threshold"),
    ],
)
def test_a_mask_without_a_clear_meaning_is_refused(
    mask: Image.Image, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"a.(png|tif): .*{message}"):
        folder(tmp_path, mask, in_a_file(mask))[0]
    with pytest.raises(InputError, match=f"item 0: .*{message}"):
        samples_of([(Image.new("RGB", (W, H)), mask)], transform=ToTensor())[0]


def test_colours_of_16_bits_lose_small_values_and_are_refused(tmp_path: Path) -> None:
    image = folder(tmp_path, Image.fromarray(GREY))
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in INSIDE * 1)
    (tmp_path / "masks/a.png").write_bytes(png(rows))
    (tmp_path / "masks/a.tif").unlink()
    image = mask_folder(tmp_path / "images", tmp_path / "masks", transform=ToTensor())
    with pytest.raises(InputError, match=r"a\.png: .*got colours of 16 bits"):
        image[0]


def test_a_mask_of_several_pages_is_refused(tmp_path: Path) -> None:
    data = folder(tmp_path, Image.fromarray(GREY))
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "masks/a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="expected a mask of one picture, got 2 frames or pages"):
        data[0]


def png(rows: bytes) -> bytes:
    """A PNG of 16-bit RGB, which Pillow reads and does not write."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content
            + struct.pack(">I", zlib.crc32(name + content))
        )  # fmt: skip

    head = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def test_a_palette_of_colours_is_read_by_index_where_values_are_chosen(tmp_path: Path) -> None:
    cityscapes = palette(INSIDE * 2, [128, 64, 128, 244, 35, 232, 70, 70, 70])
    sample = folder(tmp_path / "a", cityscapes, ".png", inside=2)[0]
    np.testing.assert_array_equal(sample.mask.numpy(), INSIDE)
    quantised = palette(INSIDE, [255, 0, 0, 0, 0, 0])
    with pytest.raises(InputError, match="index 0 is black"):
        folder(tmp_path / "b", quantised, ".png", inside=1)


def test_values_that_no_mask_holds_are_refused(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"inside: 3 occurs in no mask; .* 1 masks are \[0, 255\]"):
        folder(tmp_path / "a", Image.fromarray(GREY), inside=3)
    with pytest.raises(InputError, match="inside: expected a whole number or several, got '255'"):
        folder(tmp_path / "b", Image.fromarray(GREY), inside="255")
    item = (torch.zeros(3, H, W), torch.from_numpy(GREY))
    with pytest.raises(InputError, match="inside: 3 occurs in no mask"):
        samples_of([item, item], inside=3)
    assert len(samples_of([item], inside=[3, 255])) == 1
    assert len(samples_of([(item[0], torch.from_numpy(INSIDE))], inside=3)) == 1  # booleans


def test_one_ignored_value_is_given_as_a_number(tmp_path: Path) -> None:
    values = GREY.copy()
    values[8] = 7
    sample = folder(tmp_path, Image.fromarray(values), ignore=7)[0]
    assert sample.ignore.nonzero()[:, 0].unique().tolist() == [8]
    item = (torch.zeros(3, H, W), torch.from_numpy(values))
    assert int(samples_of([item], ignore=7)[0].ignore.sum()) == W


@pytest.mark.parametrize("turn", [3, 6])
def test_a_mask_is_rotated_by_its_exif_orientation_as_its_image_is(
    turn: int, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(GREY).save(tmp_path / "masks/a.png", exif=exif)

    def read() -> Any:
        return mask_folder(tmp_path / "images", tmp_path / "masks", transform=ToTensor())

    sample = read()[0]
    assert torch.equal(sample.mask, sample.image[0] > 0.5)
    Image.fromarray(GREY).save(tmp_path / "masks/a.png")
    words = "the mask states no orientation" if turn == 3 else "expected the size of its image"
    with pytest.raises(InputError, match=words):
        read()


def test_a_palette_of_one_colour_says_nothing_and_indices_count() -> None:
    values = values_of_image(palette(INSIDE, [9, 9, 9, 9, 9, 9]), chosen=False)
    assert (values.astype(bool) == INSIDE.astype(bool)).all()
