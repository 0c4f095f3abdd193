"""The report: everything is in it, nothing is fetched, nothing a run says becomes markup."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnviz.errors import InputError, RunError
from attnviz.report import write_report
from attnviz.report.amounts import LIMIT
from attnviz.report.markup import Html, joined, table, tag
from attnviz.runs import start_run
from tests.comparison.written import dataset, sample_table, write_run

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
FINDING = {
    "code": "scrambled-tokens",
    "severity": "error",
    "where": "attend",
    "meaning": "Places and channels are mixed up.",
    "remedy": "permute before reshape",
    "evidence": {"correlation": 0.01},
}


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("img", "meta", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def written(root: Path, source: Any = None, **options: Any) -> Page:
    out = root.parent / "report.html"
    write_report(root if source is None else source, out, **options)
    page = Page(out.read_text())
    assert page.open == []
    return page


def two(root: Path, **options: Any) -> None:
    for variant, energy in (("mha", 0.7), ("cnn", 0.3)):
        for seed in range(3):
            write_run(root, variant, seed, energy=energy, **options)


class TestContent:
    def test_the_sentence_answers_first(self, root: Path) -> None:
        two(root)
        text = written(root).text
        assert text.index("mha looks at the object most: energy 0.69") < text.index("Ranking")

    def test_one_training_each_is_described_not_ranked(self, root: Path) -> None:
        write_run(root, "mha", energy=0.7)
        write_run(root, "cnn", energy=0.3)
        text = written(root).text
        assert "One training each: energy mha 0." in text
        assert "in an order which another training may turn round" in text
        assert "looks at the object most" not in text

    def test_the_ranking_has_every_variant_and_level(self, root: Path) -> None:
        two(root)
        text = written(root).text
        assert re.search(r"variant rank energy pointing game 95 % CI .* mha 1 0\.69", text)
        for level in ("chance 0.06", "centred Gaussian 0.08", "mask redrawn 0.80"):
            assert level in text

    def test_every_section_is_there(self, root: Path) -> None:
        two(root, summary={"findings": [FINDING]})
        page = written(root)
        keys = "ranking board strip differences extremes training findings settings runs words"
        assert [attributes["id"] for attributes in page.all("section")] == keys.split()
        links = [attributes["href"] for attributes in page.all("a")]
        assert links == [f"#{key}" for key in keys.split()]

    def test_worst_and_best_are_the_worst_and_best(self, root: Path) -> None:
        run = write_run(root, "mha", energy=0.5)
        frame = run.samples()
        scores = frame[frame.label == 1]["attend/energy_pointing_game"]
        alts = [image["alt"] for image in written(root).all("img")]
        worst = next(alt for alt in alts if alt.startswith("mha, worst 1:"))
        best = next(alt for alt in alts if alt.startswith("mha, best 1:"))
        assert f"test image {scores.idxmin()}, energy pointing game {scores.min():.2f}" in worst
        assert f"test image {scores.idxmax()}, energy pointing game {scores.max():.2f}" in best

    def test_images_without_a_patch_are_not_shown(self, root: Path) -> None:
        digest = dataset(root)
        scored = sample_table(root, digest, 0.5, 0)
        scored.loc[scored.label == 0, "attend/energy_pointing_game"] = 0.99
        write_run(root, "mha", digest=digest, samples=scored)
        assert not [image for image in written(root).all("img") if "0.99" in image["alt"]]

    def test_a_finding_shared_by_runs_is_told_once(self, root: Path) -> None:
        two(root, summary={"findings": [FINDING]})
        text = written(root).text
        assert text.count("Places and channels are mixed up.") == 1
        assert "permute before reshape" in text
        assert "cnn-0, cnn-1, cnn-2, mha-0, mha-1, mha-2: correlation 0.01" in text

    def test_settings_that_differ_stand_beside_their_variants(self, root: Path) -> None:
        digest = dataset(root)
        write_run(root, "mha", settings={"lr": 0.1}, digest=digest)
        write_run(root, "cnn", settings={"lr": 0.2}, digest=digest)
        text = written(root).text
        assert "setting cnn mha" in text
        assert "lr 0.2 0.1" in text
        assert "trained unlike: lr: 0.2 (cnn), 0.1 (mha)" in text

    def test_metrics_and_words_are_defined(self, root: Path) -> None:
        two(root)
        text = written(root).text
        assert "The share of the map's positive mass that lies in the mask" in text
        assert "adjusted for all pairs of variants, so that with equal variants" in text

    def test_runs_left_out_are_listed_with_their_reason(self, root: Path) -> None:
        two(root)
        start_run(root, "cbam-0", variant="cbam", settings={}, seed=0).stop("out of patience")
        text = written(root).text
        assert "cbam-0 cbam 0 stopped out of patience" in text
        assert "6 complete runs, 1 left out." in text

    def test_one_variant_is_a_page_too(self, root: Path) -> None:
        write_run(root, "mha")
        assert "nothing to compare it with" in written(root).text


class TestPictures:
    def test_every_picture_says_its_numbers(self, root: Path) -> None:
        two(root)
        images = written(root).all("img")
        assert len(images) > 20
        for image in images:
            if "object outlined" not in image["alt"]:
                assert re.search(r"\d\.\d\d", image["alt"]), image["alt"]

    def test_every_picture_can_be_decoded_and_has_its_size(self, root: Path) -> None:
        two(root)
        for image in written(root).all("img"):
            kind, content = image["src"].split(",", 1)
            assert re.fullmatch(r"data:image/(webp|png);base64", kind)
            size = Image.open(io.BytesIO(base64.b64decode(content))).size
            assert int(image["width"]) / int(image["height"]) == pytest.approx(
                size[0] / size[1], rel=0.02
            )

    def test_plots_come_for_a_light_and_a_dark_page(self, root: Path) -> None:
        two(root)
        page = written(root)
        dark = page.all("source")
        assert {attributes["media"] for attributes in dark} == {"(prefers-color-scheme: dark)"}
        assert len(dark) == len(page.all("picture")) == 2
        corner = Image.open(io.BytesIO(base64.b64decode(dark[0]["srcset"].split(",")[1])))
        assert max(corner.convert("RGB").getpixel((0, 0))) < 60  # type: ignore[type-var]  # RGB

    def test_maps_with_heads_are_shown_as_their_mean(self, root: Path) -> None:
        from attnviz.runs import save_run

        run = write_run(root, "mha")
        heads = np.random.default_rng(0).random((12, 3, 8, 8)).astype(np.float32)
        save_run(
            root / "heads-0",
            variant="heads",
            settings={},
            seed=0,
            samples=run.samples(),
            maps={"attend": heads},
            summary=dict(run.summary),
            dataset=run.dataset,
        )
        alts = [image["alt"] for image in written(root).all("img")]
        assert any(alt.startswith("heads, best 1") for alt in alts)


class TestSafety:
    def test_nothing_is_fetched(self, root: Path) -> None:
        two(root)
        page = written(root)
        policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        for name, attributes in page.elements:
            for key in ("src", "srcset", "href", "action", "data", "poster"):
                value = attributes.get(key, "")
                assert not value or value.startswith(("data:image/", "#")), (name, key, value[:50])
        assert "url(" not in page.html
        assert "@import" not in page.html

    def test_nothing_a_run_says_becomes_markup(self, root: Path) -> None:
        finding = {**dict.fromkeys(FINDING, HOSTILE), "evidence": {HOSTILE: HOSTILE}}
        write_run(root, HOSTILE, settings={HOSTILE: HOSTILE}, summary={"findings": [finding]},
                  name="a")  # fmt: skip
        write_run(root, "cnn", settings={HOSTILE: 1}, name="b")
        page = written(root, title=HOSTILE)
        known = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p"}
        known |= {"nav", "a", "section", "div", "table", "caption", "thead", "tbody", "tr", "th"}
        known |= {"td", "figure", "picture", "source", "img", "figcaption", "ul", "li", "dl", "dt"}
        known |= {"dd", "details", "summary", "code", "span", "strong", "i"}
        assert {name for name, _ in page.elements} <= known
        assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
        assert page.text.count("<script>alert(1)</script>") > 5

    def test_findings_that_are_no_findings_do_no_harm(self, root: Path) -> None:
        two(root, summary={"findings": ["odd", 3, {"severity": "error"}, {"evidence": 0.5}]})
        assert "error" in written(root).text


class TestSize:
    def test_of_many_variants_the_best_have_pictures_and_the_others_are_counted(
        self, root: Path
    ) -> None:
        for number in range(16):
            write_run(root, f"v{number:02}", energy=0.3 + number / 40)
        page = written(root)
        assert "the pictures of 1 more variants" in page.text
        assert len(page.html) < LIMIT
        assert not [a for a in page.all("img") if a["alt"].startswith("v00")]

    def test_a_page_over_the_limit_shows_less_and_says_so(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        two(root)
        whole = written(root)
        monkeypatch.setattr("attnviz.report.LIMIT", len(whole.html) - 1)
        less = written(root)
        assert len(less.html) < len(whole.html)
        assert len(less.all("img")) < len(whole.all("img"))
        assert "Pictures are fewer and smaller than usual" in less.text


class TestFaults:
    def test_no_complete_run_is_an_error(self, root: Path, tmp_path: Path) -> None:
        start_run(root, "cnn-0", variant="cnn", settings={}, seed=0).stop("enough")
        with pytest.raises(InputError, match="at least one complete run, got cnn-0 is stopped"):
            write_report(root, tmp_path / "report.html")
        assert not (tmp_path / "report.html").exists()

    def test_other_images_have_a_section_of_their_own(self, root: Path) -> None:
        two(root)
        write_run(root, "alone", digest=dataset(root, 15))
        page = written(root)
        keys = [attributes["id"] for attributes in page.all("section")]
        assert {"question-1", "question-1-board", "question-2", "question-2-strip"} <= set(keys)
        assert "Not ranked" not in page.text
        assert "mha looks at the object most" in page.text
        assert "alone: energy" in page.text

    def test_other_images_under_given_names_are_shown_but_not_ranked(self, root: Path) -> None:
        one, other = write_run(root, "mha"), write_run(root, "cnn", digest=dataset(root, 15))
        out = root.parent / "report.html"
        study = write_report({"mha": [one], "cnn": [other]}, out)
        page = Page(out.read_text())
        assert study.refusal.startswith("compare: cannot rank runs measured on different images")
        assert "Not ranked. compare: cannot rank runs measured on different images" in page.text
        assert "Each run on its own images: not to be ranked" in page.text
        assert [a for a in page.all("img") if a["alt"].startswith("cnn, best 1")]
        assert "strip" not in [a["id"] for a in page.all("section")]

    def test_a_broken_map_takes_only_its_part_of_the_page(self, root: Path) -> None:
        two(root)
        target = next((root / "cnn-0" / "maps").iterdir())
        content = bytearray(target.read_bytes())
        content[:16] = b"\xff" * 16
        target.write_bytes(bytes(content))
        text = written(root).text
        assert "mha looks at the object most" in text
        assert re.search(r"cannot be shown: .*attend", text)
        assert "mha: attend, mha-0" in text

    def test_without_the_test_images_the_rest_stands(self, root: Path) -> None:
        two(root)
        shutil.rmtree(root / "datasets")
        text = written(root).text
        assert "cannot be shown:" in text
        assert "mha looks at the object most" in text

    def test_what_cannot_be_scored_is_no_picture(self, root: Path) -> None:
        digest = dataset(root)
        nothing = sample_table(root, digest, 0.5, 0)
        nothing["attend/energy_pointing_game"] = np.nan
        write_run(root, "mha", digest=digest, samples=nothing)
        page = written(root)
        assert "No ranking: energy pointing game could not be scored" in page.text
        assert not [a for a in page.all("img") if "worst" in a["alt"]]

    def test_no_space_leaves_the_old_page(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_run(root, "mha")
        out = tmp_path / "report.html"
        out.write_text("old")

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"report\.html"):
            write_report(root, out)
        assert out.read_text() == "old"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html", "runs"]


def test_the_same_runs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    two(root)
    for name in ("a", "b"):
        write_report(root, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_takes_no_torch(root: Path, tmp_path: Path) -> None:
    write_run(root, "mha")
    code = (
        "import sys\nfrom attnviz.report import write_report\n"
        f"write_report({str(root)!r}, {str(tmp_path / 'report.html')!r})\n"
        "bad = {'torch', 'captum', 'matplotlib.pyplot'} & set(sys.modules)\nassert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class TestMarkup:
    def test_children_are_escaped_unless_they_are_html(self) -> None:
        assert tag("p", "a<b", tag("b", "&"), None, 3) == "<p>a&lt;b<b>&amp;</b>3</p>"

    def test_attributes_are_escaped(self) -> None:
        assert tag("a", "x", href='"><b', class_="c", aria_label="l", id=None) == (
            '<a href="&quot;&gt;&lt;b" class="c" aria-label="l">x</a>'
        )

    def test_void_elements_do_not_close(self) -> None:
        assert tag("img", src="x") == '<img src="x">'

    def test_joining_keeps_html(self) -> None:
        assert isinstance(joined(["<", Html("<br>")]), Html)
        assert joined(["<", Html("<br>")]) == "&lt;<br>"

    def test_numbers_in_a_table_align_right_and_rows_have_headers(self) -> None:
        made = table(["a", "b", "c"], [["x", "0.5", "word"]], caption="c")
        assert '<th scope="row">x</th><td class="n">0.5</td><td>word</td>' in made


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_nothing_is_fetched_and_all_is_shown(
    root: Path, tmp_path: Path, scheme: Any, browser: Any
) -> None:
    two(root, summary={"findings": [FINDING]})
    out = tmp_path / "report.html"
    write_report(root, out)
    asked: list[str] = []
    said: list[str] = []
    page = browser.new_page(color_scheme=scheme, viewport={"width": 380, "height": 800})
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(out.as_uri())
    loaded = page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    wide = page.evaluate("document.documentElement.scrollWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()
    assert [url for url in asked if not url.startswith("data:")] == [out.as_uri()]
    assert said == []
    assert loaded
    assert wide <= 380
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 29, 34)"}[scheme]
