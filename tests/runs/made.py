"""Small runs for the tests, each value known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnviz.runs import Run, save_run

N = 6


def arrays(seed: int = 0) -> dict[str, Any]:
    """Everything that a run may hold, for `N` images on a 4 × 4 grid."""
    rng = np.random.default_rng(seed)
    maps = rng.random((N, 4, 4), dtype=np.float32)
    heads = rng.random((N, 2, 4, 4), dtype=np.float32) / 16
    return {
        "maps": {"received": maps, "heads": heads},
        "gates": {"channel": rng.random((N, 8)), "spatial": rng.random((N, 4, 4))},
        "rows": {"attend": rng.random((2, 2, 16, 16), dtype=np.float32) / 16},
        "weights": {"conv.weight": rng.normal(size=(3, 3)).astype(np.float32)},
        "curves": [{"epoch": e, "train_loss": 1 / (e + 1)} for e in range(3)],
        "samples": pd.DataFrame(
            {"index": range(N), "label": [0, 1] * (N // 2), "received/iou": rng.random(N)}
        ),
    }


def make(path: Path, seed: int = 0, **changes: Any) -> Run:
    """A complete run with everything in it."""
    given = {
        "variant": "mha",
        "settings": {"patch": {"size": 16}, "epochs": 3},
        "seed": seed,
        "summary": {
            "accuracy": 0.98,
            "map": "received",
            "metrics": {"received": {"iou": {"mean": 0.5, "low": 0.4, "high": 0.6}}},
        },
    }
    return save_run(path, **(given | arrays(seed) | changes))


def edit(run: Path, **changes: Any) -> None:
    """Change fields of a run.json, as another version or a stranger might have written them."""
    path = run / "run.json"
    content = json.loads(path.read_text()) | changes
    content.pop("seal", None)
    path.write_text(json.dumps(content))


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
