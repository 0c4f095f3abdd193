"""`attnviz demo`: the runs that come with the package, copied where they can be written to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from attnviz.cli import dashboard, demo, run
from attnviz.comparison import compare
from attnviz.models import rebuild_model
from attnviz.runs import list_runs, verify
from experiments.demo import NOTE, SEEDS, VARIANTS

SOURCE = Path(__file__).parents[2] / "demo"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_runs_are_whole_and_as_many_as_the_script_makes() -> None:
    assert demo.bundled() == SOURCE
    assert verify(SOURCE) == []
    runs = list_runs(SOURCE)
    assert {(one.variant, one.seed) for one in runs.complete} == {
        (variant, seed) for variant in VARIANTS for seed in SEEDS
    }
    assert len(runs) == len(VARIANTS) * len(SEEDS)
    assert (SOURCE / "README.txt").read_text() == NOTE


def test_headers_name_no_machine() -> None:
    for header in SOURCE.glob("*/run.json"):
        assert '"host"' not in header.read_text()


def test_the_published_fault_is_found_in_trainings_of_mha_reshape_alone() -> None:
    found = {
        one.id: {finding["code"] for finding in one.summary["findings"]}
        for one in list_runs(SOURCE)
    }
    faulty = {name for name, codes in found.items() if "scrambled-tokens" in codes}
    assert faulty == {f"mha_reshape-s{seed}" for seed in SEEDS}


def test_the_sentence_claims_what_twelve_small_trainings_allow() -> None:
    assert compare(SOURCE).sentence.startswith("no clear winner: mha, energy 0.64 ")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_give_the_answers_that_the_run_recorded(variant: str) -> None:
    """Try it rebuilds the model from them."""
    one = list_runs(SOURCE).named(f"{variant}-s0")
    model = rebuild_model(one.variant, one.settings, one.weights())
    images = torch.from_numpy(one.test_set().images([0, 1, 30])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        logits = model(images).flatten()
    recorded = torch.tensor(one.samples(["logit"])["logit"].to_numpy()[[0, 1, 30]])
    torch.testing.assert_close(logits, recorded.float(), atol=1e-3, rtol=1e-3)


@posix
def test_a_copy_can_be_written_to_where_its_source_cannot(tmp_path: Path) -> None:
    source, folder = tmp_path / "installed", tmp_path / "cache" / "attnviz" / "demo"
    (source / "a-s0").mkdir(parents=True)
    (source / "README.txt").write_text("what they are")
    (source / "a-s0" / "run.json").write_text("{}")
    for path in (source / "a-s0" / "run.json", source / "a-s0", source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(source)
    assert demo.copied(source, folder) == folder
    assert contents(folder) == before == contents(source)
    assert all(path.stat().st_mode & stat.S_IWUSR for path in (folder, *folder.rglob("*")))
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_a_copy_that_is_there_is_kept_as_it_is(tmp_path: Path) -> None:
    folder = demo.copied(SOURCE, tmp_path / "demo")
    assert contents(folder) == contents(SOURCE)
    (folder / "note-of-a-reader").write_text("kept")
    assert demo.copied(SOURCE, folder) == folder
    assert (folder / "note-of-a-reader").read_text() == "kept"


def test_a_folder_with_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.txt").write_text("mine")
    assert run(["demo", "--no-browser", "--folder", str(tmp_path)]) == 2
    said = f"attnviz: demo: {tmp_path} is there and holds something else; expected an empty or new"
    assert capsys.readouterr().err.startswith(said)
    assert contents(tmp_path) == {"README.txt": b"mine"}


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(["demo", "--no-browser", "--folder", str(tmp_path / "file" / "demo")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"attnviz: demo: copy the runs to {tmp_path / 'file' / 'demo'}: ")
    assert said.endswith("--folder chooses another place\n")


def test_the_dashboard_is_given_the_copy_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "bundled", lambda: small(tmp_path / "installed"))
    monkeypatch.setattr(dashboard, "run", lambda args: begun.append(args.runs) or 0)
    assert run(["demo", "--no-browser", "--port", "8600"]) == 0
    assert begun == [str(demo.cache_folder())]
    assert demo.cache_folder().parent == tmp_path / "attnviz"
    assert capsys.readouterr().out == f"what they are\nruns: {demo.cache_folder()}\n"


@pytest.mark.parametrize("home", ["/dev/null/none", "relative"])
def test_without_a_home_the_copy_goes_to_a_temporary_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    first, second = demo.cache_folder(), demo.cache_folder()
    assert first.parent.parent == second.parent.parent == tmp_path
    assert first != second


def small(folder: Path) -> Path:
    folder.mkdir()
    (folder / "README.txt").write_text("what they are")
    return folder
