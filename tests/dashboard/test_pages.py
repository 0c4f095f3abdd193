"""Every page in every bad state: something to read, one command to copy, never a traceback."""

from __future__ import annotations

import argparse
import builtins
import functools
import json
import os
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from attnviz.cli import available
from attnviz.runs import open_run, save_run
from dashboard import heap, lazy, run_cache
from dashboard.pages import listed
from dashboard.table import Event
from tests.dashboard import made_runs
from tests.dashboard.conftest import APP

PAGES = tuple(page.name for page in listed())
RANKED = tuple(page for page in PAGES if page not in ("runs", "training"))

manifest_scanner.scan_component_manifests = functools.cache(
    manifest_scanner.scan_component_manifests
)
"""A server reads the metadata of all installed packages once; `AppTest` does at every page."""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No listing of an earlier test is taken for this one's; a busy disk is waited for."""
    run_cache._last_good.clear()
    monkeypatch.setattr(run_cache, "PATIENCE", 120.0)


def opened(patch: pytest.MonkeyPatch, view: str, root: Any, /, **params: Any) -> AppTest:
    """A page after its first run."""
    patch.setenv("ATTNVIZ_RUNS", str(root))
    patch.setattr(run_cache, "INTERVALS", 60.0)  # waited for: no script runs again by itself here
    patch.setattr(lazy, "AT_ONCE", True)  # scrolled down
    patch.setattr(heap, "settle", lambda **_: None)  # the heap here is that of all tests
    at = AppTest.from_file(str(APP), default_timeout=900)
    if view != "compare":
        at.switch_page(f"views/{view}.py")
    for name, value in params.items():
        at.query_params[name] = str(value)
    at.run()
    assert not at.exception, [one.message for one in at.exception]
    return at


def words(at: AppTest) -> str:
    """Everything that can be read on the page."""
    kinds = ("title", "header", "markdown", "caption", "warning", "error", "info", "code")
    parts = [element.value for kind in kinds for element in getattr(at, kind)]
    parts += [box.label for box in at.expander]
    return "\n".join(str(part) for part in parts).replace("\\", "")


def marked_up(at: AppTest) -> Iterator[str]:
    """Every string of a page that Streamlit sets as Markdown: bodies, labels, help, options."""
    for node in at._tree:
        proto = getattr(node, "proto", None)
        for owner in (proto, *(part for _, part in parts_of(proto))):
            for name in ("body", "label", "help", "caption", "content"):
                text = getattr(owner, name, None)
                if isinstance(text, str):
                    yield text
        if node.type in ("radio", "multiselect_pills", "button_group"):
            yield from (str(option) for option in getattr(node, "options", ()))


def parts_of(proto: Any) -> list[tuple[Any, Any]]:
    """The messages inside a message, such as the expandable of a block."""
    listed = proto.ListFields() if hasattr(proto, "ListFields") else []
    found = []
    for field, value in listed:
        for one in value if field.is_repeated else [value]:
            if hasattr(one, "ListFields"):
                found += [(field, one), *parts_of(one)]
    return found


def believed(text: str) -> bool:
    """Whether a stranger's marks would be set: neither escaped nor in a code span."""
    bare = re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", text))
    return any(mark in bare for mark in ("![i](", "<img", "$\\frac", ":red[x]", "**b**"))


def tables(patch: pytest.MonkeyPatch, done: Event | None = None) -> list[dict[str, Any]]:
    """What the table component is given from now on; `done` is what the reader does, once."""
    given: list[dict[str, Any]] = []
    events = [done] if done else []

    def shown(columns: Any, rows: Any, **options: Any) -> Event:
        given.append({"columns": columns, "rows": {row.key: row for row in rows}, **options})
        return events.pop() if events else Event(None, None, None)

    patch.setattr("dashboard.table.table", shown)
    return given


def commands(at: AppTest) -> list[str]:
    return [block.value for block in at.main.code]


def understood(text: str) -> None:
    """Parse a command as the command line of an installed package would."""
    name, command, *rest = shlex.split(text)
    assert name == "attnviz"
    assert command in available()
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(f"attnviz.cli.{command}").arguments(parser)
    parser.parse_args(rest)


