"""A stranger's picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attnviz.errors import InputError
from dashboard.upload import unpacked
from dashboard.uploads import MOST_BYTES, decoded


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 128 if mode in ("L", "P") else None).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def claimed(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_middle_square_at_the_models_size(kind, mode):
    found = decoded(encoded(300, 120, kind, mode), 96)
    assert found.shape == (96, 96, 3)
    assert found.dtype == np.uint8


def test_the_middle_is_the_middle():
    picture = np.zeros((50, 150, 3), np.uint8)
    picture[:, 50:100] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    assert decoded(buffer.getvalue(), 40)[5:-5, 5:-5].min() == 255


def test_a_photograph_is_turned_upright():
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[:30] = 255
    exif = Image.Exif()
    exif[274] = 3  # upside down
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", exif=exif)
    found = decoded(buffer.getvalue(), 60)
    assert found[:20].max() < 10
    assert found[-20:].min() > 245


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected one of PNG"),
        (b"<svg onload=alert(1)>", "expected one of PNG"),
        (encoded(8, 8, "GIF", "P"), "expected one of PNG"),
        (encoded(8, 8, "TIFF"), "expected one of PNG"),
        (b"\0" * (MOST_BYTES + 1), "expected at most 8.4 MB"),
        (claimed(6000, 6000), "at most 24,000,000 pixels, got 36,000,000"),
        (claimed(60000, 60000), "at most 24,000,000 pixels"),
        (encoded(64, 64)[:-30], "cannot be decoded"),
        (claimed(64, 64), "cannot be decoded"),
        (claimed(0, 64), "picture: "),
    ],
)
def test_what_is_no_picture_of_ours_is_refused_in_words(content, words):
    with pytest.raises(InputError, match=words):
        decoded(content, 96)


@pytest.mark.parametrize("sent", ["%%%", 7, ["x"], {"a": 1}, "a" * (MOST_BYTES * 2), "é"])
def test_what_a_component_sends_is_a_strangers_word(sent):
    with pytest.raises(InputError, match="picture: "):
        unpacked(sent)


def test_base64_comes_back_as_bytes():
    assert unpacked("aGVsbG8=") == b"hello"
