"""A model that is asked and stays what it was.

Captum hooks modules, sets attributes on them and expects evaluation mode. Whatever it does, also
when it fails half way, the model leaves with the modes, hooks and attributes that it came with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_NOTICES = (
    "Setting backward hooks on ReLU activations",
    r"Setting forward, backward hooks and attributes on non-linear",
    r"Input Tensor \d+ did not already require gradients",
    "You are providing multiple inputs for Lime / Kernel SHAP",
)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no in-place activations and gradients on; all of it undone on every exit.

    In-place activations write over what hooks on them still need, so they are told not to.
    """
    modules = list(model.modules())
    before = [_snapshot(module) for module in modules]
    try:
        for module in modules:
            module.training = False
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # a plain flag, not a module
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, state in zip(modules, before, strict=True):
            _restore(module, state)


def _snapshot(module: nn.Module) -> dict[str, Any]:
    """The module's own attributes; its dictionaries (hooks, parameters) one level deeper."""
    return {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    own = vars(module)
    for name in own.keys() - state.keys():
        del own[name]
    for name, value in state.items():
        if isinstance(value, dict) and isinstance(own.get(name), dict):
            if own[name] != value:
                own[name].clear()
                own[name].update(value)
        else:
            own[name] = value


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """All generators that Captum draws from, started at `seed`; restored on exit.

    Not `torch.manual_seed`: where CUDA is not in use yet it keeps a stack trace for later, which
    takes longer than a small model's forward.
    """
    numbers = np.random.get_state()  # noqa: NPY002 - Captum draws here
    drawn = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that GradientShap draws from
    if on_device is not None:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(drawn)
        np.random.set_state(numbers)  # noqa: NPY002 - as above
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)


@contextmanager
def unremarked() -> Iterator[None]:
    """Captum's notices about what it is about to do, left out; all other warnings stay."""
    with warnings.catch_warnings():
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", message=notice)
        yield