class TestGoodRuns:
    @pytest.mark.parametrize("page", PAGES)
    def test_no_page_complains(self, page, good_root, monkeypatch):
        at = opened(monkeypatch, page, good_root)
        assert at.title[0].value
        assert not at.warning
        assert not at.error

    def test_compare_answers_first_and_in_one_sentence(self, good_root, monkeypatch):
        at = opened(monkeypatch, "compare", good_root)
        sentence = at.header[0].value.replace("\\", "")
        assert sentence.startswith("Two trainings each: energy mha 0.")
        for part in ("chance 0.03", "mask redrawn 0.81", "another training may turn round"):
            assert part in sentence
        assert at.title[0].value == "Which variant looks at the patch?"

    def test_no_map_is_called_the_highest_of_two_trainings(self, good_root, monkeypatch):
        at = opened(monkeypatch, "attributions", good_root)
        sentence = at.header[0].value.replace("\\", "")
        assert sentence.startswith("Two trainings each: energy from")
        assert "another training may turn round" in sentence
        assert "95 % intervals over seeds and images" in words(at)

    def test_the_photographs_of_each_split_are_named(self, good_root, monkeypatch):
        at = opened(monkeypatch, "about", good_root)
        named = [frame.value for frame in at.dataframe if "photograph" in frame.value]
        assert len(named) == 1
        assert list(named[0]["photograph"]) == ["retina", "coffee"]
        assert list(named[0]["split"]) == ["train", "test"]

    def test_one_more_metric_is_one_choice_away_and_in_the_address(self, good_root, monkeypatch):
        at = opened(monkeypatch, "compare", good_root)
        at.selectbox(key="choose_metric").set_value("max_iou").run()
        assert at.query_params["metric"] == "max_iou"
        assert "IoU" in at.header[0].value

    def test_the_image_is_in_the_address(self, good_root, monkeypatch):
        at = opened(monkeypatch, "compare", good_root, image=4)
        assert "Image **4** of 64" in words(at)
        at.button(key="image_Next").click().run()
        assert at.query_params["image"] == "6"
        assert "Image **6** of 64" in words(at)

    def test_chosen_runs_are_compared_alone(self, good_root, monkeypatch):
        at = opened(monkeypatch, "compare", good_root, runs="cnn-0,cbam-0")
        assert "mha" not in at.header[0].value
        assert "One training each" in at.header[0].value
        assert "energy cbam" in at.header[0].value

    def test_the_gallery_turns_its_pages(self, good_root, monkeypatch):
        at = opened(monkeypatch, "gallery", good_root, run="mha-0")
        assert "1 to 48" in words(at)
        at.button(key="page_Next").click().run()
        assert "49 to 64" in words(at)
        at.selectbox(key="choose_order").set_value("best").run()
        assert "best first" in words(at)
        assert "1 to 48" in words(at)  # another order begins at its beginning

    def test_filters_and_orders_say_how_many(self, good_root, monkeypatch):
        at = opened(monkeypatch, "gallery", good_root, run="mha-0", size=16, order="disagreement")
        assert "32 images, most disagreement between variants" in words(at)

    def test_a_sample_goes_on_in_the_gallerys_order(self, good_root, monkeypatch):
        at = opened(monkeypatch, "sample", good_root, run="mha-0", order="worst", image=0)
        said = words(at)
        assert "worst first of mha" in said
        at.button(key="image_Next").click().run()
        assert at.query_params["image"] != "1"

    def test_a_sample_without_rows_says_which_images_have_them(self, good_root, monkeypatch):
        at = opened(monkeypatch, "sample", good_root, image=5)
        assert "Full attention is kept for a few images only" in words(at)
        assert "0, 2" in words(at)

    def test_findings_are_grouped_and_filtered(self, good_root, monkeypatch):
        at = opened(monkeypatch, "diagnosis", good_root)
        assert "12 warnings, 12 notes in 12 runs" in words(at)
        at.selectbox(key="choose_variant").set_value("mha").run()
        assert "mha-1" in words(at)
        assert "cbam-0" not in words(at)

    def test_one_fault_of_one_variant_is_told_once_with_each_runs_numbers(
        self, good_root, tmp_path, monkeypatch
    ):
        for seed in (0, 1):
            path = shutil.copytree(good_root / f"mha-{seed}", tmp_path / f"mha-{seed}")
            summary = json.loads((path / "run.json").read_text())["summary"]
            (first, *_) = summary["findings"]
            first |= {"meaning": f"seen in {seed + 3} keys", "evidence": {"keys": seed + 3}}
            made_runs.edited(path, summary=summary | {"findings": [first]})
        shutil.copytree(good_root / "datasets", tmp_path / "datasets")
        at = opened(monkeypatch, "diagnosis", tmp_path)
        said = words(at)
        assert "2 warnings in 2 runs" in said
        assert said.count("What to do") == 1
        assert "seen in 3 keys (so in `mha-0`; each run's own numbers follow)" in said
        assert "- `mha-0`: keys 3\n- `mha-1`: keys 4" in said

    def test_a_patch_like_the_runs_own_is_put_at_first(self, good_root, tmp_path, monkeypatch):
        for name in ("mha-0", "datasets"):
            shutil.copytree(good_root / name, tmp_path / name)
        settings = json.loads((tmp_path / "mha-0" / "run.json").read_text())["settings"]
        made_runs.edited(tmp_path / "mha-0", settings=settings | {"size": 10, "shape": "disc"})
        at = opened(monkeypatch, "try_it", tmp_path)
        assert at.number_input(key="number_size").value == 10
        assert at.selectbox(key="choose_shape").value == "disc"

    def test_facts_in_which_the_runs_differ_are_counted(self, good_root, tmp_path, monkeypatch):
        for seed, threads in ((0, 1), (1, 4)):
            path = shutil.copytree(good_root / f"mha-{seed}", tmp_path / f"mha-{seed}")
            made_runs.edited(path, environment={"python": "3.11", "threads": threads})
        shutil.copytree(good_root / "datasets", tmp_path / "datasets")
        at = opened(monkeypatch, "about", tmp_path)
        table = at.dataframe[-1].value
        assert table.to_dict("list") == {
            "what": ["threads", "threads"], "value": ["1", "4"], "runs": [1, 1],
            "such as": ["mha-0", "mha-1"],
        }  # fmt: skip

    def test_knockouts_are_drawn_and_said_for_the_run_that_is_chosen(self, good_root, monkeypatch):
        at = opened(monkeypatch, "diagnosis", good_root)
        assert "What each head and gate is worth" in words(at)
        assert "16 test images" in words(at)
        chosen = at.selectbox(key="choose_knockout")
        assert not any("cnn" in one for one in chosen.options)
        chosen.set_value("mha-1").run()
        assert not at.exception
        assert at.query_params["knockout"] == "mha-1"

    def test_two_ticked_runs_show_what_tells_them_apart(self, good_root, monkeypatch):
        at = opened(monkeypatch, "runs", good_root, runs="mha-0,cnn-0")
        assert "What tells these 2 runs apart" in words(at)

    def test_a_patch_is_put_and_a_head_switched_off(self, good_root, monkeypatch):
        at = opened(monkeypatch, "try_it", good_root, run="mha-0", x=10, y=20)
        assert not at.error, [one.value for one in at.error]
        before = at.main.header[0].value
        key = at.multiselect[0].options[0]
        at.multiselect[0].set_value([next(iter(at.multiselect[0].options))]).run()
        assert not at.exception, key
        assert "Untouched" in words(at)
        assert before.split(":")[0] in words(at)


