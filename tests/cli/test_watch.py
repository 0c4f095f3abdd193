"""`attnviz watch` prints what was seen and writes maps of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from attnviz.cli import run

FACTORY = """
from torch import nn

def net(classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Turn(), Self(), nn.Flatten(), nn.Linear(512, classes),
    )

class Turn(nn.Module):
    def forward(self, x):
        return x.mT

class Self(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x)[0]

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4))
"""


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_on_a_sheet_each_image_begins_a_line(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    words = ["--size", "64", "--count", "2", "--out", str(tmp_path / "out")]
    assert run(["watch", "timm:efficientnet_b0", *words]) == 0
    tile, gap, lines = 160, 8, 2 * 18
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:  # 1 + 16 tiles in two lines of nine
        assert sheet.size == (9 * (tile + gap) + gap, 4 * (tile + lines + gap) + gap)
        assert np.asarray(sheet)[tile + lines + 2 * gap :, -tile:][: tile - gap].min() == 255


def test_maps_and_a_sheet_are_written(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = picture.parent / "maps"
    words = ["watch", "my_factory:net", "--image", str(picture), "--size", "32", "--out", str(out)]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "3.attn" in text
    assert "1 attention, 0 gates" in text
    maps = load_file(out / "maps.safetensors")
    assert list(maps) == ["3.attn:received"]
    assert maps["3.attn:received"].shape == (1, 8, 8)
    assert maps["3.attn:received"].sum() == pytest.approx(1, abs=1e-4)
    with Image.open(out / "3.attn.received" / "0.png") as overlay:
        assert overlay.size == (32, 32)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size[0] > 2 * 160


def test_gates_of_a_model_of_ours(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = picture.parent / "maps"
    words = ["watch", "attnviz:cbam", "--image", str(picture), "--out", str(out), "--json"]
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [record["axis"] for record in told["records"]] == ["channel", "spatial"]
    assert sorted(name.split(":")[1] for name in told["maps"]) == ["channel_gated", "gate_map"]
    assert all((out / name).exists() for name in told["files"])
    assert run([*words, "--where", "*spatial*"]) == 0
    assert len(json.loads(capsys.readouterr().out)["records"]) == 1


def test_without_attention_it_is_one_line_and_exit_code_2(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", "my_factory:plain", "--image", str(picture), "--size", "32"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("attnviz: watch: Sequential ran")
    assert error.count("\n") == 1
    assert run(["watch", "my_factory:net", "--image", str(picture.parent / "no.png")]) == 2
    assert "found none" in capsys.readouterr().err
