"""One backward pass: which parameters and which tokens the output depends on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnviz.diagnosis.calls import CallMode, recorded_calls
from attnviz.diagnosis.outputs import flat_output
from attnviz.model_state import frozen


@dataclass(frozen=True)
class Backward:
    """Gradients of a random projection of the outputs.

    Attributes:
        parameters: By name; None where the output is not connected to the parameter.
        called: Names of the modules that ran.
        connected: For each call of a sigmoid, softmax or attention kernel, in order, whether the
            output has a gradient by its result.
        tokens: Outputs of modules `(b, n, c)` in order, each by the module's name with the norm of
            its gradient per token, `(b, n)`; those without a gradient are left out.
        crossed: Names of the modules in which a sigmoid's result multiplies other features than it
            was computed from.
    """

    parameters: Mapping[str, Tensor | None]
    called: frozenset[str]
    connected: Sequence[bool]
    tokens: Sequence[tuple[str, Tensor]]
    crossed: Sequence[str]


def differentiated(
    model: nn.Module, images: Tensor, substitutes: Mapping[str, Tensor]
) -> Backward | None:
    """Differentiate the outputs once.

    Args:
        model: The model; every parameter counts as trainable.
        images: `(b, c, h, w)`.
        substitutes: Values that replace parameters.

    Returns:
        None where no output is differentiable.
    """
    values = {
        name: substitutes.get(name, parameter).detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not isinstance(parameter, nn.UninitializedParameter)
    }
    pixels = images.detach().clone().requires_grad_()
    with frozen(model, gradients=True), _outputs(model) as outputs:
        with recorded_calls(model) as mode:
            output = flat_output(functional_call(model, values, (pixels,)), len(pixels))
        if not output.requires_grad:
            return None
        tokens = [(name, one) for name, one in outputs if one.dim() == 3 and one.requires_grad]
        weights = torch.randn(output.shape[1], generator=torch.Generator().manual_seed(0))
        total = (output * weights.to(output)).sum()
        results = [call.result for call in mode.calls]
        crossed = _crossed(mode, output)
        leaves = [i for i, one in enumerate(results) if one.requires_grad]
        wanted = [*values.values(), *(results[i] for i in leaves), *(one for _, one in tokens)]
        gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    own, rest = gradients[: len(values)], gradients[len(values) :]
    reached = {i for i, gradient in zip(leaves, rest, strict=False) if gradient is not None}
    of_tokens = rest[len(leaves) :]
    energy = [
        (name, gradient.float().norm(dim=-1))
        for (name, _), gradient in zip(tokens, of_tokens, strict=True)
        if gradient is not None
    ]
    called = frozenset(name for name, _ in outputs)
    connected = [i in reached for i in range(len(results))]
    return Backward(dict(zip(values, own, strict=True)), called, connected, energy, crossed)


def _crossed(mode: CallMode, output: Tensor) -> list[str]:
    """Modules whose gate was computed from other features than it multiplies.

    The gate does not depend on what it multiplies, or it does by way of features that reach the
    output by themselves. Of features that several gates multiply one after the other, a gate may be
    of any before it: those that it multiplies, as in CBAM, or all gates do, as in coordinate
    attention.
    """
    sigmoids = {
        call.result.grad_fn: call.result.numel() for call in mode.calls if call.op == "sigmoid"
    }
    gated: dict[frozenset[Any], tuple[str, Any, Any]] = {}  # by the two nodes of a product
    for product in mode.products:
        gates = [
            node for node in product.nodes
            if _operands(node) not in gated
            and any(sigmoids.get(one) == product.factor.numel() for one in _above(node))
        ]  # fmt: skip
        if len(product.nodes) == 2 and len(gates) == 1:
            (features,) = (node for node in product.nodes if node is not gates[0])
            gated[frozenset(product.nodes)] = (product.module, gates[0], features)
    reached = _above(output.grad_fn, {gate for _, gate, _ in gated.values()})
    found = []
    for module, gate, features in gated.values():
        above, levels = _above(gate), [features]
        while (before := gated.get(_operands(levels[-1]))) is not None:
            levels.append(before[2])
        own = (
            one in above and not {n for n in above & reached if one in _above(n)} - {one}
            for one in levels
        )
        if not any(own):
            found.append(module)
    return list(dict.fromkeys(found))


def _operands(node: Any) -> frozenset[Any]:
    return frozenset(one for one, _ in node.next_functions) if node is not None else frozenset()


def _above(node: Any, without: Collection[Any] = ()) -> set[Any]:
    """A node of the autograd graph and all that it was computed from, but not through some."""
    found, left = set(), [node]
    while left:
        one = left.pop()
        if one is not None and one not in without and one not in found:
            found.add(one)
            left += [before for before, _ in one.next_functions]
    return found


@contextmanager
def _outputs(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """The output tensors of the modules, in order, by name."""
    outputs: list[tuple[str, Tensor]] = []

    def record(name: str, _module: nn.Module, _args: Any, out: Any) -> None:
        first = out[0] if isinstance(out, tuple | list) and out else out
        if isinstance(first, Tensor):
            outputs.append((name, first))

    handles = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
