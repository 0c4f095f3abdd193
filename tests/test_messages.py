"""What an error says is tested: every message somewhere, and here those that nothing else meets."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import attnviz as av
from attnviz.attribution import attribute
from attnviz.capture import steps, watch
from attnviz.diagnosis.registry import named
from attnviz.errors import AttnvizError
from attnviz.evaluation.stored import with_columns
from attnviz.executors import cluster
from attnviz.figures import comparison_picture
from attnviz.layers import LearnedQuery, MultiHeadAttention
from attnviz.layers.tutorials import LinearTokens, PointwiseAttention
from attnviz.maps import key_maps, token_maps
from attnviz.models import build_model
from attnviz.report.study import Sample
from attnviz.runs import Run, amend_run
from attnviz.runs.changes import restore_run
from attnviz.runs.header import parse
from attnviz.runs.notes import note_run, read_notes
from attnviz.runs.storage import LocalStore
from attnviz.runs.tables import read_table
from attnviz.runs.tensors import from_bytes, open_tensors
from attnviz.targets import target_scores
from attnviz.training import monitor
from dashboard.upload import unpacked
from experiments.running import run_training
from experiments.settings import Settings
from tests.runs.made import make

ROOT = Path(__file__).parent.parent
RAISED = frozenset({
    "InputError", "RunError", "UnsupportedError", "NothingSeenError", "BusyError",
    "MissingFileError", "ArgumentTypeError", "unknown_name",
})  # fmt: skip


class Refuses:
    """An explainer that asserts what does not hold, as Captum's do."""

    def attribute(self, inputs: torch.Tensor, target: object = None) -> torch.Tensor:
        raise AssertionError("one window per input")


def looking(run: Run) -> object:
    with watch(build_model("mha"), reduce="received", keep_graph=True) as seen:
        return seen


def listing_again(run: Run) -> None:
    with amend_run(run.path) as writer:
        writer.write("notes.txt", b"x")
    with amend_run(run.path) as writer:
        writer.file("notes.txt")


def tensors(content: bytes) -> Callable[[Run], object]:
    def read(run: Run) -> object:
        (run.path / "a.safetensors").write_bytes(content)
        return open_tensors(LocalStore(run.path), "a.safetensors")

    return read


def no_such_array(run: Run) -> object:
    return open_tensors(LocalStore(run.path), "maps/received.safetensors").rows("other")


def over_a_broken_run(run: Run) -> object:
    settings = Settings(variant="cnn", device="cpu")
    make(run.path.parent / settings.run_id)
    (run.path.parent / settings.run_id / "curves.jsonl").unlink()
    return run_training(settings, run.path.parent)


def blind_worker(run: Run) -> None:
    says = {"tcp://here:1": "on elsewhere does not see the folder"}
    client = SimpleNamespace(run=lambda function, *args: says)
    cluster._refuse_unfit(client, (Path("sign"),))


def unknown_keys(run: Run) -> object:
    step = SimpleNamespace(queries=(0,), unknown="a cache was cut")
    return steps.Steps("attn", (step,)).row(0)


def other_notes(run: Run) -> object:
    (run.path.parent / "notes.json").write_text('{"schema": 2}')
    return read_notes(run.path.parent)


def spread_over_processes() -> torch.nn.Module:
    class DTensor(torch.nn.Parameter):
        pass

    model = torch.nn.Module()
    model.weight = DTensor(torch.zeros(2))
    return model


