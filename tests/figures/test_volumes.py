"""Slices of a volume and frames of a video."""

from __future__ import annotations

import numpy as np
import pytest

from attnviz.errors import InputError
from attnviz.figures import contact_sheet, frames, overlay, slices


def test_each_slice_shows_the_layer_of_the_map_that_holds_its_centre() -> None:
    draw = np.random.default_rng(0)
    volume, maps = draw.normal(size=(6, 16, 20)), draw.random((3, 4, 5))
    sheet = slices(volume, maps, every=2, columns=3)
    grey = (volume - volume.min()) / (volume.max() - volume.min())
    tiles = [overlay(grey[i], maps[i // 2], vmax=maps.max()) for i in (0, 2, 4)]
    assert np.array_equal(sheet, contact_sheet(tiles, ["z 0", "z 2", "z 4"], 3))
    side = slices(volume, maps, axis=2, columns=20)
    first = overlay(grey[:, :, 0], maps[:, :, 0], vmax=maps.max())
    assert np.array_equal(side[8:14, 8:24], first)


def test_frames_are_one_strip() -> None:
    draw = np.random.default_rng(0)
    video = draw.integers(0, 255, (4, 12, 16, 3), dtype=np.uint8)
    maps = draw.random((2, 3, 4))
    strip = frames(video, maps)
    tiles = [overlay(video[i], maps[i // 2], vmax=maps.max()) for i in range(4)]
    assert np.array_equal(strip, contact_sheet(tiles, ["t 0", "t 1", "t 2", "t 3"], 4))
    with pytest.raises(InputError, match="expected a map with three axes"):
        frames(video, maps[0])
