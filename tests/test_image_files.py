"""Strange picture files at every door: each is read as what it shows, or refused in words."""

from __future__ import annotations

import argparse
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from attnviz.cli.model_arguments import images_of
from attnviz.errors import InputError
from attnviz.image_files import MOST_PIXELS, photograph, square
from dashboard.uploads import FORMATS as TAKEN
from dashboard.uploads import decoded
from experiments.data.folder import folder_images

SIDE = 24
ORANGE = (200, 100, 50)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode: str = "RGB", colour: object = ORANGE) -> Image.Image:
    return Image.new(mode, (40, 30), colour)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colours: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def deep_png(channels: int, *values: int) -> bytes:
    """A PNG of 16 bits per channel, which Pillow itself writes for grey alone."""
    row = b"\0" + struct.pack(f">{channels}H", *values) * 40
    pixels = chunk(b"IDAT", zlib.compress(row * 30))
    return png(40, 30, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], pixels)


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (40, 30), 1)
    image.putpalette([0, 0, 0, *ORANGE] + [0] * 762)
    return encoded(image, **({"transparency": 1} if transparent else {}))


def animated(kind: str) -> bytes:
    frames = [plain(), plain(colour="blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def turned() -> bytes:
    """A picture stored upside down, orange above when it is seen."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[20:] = ORANGE
    exif = Image.Exif()
    exif[274] = 3
    return encoded(Image.fromarray(pixels), exif=exif)


SHOWN: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "plain.png": (encoded(plain()), ORANGE),
    "plain.jpg": (encoded(plain(), "JPEG", quality=100, subsampling=0), ORANGE),
    "plain.webp": (encoded(plain(), "WEBP", lossless=True), ORANGE),
    "plain.bmp": (encoded(plain(), "BMP"), ORANGE),
    "plain.tiff": (encoded(plain(), "TIFF"), ORANGE),
    "plain.gif": (encoded(plain(), "GIF"), ORANGE),
    "no-name-of-its-kind.jpg": (encoded(plain(), "PNG"), ORANGE),
    "grey.png": (encoded(plain("L", 77)), (77, 77, 77)),
    "one-bit.png": (encoded(plain("1", 1)), (255, 255, 255)),
    "palette.png": (palette(transparent=False), ORANGE),
    "palette-transparent.png": (palette(transparent=True), (255, 255, 255)),
    "alpha-none.png": (encoded(plain("RGBA", (*ORANGE, 255))), ORANGE),
    "alpha-whole.png": (encoded(plain("RGBA", (*ORANGE, 0))), (255, 255, 255)),
    "alpha-half.webp": (
        encoded(plain("RGBA", (0, 0, 0, 128)), "WEBP", lossless=True), (127, 127, 127)),
    "grey-alpha.png": (encoded(plain("LA", (0, 51))), (204, 204, 204)),
    "deep-grey.png": (encoded(Image.fromarray(np.full((30, 40), 0x8000, np.uint16))), (128,) * 3),
    "deep-grey.tiff": (
        encoded(Image.fromarray(np.full((30, 40), 0x8000, np.uint16)), "TIFF"), (128,) * 3),
    "deep-colour.png": (deep_png(3, 200 << 8, 100 << 8, 50 << 8), ORANGE),
    "deep-alpha.png": (deep_png(4, 200 << 8, 100 << 8, 50 << 8, 0xFFFF), ORANGE),
    "deep-grey-alpha.png": (deep_png(2, 77 << 8, 0xFFFF), (77, 77, 77)),
    "cmyk.jpg": (encoded(plain("CMYK", (55, 155, 205, 0)), "JPEG", quality=100), ORANGE),
    "cmyk.tiff": (encoded(plain("CMYK", (55, 155, 205, 0)), "TIFF"), ORANGE),
    "moving.gif": (animated("GIF"), ORANGE),
    "moving.png": (animated("PNG"), ORANGE),
    "moving.webp": (animated("WEBP"), ORANGE),
    "pages.tiff": (animated("TIFF"), ORANGE),
    "one-pixel.png": (encoded(Image.new("RGB", (1, 1), ORANGE)), ORANGE),
    "thin.png": (encoded(Image.new("RGB", (1, 900), ORANGE)), ORANGE),
}  # fmt: skip

BOMB = png(60_000, 60_000, 8, 2, chunk(b"IDAT", zlib.compress(b"\0" * 10_000)))
LARGE = png(12_000, 9_000, 8, 2, chunk(b"IDAT", zlib.compress(b"\0" * 10_000)))
LOUD = png(40, 30, 8, 2, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * (1 << 27))))
REFUSED: dict[str, tuple[bytes, str]] = {
    "bomb.png": (BOMB, r"expected at most [\d,]+ pixels, got"),
    "large.png": (LARGE, r"expected at most [\d,]+ pixels, got 108,000,000"),
    "long-text.png": (LOUD, "cannot be decoded"),
    "cut.png": (encoded(plain())[:-30], "cannot be decoded"),
    "cut.jpg": (encoded(plain(), "JPEG")[:-30], "cannot be decoded"),
    "cut.webp": (encoded(plain(), "WEBP")[:-10], "cannot be decoded|expected one of"),
    "empty.png": (b"", "expected one of PNG, JPEG, WEBP"),
    "words.png": (b"<svg onload=alert(1)>", "expected one of PNG, JPEG, WEBP"),
    "post-script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected one of"),
    "float.tiff": (encoded(plain("F", 0.5), "TIFF"), "expected 8 or 16 bits per channel|one of"),
    "wide.tiff": (encoded(plain("I", 1 << 20), "TIFF"), "expected 8 or 16 bits per channel|one of"),
}


def from_the_lab(content: bytes, name: str, folder: Path) -> np.ndarray:
    for split in ("train", "val", "test"):
        (folder / split).mkdir()
    (folder / "train" / name).write_bytes(content)
    return folder_images("train", 1, path=folder, seed=0, side=SIDE)[0]


def from_the_command_line(content: bytes, name: str, folder: Path) -> np.ndarray:
    (folder / name).write_bytes(content)
    args = argparse.Namespace(
        normalise="unit", mean=None, std=None, count=1, size=(SIDE, SIDE), images=str(folder),
        device="cpu",
    )  # fmt: skip
    (image,), _ = images_of(args, nn.Identity(), "own:model")
    return (image * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)


def from_a_browser(content: bytes, name: str, folder: Path) -> np.ndarray:
    return decoded(content, SIDE)


Door = Callable[[bytes, str, Path], np.ndarray]
DOORS: tuple[Door, ...] = (from_the_lab, from_the_command_line, from_a_browser)
doors = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)


def taken(door: Door, content: bytes) -> bool:
    return door is not from_a_browser or Image.open(io.BytesIO(content)).format in TAKEN


@doors
@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_is_read_as_what_it_shows(door: Door, name: str, tmp_path: Path) -> None:
    content, colour = SHOWN[name]
    if not taken(door, content):
        with pytest.raises(InputError, match=r"^picture: expected one of PNG, JPEG, WEBP, got"):
            door(content, name, tmp_path)
        return
    found = door(content, name, tmp_path)
    assert found.shape == (SIDE, SIDE, 3)
    assert np.abs(found.reshape(-1, 3).astype(int) - colour).max() <= 2


@doors
def test_a_photograph_is_turned_upright(door: Door, tmp_path: Path) -> None:
    found = door(turned(), "turned.png", tmp_path).astype(int)
    assert np.abs(found[:8] - ORANGE).max() <= 2
    assert found[-8:].max() <= 2


@doors
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_words(door: Door, name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as refused:
        door(content, name, tmp_path)
    said = str(refused.value)
    assert said.startswith("picture: " if door is from_a_browser else str(tmp_path))
    assert "\n" not in said


def test_every_door_shows_the_same_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    content, found = encoded(Image.fromarray(noise)), []
    for number, door in enumerate(DOORS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(door(content, "noise.png", folder))
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_the_limit_stays_below_where_the_decoder_would_warn() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MOST_PIXELS < Image.MAX_IMAGE_PIXELS


def test_a_large_photograph_is_taken() -> None:
    content = encoded(Image.new("L", (8000, 9000), 9))
    assert square(photograph(content, name="large"), 2).tolist() == [[[9] * 3] * 2] * 2


SEEDS = [SHOWN[f"plain.{end}"][0] for end in ("png", "jpg", "webp", "bmp", "tiff", "gif")]


@settings(max_examples=300)
@given(
    seed=st.sampled_from([*SEEDS, turned(), SHOWN["palette-transparent.png"][0]]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4),
    stop=st.floats(0.2, 1),
)
def test_whatever_the_bytes_a_picture_or_one_error(
    seed: bytes, cuts: list[tuple[float, bytes]], stop: float
) -> None:
    content = bytearray(seed[: int(len(seed) * stop)])
    for where, noise in cuts:
        start = int(where * len(content))
        content[start : start + len(noise)] = noise
    try:
        said = photograph(bytes(content), name="x", most_pixels=1_000_000).mode
    except InputError as error:
        said = str(error)
    assert said == "RGB" or said.startswith("x: ")
