"""What a reader does, in a real Chromium: the flows, the keys, and axe on every page."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnviz.figures.packing import coverage
from attnviz.runs import open_dataset, open_run
from attnviz.runs.header import now, this_writer
from dashboard.overlap import iou_curves
from tests.dashboard import made_runs

pytestmark = pytest.mark.browser

PAGES = (
    "compare", "explore?run=mha-0&score=0.3~0.5", "gallery", "sample?image=2",
    "heads?run=mha-0", "attributions", "diagnosis", "training", "runs?runs=mha-0,cnn-0",
    "try_it?run=mha-0", "about",
)  # fmt: skip
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
PATIENCE = 200_000
"""Milliseconds: a busy machine is waited for, and only a failure takes as long."""
STILL = """
*, *::before, *::after { animation: none !important; transition: none !important; }
[data-stale=true] { opacity: 1 !important; }
"""
"""Nothing fades in: what is half there has too little contrast, however late it comes."""


SIDES = """spans => spans.map(one => one.getBoundingClientRect())
  .filter(box => box.width).map(box => [box.left, box.right])"""
"""The left and right of what is seen of them, of one moment; every other label is hidden."""


@pytest.fixture(scope="module", params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    """A tab in one of the two themes."""
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1400, "height": 1000}
    )
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab of its own: a new reader. Whatever it asks for outside, or throws, is kept."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.outside, page.thrown = [], []
    page.on("request", lambda r: _is_outside(r.url) and page.outside.append(r.url))
    page.on("pageerror", lambda error: page.thrown.append(str(error)))
    yield page
    context.close()
    assert page.outside == []
    assert page.thrown == []


def _is_outside(url: str) -> bool:
    return not url.startswith(("http://localhost", "ws://localhost", "data:", "blob:"))


def visit(page: Any, url: str) -> None:
    page.goto(url)
    settled(page)


def expect(locator: Any) -> Any:
    """Playwright's assertion, which waits: what a script still draws is not what is meant."""
    from playwright.sync_api import expect as expected

    expected.set_options(timeout=PATIENCE)
    return expected(locator)


def wander(field: Any, seen: Any) -> None:
    """Move the pointer in a field's first place until something is seen.

    A page that still grows above the field slides it from under a pointer that rests.
    """
    from playwright.sync_api import TimeoutError

    for step in range(120):
        field.hover(position={"x": 5 + step % 2, "y": 5})
        with contextlib.suppress(TimeoutError):
            seen.wait_for(timeout=1000)
            return
    raise AssertionError(f"never seen: {seen}")


def at_the_end(page: Any, wanted: Any) -> Any:
    """Something far down a page: scrolled to, place by place, as each asks for what it holds."""
    from playwright.sync_api import TimeoutError

    for _ in range(120):
        page.mouse.move(700, 700)
        page.mouse.wheel(0, 5000)
        with contextlib.suppress(TimeoutError):
            wanted.first.wait_for(timeout=1000)
            wanted.first.scroll_into_view_if_needed()
            return wanted.first
    raise AssertionError(f"never seen: {wanted}")


def settled(page: Any) -> None:
    """The script has run, and every gallery has painted."""
    page.wait_for_selector(IDLE)
    page.wait_for_function("() => !document.querySelector('[data-testid=stSkeleton]')")


def test_a_deep_link_is_the_first_visit_that_the_server_gets(address: str, tab: Any):
    visit(tab, f"{address}/gallery?run=mha-0&tau=0.2")
    tab.get_by_role("heading", name="Gallery").wait_for()
    tab.get_by_text("Threshold 0.20", exact=True).wait_for()
    tab.get_by_role("link", name="Compare").wait_for()