NOWHERE = "no such place"


class TestNoRuns:
    @pytest.mark.parametrize("page", PAGES)
    @pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
    def test_the_path_and_a_command(self, page, kind, tmp_path, monkeypatch):
        root = tmp_path / "runs"
        if kind == "empty":
            root.mkdir()
        if kind == "a file":
            root.write_text("x")
        at = opened(monkeypatch, page, root)
        assert at.warning
        assert str(root)[-40:] in words(at)
        assert commands(at)[0] == "attnviz demo"
        for one in commands(at):
            understood(one)

    @pytest.mark.parametrize("page", PAGES)
    def test_folders_that_are_no_runs_are_counted(self, page, tmp_path, monkeypatch):
        (tmp_path / "stray").mkdir()
        at = opened(monkeypatch, page, tmp_path)
        assert "1 folder without run.json" in words(at)
        assert "stray" in words(at)


class TestBadRunsBesideGoodOnes:
    @pytest.mark.parametrize("page", PAGES)
    def test_no_page_breaks(self, page, bad_root, monkeypatch):
        at = opened(monkeypatch, page, bad_root)
        assert not at.error

    def test_none_of_them_is_ranked_and_each_says_why(self, bad_root, monkeypatch):
        at = opened(monkeypatch, "compare", bad_root)
        said = words(at)
        assert "energy mha" in at.header[0].value
        for line in (
            "`bad-json`: broken – run.json: not JSON",
            "`short-samples`: broken – samples.parquet: expected",
            "`newer`: newer schema – written by a newer attnviz (99 > 1)",
            "`training-now`: training",
            "`stale-run`: stopped? – no heartbeat",
            "`stopped-run`: stopped – interrupted",
            "`no-header`: left out, no run.json",
        ):
            assert line in said
        assert any(one.startswith("attnviz verify ") for one in commands(at))
        assert "cbam_channel" not in at.header[0].value

    def test_runs_on_other_images_are_set_apart(self, bad_root, monkeypatch):
        at = opened(monkeypatch, "compare", bad_root)
        assert "1 other group of runs is not ranked with these" in words(at)

    def test_reasons_have_a_column_where_there_are_any(self, good_root, bad_root, monkeypatch):
        given = tables(monkeypatch)
        opened(monkeypatch, "runs", bad_root)
        assert "why" in [column.key for column in given[-1]["columns"]]
        opened(monkeypatch, "runs", good_root)
        names = [column.key for column in given[-1]["columns"]]
        assert "why" not in names
        at = names.index("question")
        assert {row.cells[at].text for row in given[-1]["rows"].values()} == {
            "square of 16, photos"
        }

    def test_the_list_names_states_and_counts_strays(self, bad_root, monkeypatch):
        given = tables(monkeypatch)
        at = opened(monkeypatch, "runs", bad_root)
        place = [column.key for column in given[-1]["columns"]].index("state")
        assert {row.cells[place].text for row in given[-1]["rows"].values()} == {
            "complete", "training", "stopped?", "stopped", "broken", "newer schema",
        }  # fmt: skip
        assert "1 folder" in words(at)

    @pytest.mark.parametrize(
        ("run", "said"),
        [
            ("training-now", "`training-now`: training"),
            ("stale-run", "`stale-run`: stopped?"),
            ("bad-json", "`bad-json`: broken. run.json: not JSON"),
            ("newer", "written by a newer attnviz (99 > 1)"),
        ],
    )
    @pytest.mark.parametrize("page", ["gallery", "try_it"])
    def test_a_link_to_one_of_them_says_its_state(self, page, run, said, bad_root, monkeypatch):
        at = opened(monkeypatch, page, bad_root, run=run)
        assert said in words(at)

    def test_training_shows_the_curves_of_the_unfinished(self, bad_root, monkeypatch):
        at = opened(monkeypatch, "training", bad_root)
        said = words(at)
        assert "epoch 5 of 12" in at.get("progress")[0].text
        assert "mha (training)" in said
        assert "mha (stopped?)" in said

    def test_training_shows_one_question_at_a_time(self, good_root, tmp_path, monkeypatch):
        for name in ("mha-0", "mha-1", "cnn-0", "datasets"):
            shutil.copytree(good_root / name, tmp_path / name)
        asked = made_runs.SETTINGS | {"size": 9}
        made_runs.edited(tmp_path / "cnn-0", settings=asked)
        made_runs.training_run(tmp_path, "stopped-run").stop("interrupted")
        made_runs.training_run(tmp_path, "stopped-other").stop("interrupted")
        made_runs.edited(tmp_path / "stopped-other", settings=asked)
        at = opened(monkeypatch, "training", tmp_path)
        assert "`stopped-run`: stopped" in words(at)
        assert "stopped-other" not in words(at)
        assert "cnn" not in at.caption[-2].value
        other = next(o for o in at.selectbox(key="choose_data").options if "square of 9" in o)
        at.selectbox(key="choose_data").set_value(other).run()
        assert "`stopped-other`: stopped" in words(at)
        assert "`stopped-run`" not in words(at)

    def test_a_crowd_of_variants_can_be_thinned(self, tmp_path, monkeypatch):
        digest = made_runs.dataset(tmp_path, 8)
        for i in range(9):
            path = made_runs.run(tmp_path, "mha", 0, digest, run_id=f"run-{i}")
            made_runs.edited(path, variant=f"v{i}")
        at = opened(monkeypatch, "training", tmp_path, only="run-3")
        (said,) = (one.value for one in at.caption if "Last validation loss" in one.value)
        assert "v3" in said
        assert "v4" not in said

    def test_runs_that_differ_in_the_question_are_not_ranked(self, bad_root, monkeypatch):
        at = opened(monkeypatch, "compare", bad_root, runs="mha-0,other-images")
        assert "Not ranked: compare: cannot rank runs measured on different images" in words(at)


