"""A view of images, maps, heads and attention, from data to a browser without a server."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import attnviz as av
from attnviz.notebook.components import script
from attnviz.notebook.views import Page
from tests.training.made import SIDE, Attending, Plain, scenes


@pytest.fixture(scope="module")
def scene() -> Any:
    """Images, masks and a capture of a small model."""
    torch.manual_seed(0)
    data = scenes(6)
    images = torch.stack([one["image"] for one in data])
    masks = torch.stack([one["mask"] for one in data])
    model = Attending().eval()
    with torch.no_grad(), av.watch(model) as seen:
        model(images)
    return images, masks, seen


def test_a_capture_gives_a_gallery_a_board_and_pickers(scene):
    images, masks, seen = scene
    view = av.show(images, seen, masks=masks)
    kinds = [part["kind"] for part in view.parts]
    assert kinds == ["gallery", *["board"] * 4, *["picker"] * 4]
    assert view.parts[-1]["choice"] == {"image": "image 3", "layer": "attend"}


def test_maps_alone_give_a_gallery_and_names_are_escaped(scene, tmp_path):
    images, masks, _ = scene
    hostile = "</script><script>alert(1)</script>"
    names = [hostile, *(str(i) for i in range(5))]
    view = av.show(images, {"one": torch.rand(6, 4, 4)}, masks=masks, names=names, title=hostile)
    assert [part["kind"] for part in view.parts] == ["gallery"]
    page = view.html()
    assert "<script>alert(1)" not in page
    assert page.count("</script>") == 2
    assert view.save(tmp_path / "view.html").read_text() == page
    framed = view._repr_mimebundle_()[0]["text/html"]
    assert "alert(1)</script>" not in framed
    assert "<img src=" in framed


def test_the_page_asks_for_nothing_from_anywhere(scene):
    images, masks, seen = scene
    page = av.show(images, seen, masks=masks).html()
    outside = set(re.findall(r"https?://[^\"'` ]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not outside
    assert "import " not in script()


def test_without_anywidget_the_page_shows_itself(scene, monkeypatch):
    images, _, _ = scene
    monkeypatch.setattr("attnviz.notebook.views._widget", lambda: None)
    view = av.show(images, torch.rand(6, 4, 4))
    assert isinstance(view, Page)
    assert set(view._repr_mimebundle_()[0]) == {"text/html", "image/png", "text/plain"}


def test_pictures_of_any_kind_are_taken():
    pictures = [Image.new("RGB", (20, 12)), Image.new("RGB", (20, 12), "white")]
    arrays = np.zeros((2, 12, 20, 3), np.uint8)
    for images in (pictures, arrays, torch.rand(2, 1, 12, 20)):
        assert len(av.show(images, np.random.default_rng(0).random((2, 3, 5))).parts) == 1


def test_what_does_not_fit_is_refused(scene):
    images, masks, seen = scene
    with pytest.raises(av.InputError, match="6 maps"):
        av.show(images, torch.rand(5, 4, 4))
    with pytest.raises(av.InputError, match="6 masks"):
        av.show(images, seen, masks=masks[:2])
    with pytest.raises(av.InputError, match=r"at the images' size, \(6, .*got torch.bool \(6, 8, "):
        av.show(images, seen, masks=masks[:, :8])
    with pytest.raises(
        av.InputError, match="none in 1 of the 6 maps of 'map', the first of image 4"
    ):
        av.show(images, torch.rand(6, 4, 4).index_fill(0, torch.tensor([4]), float("nan")))
    with pytest.raises(av.InputError, match="6 names"):
        av.show(images, seen, names=["a"])
    with pytest.raises(av.InputError, match="threshold from 0 to 1"):
        av.show(images, seen, threshold=2)
    with pytest.raises(av.InputError, match="1 to 64 images"):
        av.show(torch.rand(65, 3, 4, 4), torch.rand(65, 4, 4))
    with pytest.raises(av.InputError, match="images \\(b, c, h, w\\)"):
        av.show(torch.rand(3, 4, 4), torch.rand(1, 4, 4))
    with torch.no_grad(), av.watch(Plain().eval(), empty=True) as nothing:
        Plain()(images)
    with pytest.raises(av.InputError, match="show:"):
        av.show(images, nothing)


def test_nothing_to_show_and_missing_components_are_told(scene, monkeypatch, tmp_path):
    images, _, _ = scene
    with pytest.raises(av.InputError, match="show: expected maps, got none"):
        av.show(images, {})
    model = Attending().eval()
    with torch.no_grad(), av.watch(model, reduce="entropy") as reduced:
        model(images)
    with pytest.raises(av.InputError, match="show: the capture has no map"):
        av.show(images, reduced)
    monkeypatch.setattr("attnviz.notebook.components._ENTRY", "another")
    script.cache_clear()
    with pytest.raises(av.UnsupportedError, match="has another entry than expected"):
        script()
    monkeypatch.setattr("attnviz.notebook.components._PACKAGE", tmp_path)
    with pytest.raises(av.UnsupportedError, match="the dashboard's components are missing"):
        script()


def test_the_largest_view_fits_into_the_output_of_any_notebook():
    """Of noise, which no picture format makes smaller; marimo refuses more than 8 MB by default."""
    torch.manual_seed(0)
    images, masks = torch.rand(64, 3, 160, 160), torch.rand(64, 160, 160) > 0.5
    model = Attending().eval()
    with torch.no_grad(), av.watch(model) as seen:
        model(images[:, :, :96, :96])
    view = av.show(images, seen, masks=masks)
    assert {part["kind"] for part in view.page.parts} == {"gallery", "board", "picker"}
    assert sum(map(len, view.page.bundle().values())) < 7_000_000
    assert len(json.dumps(view.page.parts)) < 7_000_000


def test_the_widget_is_one_module_that_needs_no_other(scene):
    """What VS Code and Colab ask of a widget of anywidget: an ES module without another file."""
    anywidget = pytest.importorskip("anywidget")
    images, masks, seen = scene
    view = av.show(images, seen, masks=masks)
    assert isinstance(view, anywidget.AnyWidget)
    state = view.get_state()
    assert state["_esm"].count("export default {") == 1
    assert not re.search(
        r"\b(import|fetch|XMLHttpRequest|WebSocket|eval)\b\s*[({\"'*]", state["_esm"]
    )
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", state["_esm"])
    assert state["_model_module"] == state["_view_module"] == "anywidget"
    assert json.loads(json.dumps(state["parts"])) == state["parts"]


HOST = """<!doctype html><html lang="en"><head><title>A widget</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src blob:
'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"></head>
<body style="background: #14161a"><main><h1 style="color: white">A widget</h1><div id="view"></div>
</main></body></html>"""

RENDER = """async ([source, parts]) => {
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const widget = (await import(address)).default;
  const model = { get: (name) => ({ parts })[name], on() {}, off() {} };
  await widget.render({ model, el: document.getElementById("view") });
}"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_view_works_in_a_browser_without_a_server(scene, tmp_path, browser, scheme):
    """In light the saved page; in dark the widget's module, as VS Code and Colab load it.

    These make a blob of it, in a frame whose policy lets nothing be fetched.
    """
    images, masks, seen = scene
    view = av.show(images, seen, masks=masks)
    file = Path(tmp_path, "view.html")
    view.save(file)
    if scheme == "dark":
        file.write_text(HOST)
    page = browser.new_page(color_scheme=scheme)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(file.as_uri())
    if scheme == "dark":
        page.evaluate(RENDER, [script(), view.page.parts])
    slider = page.get_by_role("slider", name="Threshold")
    slider.wait_for()
    status = page.get_by_role("status").first
    page.wait_for_function("e => e.textContent.includes('0.50')", arg=status.element_handle())
    expected = av.localization(
        torch.nn.functional.interpolate(
            av.received(seen["attend"])[:, None], (SIDE, SIDE), mode="bilinear"
        )[:, 0],
        masks, ["iou"], threshold=0.5,
    )["iou"]  # fmt: skip
    said = status.text_content() or ""
    assert float(said.rsplit(" ", 1)[1]) == pytest.approx(float(expected.nanmean()), abs=2e-3)
    slider.fill("0.8")
    page.wait_for_function("e => e.textContent.includes('0.80')", arg=status.element_handle())
    board = page.get_by_role("region", name="Layers × heads, each to its own maximum")
    assert board.get_by_role("button").count() == 2
    picker = page.get_by_role("region", name="The attention of one place")
    page.get_by_role("combobox", name="image").first.select_option("image 2")
    board.get_by_role("button").first.click()
    assert "image 2" in (board.get_by_role("img").first.get_attribute("aria-label") or "")
    field = picker.get_by_role("button").filter(has=page.locator("canvas"))
    field.hover()
    field.press("ArrowRight")
    page.wait_for_function(
        "e => /row \\d, column \\d/.test(e.textContent)",
        arg=picker.get_by_role("status").element_handle(),
    )
    axe = pytest.importorskip("axe_playwright_python", reason="axe's script is not installed")
    page.evaluate((resources.files(axe) / "axe.min.js").read_text("utf-8"))
    found = page.evaluate("() => axe.run({resultTypes: ['violations']})")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert not faults
    page.close()