WORDS = torch.rand(2, 2, 16, 5)
IMAGES = torch.zeros(2, 3, 8, 8)
PICTURES = np.zeros((2, 8, 8, 3), np.uint8)
CASES: dict[str, tuple[Callable[[Run], Any], str]] = {
    "captum": (
        lambda run: attribute(torch.nn.Identity(), IMAGES, method=Refuses()),
        "Refuses: captum: one window per input"),
    "reduce": (looking, "watch: reduce= drops the weights and keep_graph=True keeps them"),
    "scores": (
        lambda run: with_columns(pd.DataFrame({"a": [1, 2]}), "m", {"iou": np.zeros(3)}),
        "m/iou: expected 2 scores, one per sample, got 3"),
    "finding": (lambda run: named("scrambled"), "unknown finding 'scrambled': did you"),
    "worker": (blind_worker, "--scheduler: the worker tcp://here:1 on elsewhere does not see"),
    "pictures": (
        lambda run: comparison_picture(PICTURES, {"mha": np.zeros((3, 4, 4))}),
        "comparison_picture: expected 2 of mha, got 3"),
    "tokens": (lambda run: MultiHeadAttention(8, tokens="odd"), "unknown kind of tokens 'odd'"),
    "query": (
        lambda run: LearnedQuery(6, heads=4), "LearnedQuery: expected heads that divide 6, got 4"),
    "axis": (lambda run: PointwiseAttention(8, over="odd"), "unknown axis 'odd'"),
    "linear": (lambda run: LinearTokens(8, tokens="odd"), "unknown kind of tokens 'odd'"),
    "report": (
        lambda run: Sample(run, "iou", None).dataset, "a: expected the digest of its test images"),
    "header": (
        lambda run: parse(b" " * (1 << 28)), "run.json: 268435456 bytes are too many for a header"),
    "maps": (lambda run: run.maps("receive"), "unknown maps of run a 'receive': did you mean"),
    "table": (
        lambda run: read_table(b"x" * 99, "samples.parquet", None),
        "read samples.parquet: not a whole parquet file"),
    "short": (tensors(b"x"), "a.safetensors: not a safetensors file"),
    "torn": (tensors(b"\x09" + b"\0" * 7 + b"{"), "a.safetensors: not a whole safetensors file"),
    "weights": (lambda run: from_bytes(b"x", "w"), "read w: not a whole safetensors file"),
    "array": (no_such_array, "received.safetensors: holds no array 'other'"),
    "listed": (listing_again, "file 'notes.txt': the run already lists it; use write to replace"),
    "dtype": (
        lambda run: target_scores(torch.zeros(2, 3), torch.zeros(2)),
        "target: expected integer indices, got dtype torch.float32"),
    "train": (over_a_broken_run, "curves.jsonl: missing; delete the folder to train it again"),
    "upload": (lambda run: unpacked("%%%"), "picture: what came is no base64"),
    "guidance": (
        lambda run: av.key_map(WORDS, 1, grid=(4, 4), guidance="odd"),
        "key_map: guidance: expected 'conditional' or 'unconditional', got 'odd'"),
    "columns": (
        lambda run: av.key_map(torch.rand(3), 0),
        "key_map: expected a record with weights, got"),
    "heads": (
        lambda run: key_maps._mean({"a": WORDS, "b": WORDS[:, :1]}, {}, None, "bilinear"),
        "key_map: layers have different numbers of heads or rows"),
    "at": (
        lambda run: av.token_map({}, 0, at="odd"),
        "token_map: at: expected 'output' or 'input', got 'odd'"),
    "capture": (
        lambda run: av.token_map({}, 0), "token_map: expected the capture of av.watch, got dict"),
    "grids": (
        lambda run: token_maps._mean([torch.zeros(1, 2), torch.zeros(1, 3)]),
        "token_map: layers with different heads or grids"),
    "rows": (lambda run: steps.joined([], {}), "steps: no record holds rows of attention"),
    "keys": (unknown_keys, "steps of 'attn': a cache was cut"),
    "spread": (
        lambda run: monitor._plain_module(spread_over_processes()),
        "monitor: weight is spread over processes (FSDP or tensor parallel)"),
    "level": (
        lambda run: av.baselines(torch.ones(1, 4, 4) > 0, levels=["odd"]), "unknown level 'odd'"),
    "notes": (other_notes, "notes.json: expected notes of schema 1"),
    "nowhere": (
        lambda run: note_run(run.path / "elsewhere", "a"), "notes.json: no such folder"),
    "deleted": (
        lambda run: restore_run(run.path.parent, "a~!"), "restore: 'a~!' names no deleted run"),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CASES)
def test_the_message_says_what_was_expected(name: str, tmp_path: Path) -> None:
    attempt, words = CASES[name]
    run = make(tmp_path / "a")
    with pytest.raises(AttnvizError, match=re.escape(words)):
        attempt(replace(run))


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]+|\d+", text)


def fixed_parts(node: ast.expr) -> Iterator[list[str]]:
    """The words of a message between what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield words_of(node.value)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from fixed_parts(part)
    elif isinstance(node, ast.BinOp):
        yield from fixed_parts(node.left)
        yield from fixed_parts(node.right)


def messages() -> Iterator[tuple[str, list[list[str]]]]:
    """Where each error of ours is made, and the fixed parts of what it says."""
    for room in ("attnviz", "experiments", "dashboard"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                parts = [part for part in fixed_parts(node.args[0]) if part]
                if name == "unknown_name" and isinstance(node.args[0], ast.Constant):
                    parts = [["unknown", *part] for part in parts]
                parts = [part for part in parts if len(part) > 1]
                if name in RAISED and parts:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", parts


def test_three_words_of_every_message_stand_in_a_test() -> None:
    """Three words in a row, or all where there are fewer: enough to know it by."""
    sources = (file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    joined = (re.sub(r'"\s*\n\s*r?f?"', "", source) for source in sources)
    unescaped = re.sub(r"\\(.)", r"\1", " ".join(joined))
    tested = f" {' '.join(words_of(unescaped))} "
    unmet, count = [], 0
    for where, parts in messages():
        count += 1
        windows = (part[i : i + 3] for part in parts for i in range(max(1, len(part) - 2)))
        if not any(f" {' '.join(window)} " in tested for window in windows):
            unmet.append(where)
    assert count > 300
    assert not unmet, f"no test knows what these say: {', '.join(unmet)}"