class TestAccessibility:
    @pytest.mark.parametrize("page", PAGES)
    def test_axe_finds_nothing_on_a_desk_and_on_a_phone(self, page: str, address: str, themed: Any):
        """Each page is visited once per theme; on the phone it is no wider than the screen."""
        axe = pytest.importorskip("axe_playwright_python", reason="axe's script is not installed")
        themed.set_viewport_size({"width": 1400, "height": 1000})
        visit(themed, f"{address}/{page}")
        themed.add_style_tag(content=STILL)
        themed.evaluate((resources.files(axe) / "axe.min.js").read_text("utf-8"))
        assert not (said := violations(themed)), "\n".join(said)
        themed.set_viewport_size({"width": 390, "height": 844})
        settled(themed)
        assert not (said := violations(themed)), "\n".join(said)
        wider = "() => document.documentElement.scrollWidth - window.innerWidth"
        assert themed.evaluate(wider) <= 0

    def test_on_a_phone_nothing_covers_the_answer_and_no_tick_label_another(
        self, address: str, tab: Any
    ):
        tab.set_viewport_size({"width": 390, "height": 844})
        visit(tab, address)
        answer = tab.get_by_role("heading", name="One training each: energy mha")
        expect(answer).to_contain_text("By other metrics mha is")
        answer.click(trial=True)  # fails where something lies over it, such as a card
        tab.locator(".axis span").first.wait_for()
        sides = tab.locator(".axis span").evaluate_all(SIDES)
        assert len(sides) > 2
        for (_, right), (left, _) in pairwise(sorted(sides)):
            assert right <= left

    def test_charts_and_tiles_say_their_numbers(self, address: str, tab: Any):
        visit(tab, f"{address}/compare")  # the first page has this address too
        tab.locator("[aria-label^='Dot plot of energy pointing game: mha 0.']").first.wait_for()
        tile = tab.get_by_role("img", name="mha, seed 0, received on image 0: energy 0.")
        tile.first.wait_for()


class TestFlows:
    def test_from_the_answer_to_the_gallery_to_a_sample_and_back(self, address: str, tab: Any):
        visit(tab, address)
        tab.get_by_role("heading", name="One training each: energy mha").wait_for()
        tab.get_by_role("button", name="mha: 0.").click()
        tab.wait_for_url("**/gallery?*run=mha-0*")
        settled(tab)
        tile = tab.locator(".tile").first
        number = tile.get_attribute("data-key")
        tile.click()
        tab.wait_for_url(f"**/sample?*image={number}*")
        settled(tab)
        tab.get_by_text("worst first of mha").wait_for()
        tab.go_back()
        tab.wait_for_url("**/gallery?*run=mha-0*")
        settled(tab)
        tab.get_by_role("heading", name="Gallery").wait_for()

    def test_two_chosen_runs_are_compared(self, address: str, tab: Any):
        visit(tab, f"{address}/runs?runs=cnn-0,cbam-0")
        tab.get_by_role("heading", name="What tells these 2 runs apart").wait_for()
        tab.get_by_role("button", name="Compare these").click()
        tab.wait_for_url("**/?*runs=cnn-0*cbam-0*")
        settled(tab)
        tab.get_by_role("heading", name="One training each: energy cbam").wait_for()
        tab.get_by_role("link", name="Gallery").click()
        tab.wait_for_url("**/gallery?*runs=cnn-0*")  # the choice goes along

    def test_the_arrow_keys_change_the_image(self, address: str, tab: Any):
        visit(tab, address)
        tab.get_by_text("Image 0 of 64").wait_for()
        tab.keyboard.press("ArrowRight")
        tab.get_by_text("Image 2 of 64").wait_for()
        tab.wait_for_url("**image=2*")
        tab.keyboard.press("ArrowLeft")
        tab.get_by_text("Image 0 of 64").wait_for()

    def test_a_hostile_name_is_shown_and_not_run(self, address: str, tab: Any):
        for page in ("runs", "diagnosis", "gallery?run=hostile", "sample"):
            visit(tab, f"{address}/{page}")
            assert tab.evaluate("() => window.hacked") is None
            expect(tab.locator("img[src=x]")).to_have_count(0)
        visit(tab, f"{address}/gallery?run=hostile")
        tab.get_by_text("<img src=x onerror=window.hacked=1>").first.wait_for()


