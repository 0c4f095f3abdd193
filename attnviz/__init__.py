"""attnviz: watch a model's attention, map it, measure it against a place that is known.

The front door is lazy: a name's room is entered when the name is first used, so that
`import attnviz` costs next to nothing and `attnviz ls` never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS: dict[str, tuple[str, ...]] = {
    "errors": ("AttnvizError", "InputError", "NothingSeenError", "RunError", "UnsupportedError"),
    "patches": ("inject_patch",),
    "models": ("build_model",),
    "capture": ("watch", "stream", "Capture", "Record"),
    "places": ("locate", "Layout", "Places"),
    "maps": (
        "received",
        "query_row",
        "rows_inside",
        "class_row",
        "head_mean",
        "head_max",
        "rollout",
        "gradient_weighted",
        "attention_gradcam",
        "gate_map",
        "channel_gated",
        "maps_of",
    ),
    "attribution": ("attribute",),
    "metrics": ("localization", "agreement", "baselines", "calibrate_threshold", "metric"),
    "definitions": ("MetricDefinition",),
    "faithfulness": ("knockout", "randomisation", "faithfulness_scores"),
    "comparison": ("compare",),
    "diagnosis": ("diagnose",),
    "evaluation": ("evaluate", "Evaluation"),
    "runs": ("save_run", "open_run", "list_runs"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

_PACKAGES = ("data", "testing")
"""Packages that are reached by name: `attnviz.data.mask_folder`."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("attnviz")
    if name in _PACKAGES:
        return import_module(f"attnviz.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'attnviz' has no attribute {name!r}")
    value = getattr(import_module(f"attnviz.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
