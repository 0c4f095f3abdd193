"""A run's summary, cleaned: what a stranger, or a later lab, wrote where a number was expected.

Pages, and the comparison, take a summary at its word. So it is cleaned once, when runs are listed:
what has the wrong type is left out, as if it had not been written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def cleaned(summary: Any) -> dict[str, Any]:
    """The parts of a summary that the dashboard reads, each of its type; the rest as it was."""
    found = dict(summary) if isinstance(summary, Mapping) else {}
    out = {k: v for k, v in found.items() if k not in _READ}
    for name in ("accuracy", "loss", "seconds"):
        if _is_number(found.get(name)):
            out[name] = float(found[name])
    for name in ("map", "diagnosis"):
        if isinstance(found.get(name), str):
            out[name] = found[name]
    out["threshold"] = _numbers(found.get("threshold"))
    out["metrics"] = {
        str(map_name): {str(metric): _numbers(levels) for metric, levels in _items(metrics)}
        for map_name, metrics in _items(found.get("metrics"))
    }
    if isinstance(found.get("findings"), list):
        out["findings"] = [dict(one) for one in found["findings"] if isinstance(one, Mapping)]
    return out


_READ = {"accuracy", "loss", "seconds", "map", "diagnosis", "threshold", "metrics", "findings"}


def level(run: Any, map_name: str | None, metric: str, name: str) -> float | None:
    """One number of a run's own summary, such as the `"chance"` of a metric of a map."""
    metrics = run.summary.get("metrics", {}).get(map_name, {})
    value: float | None = metrics.get(metric, {}).get(name)
    return value


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _numbers(value: Any) -> dict[str, float]:
    return {str(key): float(one) for key, one in _items(value) if _is_number(one)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