class TestGallery:
    def test_iou_follows_the_threshold_at_once_and_is_numpys(
        self, address: str, tab: Any, browsed_root: Path
    ):
        visit(tab, f"{address}/gallery?run=mha-0&order=number&size=16&tau=0.50")
        tab.locator(".tiles[data-painted]").wait_for()
        run = open_run(browsed_root / "mha-0")
        masks = open_dataset(browsed_root, str(run.dataset)).masks()
        where = np.flatnonzero(masks.any((1, 2)))
        curves = iou_curves(run.maps("received", where), masks[where], 50)
        shows(tab, shown_ious, pytest.approx(list(curves[:, 25]), abs=0.002))
        slider = tab.get_by_role("slider", name="Threshold")
        stepped(tab, slider, "Threshold 0.60")
        tab.get_by_text("Threshold 0.60", exact=True).wait_for()
        tab.get_by_text("at threshold 0.60:").wait_for()
        shows(tab, shown_ious, pytest.approx(list(curves[:, 30]), abs=0.002))
        tab.wait_for_url("**tau=0.60*")
        assert "Image 0 of" not in tab.content()  # the arrows moved the slider, not the page
        tab.reload()
        settled(tab)
        tab.get_by_text("Threshold 0.60", exact=True).wait_for()

    def test_a_late_answer_undoes_nothing(self, address: str, tab: Any):
        """Actions reach the server with an address that lacks what it wrote just before."""
        held: list[tuple[Any, Any]] = []
        holding = False

        def between(route: Any) -> None:
            server = route.connect_to_server()
            server.on_message(lambda one: held.append((route, one)) if holding else route.send(one))

        tab.route_web_socket("**/_stcore/stream*", between)
        visit(tab, f"{address}/gallery?run=mha-0&order=number&tau=0.50")
        tab.locator(".tiles[data-painted]").wait_for()
        slider = tab.get_by_role("slider", name="Threshold")
        slider.focus()
        holding = True
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        answered(tab, held, "tau=0.52")
        tab.get_by_role("button", name="Next").click()  # still with the address from before
        answered(tab, held, "page=2")
        holding = False
        for route, message in held:
            route.send(message)
        tab.wait_for_url("**tau=0.52*")
        tab.wait_for_url("**page=2*")
        settled(tab)
        tab.get_by_text("Threshold 0.52", exact=True).wait_for()
        tab.get_by_text("at threshold 0.52:").wait_for()
        tab.get_by_text("page 2 of").wait_for()

    def test_tiles_are_walked_and_opened_by_keyboard(self, address: str, tab: Any):
        visit(tab, f"{address}/gallery?run=mha-0&order=number")
        tab.locator(".tiles[data-painted]").wait_for()
        tab.locator(".tile").first.focus()
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowLeft")
        key = tab.evaluate(f"() => {deep('.tile:focus')}.dataset.key")
        assert int(key) > 1
        tab.keyboard.press("Enter")
        tab.wait_for_url(f"**/sample?*image={key}*")

    def test_settings_live_in_the_address_in_both_directions(self, address: str, tab: Any):
        """What is set stays on the next page, with another metric, and after Back."""
        visit(tab, f"{address}/gallery?run=mha-0")
        stepped(tab, tab.get_by_role("slider", name="Threshold"), "Threshold 0.36")
        tab.get_by_label("Colours").select_option(label="cividis")
        tab.wait_for_url("**colours=cividis*")
        tab.get_by_role("button", name="Next").click()
        tab.get_by_text("49 to 64").wait_for()
        settled(tab)
        tab.wait_for_url(lambda url: "tau=0.36" in url and "colours=cividis" in url)
        tab.get_by_text("Threshold 0.36", exact=True).wait_for()
        tab.go_back()
        tab.get_by_text("1 to 48").wait_for()
        tab.get_by_text("Threshold 0.36", exact=True).wait_for()
        tab.go_forward()
        tab.get_by_text("49 to 64").wait_for()

    def test_the_order_is_that_of_the_map_that_is_shown(self, address: str, tab: Any):
        visit(tab, f"{address}/gallery?run=mha-0&map=layer_gradcam&size=16")
        tab.get_by_text("worst first by layer_gradcam").wait_for()
        tab.locator(".tiles[data-painted]").wait_for()
        texts = tab.locator(".tile .score").all_text_contents()
        shown = [float(text.removeprefix("energy ")) for text in texts]
        assert shown == sorted(shown)
        tab.get_by_role("combobox", name="Map").click()
        expect(tab.get_by_role("option")).to_have_count(3)

    def test_a_tile_that_leads_nowhere_is_shown_large(self, address: str, tab: Any):
        visit(tab, f"{address}/sample?image=2&run=mha-0")
        tile = tab.locator(".tile").nth(1)
        tile.wait_for()
        before = tile.bounding_box()["width"]
        tile.click()
        expect(tile).to_have_attribute("aria-expanded", "true")
        assert tile.bounding_box()["width"] > 1.5 * before

    def test_what_is_on_screen_is_saved(self, address: str, tab: Any):
        visit(tab, f"{address}/gallery?run=mha-0&map=layer_gradcam&tau=0.62&size=16")
        tab.locator(".tiles[data-painted]").wait_for()
        files = {}
        for kind in ("PNG", "SVG", "PDF"):
            with tab.expect_download() as download:
                tab.get_by_role("button", name=f"Save these tiles as {kind}").click()
            files[kind] = Path(download.value.path()).read_bytes()
            assert download.value.suggested_filename.startswith("mha-0-layer_gradcam")
        picture = Image.open(io.BytesIO(files["PNG"]))
        assert picture.format == "PNG"
        assert picture.width > 800
        drawn = files["SVG"].decode()
        assert drawn.count("<image") == 33  # 32 tiles and the colour bar
        for words in ("mha-0", "map: layer_gradcam", "threshold 0.62", "Mean IoU of these 32"):
            assert words in drawn
            assert words.encode() in files["PDF"]
        assert files["PDF"].startswith(b"%PDF-1.4")
        assert files["PDF"].count(b"/Subtype /Image") == 33


