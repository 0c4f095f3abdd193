"""Sizes are compared with limits, and claims with sizes, before memory is taken."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnviz.errors import InputError, RunError
from attnviz.runs import amend_run, list_runs, open_dataset, open_run, save_dataset, start_run
from attnviz.runs.documents import loaded, plain
from attnviz.runs.storage import LocalStore
from attnviz.runs.tables import read_table
from attnviz.runs.tensors import open_tensors
from tests.runs.made import edit, everything, make

ROOT = Path(__file__).parents[2]
LIMITED = """
import resource, sys; from pathlib import Path
import numpy, pandas, pyarrow.parquet, safetensors.numpy
from attnviz.errors import RunError
from attnviz.runs import *
root = Path(sys.argv[1])
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (700 << 20), ) * 2)
"""


def in_little_memory(code: str, root: Path) -> str:
    """What code prints in a process that may take no more than 700 MB more."""
    words = [sys.executable, "-c", LIMITED + code, str(root)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def grown(path: Path, size: int = 10 << 30) -> None:
    """A file that is sparse: it claims gigabytes and costs none."""
    with path.open("r+b") as file:
        file.truncate(size)


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@needs_proc
def test_sparse_files_of_ten_gigabytes_are_refused_by_size_and_hide_no_other_run(
    tmp_path: Path,
) -> None:
    names = ("run.json", "samples.parquet", "curves.jsonl", "model.safetensors", "dataset.json",
             "data.safetensors", "maps/received.safetensors", "layouts.json")  # fmt: skip
    for number, name in enumerate(names):
        given = {"layouts": {"x": {"grid": [2, 2]}}}
        if name.startswith("da"):
            given["dataset"] = save_dataset(
                tmp_path / str(number),
                images=np.zeros((1, 2, 2, 3), np.uint8),
                masks=np.zeros((1, 2, 2), bool),
                info={},
            )
        path = make(tmp_path / str(number) / "a", **given).path
        make(tmp_path / str(number) / "b")
        place = path / name
        if name.startswith("da"):
            place = path.parent / "datasets" / given["dataset"] / name
        grown(place)
        header = json.loads((path / "run.json").read_text()) if name != "run.json" else None
        if header and name in header["files"]:  # the listing says so, too
            header["files"][name]["bytes"] = 10 << 30
            edit(path, **header)
    code = """
for number in range(8):
    home = root / str(number)
    found = list_runs(home)
    print(number, *(f'{run.id}:{run.state}' for run in found))
    run = found.named('a')
    reads = [run.samples, run.curves, run.weights, lambda: run.maps('received')]
    reads += [lambda: run.layouts]
    if run.dataset or number in (4, 5):
        reads += [lambda: run.test_set().images(), lambda: run.test_set().labels()]
    for read in reads:
        try: read()
        except (RunError, ValueError) as error: print(' ', str(error).replace(str(home), ''))
