"""The monitor as a callback of Lightning's trainer and of that of transformers.

Each library is imported when its callback is made; the extras `lightning` and `transformers`
install them. Accelerate and plain loops call the monitor themselves (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from attnviz.errors import UnsupportedError
from attnviz.training.monitor import Monitor


def lightning_callback(
    monitor: Monitor, model: Callable[[Any], nn.Module] = lambda module: module
) -> Any:
    """Call a monitor after each training epoch of Lightning's `Trainer`.

    The row takes the trainer's logged metrics of that epoch. Epochs count from 1.

    Args:
        monitor: The monitor.
        model: From the lightning module to the module that takes images; the lightning module
            itself, through its `forward`, if not given.

    Returns:
        A `lightning.pytorch.Callback`, for `Trainer(callbacks=[…])`.

    Raises:
        UnsupportedError: Lightning is not installed.

    Examples:
        trainer = Trainer(callbacks=[lightning_callback(monitor)])
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise _missing("lightning") from error

    class MonitorCallback(Callback):
        """Measures at the end of each training epoch, after the validation."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            values = _numbers(trainer.callback_metrics)
            monitor(model(pl_module), trainer.current_epoch + 1, **values)

    return MonitorCallback()


def trainer_callback(
    monitor: Monitor, model: Callable[[Any], nn.Module] = lambda module: module
) -> Any:
    """Call a monitor after each epoch of the `Trainer` of transformers.

    The row takes what the trainer logged in that epoch, its evaluation included: it is written when
    the next epoch begins, or the training ends. Epochs count from 1. An epoch that ends early, at
    `max_steps`, counts as one.

    Args:
        monitor: The monitor.
        model: From the trainer's model to the module that takes images; the model itself if not
            given.

    Returns:
        A `transformers.TrainerCallback`, for `Trainer(callbacks=[…])`.

    Raises:
        UnsupportedError: transformers is not installed.

    Examples:
        trainer = Trainer(model, arguments, callbacks=[trainer_callback(monitor)])
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise _missing("transformers") from error

    class MonitorCallback(TrainerCallback):  # type: ignore[misc]  # not followed by mypy
        """Measures between two epochs, and at the end."""

        logged: dict[str, float]
        ended: int | None = None

        def __init__(self) -> None:
            self.logged = {}

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            self.logged |= _numbers(logs or {})

        def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.ended = max(1, round(state.epoch))

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self._measure(rest["model"])

        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self._measure(rest["model"])

        def _measure(self, module: Any) -> None:
            if self.ended is not None:
                values = {k: v for k, v in self.logged.items() if k != "epoch"}
                monitor(model(module), self.ended, **values)
                self.ended, self.logged = None, {}

    return MonitorCallback()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The scalars among logged values, under names that columns can have."""
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    }


def _missing(extra: str) -> UnsupportedError:
    return UnsupportedError(
        f"monitor: expected {extra} to be installed; pip install 'attnviz[{extra}]'"
    )