class TestRuns:
    def test_ticks_are_runs_and_stay_with_them(self, address: str, tab: Any):
        """A filter, an order and a reload leave the chosen runs chosen."""
        visit(tab, f"{address}/runs")
        tab.get_by_role("checkbox", name="mha-0", exact=True).check()
        tab.wait_for_url("**runs=mha-0*")
        tab.get_by_text("1 of 8 runs").wait_for()
        tab.get_by_role("button", name="accuracy", exact=True).click()
        tab.wait_for_url("**sort=accuracy*")
        settled(tab)
        expect(tab.get_by_role("checkbox", name="mha-0", exact=True)).to_be_checked()
        tab.get_by_label("Filter").fill("cnn")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**q=cnn*")  # a click before it would rerun the page with the old address
        tab.get_by_text("1 run.").wait_for()
        tab.get_by_role("checkbox", name="cnn-0", exact=True).check()
        tab.wait_for_url("**cnn-0**mha-0*")
        tab.reload()
        settled(tab)
        expect(tab.get_by_role("checkbox", name="cnn-0", exact=True)).to_be_checked()
        filtered_out = tab.get_by_role("checkbox", name="mha-0", exact=True)
        expect(filtered_out).to_have_count(0)
        tab.get_by_role("button", name="Compare these").click()
        tab.wait_for_url("**/?*runs=cnn-0*mha-0*")
        tab.get_by_text("2 of 8 runs").wait_for()
        tab.get_by_role("button", name="Show all").click()
        tab.get_by_text("7 of 8 runs").wait_for()
        tab.wait_for_url(lambda url: "runs=" not in url)

    def test_a_run_that_cannot_be_ranked_is_grey_and_says_why(self, address: str, tab: Any):
        visit(tab, f"{address}/runs?runs=mha-0")
        box = tab.get_by_role("checkbox", name="mha-9, cannot be ranked with these: training")
        expect(box).to_be_disabled()


class TestCompare:
    def test_a_column_of_the_board_ranks(self, address: str, tab: Any):
        visit(tab, f"{address}/compare")
        board = tab.get_by_role("region", name="Variants by several metrics")
        board.get_by_role("button", name="IoU", exact=True).first.click()
        tab.wait_for_url("**metric=max_iou*")
        tab.get_by_role("heading", name="One training each: IoU").wait_for()
        board.locator("td.hatched").first.wait_for()

    def test_a_run_that_comes_is_shown_without_a_reload(
        self, address: str, tab: Any, browsed_root: Path
    ):
        visit(tab, f"{address}/runs")
        new = shutil.copytree(browsed_root / "cnn-0", browsed_root / "coming")
        try:
            tab.get_by_role("button", name="coming").wait_for()
        finally:
            shutil.rmtree(new)

    def test_charts_follow_the_theme(self, address: str, tab: Any):
        visit(tab, f"{address}/attributions")
        chart = tab.locator("[data-testid=stVegaLiteChart] svg").first
        chart.wait_for()
        before = chart.inner_html()
        tab.emulate_media(color_scheme="dark")
        tab.wait_for_function(
            "(before) => document.querySelector('[data-testid=stVegaLiteChart] svg')"
            " && document.querySelector('[data-testid=stVegaLiteChart] svg').innerHTML !== before",
            arg=before,
        )  # fmt: skip


class TestExplore:
    def test_the_brush_fills_the_gallery(self, address: str, tab: Any):
        visit(tab, f"{address}/explore?run=mha-0")
        canvas = tab.get_by_role("img", name="32 images by confidence")
        canvas.scroll_into_view_if_needed()
        frame = canvas.bounding_box()
        x, y = frame["x"] + 56, frame["y"] + 66
        tab.mouse.move(x, y + 5)
        tab.mouse.down()
        tab.mouse.move(x + 0.9 * (frame["width"] - 134), y + 150, steps=4)
        tab.mouse.up()
        tab.wait_for_url("**score=*")
        settled(tab)
        chosen = int(canvas.get_attribute("data-chosen"))
        assert 0 < chosen < 32
        tab.get_by_text(f"{chosen} images, worst first").wait_for()
        tab.get_by_role("button", name="Clear the brush").click()
        tab.get_by_text("64 images, worst first").wait_for()


