"""Clean a run's summary: drop values of the wrong type, whatever version or program wrote them.

Pages and the comparison read summaries without checks of their own, so each is cleaned once, when
runs are listed: a value of the wrong type counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd


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
    out["thresholds"] = {str(k): _numbers(v) for k, v in _items(found.get("thresholds"))}
    for name in ("layers", "about"):
        out[name] = {str(k): v for k, v in _items(found.get(name)) if isinstance(v, str)}
    out["metrics"] = {
        str(map_name): {str(metric): _numbers(levels) for metric, levels in _items(metrics)}
        for map_name, metrics in _items(found.get("metrics"))
    }
    if isinstance(found.get("findings"), list):
        out["findings"] = [dict(one) for one in found["findings"] if isinstance(one, Mapping)]
    cuts = found.get("knockout")
    out["knockout"] = [one for one in cuts if _is_cut(one)] if isinstance(cuts, list) else []
    return out


_READ = {
    *("accuracy", "loss", "seconds", "map", "diagnosis"),
    *("threshold", "thresholds", "metrics", "findings", "knockout", "layers", "about"),
}


def level(run: Any, map_name: str | None, metric: str, name: str) -> float | None:
    """One number of a run's own summary, such as the `"chance"` of a metric of a map."""
    metrics = run.summary.get("metrics", {}).get(map_name, {})
    value: float | None = metrics.get(metric, {}).get(name)
    return value


def knockouts(run: Any) -> pd.DataFrame:
    """What each cut did to a run's output: what, mean, low, high, clear of zero, images."""
    rows = [
        {
            "what": " ".join([one["name"], *_head(one.get("head")), one["way"]]),
            "mean": one["effect"],
            "low": one["low"],
            "high": one["high"],
            "clear": not one["low"] <= 0 <= one["high"],
            "images": one.get("images"),
        }
        for one in run.summary.get("knockout", [])
    ]
    return pd.DataFrame(rows)


def _head(number: Any) -> list[str]:
    return [] if number is None else ["head", str(number)]


def _is_cut(one: Any) -> bool:
    return (
        isinstance(one, Mapping)
        and all(_is_number(one.get(name)) for name in ("effect", "low", "high"))
        and all(isinstance(one.get(name), str) for name in ("name", "way"))
    )


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _numbers(value: Any) -> dict[str, float]:
    return {str(key): float(one) for key, one in _items(value) if _is_number(one)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
