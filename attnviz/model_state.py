"""Run a model in evaluation mode and restore all of its state.

`frozen` is the one context manager for it: attribution, faithfulness, randomisation and diagnosis
run models inside it. Its parts are `seeded` for random generators and `copied_inputs` for models
that change their images in place. `misfit` says why a model cannot be given some weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def frozen(model: nn.Module, *, gradients: bool = False, seed: int = 0) -> Iterator[None]:
    """Evaluation mode inside the block; on every exit the model and the generators are as before.

    Each call of the model gets copies of its inputs, as by `copied_inputs`. Restored are modes,
    hooks, attributes, buffers' values, the parameters' `requires_grad` and `grad`, and the random
    generators of torch and numpy. Parameters' values are not copied.

    Args:
        model: The model.
        gradients: Autograd on, and in-place activations off, since these overwrite what hooks and
            gradients need. Otherwise the block runs without gradients.
        seed: Start of the random generators inside the block.
    """
    modules = list(model.modules())
    attributes = [_attributes(module) for module in modules]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if _dense(buffer)]
    parameters = [(one, one.requires_grad, one.grad) for one in model.parameters()]
    with seeded(seed, *_devices(model)):
        try:
            for module in modules:
                module.training = False
                if gradients and getattr(module, "inplace", False) is True:
                    module.inplace = False  # type: ignore[assignment]  # a plain flag
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(gradients),
                copied_inputs(model),
            ):
                yield
        finally:
            for module, state in zip(modules, attributes, strict=True):
                _restore_attributes(module, state)
            for buffer, values in buffers:
                _restore_buffer(buffer, values)
            for parameter, required, grad in parameters:
                parameter.requires_grad_(required)
                parameter.grad = grad


@contextmanager
def copied_inputs(model: nn.Module) -> Iterator[None]:
    """Copies of the input tensors for each call of the model inside the block.

    A model that normalises its images in place (`x.sub_(mean)`) would change what the next call
    gets, and cannot be given a leaf that requires a gradient. Gradients pass through the copies.
    """
    if isinstance(model, torch.jit.ScriptModule):  # which take no hooks of their own

        def of_model(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return _copies(module, args)[0] if module is model else None

        handle = register_module_forward_pre_hook(of_model)
    else:
        handle = model.register_forward_pre_hook(_copies, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _copies(
    _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = MappingProxyType({})
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def copy(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    return tuple(map(copy, args)), {name: copy(value) for name, value in kwargs.items()}


@contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Random generators of torch and numpy, started at `seed`; restored on every exit.

    `torch.manual_seed` is avoided: where CUDA is not in use yet it stores a stack trace for later,
    which takes longer than a small model's forward.

    Args:
        seed: Start of every generator.
        devices: Devices whose generators are seeded too; those of the CPU always are.
    """
    cuda = [device for device in devices if device.type == "cuda"]
    of_numpy, of_torch = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - Captum's
    of_cuda = [torch.cuda.get_rng_state(device) for device in cuda]
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that GradientShap draws from
    for device in cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)  # noqa: NPY002 - as above
        for device, state in zip(cuda, of_cuda, strict=True):
            torch.cuda.set_rng_state(state, device)


def _devices(model: nn.Module) -> list[torch.device]:
    return sorted({one.device for one in model.parameters() if one.is_cuda}, key=str)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The module's own attributes; its dictionaries (hooks, parameters) one level deeper."""
    return {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}


def _restore_attributes(module: nn.Module, state: dict[str, Any]) -> None:
    own = vars(module)
    for name in own.keys() - state.keys():
        del own[name]
    for name, value in state.items():
        if isinstance(value, dict) and isinstance(own.get(name), dict):
            if not _same(own[name], value):
                own[name].clear()
                own[name].update(value)
        else:
            own[name] = value


def _same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """The same keys in the same order, with the same objects: tensors have no single truth."""
    return list(one) == list(other) and all(one[key] is other[key] for key in one)


def _dense(buffer: Tensor) -> bool:
    return buffer.layout == torch.strided and not isinstance(buffer, nn.UninitializedBuffer)


def _restore_buffer(buffer: Tensor, values: Tensor) -> None:
    if buffer.shape == values.shape and not torch.equal(buffer, values):
        with torch.no_grad():
            buffer.copy_(values)


def misfit(model: nn.Module, weights: Mapping[str, Any]) -> str:
    """In what tensors differ from a model's own, by name and by shape; empty if they do not."""
    own = model.state_dict()
    missing, more = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = {
        key: (tuple(weights[key].shape), tuple(own[key].shape))
        for key in own
        if isinstance(weights.get(key), Tensor) and weights[key].shape != own[key].shape
    }
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(own)} tensors are missing, such as {missing[0]}")
    if more:
        parts.append(f"{len(more)} are none of its own, such as {more[0]}")
    for key, (there, here) in [*shapes.items()][:1]:
        parts.append(f"{len(shapes)} have another shape, such as {key}, {there} instead of {here}")
    return "; ".join(parts)