@pytest.fixture
def copied(good_root: Path, tmp_path: Path) -> Path:
    """A few good runs that a test may damage."""
    for name in ("mha-0", "cnn-0", "datasets"):
        shutil.copytree(good_root / name, tmp_path / name)
    return tmp_path


class TestDamage:
    def test_a_flipped_byte_in_a_table_names_the_file_and_leaves_the_rest(
        self, copied, monkeypatch
    ):
        made_runs.flip_a_byte(copied / "mha-0" / "samples.parquet")
        at = opened(monkeypatch, "compare", copied)
        assert "mha-0/samples.parquet" in words(at)
        assert any(one.startswith("attnviz verify") for one in commands(at))
        assert "cnn" in at.header[0].value

    @pytest.mark.parametrize("page", PAGES)
    def test_a_flipped_byte_in_a_table_breaks_no_page(self, page, copied, monkeypatch):
        made_runs.flip_a_byte(copied / "mha-0" / "samples.parquet")
        opened(monkeypatch, page, copied)

    @pytest.mark.parametrize("page", PAGES)
    def test_a_map_that_is_no_tensor_breaks_no_page(self, page, copied, monkeypatch):
        path = copied / "mha-0" / "maps" / "received.safetensors"
        path.write_bytes(b"\xff" * path.stat().st_size)
        at = opened(monkeypatch, page, copied, run="mha-0")
        if page in ("compare", "gallery", "sample"):
            assert "maps/received.safetensors" in words(at)

    @pytest.mark.parametrize("page", PAGES)
    def test_missing_test_images_break_no_page(self, page, copied, monkeypatch):
        shutil.rmtree(copied / "datasets")
        at = opened(monkeypatch, page, copied, image=0)
        if page in ("compare", "gallery", "sample", "try_it", "about"):
            assert "datasets" in words(at)

    @pytest.mark.parametrize("page", PAGES)
    def test_a_summary_that_says_nothing_breaks_no_page(self, page, copied, monkeypatch):
        path = copied / "cnn-0" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"summary": {}}))
        opened(monkeypatch, page, copied)

    @pytest.mark.parametrize("page", PAGES)
    def test_a_summary_of_nonsense_breaks_no_page(self, page, copied, monkeypatch):
        path = copied / "cnn-0" / "run.json"
        nonsense = {
            "accuracy": "high", "map": ["x"], "metrics": [1], "threshold": "?", "seconds": {},
            "findings": [3, {"severity": 9, "evidence": None}],
        }  # fmt: skip
        path.write_text(json.dumps(json.loads(path.read_text()) | {"summary": nonsense}))
        opened(monkeypatch, page, copied)

    @pytest.mark.parametrize("page", PAGES)
    @pytest.mark.parametrize("kept", ["own", "bare", "maps", "nothing"])
    def test_a_run_of_somebody_elses_with_less_in_it_breaks_no_page(
        self, page, kept, good_root, tmp_path, monkeypatch
    ):
        """As `docs/own-data.md` saves one: no probability, no curves, no weights, no summary."""
        shutil.copytree(good_root / "datasets", tmp_path / "datasets")
        given = open_run(good_root / "mha-0")
        table = given.samples()
        boxes, scored = ["x0", "y0", "x1", "y1"], [name for name in table if "/" in name]
        columns = {
            "own": ["index", "label", *boxes, "correct", "logit", *scored],
            "bare": ["index", "label", *scored],
            "maps": ["index", "label", *boxes],
            "nothing": ["index", "label"],
        }[kept]
        save_run(
            tmp_path / "mine", variant="mine", settings={"epochs": 0}, seed=0,
            samples=table[columns], dataset=given.dataset,
            maps={} if kept == "nothing" else {"received": given.maps("received")},
            summary={"map": "received"},
        )  # fmt: skip
        at = opened(monkeypatch, page, tmp_path)
        assert not at.error
        assert "validation images chose" not in words(at)
        if page == "training":
            assert "None of these runs has curves" in words(at)
        if page == "compare" and kept == "own":
            assert "mine: energy" in words(at)
        if page == "try_it":
            assert "keeps no weights, so its model cannot run" in words(at)

    def test_a_run_that_goes_away_between_two_looks_is_said(self, copied, monkeypatch):
        at = opened(monkeypatch, "gallery", copied, run="mha-0")
        shutil.rmtree(copied / "mha-0")
        monkeypatch.setattr(run_cache, "_FRESH", 0.0)
        monkeypatch.setattr(run_cache, "GLANCE", 60.0)
        at.run()
        assert not at.exception
        assert "run = `mha-0`, which is not here" in words(at)


