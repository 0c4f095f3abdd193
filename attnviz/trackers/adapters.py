"""TensorBoard, Weights & Biases, Trackio and MLflow as trackers.

Each is imported when its adapter is made; the extras `tensorboard`, `wandb`, `trackio` and `mlflow`
install them. An adapter writes into a run or a writer that the caller opened, and leaves it open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from attnviz.errors import InputError, UnsupportedError
from attnviz.trackers.pictures import Picture
from attnviz.trackers.tracker import Tracker

if TYPE_CHECKING:
    from pandas import DataFrame


def tensorboard(writer: Any) -> Tracker:
    """A `SummaryWriter` of TensorBoard, from `torch.utils.tensorboard` or tensorboardX.

    Numbers become scalars under their own names, pictures images with the mask's edge or the boxes
    drawn, tables text in Markdown.

    Args:
        writer: The writer, or the folder to make one in.
    """
    if not hasattr(writer, "add_scalar"):
        module = imported("torch.utils.tensorboard", "tensorboard")
        writer = module.SummaryWriter(str(writer))
    return _TensorBoard(writer)


def wandb(run: Any) -> Tracker:
    """A run of Weights & Biases, or of Trackio, which has the same `log`.

    The epoch is logged beside every value as `epoch`, and is the axis of all charts of W&B; the
    run's own step goes on as before. Pictures of W&B carry masks and boxes that can be switched on
    and off; Trackio has none, so that there they are drawn.

    Args:
        run: What `wandb.init` or `trackio.init` returned.
    """
    if not callable(getattr(run, "log", None)):
        raise InputError(f"wandb: expected a run with a method log, got {type(run).__name__}")
    if type(run).__module__.split(".")[0] == "trackio":
        return _Trackio(run, imported("trackio", "trackio"))
    return _WeightsAndBiases(run, imported("wandb", "wandb"))


def mlflow(run_id: str, client: Any = None) -> Tracker:
    """A run of MLflow.

    Numbers become metrics, pictures the artifacts `maps/<name>/<epoch>-<number>.png` with the
    mask's edge or the boxes drawn, tables the artifact `<name>.json`, as `mlflow.load_table` reads.

    Args:
        run_id: Such as `mlflow.active_run().info.run_id`.
        client: An `MlflowClient`; that of the current tracking address if not given.
    """
    module = imported("mlflow", "mlflow")
    return _MLflow(run_id, client or module.MlflowClient())


def imported(module: str, extra: str) -> Any:
    """A tracker's library.

    Raises:
        UnsupportedError: It is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"trackers: expected {extra} to be installed; pip install 'attnviz[{extra}]'"
        ) from error


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        for number, picture in enumerate(pictures):
            self.writer.add_image(f"{name}/{number}", picture.drawn(), step, dataformats="HWC")

    def table(self, name: str, table: DataFrame, step: int) -> None:
        self.writer.add_text(name, _markdown(table), step)

    def finish(self) -> None:
        self.writer.flush()


class _WeightsAndBiases:
    def __init__(self, run: Any, library: Any) -> None:
        self.run, self.library = run, library
        run.define_metric("epoch", hidden=True)
        run.define_metric("*", step_metric="epoch")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({"epoch": step, **values})

    def pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        self.run.log({"epoch": step, f"maps/{name}": [self._image(one) for one in pictures]})

    def table(self, name: str, table: DataFrame, step: int) -> None:
        self.run.log({"epoch": step, name: self.library.Table(dataframe=table)})

    def finish(self) -> None:
        """Nothing is held back."""

    def _image(self, picture: Picture) -> Any:
        scale, labels = picture.scale, {0: f"no {picture.thing}", 1: picture.thing}
        layers: dict[str, Any] = {}
        if picture.mask is not None:
            large = np.repeat(np.repeat(picture.mask, scale, 0), scale, 1).astype(np.uint8)
            layers["masks"] = {picture.thing: {"mask_data": large, "class_labels": labels}}
        if len(picture.boxes):
            found = [
                {
                    "position": dict(zip(("minX", "minY", "maxX", "maxY"), corners, strict=True)),
                    "domain": "pixel",
                    "class_id": 1,
                    "box_caption": picture.thing,
                }
                for corners in (picture.boxes * scale).tolist()
            ]
            layers["boxes"] = {picture.thing: {"box_data": found, "class_labels": labels}}
        return self.library.Image(picture.drawn(outlines=False), caption=picture.caption, **layers)


class _Trackio:
    def __init__(self, run: Any, library: Any) -> None:
        self.run, self.library = run, library

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({"epoch": step, **values})

    def pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        images = {
            f"maps/{name}/{number}": self.library.Image(picture.drawn(), caption=picture.caption)
            for number, picture in enumerate(pictures)
        }
        self.run.log({"epoch": step, **images})

    def table(self, name: str, table: DataFrame, step: int) -> None:
        self.run.log({"epoch": step, name: self.library.Table(dataframe=table)})

    def finish(self) -> None:
        """Nothing is held back."""


class _MLflow:
    def __init__(self, run_id: str, client: Any) -> None:
        self.run_id, self.client = run_id, client

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, _plain(name), float(value), step=step)

    def pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        for number, picture in enumerate(pictures):
            file = f"maps/{_plain(name)}/{step:04d}-{number:02d}.png"
            self.client.log_image(self.run_id, picture.drawn(), artifact_file=file)

    def table(self, name: str, table: DataFrame, step: int) -> None:
        rows = [[_value(cell) for cell in row] for row in table.itertuples(index=False)]
        whole = {"columns": list(table.columns), "data": rows}
        self.client.log_dict(self.run_id, whole, f"{_plain(name)}.json")

    def finish(self) -> None:
        """Nothing is held back."""


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "-", name)


def _markdown(table: DataFrame) -> str:
    """A table in Markdown; a bar within a cell is escaped."""
    rows = [list(table.columns), ["---"] * table.shape[1]]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)


def _value(value: Any) -> Any:
    """A cell as JSON can hold it."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
