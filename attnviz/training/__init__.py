"""Measuring while a model trains: a run folder as a context, a monitor, callbacks of trainers.

recording    `start_run`: the run's folder, begun or gone on with
monitor      `Monitor`: scores, pinned maps and findings at each epoch
budget       what measuring may take of the training's time
calibration  the few images that are looked at
callbacks    the monitor in Lightning's trainer and in that of transformers
"""

from __future__ import annotations

from attnviz.training.monitor import Monitor
from attnviz.training.recording import start_run

__all__ = ["Monitor", "start_run"]