class TestHeads:
    def test_a_cell_chooses_a_head_and_two_move_together(self, address: str, tab: Any):
        visit(tab, f"{address}/heads?run=mha-0&beside=mha-0&image=2")
        tab.get_by_role("button", name="received, head 3: score").first.click()
        tab.wait_for_url("**head=received*")
        settled(tab)
        fields = tab.locator("button.field")
        fields.nth(1).wait_for()
        fields.first.focus()
        label = pressed(tab, "ArrowUp", fields.first)
        expect(fields.nth(1)).to_have_attribute("aria-label", label)
        tab.locator(".gradient").first.wait_for()


class TestPicker:
    def test_the_share_on_the_patch_is_numpys(self, address: str, tab: Any, browsed_root: Path):
        visit(tab, f"{address}/sample?image=2&rows=mha-0/received")
        run = open_run(browsed_root / "mha-0")
        rows = run.rows("received", [run.row_images("received").index(2)])[0]
        box = open_dataset(browsed_root, str(run.dataset)).boxes()[2]
        cover = coverage(tuple(int(v) for v in box), (96, 96), (24, 24)).ravel()
        field = at_the_end(tab, tab.locator("button.field"))
        field.focus()
        pressed(tab, "ArrowUp", field)
        label = pressed(tab, "ArrowLeft", field)
        row, column = (
            int("".join(filter(str.isdigit, part))) for part in label.split(";")[0].split(",")
        )
        share = (rows[:, (row - 1) * 24 + column - 1] * cover).sum(-1)
        shows(tab, shown_shares, pytest.approx(list(share), abs=0.001))
        tab.get_by_role("button", name="Mean of the rows in the box").click()
        inside = np.flatnonzero(cover >= 0.5)
        expected = (rows[:, inside].mean(1) * cover).sum(-1)
        shows(tab, shown_shares, pytest.approx(list(expected), abs=0.001))

    def test_hovering_draws_at_once(self, address: str, tab: Any):
        visit(tab, f"{address}/sample?image=2&rows=mha-0/received")
        field = at_the_end(tab, tab.locator("button.field"))
        wander(field, tab.get_by_text("the place in row 1, column 1").first)
        field.click(position={"x": 100, "y": 100})
        tab.get_by_text("Pinned").wait_for()
        field.hover(position={"x": 5, "y": 5})
        expect(tab.get_by_text("the place in row 1, column 1")).to_have_count(0)


