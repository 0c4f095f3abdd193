"""Write docs/metrics.md and docs/reference.md from the docstrings.

    uv run python docs/write_reference.py

A test holds the pages to what this writes.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import attnviz
import attnviz.metrics as metrics
from attnviz.metrics import METRICS

HERE = Path(__file__).parent
_HEAD = """\
# Metrics

Each takes raw maps `(b, h, w)` and boolean masks `(b, h, w)` and gives one score per image. The
conventions are the same everywhere: nothing is normalised behind your back; an image that cannot
be scored is NaN, and `localization(…).why(key)` says why; ties score what a fair draw among them
would; a score never depends on the other images of the batch. Beside every score stand its chance
and the ceiling of the map's grid, from `attnviz.baselines`. Thresholds come from the validation
split (`calibrate_threshold`); the best per image is called an oracle.

This page is written by `docs/write_reference.py` from the docstrings.

| key | name | range | better | source |
| --- | --- | --- | --- | --- |
"""


def metrics_page() -> str:
    """Every metric: name, range, source, and what its docstring says."""
    rows = [
        f"| [`{m.key}`](#{m.key}) | {m.title} | {m.limits} | {m.better} | {m.source} |"
        for m in METRICS.values()
    ]
    parts = [_HEAD + "\n".join(rows)]
    for key in [*METRICS, "localization", "agreement", "baselines", "calibrate_threshold"]:
        parts.append(f"## {key}\n\n```text\n{inspect.getdoc(getattr(metrics, key))}\n```")
    return "\n\n".join(parts) + "\n"


def reference_page() -> str:
    """Every public name of `attnviz` with its signature and the first sentence about it."""
    parts = [
        "# Reference\n\nEvery name of `import attnviz as av`, and the room it lives in. "
        "`help(av.watch)` says the rest.\n\nThis page is written by `docs/write_reference.py`.",
        "| name | room | what it is |\n| --- | --- | --- |",
    ]
    rows = []
    for name in attnviz.__all__:
        room = attnviz._HOME[name]
        value = getattr(import_module(f"attnviz.{room}"), name)  # `compare` is a module's name too
        first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        rows.append(f"| `{name}` | `attnviz.{room}` | {first.replace('|', chr(92) + '|')} |")
    return parts[0] + "\n\n" + parts[1] + "\n" + "\n".join(rows) + "\n"


PAGES = {"metrics.md": metrics_page, "reference.md": reference_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