class TestTheAddress:
    @pytest.mark.parametrize("page", RANKED)
    def test_an_unknown_run_among_the_chosen_is_said(self, page, good_root, monkeypatch):
        at = opened(monkeypatch, page, good_root, runs="mha-0,gone")
        assert "`gone`, which is not in this folder" in words(at)

    @pytest.mark.parametrize(
        ("page", "params", "said"),
        [
            ("compare", {"metric": "beauty"}, "metric = `beauty`, which is not here"),
            ("compare", {"image": "999"}, "image = `999`; expected a whole number from 0 to 63"),
            ("compare", {"image": "-1"}, "expected a whole number from 0 to 63"),
            ("gallery", {"run": "gone"}, "run = `gone`, which is not here"),
            ("gallery", {"order": "sideways"}, "order = `sideways`"),
            ("gallery", {"tau": "7"}, "expected a number from 0 to 1"),
            ("gallery", {"page": "99"}, "expected a whole number from 1 to 2"),
            ("gallery", {"map": "gone"}, "map = `gone`, which is not here"),
            ("gallery", {"colours": "jet"}, "colours = `jet`, which is not here"),
            ("gallery", {"size": "17"}, "size = `17`"),
            ("sample", {"image": "x"}, "image = `x`"),
            ("sample", {"order": "x"}, "order = `x`"),
            ("sample", {"rows": "x"}, "rows = `x`"),
            ("attributions", {"metric": "x"}, "metric = `x`"),
            ("diagnosis", {"variant": "x"}, "variant = `x`"),
            ("runs", {"state": "x"}, "state = `x`"),
            ("training", {"runs": "gone"}, "`gone`, which is not in this folder"),
            ("try_it", {"shape": "heart"}, "shape = `heart`"),
            ("try_it", {"x": "1e9"}, "x = `1e9`"),
            ("try_it", {"off": "everything"}, "`everything`"),
        ],
    )
    def test_what_does_not_exist_is_said(self, page, params, said, good_root, monkeypatch):
        at = opened(monkeypatch, page, good_root, **params)
        assert at.warning
        assert said in words(at)

    @pytest.mark.parametrize("page", PAGES)
    def test_markup_in_the_address_stays_text(self, page, good_root, monkeypatch):
        evil = "`<script>alert(1)</script>[x](javascript:alert(1))"
        params = dict.fromkeys(("run", "runs", "metric", "image", "map", "order", "state"), evil)
        opened(monkeypatch, page, good_root, **params)


