"""A picture is written whole or not at all."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnviz.errors import RunError
from attnviz.figures import png_bytes, save_png

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    path = save_png(PICTURE, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), PICTURE)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(PICTURE)))), PICTURE)


def test_others_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = save_png(PICTURE, tmp_path / "a.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_picture_and_no_crumbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_png(PICTURE, tmp_path / "a.png")
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"write .*a.png: no space left on device"):
        save_png(PICTURE[::-1], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RunError, match=r"write .*a.png"):
        save_png(PICTURE, tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(RunError, match="write"):
        save_png(PICTURE, tmp_path / "a" / "b.png")