"""
    said = in_little_memory(code, tmp_path)
    assert said.count("b:complete") == len(names)
    assert said.count("a:complete") == len(names) - 1  # the listing fits, but for run.json
    assert said.count("expected at most") >= 5
    assert "run.json" not in said or "a:broken" in said


@needs_proc
def test_a_checksum_of_a_gigabyte_is_taken_in_blocks(tmp_path: Path) -> None:
    path = make(tmp_path / "a").path
    grown(path / "maps" / "received.safetensors", 1 << 30)
    files = json.loads((path / "run.json").read_text())["files"]
    files["maps/received.safetensors"]["bytes"] = 1 << 30
    edit(path, files=files)
    said = in_little_memory("print(*open_run(root / 'a').verify(), sep='\\n')", tmp_path)
    assert said.strip() == (
        "a/maps/received.safetensors: its sha256 is not the one in run.json (a byte changed)"
    )


@pytest.mark.parametrize("rows", [2**34, 2**40, 2**62, 2**63, 10**30])
@pytest.mark.parametrize("inner", [[2, 2], [0, 2], []])
def test_a_header_that_claims_more_rows_than_the_file_has_is_refused(
    tmp_path: Path, rows: int, inner: list[int]
) -> None:
    size = rows * int(np.prod(inner, dtype=object)) * 2
    entry = {"dtype": "F16", "shape": [rows, *inner], "data_offsets": [0, size]}
    text = json.dumps({"values": entry, "scale": entry}).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    store = LocalStore(tmp_path)
    if not size and rows <= 2**40:  # nothing at all, however often
        assert open_tensors(store, "x", 1000).rows("values").size == 0
        return
    with pytest.raises(RunError, match=r"not a whole safetensors file|the file has \d+"):
        open_tensors(store, "x", (tmp_path / "x").stat().st_size)


@pytest.mark.parametrize("shape", [[1] * 40, [True], [-1], ["2"], [2.0], [None], [1 << 70, 0]])
def test_a_shape_that_is_none_is_refused(tmp_path: Path, shape: list[Any]) -> None:
    text = json.dumps({"x": {"dtype": "U8", "shape": shape, "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"\0")
    with pytest.raises(RunError, match="not a whole safetensors file"):
        open_tensors(LocalStore(tmp_path), "x")


def test_more_than_can_be_held_is_asked_for_by_indices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnviz.runs import tensors

    run = make(tmp_path / "a")
    monkeypatch.setattr(tensors, "WHOLE_LIMIT", 100)
    with pytest.raises(RunError, match=r"at once, got \d+; read some of the images by their"):
        run.maps("received")
    assert run.maps("received", [0, 2]).shape == (2, 4, 4)


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def test_a_table_of_a_few_kilobytes_that_unfolds_to_gigabytes_is_refused(tmp_path: Path) -> None:
    numbers = parquet(pa.table({"n": pa.array(np.zeros(1 << 20, np.int64))}), compression="zstd")
    assert len(read_table(numbers, "x")) == 1 << 20
    many = io.BytesIO()
    table = pa.table({"n": pa.array(np.zeros(1 << 22, np.int64))})
    with pq.ParquetWriter(many, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(40):  # 1.3 GB
            writer.write_table(table)
    assert len(many.getvalue()) < 1_000_000
    with pytest.raises(RunError, match=r"x: expected a table of at most \d+ bytes, got \d{10}"):
        read_table(many.getvalue(), "x")


@needs_proc
def test_one_long_word_in_every_row_costs_its_length_once(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(20_000, np.int32)),
        pa.array(["x" * 200_000]),  # 4 GB, unfolded
    )
    content = parquet(pa.table({"w": words}), compression="zstd")
    assert len(content) < 100_000
    (tmp_path / "x").write_bytes(content)
    code = (
        "from attnviz.runs.tables import read_table\n"
        "try: print(len(read_table((root / 'x').read_bytes(), 'x')))\n"
        "except RunError as error: print(error)"
    )
    said = in_little_memory(code, tmp_path)
    assert said.strip() == "20000" or "expected a table of at most" in said


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "word": ["a", "b", None, "a"], "n": [1, 2, 3, 4], "x": [0.5, None, 1.5, 2.5],
            "yes": [True, False, True, True], "kind": pd.Categorical(["u", "v", "u", "v"]),
            "probabilities": [np.array([0.25, 0.75])] * 4,
        }
    )  # fmt: skip
    run = make(tmp_path / "a", samples=frame)
    pd.testing.assert_frame_equal(run.samples(), pd.read_parquet(run.path / "samples.parquet"))
    assert run.samples(["word", "n"]).columns.tolist() == ["word", "n"]
    empty = make(tmp_path / "b", samples=frame[:0])
    pd.testing.assert_frame_equal(empty.samples(), pd.read_parquet(empty.path / "samples.parquet"))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("levels", [70, 1_000, 100_000, 1_000_000])
@pytest.mark.parametrize("where", ["run.json", "curves.jsonl", "maps/received.safetensors"])
def test_json_of_a_million_levels_is_refused(
    tmp_path: Path, opening: str, levels: int, where: str
) -> None:
    closing = "]" if opening == "[" else "}"
    deep = opening * levels + "1" + closing * levels
    path = make(tmp_path / "a").path
    make(tmp_path / "b")
    text = f'{{"schema": 1, "status": "complete", "settings": {{"x": {deep}}}}}'
    content = text.encode()
    if where.startswith("maps"):
        content = len(text).to_bytes(8, "little") + content
    (path / where).write_bytes(content + b"\n")
    found = list_runs(tmp_path)
    assert found.named("b").state == "complete"
    run = found.named("a")
    assert run.state == "broken"
    assert run.verify()
    if where == "run.json":
        assert run.reason == "run.json: not JSON (truncated or corrupt)"


def test_settings_of_too_many_levels_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    deep: Any = 1
    for _ in range(58):
        deep = [deep]
    make(tmp_path / "a", settings={"deep": deep})
    assert open_run(tmp_path / "a").state == "complete"
    before = everything(tmp_path)
    for _ in range(3):
        deep = [deep]
    with pytest.raises(InputError, match=r"settings.deep.*expected at most 60 levels, got more"):
        make(tmp_path / "b", settings={"deep": deep})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InputError, match="levels, got more"):
        plain(loop, "settings")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 400])
def test_a_number_that_is_not_finite_reads_as_none_and_the_run_can_be_added_to(
    tmp_path: Path, number: str
) -> None:
    path = make(tmp_path / "a", summary={"loss": 1.0}).path
    edit(path, summary={"loss": "here"})
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text.replace('"here"', number))
    run = open_run(path)
    assert (run.state, run.summary, run.verify()) == ("complete", {"loss": None}, [])
    with amend_run(path) as writer:
        writer.samples(pd.DataFrame({"i": [1]}))
    assert open_run(path).verify() == []
    assert loaded(f'{{"x": [{number}, 1]}}') == {"x": [None, 1]}
    with start_run(tmp_path, "b", variant="m", settings={}, seed=0) as running:
        (running.path / "curves.jsonl").write_text(f'{{"loss": {number}}}\n')
        assert open_run(running.path).curve_rows() == [{"loss": None}]
        running.stop("")


def test_the_arrays_of_test_images_must_be_as_many_as_the_header_says(tmp_path: Path) -> None:
    from attnviz.runs import verify

    digest = save_dataset(
        tmp_path,
        images=np.zeros((3, 4, 5, 3), np.uint8),
        masks=np.zeros((3, 4, 5), bool),
        info={},
    )
    path = tmp_path / "datasets" / digest / "dataset.json"
    edit_of = json.loads(path.read_text()) | {"count": 1 << 40}
    edit_of.pop("seal")
    path.write_text(json.dumps(edit_of))
    assert open_dataset(tmp_path, digest).images().shape == (3, 4, 5, 3)
    (fault,) = verify(tmp_path)
    assert fault.kind == "unreadable"
    assert "of shape (3, 4), expected (1099511627776, 4)" in fault.detail