class TestLogIn:
    AUTH = {  # noqa: RUF012
        "redirect_uri": "http://localhost/oauth2callback", "cookie_secret": "x", "client_id": "x",
        "client_secret": "x", "server_metadata_url": "http://localhost/x",
    }  # fmt: skip

    def test_where_it_is_set_up_nothing_is_shown_before(self, good_root, monkeypatch):
        monkeypatch.setenv("ATTNVIZ_RUNS", str(good_root))
        at = AppTest.from_file(str(APP), default_timeout=900)
        at.secrets["auth"] = self.AUTH
        at.run()
        assert not at.exception
        assert [title.value for title in at.title] == ["Log in"]
        assert "mha" not in words(at)


class TestHostileRuns:
    @pytest.mark.parametrize("page", PAGES)
    def test_names_are_text_on_every_page(self, page, copied, monkeypatch):
        made_runs.hostile_run(copied)
        at = opened(monkeypatch, page, copied, run="hostile")
        for block in at.markdown:
            unescaped = block.value.replace("\\<", "").replace("\\[", "").replace("\\:", "")
            assert "<img" not in unescaped
            assert "](javascript" not in unescaped

    @pytest.mark.parametrize("page", PAGES)
    def test_every_string_of_a_run_stays_text(self, page, tmp_path, monkeypatch):
        """Variant, settings, metrics, maps, gates, findings, curves: none is Markdown."""
        made_runs.evil_runs(tmp_path)
        at = opened(monkeypatch, page, tmp_path, run="evil-0")
        found = [text for text in set(marked_up(at)) if believed(text)]
        assert not found, found

    @pytest.mark.parametrize(
        "name", ["mha__v2", "__", "a.b[c]", "x'y\"z", "\\", "größe · 图", "None"]
    )
    def test_any_variant_can_be_looked_at(self, name, copied, monkeypatch):
        for number in (0, 1):
            path = copied / f"mha-{number}" / "run.json"
            if path.exists():
                content = json.loads(path.read_text()) | {"variant": name}
                content.pop("seal", None)
                path.write_text(json.dumps(content))
        for page in ("sample", "compare", "gallery"):
            at = opened(monkeypatch, page, copied, run="mha-0", runs="mha-0,cbam-0")
            assert not at.error

    def test_a_dataset_is_no_path(self, copied, monkeypatch):
        path = copied / "cnn-0" / "run.json"
        content = json.loads(path.read_text()) | {"dataset": "../../../etc"}
        path.write_text(json.dumps(content))
        at = opened(monkeypatch, "compare", copied)
        assert "'dataset' should be a digest" in words(at)


