"""Make the runs that `attnviz demo` shows: `python -m experiments.demo [FOLDER]`.

Four variants, three seeds each, on images of 48 × 48 pixels: small enough to travel in the wheel
and enough seeds and photographs to be ranked. Of the whole attention the first seed of a variant
keeps a few images; nothing else is taken away from what a training writes, and headers name no
machine. The folder in the repository is replaced only as a whole.

`--examine` trains nothing: the doctor of today examines the runs that are there, by their weights.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from attnviz.errors import RunError
from attnviz.executors import Workers
from attnviz.models import rebuild_model
from attnviz.runs import Run, amend_run, list_runs, open_run
from attnviz.runs.documents import SIZE_LIMIT, document, sealed
from attnviz.runs.layout import DATASETS, HEADER
from attnviz.runs.storage import LocalStore
from experiments.axes import grid
from experiments.evaluation import examined, findings_summary
from experiments.settings import Settings
from experiments.sweep import run_all

FOLDER = Path(__file__).parents[1] / "demo"
VARIANTS = ("cnn", "mha_reshape", "mha", "cbam")
SEEDS = (0, 1, 2)
SMALL = Settings(
    side=48, size=8, train_images=640, val_images=100, test_images=72, epochs=6, batch=16,
    faithful=8, follow=8, precision="fp32", threads=1,
)  # fmt: skip
ROWS = 3
"""Images of which the first seed keeps the whole attention."""

NOTE = """\
Demonstration runs of attnviz: four small networks that say whether a photograph of 48 x 48 pixels
has a white 8 x 8 patch, trained three times each (seeds 0, 1, 2; 640 images, 6 epochs) and tested
on 72 crops of nine photographs. Small and few: they show what the pages do, and are no benchmark.
mha_reshape is multi-head attention with a published fault, mha the same layer repaired.
Made by python -m experiments.demo.
"""


def make(folder: Path, *, settings: Settings = SMALL, workers: Workers | None = None) -> list[Run]:
    """Train, measure and trim the runs; then replace the folder.

    Args:
        folder: Where they go; what is there is removed once all runs are complete.
        settings: Of each training, but for its variant and seed.
        workers: The executor; by default one process per core.

    Returns:
        The runs.

    Raises:
        RunError: A training failed; the folder is as it was.
    """
    plan = grid(settings, {"variant": VARIANTS, "seed": SEEDS})
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        for outcome in run_all(plan, root, workers=workers):
            if outcome.state != "done":
                raise RunError(f"{outcome.settings.run_id}: {outcome.state}: {outcome.reason}")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / "README.txt").write_text(NOTE)
        shutil.copytree(root / DATASETS, folder / DATASETS)
        for one in plan:
            _trim(open_run(root / one.run_id), keep=ROWS if one.seed == SEEDS[0] else 0)
            to = folder / f"{one.variant}-s{one.seed}"
            shutil.copytree(root / one.run_id, to)
            _without_machine(to)
    return [open_run(folder / f"{one.variant}-s{one.seed}") for one in plan]


def examine(folder: Path) -> list[Run]:
    """Replace the findings of the runs in a folder by those of today's doctor.

    Args:
        folder: Runs with their weights, as `make` leaves them.

    Returns:
        The runs.
    """
    runs = [open_run(one.location) for one in list_runs(folder).complete]
    for run in runs:
        model = rebuild_model(run.variant, run.settings, run.weights())
        findings = examined(model.eval(), Settings.from_dict(run.settings))
        with amend_run(run.path) as writer:
            writer.finish(findings_summary(findings))
        _without_machine(run.path)
    return [open_run(run.path) for run in runs]


def _trim(run: Run, *, keep: int) -> None:
    """Keep the whole attention of the first few images that have a patch."""
    with amend_run(run.path) as writer:
        for name in run.row_names:
            images = run.row_images(name)
            patched = np.flatnonzero(run.test_set().masks(images).any((1, 2)))[:keep]
            about = run.about(f"rows/{name}")
            rows = run.rows(name, patched) if keep else None
            writer.drop(f"rows/{name}.safetensors")
            if rows is not None:
                writer.rows(name, rows, [images[k] for k in patched], about=about)


def _without_machine(path: Path) -> None:
    content = document(LocalStore(path).read(HEADER, SIZE_LIMIT), HEADER)
    (path / HEADER).write_bytes(sealed(content | {"writer": {}}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make them; where they lie and how large they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument(
        "--examine", action="store_true", help="only examine the runs that are there again"
    )
    args = parser.parse_args(arguments)
    folder: Path = args.folder
    runs = examine(folder) if args.examine else make(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {len(runs)} runs, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
