"""Write docs/metrics.md from the metrics' own table and docstrings.

    uv run python docs/write_metrics.py

A test holds the page to what this prints.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import attnviz.metrics as metrics
from attnviz.metrics import METRICS

PAGE = Path(__file__).parent / "metrics.md"
_HEAD = """\
# Metrics

Each takes raw maps `(b, h, w)` and boolean masks `(b, h, w)` and gives one score per image. The
conventions are the same everywhere: nothing is normalised behind your back; an image that cannot
be scored is NaN, and `localization(…).why(key)` says why; ties score what a fair draw among them
would; a score never depends on the other images of the batch. Beside every score stand its chance
and the ceiling of the map's grid, from `attnviz.baselines`. Thresholds come from the validation
split (`calibrate_threshold`); the best per image is called an oracle.

This page is written by `docs/write_metrics.py` from the docstrings.

| key | name | range | better | source |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| [`{m.key}`](#{m.key}) | {m.title} | {m.limits} | {m.better} | {m.source} |"
        for m in METRICS.values()
    ]
    parts = [_HEAD + "\n".join(rows)]
    for key in [*METRICS, "localization", "agreement", "baselines", "calibrate_threshold"]:
        function = getattr(metrics, key, None)
        if function is not None:
            parts.append(f"## {key}\n\n```text\n{inspect.getdoc(function)}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