class TestUnfinishedOnly:
    @pytest.mark.parametrize("page", RANKED)
    def test_nothing_is_ranked_and_the_page_leads_to_training(self, page, tmp_path, monkeypatch):
        made_runs.dataset(tmp_path, 8)
        with made_runs.training_run(tmp_path, "now"):
            at = opened(monkeypatch, page, tmp_path)
            assert "No run is complete yet" in words(at)
            assert "`now`: training" in words(at)


class TestAStoreThatDoesNotAnswer:
    def test_a_slow_store_is_waited_for_so_long_and_no_longer(self, good_root, monkeypatch):
        monkeypatch.setattr(run_cache, "PATIENCE", 0.3)
        over = threading.Event()
        monkeypatch.setattr(run_cache, "list_runs", lambda root, known: over.wait())
        try:
            at = opened(monkeypatch, "compare", good_root)
        finally:
            over.set()
        assert "cannot be reached: no answer within" in words(at)
        assert "There is no earlier listing to show" in words(at)
        assert at.button(key="retry").label == "Retry"

    def test_the_last_good_listing_is_shown_with_its_age(self, good_root, monkeypatch):
        at = opened(monkeypatch, "compare", good_root)
        monkeypatch.setattr(run_cache, "_FRESH", 0.0)
        answer = run_cache.list_runs
        monkeypatch.setattr(run_cache, "list_runs", _refuse)
        at.run()
        assert "connection refused" in words(at)
        assert "last good listing" in words(at)
        assert "energy mha" in words(at)
        monkeypatch.setattr(run_cache, "list_runs", answer)
        at.button(key="retry").click().run()
        assert not at.error

    @pytest.mark.parametrize("page", PAGES)
    def test_a_remote_address_that_is_nowhere_breaks_no_page(self, page, monkeypatch):
        pytest.importorskip("fsspec")
        at = opened(monkeypatch, page, f"memory://{NOWHERE}")
        assert at.error or at.warning


def _refuse(root: str, known: Any) -> Any:
    raise OSError("connection refused")


class TestRemote:
    @pytest.mark.parametrize("page", PAGES)
    def test_runs_on_a_remote_store_are_shown_like_local_ones(self, page, copied, monkeypatch):
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        memory.put(str(copied), "/shared", recursive=True)
        try:
            at = opened(monkeypatch, page, "memory://shared", image=0)
            assert not at.warning
            assert not at.error
        finally:
            memory.rm("/shared", recursive=True)

    def test_a_visit_costs_few_requests_and_a_second_one_only_the_listing(
        self, copied, monkeypatch
    ):
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        memory.put(str(copied), "/counted", recursive=True)
        asked: list[str] = []
        for name in ("find", "cat", "cat_file", "cat_ranges"):
            monkeypatch.setattr(type(memory), name, _counted(type(memory), name, asked))
        try:
            at = opened(monkeypatch, "compare", "memory://counted")
            first = len(asked)
            monkeypatch.setattr(run_cache, "_FRESH", 0.0)
            asked.clear()
            at.run()
            assert not at.exception
            # 2 list; then for each run a table and, for strip and curve, a map's header and rows
            assert first <= 30
            assert len(asked) == 2
        finally:
            memory.rm("/counted", recursive=True)