class TestTryIt:
    def test_a_click_puts_the_patch_there_and_the_model_answers(self, address: str, tab: Any):
        visit(tab, f"{address}/try_it?run=mha-0&size=16")
        before = tab.get_by_role("heading", level=2).first.text_content()
        field = tab.locator("button.field")
        field.wait_for()
        frame = field.bounding_box()
        field.click(position={"x": frame["width"] * 0.1, "y": frame["height"] * 0.9})
        tab.wait_for_url("**x=2*y=78*")
        settled(tab)
        tab.get_by_text("Patch at x 2, y 78").wait_for()
        tab.wait_for_function(
            f"() => document.querySelector('h2').textContent !== {json.dumps(before)}"
        )

    def test_a_bad_upload_is_refused_in_words_and_a_good_one_is_asked(self, address: str, tab: Any):
        visit(tab, f"{address}/try_it?run=mha-0")
        upload = tab.get_by_label("Your own image")
        for name, kind, content, words in (
            ("x.png", "image/png", b"<svg onload=alert(1)>", "cannot be read as a picture"),
            ("x.svg", "image/svg+xml", b"<svg/>", "That is no PNG, JPEG, WEBP"),
            ("x.png", "image/png", b"0" * 9_000_000, "at most 8.4 MB are taken"),
        ):
            upload.set_input_files({"name": name, "mimeType": kind, "buffer": content})
            tab.get_by_text(words).wait_for()
        before = tab.locator("h2").first.text_content()
        buffer = io.BytesIO()
        Image.new("RGB", (300, 200), "orange").save(buffer, "JPEG")
        upload.set_input_files(
            {"name": "my.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}
        )
        tab.get_by_text("Its middle square is shown below").wait_for()
        changed = f"() => document.querySelector('h2').textContent !== {json.dumps(before)}"
        tab.wait_for_function(changed)
        tab.get_by_role("button", name="Back to the test images").click()
        tab.get_by_label("Or test image").wait_for()


class TestTraining:
    def test_a_run_in_progress_grows_before_ones_eyes(
        self, address: str, tab: Any, browsed_root: Path
    ):
        writer = made_runs.training_run(browsed_root, "growing", epochs=2)
        try:
            visit(tab, f"{address}/training?run=growing")
            tab.get_by_text("epoch 2 of 12").wait_for()
            tab.get_by_role("slider", name="Epoch").wait_for()
            row = made_runs.curves(3, 0.75, 0.99, np.random.default_rng(0))[2]
            writer.curve(**row)
            writer.heartbeat(epoch=3)
            maps = made_runs.looking(np.ones((4, 96, 96), bool), 0.5, 2.0, np.random.default_rng(0))
            writer.maps("received@0003", maps, about={"epoch": 3, "images": [0, 2, 4, 6]})
            tab.get_by_text("epoch 3 of 12").wait_for()
            tab.get_by_text("epoch 3", exact=True).wait_for()
        finally:
            writer.stop("the test is over")
            shutil.rmtree(writer.path)

    def test_a_run_that_ends_while_it_is_watched_stays(
        self, address: str, tab: Any, browsed_root: Path
    ):
        ending = shutil.copytree(browsed_root / "cbam-0", browsed_root / "ending")
        complete = made_runs.edited(ending, variant="ours").joinpath("run.json").read_text()
        made_runs.edited(ending, status="running", heartbeat=now(), writer=this_writer())
        try:
            visit(tab, f"{address}/training")
            tab.get_by_text("ours (training) 0.").first.wait_for()
            ending.joinpath("run.json").write_text(complete)
            tab.get_by_text("ours 0.").first.wait_for()
        finally:
            shutil.rmtree(ending)


def violations(page: Any) -> list[str]:
    """What axe finds wrong."""
    found = page.evaluate("() => axe.run({resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['target']} {node['html'][:200]} {node['failureSummary'][:200]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]


def deep(selector: str) -> str:
    """Script that finds the first element, also inside a component's shadow root."""
    return (
        "[document, ...[...document.querySelectorAll('*')].map(e => e.shadowRoot).filter(Boolean)]"
        f".map(r => r.querySelector({json.dumps(selector)})).find(Boolean)"
    )


def picture_of(page: Any, selector: str) -> str:
    page.locator(selector).first.wait_for()
    return page.evaluate(f"() => {deep(selector)}.toDataURL()")


def shows(page: Any, shown: Callable[[Any], Any], wanted: Any) -> None:
    """A page comes to show numbers: its script may still draw those from before."""
    for _ in range(PATIENCE // 100):
        if shown(page) == wanted:
            return
        page.wait_for_timeout(100)
    assert shown(page) == wanted


def answered(page: Any, held: list[tuple[Any, Any]], words: str) -> None:
    """Among what the server sent and the page has not got is an address with some words."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    def said() -> bool:
        sent = [ForwardMsg.FromString(message) for _, message in held]
        return any(words in one.page_info_changed.query_string for one in sent)

    shows(page, lambda _: said(), True)


def stepped(page: Any, slider: Any, wanted: str) -> None:
    """Step a slider to the right until it, and the address with it, says what is wanted.

    Steps follow each other faster than the server answers; on a busy machine some may be lost.
    """
    for _ in range(PATIENCE // 100):
        said = slider.get_attribute("aria-valuetext")
        if said != wanted:
            slider.focus()
            page.keyboard.press("ArrowRight")
        elif f"tau={wanted.split()[-1]}" in page.url:
            return
        else:
            page.wait_for_timeout(100)
    assert slider.get_attribute("aria-valuetext") == wanted


def pressed(page: Any, key: str, field: Any) -> str:
    """A field's label once a key has changed it."""
    before = str(field.get_attribute("aria-label"))
    page.keyboard.press(key)
    expect(field).not_to_have_attribute("aria-label", before)
    return str(field.get_attribute("aria-label"))


def shown_ious(page: Any) -> list[float]:
    texts = page.locator(".tile .iou").all_text_contents()
    return [float(text.removeprefix("IoU ")) for text in texts]


def shown_shares(page: Any) -> list[float]:
    texts = page.locator(".heads figcaption").all_text_contents()
    return [float(text.split("·")[1].split("%")[0]) / 100 for text in texts]
