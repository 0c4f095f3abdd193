"""A run that is finished, handed to a tracker."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnviz.comparison import compare
from attnviz.errors import InputError, RunError
from attnviz.runs import Run
from attnviz.trackers.adapters import imported, mlflow, tensorboard, wandb
from attnviz.trackers.pictures import Picture
from attnviz.trackers.tracker import Tracker, scores_table

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 8
"""Images whose last map is shown of a run that kept no maps by epoch."""


def hand_over(run: Run, tracker: Tracker) -> None:
    """Give a tracker what a run holds: curves, pictures of its maps, and the table of its scores.

    Args:
        run: Complete or not.
        tracker: Where it goes.

    Raises:
        RunError: A file of the run cannot be read.
    """
    last = 0
    for number, row in enumerate(run.curve_rows(), 1):
        epoch = row.get("epoch")
        last = epoch if isinstance(epoch, int) else number
        numbers = {name: value for name, value in row.items() if _is_number(value)}
        tracker.scalars({k: v for k, v in numbers.items() if k != "epoch"}, last)
    for name, epoch, indices, file in _maps(run, last):
        tracker.pictures(name, _pictures(run, file, indices, whole=file == name), epoch)
    metrics = run.summary.get("metrics")
    if isinstance(metrics, dict) and metrics:
        tracker.table("scores", scores_table(metrics), last)
    tracker.finish()


def comparison_table(runs: Sequence[Run]) -> DataFrame:
    """The comparison of several complete runs: a row per metric and variant, in order of rank.

    Raises:
        AttnvizError: The runs cannot be compared.
    """
    return compare(list(runs)).table


@contextmanager
def kept_in(tool: str, folder: Path, name: str, settings: Any = None) -> Iterator[Tracker]:
    """A tracker that keeps a run of this name in a folder on this machine.

    Args:
        tool: A key of `KEEPERS`.
        folder: Of the tool's files, for all runs.
        name: The run's name there.
        settings: Noted as the run's configuration, where the tool has one.
    """
    with KEEPERS[tool](folder, name, dict(settings or {})) as tracker:
        yield tracker


@contextmanager
def _in_tensorboard(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Tracker]:
    tracker: Any = tensorboard(folder / name)
    try:
        yield tracker
    finally:
        tracker.writer.close()


@contextmanager
def _in_wandb(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Tracker]:
    """Offline: `wandb sync` sends it."""
    library = imported("wandb", "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    quiet = library.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = library.init(
        dir=str(folder), mode="offline", project="attnviz", name=name, config=settings,
        settings=quiet, reinit="create_new",
    )  # fmt: skip
    with run:
        yield wandb(run)


@contextmanager
def _in_trackio(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Tracker]:
    """Local, whatever the environment says of a Space or a server: `trackio show` reads it.

    Raises:
        InputError: Trackio, which chooses its folder when it is imported, has another one.
    """
    target = folder.resolve()
    with _environment(TRACKIO_DIR=str(target), TRACKIO_SPACE_ID=None, TRACKIO_SERVER_URL=None):
        library = imported("trackio", "trackio")
        where = Path(import_module("trackio.utils").TRACKIO_DIR).resolve()
        if where != target:
            raise InputError(
                f"export: trackio was imported before and writes to {where}, expected {target}; "
                f"set TRACKIO_DIR={target} before it is imported, or export in another process"
            )
        with redirect_stdout(io.StringIO()):
            run = library.init(
                project="attnviz", name=name, config=settings,
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        try:
            yield wandb(run)
        finally:
            with redirect_stdout(io.StringIO()):
                library.finish()


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Variables of the environment within the block; None takes one away."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _in_mlflow(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[Tracker]:
    """A file store, which MLflow 3 takes only where a variable of the environment asks for it."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    library = imported("mlflow", "mlflow")
    client = library.MlflowClient(tracking_uri=folder.resolve().as_uri())
    found = client.get_experiment_by_name("attnviz")
    experiment = found.experiment_id if found else client.create_experiment("attnviz")
    run_id = client.create_run(experiment, run_name=name).info.run_id
    for key, value in settings.items():
        client.log_param(run_id, key, str(value)[:500])
    yield mlflow(run_id, client)
    client.set_terminated(run_id)


KEEPERS: dict[str, Callable[[Path, str, dict[str, Any]], Any]] = {
    "tensorboard": _in_tensorboard,
    "wandb": _in_wandb,
    "trackio": _in_trackio,
    "mlflow": _in_mlflow,
}
"""The tools whose files can be written without a server."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _maps(run: Run, last: int) -> Iterator[tuple[str, int, list[int], str]]:
    """Map, epoch, test images and file of what is shown; nothing of a run without its images."""
    if run.dataset is None:
        return
    by_epoch = [(name, *name.rpartition("@")[::2]) for name in run.map_names]
    dated = [(file, stem, int(n)) for file, stem, n in by_epoch if stem and n.isdecimal()]
    for file, stem, epoch in sorted(dated, key=lambda one: one[2]):
        images = run.about(f"maps/{file}").get("images")
        if isinstance(images, list):
            yield stem, epoch, images, file
    first = run.summary.get("map")
    if not dated and isinstance(first, str) and first in run.map_names:
        boxes = run.test_set().boxes()
        marked = [i for i, (x0, _, x1, _) in enumerate(boxes.tolist()) if x1 > x0]
        yield first, last, (marked or list(range(len(boxes))))[:SHOWN], first


def _pictures(run: Run, file: str, indices: list[int], *, whole: bool) -> list[Picture]:
    held = run.test_set()
    try:
        images, masks, boxes = held.images(indices), held.masks(indices), held.boxes(indices)
    except InputError as error:
        raise RunError(f"export {run.location}: the images of map {file!r} ({error})") from error
    maps = run.maps(file, indices) if whole else run.maps(file)
    if len(maps) != len(indices):
        raise RunError(f"export {run.location}: {len(maps)} maps {file!r} of {len(indices)} images")
    if maps.ndim == 4:
        maps = maps.mean(1)
    return [
        Picture.of(
            images[place], maps[place], mask=masks[place], boxes=boxes[place],
            caption=f"image {index}", thing=run.thing,
        )
        for place, index in enumerate(indices)
    ]  # fmt: skip
