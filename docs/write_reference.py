"""Write maps.md, metrics.md and reference.md from docstrings, and tutorial.ipynb from tutorial.md.

    uv run python docs/write_reference.py

A test compares the pages with this script's output.
"""

from __future__ import annotations

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import attnviz
import attnviz.metrics as metrics
from attnviz.maps import CONSTRUCTIONS, Construction
from attnviz.metrics import DEFAULT, METRICS

HERE = Path(__file__).parent
_HEAD = """\
# Metrics

Each takes raw maps and boolean masks, `(b, h, w)`, `(b, d, h, w)` or of more place axes, and gives
one score per image. The conventions are the same everywhere: nothing is normalised unless the
definition states it; an image that cannot be scored is NaN, and `localization(…).why(key)` gives
the reason; ties score their expectation under fair tie-breaking; a score never depends on the other
images of the batch. Reference levels come from `attnviz.baselines`, thresholds from the validation
split (`calibrate_threshold`); the best per image is called an oracle. *Bound* is the best score
that any map can reach.

This page is written by `docs/write_reference.py` from the docstrings.

| key | name | range | better | chance | bound | source |
| --- | --- | --- | --- | --- | --- | --- |
"""


_MAPS_HEAD = """\
# Maps

A *construction* turns attention or a gate into maps `(b, h, w)`, raw and at the record's own grid
unless a size is given. Two constructions of one record can correlate at .99 or at .01, so that a
map is always shown with its construction's name. `av.maps_of(seen)` draws the primary map of each
record and gives the reason for a record without one; `attnviz.maps.construction` registers a custom
map.

This page is written by `docs/write_reference.py` from the table and the docstrings.

| key | name | computes | reads | a watch keeps | source |
| --- | --- | --- | --- | --- | --- |
"""

_PEERS = """\
## Where others differ

Where conventions are the same, scores agree to 1e-6 with scikit-learn, torchmetrics and Quantus
(`benchmarks/metrics.py` prints the largest difference of each). Where they are not:

| case | theirs | here |
| --- | --- | --- |
| torchmetrics, a value outside [0, 1] | the sigmoid of all values of the map, in float32, which \
ties neighbours: of 2,036 maps that reached beyond 1 (none beyond 1.3) 89 were off by more than \
1e-6 in AP, at most by 1.2e-4; far outside it ties all | the values as they are |
| torchmetrics, an empty mask | AUROC 0 | NaN |
| torchmetrics, ties among the highest places | as its sort leaves them | expected value |
"""


def peers() -> str:
    """The tables of differences that the modules of the peers' conventions open with."""
    text = _PEERS
    for name, title in (("compat.quantus", "Quantus 0.6"), ("compat.wsol", "wsolevaluation")):
        about = inspect.getdoc(import_module(f"attnviz.metrics.{name}")) or ""
        table = [line for line in about.splitlines() if line.startswith("|")]
        shown = "\n".join(line.replace("|G|", "\\|G\\|") for line in table)
        text += f"\n### {title}\n\n`attnviz.metrics.{name}` has its conventions.\n\n{shown}\n"
    return text.rstrip()


def metrics_page() -> str:
    """Every metric: name, range, source and docstring."""
    rows = [
        f"| [`{m.key}`](#{m.key}) | {m.title} | {m.limits} | {m.better} | {m.chance or '–'} | "
        f"{m.bound_in_words} | {m.source} |".replace("|G|", "\\|G\\|")
        for m in (METRICS[key].definition for key in DEFAULT)
    ]
    parts = [_HEAD + "\n".join(rows), peers()]
    for key in [*DEFAULT, "localization", "agreement", "baselines", "calibrate_threshold"]:
        parts.append(f"## {key}\n\n```text\n{inspect.getdoc(getattr(metrics, key))}\n```")
    return "\n\n".join(parts) + "\n"


def reference_page() -> str:
    """Every public name of `attnviz` with its signature and the first sentence about it."""
    parts = [
        "# Reference\n\nEvery name of `import attnviz as av`, and its package. "
        "`help(av.watch)` has the details.\n\nThis page is written by `docs/write_reference.py`.",
        "| name | package | what it is |\n| --- | --- | --- |",
    ]
    rows = []
    for name in attnviz.__all__:
        package = attnviz._HOMES[name]
        value = getattr(attnviz, name)
        first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        rows.append(f"| `{name}` | `{package}` | {first.replace('|', chr(92) + '|')} |")
    return parts[0] + "\n\n" + parts[1] + "\n" + "\n".join(rows) + "\n"


def maps_page() -> str:
    """Every construction: what it computes, what it reads, what a watch must keep for it."""
    rows = [
        f"| `{one.key}` | {one.title} | {one.meaning} | {one.subject} | {_kept(one)} "
        f"| {one.source or '–'} |"
        for one in CONSTRUCTIONS.values()
    ]
    parts = [_MAPS_HEAD + "\n".join(rows)]
    for one in CONSTRUCTIONS.values():
        parts.append(f"## {one.key}\n\n```text\n{inspect.getdoc(one.draw)}\n```")
    return "\n\n".join(parts) + "\n"


def _kept(one: Construction) -> str:
    if one.gradient:
        return "`keep_graph=True`"
    if one.features:
        return "`features=True`"
    return f'`reduce="{one.reduce}"` is enough' if one.reduce else "whole values"


def notebook() -> str:
    """The tutorial as a notebook (nbformat 4.5): its text and its code, without outputs."""
    parts = re.split(r"```python\n(.*?)```", (HERE / "tutorial.md").read_text(), flags=re.DOTALL)
    cells = [_cell(number, part.strip()) for number, part in enumerate(parts) if part.strip()]
    about = {"language_info": {"name": "python"}}
    document = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, text: str) -> dict[str, object]:
    cell = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    if number % 2:
        return cell | {"cell_type": "code", "execution_count": None, "outputs": []}
    return cell | {"cell_type": "markdown"}


PAGES = {
    "maps.md": maps_page,
    "metrics.md": metrics_page,
    "reference.md": reference_page,
    "tutorial.ipynb": notebook,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
