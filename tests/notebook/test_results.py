"""What every result looks like in a notebook: pictures, both themes, escaped."""

from __future__ import annotations

import pickle
import re
import shlex
from pathlib import Path

import pytest
import torch

import attnviz as av
from attnviz.cli import run as command
from attnviz.diagnosis import RULES, Finding, Findings
from attnviz.metrics import ScoreTable
from tests.training.made import Attending, Gated, scenes

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def seen():
    torch.manual_seed(0)
    images = torch.stack([one["image"] for one in scenes(4)])
    model = torch.nn.Sequential()
    model.add_module("net", Gated())
    with torch.no_grad(), av.watch(model.eval()) as found:
        model(images)
    return found


def shown(result):
    html = result._repr_html_()
    assert html.startswith('<div class="attnviz"><style>')
    assert "<script" not in html
    return html


def test_a_capture_shows_a_thumbnail_of_every_record(seen):
    html = shown(seen)
    assert html.count("<img") == len(seen) == 1
    assert "image 0: 0 to" in html
    assert "<table" in html
    assert shown(seen["net"]).count("<img") == 1


def test_a_record_without_a_map_says_why(seen):
    images = torch.stack([one["image"] for one in scenes(4)])
    model = Attending().eval()
    with torch.no_grad(), av.watch(model, reduce="entropy") as reduced:
        model(images)
    html = shown(reduced)
    assert "<img" not in html
    assert "<figcaption>" in html


def test_maps_and_their_reasons(seen):
    drawn = av.maps_of(seen)
    assert shown(drawn).count("<img") == len(drawn)


def test_scores_stand_beside_chance():
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[:, 2:6, 2:10] = True
    scores = av.localization(torch.rand(3, 16, 16), masks, ["energy_pointing_game", "pixel_auroc"])
    html = shown(scores)
    assert ">chance<" in html
    assert ">0.125<" in html  # the mask's share of the image
    assert ">0.5<" in html
    copy = pickle.loads(pickle.dumps(scores))
    assert isinstance(copy, ScoreTable)
    assert ">chance<" not in shown(copy)
    nothing = av.localization(torch.rand(1, 8, 8), torch.zeros(1, 8, 8) > 0, ["pointing_game"])
    assert "the mask is empty" in shown(nothing)


def test_findings_have_words_evidence_and_a_page_and_are_escaped():
    """A page that lies in the repository is unfolded, for a notebook cannot follow its path."""
    address = "https://example.org/rules/mine"
    finding = Finding("code", "error", HOSTILE, {"share": 0.25}, HOSTILE, "do", address)
    html = shown(Findings([finding], name=HOSTILE))
    assert "&lt;script&gt;" in html
    assert "share 0.25" in html
    assert f'<a href="{address}">mine</a>' in html
    rule = RULES["gate-closed"]
    own = shown(Findings([rule.finding("gate", highest=0.01)]))
    assert "<details><summary>gate-closed</summary>" in own
    assert rule.cause in own
    assert "href" not in own
    shady = Finding("code", "error", "x", {}, "m", "do", "javascript:alert(1)")
    assert "javascript" not in shown(shady)
    assert "nothing wrong was found" in shown(Findings())


def test_evaluations_comparisons_and_runs_show_a_figure_for_each_theme(tmp_path):
    data = scenes(6)
    for kind in (Attending, Gated):
        torch.manual_seed(0)
        result = av.evaluate(
            kind(), data, findings=False, save=tmp_path / f"{kind.__name__}-0",
            variant=f"{kind.__name__}&", seed=0,
        )  # fmt: skip
        html = shown(result)
        assert html.count("<img") == 2
        assert 'class="night"' in html
    compared = shown(av.compare(tmp_path))
    assert compared.count("<img") == 2
    assert "Gated&amp;" in compared
    with av.start_run(tmp_path / "trained") as run:
        monitor = av.Monitor(data, run=run, budget=None)
        monitor(Attending(), 1, train_loss=1.0)
        monitor(Attending(), 2, train_loss=0.5)
    trained = shown(av.open_run(tmp_path / "trained"))
    assert trained.count("<img") == 2
    assert ">received<" in trained
    listed = shown(av.list_runs(tmp_path))
    assert "3 runs in" in listed


def test_the_page_of_notebooks_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "notebook.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "notebook.md", "exec"), names)
    assert Path("view.html").stat().st_size > 10_000
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
                for line in block.splitlines()]  # fmt: skip
    program, *words = shlex.split(commands[0])
    assert program == "attnviz"
    assert command(words) == 0
    assert Path("mha.html").read_text().startswith("<!doctype html>")
