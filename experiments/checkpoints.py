"""Checkpoints: all that it takes to resume a training to the same result.

One safetensors file holds everything: the weights, their running mean, the best of those, Adam's
moments, the state of torch's generator, and in its header the numbers. It is replaced whole at the
end of each epoch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from attnviz.errors import RunError

FILE = "checkpoint.safetensors"


@dataclass
class TrainingState:
    """The numbers of a training under way.

    Attributes:
        epoch: How many epochs are done.
        best_epoch: The one with the lowest validation loss, from 1; 0 before the first.
        best_loss: That loss.
        seconds: Spent in training so far, over all sittings.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    seconds: float = 0.0


def to_bytes(
    model: nn.Module,
    average: nn.Module,
    best: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: TrainingState,
) -> bytes:
    """All of it as one safetensors file."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{number}/{name}": value for name, value in state.items()}
    tensors["generator"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["generator/cuda"] = torch.cuda.get_rng_state()
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(whole, metadata={"progress": json.dumps(asdict(progress))})


def restore(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], TrainingState]:
    """Restore a model, its running mean, its optimizer and torch's random generator.

    Returns:
        The best weights so far, and the numbers.

    Raises:
        RunError: The file cannot be read or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        model.load_state_dict(_below(tensors, "model/"))
        average.load_state_dict(_below(tensors, "average/"))
        progress = TrainingState(**json.loads(metadata["progress"]))
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise RunError(
            f"resume {path}: expected a checkpoint of this model, got: {first}; "
            "delete the run to begin again"
        ) from error
    state = optimizer.state_dict()
    for name, value in _below(tensors, "adam/").items():
        number, key = name.split("/")
        state["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:  # the fused step needs its parameter's own layout
                moments[name] = torch.empty_like(parameter).copy_(value)
    torch.set_rng_state(tensors["generator"])
    if "generator/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["generator/cuda"])
    return _below(tensors, "best/"), progress


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
