"""Experiment trackers: the scalars, pictures and tables of a run, where a team looks at them.

tracker   what a tracker takes, and the table of scores
pictures  a map over its image, as trackers take it
adapters  TensorBoard, Weights & Biases, Trackio and MLflow, each imported where it is used
stored    a finished run, handed to a tracker
"""

from __future__ import annotations

from attnviz.trackers.adapters import mlflow, tensorboard, wandb
from attnviz.trackers.pictures import Picture
from attnviz.trackers.tracker import Tracker, scores_table

__all__ = ["Picture", "Tracker", "mlflow", "scores_table", "tensorboard", "wandb"]