def _counted(kind: type, name: str, asked: list[str]) -> Any:
    """A method that notes each outermost call: what a store is asked is a request to it."""
    real = getattr(kind, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self, "_inside", False):
            asked.append(name)
            self._inside = True
            try:
                return real(self, *args, **kwargs)
            finally:
                self._inside = False
        return real(self, *args, **kwargs)

    return method


class TestWithout:
    def test_without_torch_the_page_says_so_and_how_to_get_it(self, good_root, monkeypatch):
        import sys

        monkeypatch.delitem(sys.modules, "dashboard.live", raising=False)
        real = builtins.__import__

        def no_torch(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "torch" or name.startswith("torch."):
                raise ImportError("No module named 'torch'")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", no_torch)
        at = opened(monkeypatch, "try_it", good_root, run="mha-0")
        assert "needs PyTorch" in words(at)
        assert "pip install torch torchvision" in commands(at)

    def test_without_weights_the_page_says_how_to_get_them(self, good_root, monkeypatch):
        at = opened(monkeypatch, "try_it", good_root, run="mha-1")
        assert "keeps no weights" in words(at)
        assert "weights= of attnviz.save_run" in words(at).replace("`", "")

    @pytest.mark.parametrize(
        ("width", "said"), [(8, "the weights do not fit"), (10**9, "there is no 'mha' of")]
    )
    def test_weights_of_another_model_are_refused_in_words(self, width, said, copied, monkeypatch):
        path = copied / "mha-0" / "run.json"
        content = json.loads(path.read_text())
        content["settings"]["model"] = {"width": width}
        path.write_text(json.dumps(content))
        at = opened(monkeypatch, "try_it", copied, run="mha-0")
        assert said in words(at)


class TestMany:
    def test_a_thousand_runs_are_listed_and_filtered(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run_cache, "PATIENCE", 60.0)  # checks of types at run time take longer
        made_runs.many_runs(tmp_path, 1000)
        given = tables(monkeypatch)
        opened(monkeypatch, "runs", tmp_path, q="run-07 mha")
        assert given[-1]["label"] == "100 runs, 50 on this page"
        assert len(given[-1]["rows"]) == 50

    def test_ten_thousand_images_are_turned_page_by_page(self, tmp_path, monkeypatch):
        made_runs.large_run(tmp_path, 10_000)
        at = opened(monkeypatch, "gallery", tmp_path, order="best", page=209)
        assert "10000 images, best first" in words(at)
        assert "9985 to 10000" in words(at)
        at = opened(monkeypatch, "sample", tmp_path, image=9999)
        assert "Image **9999**" in words(at)


def test_browsing_loads_no_torch_and_the_first_page_no_charts(good_root: Path):
    """In a process of its own: every page but Try it."""
    import subprocess
    import sys

    script = f"""
import sys
from streamlit.testing.v1 import AppTest
for page in {[p for p in PAGES if p != "try_it"]}:
    at = AppTest.from_file({str(APP)!r}, default_timeout=900)
    if page != "compare":
        at.switch_page(f"views/{{page}}.py")
    at.run()
    assert not at.exception, (page, at.exception)
    heavy = ["torch", "captum", "skimage", "matplotlib.pyplot", *["altair"][: page == "compare"]]
    heavy = [m for m in heavy if m in sys.modules]
    assert not heavy, (page, heavy)
"""
    environment = os.environ | {"ATTNVIZ_RUNS": str(good_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        cwd=APP.parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_note_beside_the_runs_is_shown_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.txt").write_text("small runs, **no** benchmark\n" + "x" * 5000)
    assert "no benchmark" not in words(opened(monkeypatch, "about", tmp_path))
    (tmp_path / "README.txt").write_text("small runs, **no** benchmark " + "x" * 1000)
    at = opened(monkeypatch, "about", tmp_path)
    (note,) = [one.value for one in at.caption if one.value.startswith("small runs")]
    assert note.startswith("small runs, \\*\\*no\\*\\* benchmark x")
    assert len(note.replace("\\", "")) == 600
