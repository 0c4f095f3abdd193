"""Throw arbitrary bytes at the reader of run folders, guided by what they reach (atheris).

    uv run --with atheris python benchmarks/fuzz_runs.py [--seconds 60] [--part header]

The parts are `header`, `tensors` and `curves`; by default all, one after the other. Whatever the
bytes, reading them may raise `RunError` (or `InputError` for an index) and nothing else. Without
atheris the bytes come from mutations of valid files, unguided. Prints executions and findings;
the exit code is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from attnviz.errors import InputError, RunError
from attnviz.runs.entries import Entry

if find_spec("atheris"):
    import atheris

    with atheris.instrument_imports(include=["attnviz.runs"]):
        from attnviz.runs import list_runs, open_run
        from attnviz.runs.reader import whole_rows
        from attnviz.runs.storage import Span
        from attnviz.runs.tensors import open_tensors, restored, to_bytes
else:
    from attnviz.runs import list_runs, open_run
    from attnviz.runs.reader import whole_rows
    from attnviz.runs.storage import Span
    from attnviz.runs.tensors import open_tensors, restored, to_bytes

Target = Callable[[bytes], None]


@dataclass(frozen=True)
class MemoryStore:
    """A store that holds one folder in memory, so that no disk slows the fuzzer down."""

    files: Mapping[str, bytes]
    where: str = "memory"
    name: str = "a"

    def below(self, folder: str) -> MemoryStore:
        """The same folder."""
        return self

    def tree(self) -> dict[str, int]:
        """Every file, with its size."""
        return {name: len(content) for name, content in self.files.items()}

    def catalogue(self, marker: str) -> dict[str, dict[str, int]]:
        """The one folder."""
        return {"": {}, self.name: self.tree()}

    def read(self, name: str, most: int = 1 << 32) -> bytes:
        """A whole file."""
        if name not in self.files:
            raise RunError(f"read {name}: no such file or folder")
        return self.files[name]

    def read_each(
        self, folders: Sequence[str], name: str, most: int
    ) -> dict[str, bytes | RunError]:
        """The file of the one folder."""
        return {folder: self.read(name) for folder in folders}

    def blocks(self, name: str) -> Iterator[bytes]:
        """A whole file at once."""
        yield self.read(name)

    def exists(self) -> bool:
        """It does."""
        return True

    def odd(self) -> list[Entry]:
        """Nothing."""
        return []

    def why_missing(self, name: str) -> str:
        """It is missing."""
        return "missing"

    def ranges(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Parts of a file."""
        return [self.read(name)[start:stop] for start, stop in spans]


def header(content: bytes) -> None:
    """run.json, and all that a reader does with a run before it opens an array."""
    from attnviz.runs.reader import _judged

    run, _ = _judged(MemoryStore({"run.json": content, "x": b""}), "a", None, None)
    assert run.state in ("complete", "running", "stale", "stopped", "broken", "newer")
    repr(run)
    run.verify()
    for name in (*run.map_names, *run.row_names):
        with suppress(RunError, InputError):
            run.maps(name, [0])
        with suppress(RunError, InputError):
            run.row_images(name)


def tensors(content: bytes) -> None:
    """A maps file."""
    with suppress(RunError, InputError):
        file = open_tensors(MemoryStore({"m": content}), "m")
        values, scale = file.rows("values", [0, 0]), file.rows("scale", [0, 0])
        with suppress(ValueError):  # the reader names the file around this
            restored(values, scale)


def curves(content: bytes) -> None:
    """curves.jsonl."""
    with suppress(RunError):
        assert all(isinstance(row, dict) for row in whole_rows(content, "curves.jsonl"))


def seeds() -> dict[str, list[bytes]]:
    """Valid contents to begin with."""
    from tests.runs.made import make

    with TemporaryDirectory() as folder:
        make(Path(folder) / "a")
        (run,) = list_runs(folder)
        assert open_run(run.path) == run
        head, rows = run.store.read("run.json"), run.store.read("curves.jsonl")
    small = {"values": np.ones((2, 2, 2), np.float16), "scale": np.ones(2, np.float32)}
    old = {"schema": 0, "state": "done", "model": "m", "time": 0, "files": {"x": 0}}
    listed = {"maps/x.safetensors": {"bytes": 0, "sha256": None, "at": "x", "shape": [1]}}
    new = {"schema": 1, "status": "complete", "files": listed}
    texts = [json.dumps(document).encode() for document in (old, new)]
    return {"header": [head, *texts], "tensors": [to_bytes(small)], "curves": [rows]}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A content with a few bytes changed, removed, doubled or put in from a dictionary."""
    words = (b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"\xff", b"..", b"/", b"9" * 30, b"true")
    result = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(result) + 1)
        stop = min(start + rng.choice((0, 1, 1, 4, 30)), len(result))
        kind = rng.randrange(4)
        part = bytes(result[start:stop])
        noise = bytes(rng.randrange(256) for _ in part)
        result[start:stop] = (noise, b"", part * 2, rng.choice(words))[kind]
    return bytes(result)


def unguided(
    target: Target, corpus: list[bytes], seconds: float, rng: random.Random
) -> tuple[int, dict[str, bytes]]:
    """Run mutations of the corpus until the time is up.

    Returns:
        How many there were, and one content for each kind of error that came out.
    """
    count, found, end = 0, dict[str, bytes](), time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutated(rng.choice(corpus), rng)
        try:
            target(content)
        except Exception as error:
            found.setdefault(f"{type(error).__name__}: {error}"[:100], content)
        count += 1
    return count, found


def guided(target: Target, corpus: list[bytes], seconds: float) -> None:
    """Hand over to atheris: it prints its executions, stops at a finding, ends the process."""
    with TemporaryDirectory() as folder:
        for number, content in enumerate(corpus):
            (Path(folder) / str(number)).write_bytes(content)
        words = [f"-max_total_time={seconds:.0f}", "-print_final_stats=1", folder]
        words += [f"-artifact_prefix={folder}/"]  # a finding is printed in base64 anyway
        atheris.Setup([sys.argv[0], *words], target)
        atheris.Fuzz()


def in_its_own_process(part: str, seconds: float) -> int:
    """Fuzz one part, guided, and print what came of it; 1 if there is a finding."""
    words = [sys.executable, __file__, "--seconds", str(seconds), "--part", part]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    count = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    found = int(done.returncode != 0)
    print(f"{part}: {count[1] if count else '?'} executions (guided), {found} findings")
    if found:
        print(done.stdout[-3000:])
    return found


def main() -> int:
    targets = {"header": header, "tensors": tensors, "curves": curves}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--part", choices=targets)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = [args.part] if args.part else list(targets)
    share = args.seconds / len(parts)
    if find_spec("atheris"):
        if args.part:
            guided(targets[args.part], seeds()[args.part], args.seconds)
        return max(in_its_own_process(part, share) for part in parts)
    findings = 0
    for part in parts:
        count, found = unguided(targets[part], seeds()[part], share, random.Random(args.seed))
        print(f"{part}: {count} executions (unguided), {len(found)} findings")
        for error, content in found.items():
            print(f"  {error}\n    {content!r}")
        findings += len(found)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
