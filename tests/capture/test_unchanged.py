"""Watching changes nothing: not the output, not the model, not the state of torch."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from attnviz.capture import Capture, op_mode, watch
from tests.capture import nets
from tests.capture.interrupts import interrupting
from tests.capture.test_gates import Blocks
from tests.capture.test_multihead import layer, tokens

MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "plain": lambda: (nets.around(nets.Attention()), nets.images()),
    "fused": lambda: (nets.around(nets.Attention(nets.fused)), nets.images()),
    "gates": lambda: (nets.around(Blocks()), nets.images()),
    "encoder": lambda: (layer(), tokens()),
    "multihead": lambda: (SelfAttention(), tokens()),
}


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


def state() -> tuple[object, ...]:
    """What a watch could leave behind in torch."""
    return (
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        str(torch._C._dispatch_keyset_to_string(torch._C._dispatch_tls_local_include_set())),
        str(torch._C._dispatch_keyset_to_string(torch._C._dispatch_tls_local_exclude_set())),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state().sum().item(),
    )


def of(model: nn.Module) -> list[object]:
    """What a watch could leave behind in a model."""
    return [
        (name, m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", ["grad", "no_grad", "inference", "bf16", "bf16 inside",
                                     "double"])  # fmt: skip
def test_outputs_are_bit_identical_and_everything_is_as_it_was(
    name: str, training: bool, context: str
) -> None:
    """Under `inference_mode` to 1e-6: on some processors torch itself computes other bits then."""
    model, x = MODELS[name]()
    model.train(training)
    if context == "double":
        model, x = model.double(), x.double()
    around: dict[str, Callable[[], object]] = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    inside = torch.autocast("cpu", torch.bfloat16, enabled=context == "bf16 inside")
    with around.get(context, torch.enable_grad)():  # type: ignore[attr-defined]  # all are contexts
        torch.manual_seed(0)
        with inside:
            plain = model(x)
        torch.manual_seed(0)
        before, known = state(), of(model)
        with watch(model) as seen, inside:
            again = model(x)
        torch.manual_seed(0)
        assert state() == before
        assert of(model) == known
    if context == "inference":
        torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(plain, again)
    assert plain.dtype == again.dtype
    assert plain.requires_grad == again.requires_grad
    for record in seen.attention.values():
        assert record.weights is not None
        half = context.startswith("bf16")
        tolerance = 2e-2 if half else 1e-12 if context == "double" else 1e-5
        assert float((record.weights.sum(-1).double() - 1).abs().max()) < tolerance
        assert not record.weights.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_bit_identical(name: str) -> None:
    def gradients(watched: bool) -> list[Tensor]:
        model, x = MODELS[name]()
        model.train()
        torch.manual_seed(0)
        if watched:
            with watch(model):
                model(x).square().sum().backward()
        else:
            model(x).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, watched = gradients(False), gradients(True)
    assert len(plain) == len(watched) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


class Breaking(nn.Module):
    """Attention, then an exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.attn, self.error = nets.Attention(), error

    def forward(self, x: Tensor) -> Tensor:
        self.attn(x)
        raise self.error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_passes_through_and_leaves_nothing_behind(error: BaseException) -> None:
    model = nets.around(Breaking(error))
    before, known = state(), of(model)
    with pytest.raises(type(error)) as caught, watch(model) as seen:
        model(nets.images())
    assert caught.value is error
    torch.set_rng_state(torch.get_rng_state())
    assert state() == before
    assert of(model) == known
    assert list(seen) == ["attn.attn"]


def test_a_deepcopy_and_a_pickle_after_watching_carry_nothing() -> None:
    model, x = MODELS["plain"]()
    with watch(model):
        model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    assert b"attnviz" not in pickle.dumps(model.state_dict())
    with watch(twin) as seen:
        model(x)
        twin(x)
    assert list(seen) == ["attn"]


def test_a_capture_outlives_its_model_and_keeps_nothing_else() -> None:
    model, x = MODELS["plain"]()
    with torch.no_grad(), watch(model) as seen:
        model(x)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert seen["attn"].weights is not None


def test_tagged_tensors_live_no_longer_for_being_watched() -> None:
    kept: list[int] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.mT
        kept.append(logits.untyped_storage()._weak_ref())
        out = logits.softmax(-1) @ v
        del logits
        return out

    model = nets.around(nets.Attention(attend))
    with torch.no_grad(), watch(model, reduce="received"):
        model(nets.images())
        gc.collect()
        assert torch.UntypedStorage._expired(kept[0])
    torch.UntypedStorage._free_weak_ref(kept[0])


def test_nested_watches_of_two_models_do_not_mix() -> None:
    a, b, x = nets.around(nets.Attention()), nets.around(Blocks(), seed=1), nets.images()
    with torch.no_grad():
        first, second = a(x), b(x)
        with watch(a) as seen_a, watch(b) as seen_b:
            assert torch.equal(b(x), second)
            assert torch.equal(a(x), first)
    assert list(seen_a) == ["attn"]
    assert list(seen_b) == ["attn.ca", "attn.sa"]


@pytest.mark.parametrize("autocast", [False, True])
def test_nested_watches_of_one_model_both_see_it(autocast: bool) -> None:
    for name in MODELS:
        model, x = MODELS[name]()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plain = model(x)
            with watch(model) as outer, watch(model) as inner:
                assert torch.equal(model(x), plain)
        assert list(outer) == list(inner)
        for one, other in zip(outer.values(), inner.values(), strict=True):
            kind = "weights" if one.kind == "attention" else "scale"
            assert torch.equal(getattr(one, kind), getattr(other, kind))


def test_a_part_of_a_model_can_be_watched() -> None:
    model, x = MODELS["gates"]()
    with watch(model.get_submodule("attn")) as seen:
        model(x)
    assert list(seen) == ["ca", "sa"]


def test_threads_each_see_their_own() -> None:
    results: dict[int, tuple[Capture, bool]] = {}

    def run(number: int) -> None:
        model = nets.around(nets.Attention(), seed=number)
        x = nets.images(seed=number)
        plain = model(x)
        with watch(model) as seen:
            same = all(torch.equal(model(x), plain) for _ in range(5))
        results[number] = seen, same

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for seen, same in results.values():
        assert same
        assert list(seen) == [f"attn#{i}" for i in range(5)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_seen_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nets.Attention()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.attn, x, use_reentrant=reentrant)
            return out

    model, x = nets.around(Checkpointed()), nets.images()
    model(x).sum().backward()
    truth = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with watch(model) as seen:
        model(x).sum().backward()
    assert list(seen) == ["attn.attn"]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(truth, grads, strict=True))


def test_a_training_step_within_the_watch() -> None:
    def train(watched: bool) -> tuple[list[Tensor], int]:
        model, x = MODELS["fused"]()
        model.train()
        optimiser = torch.optim.AdamW(model.parameters())
        seen = Capture()
        with watch(model) if watched else torch.enable_grad() as found:
            for _ in range(2):
                F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
                optimiser.step()
            seen = found if isinstance(found, Capture) else seen
        return list(model.parameters()), len(seen)

    plain, watched = train(False), train(True)
    assert watched[1] == 2
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))


@pytest.fixture
def compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_models_run_eagerly_while_they_are_watched(whole: bool) -> None:
    model, x = MODELS["plain"]()
    plain = model(x)
    if whole:
        compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    else:
        model.attn = torch.compile(model.attn, backend="eager")  # type: ignore[assignment, arg-type]
        compiled = model
    with torch.no_grad():  # the compiler warns of inputs that are no leaves
        with watch(compiled) as seen:
            assert torch.equal(compiled(x), plain)
        assert list(seen) == ["attn"]
        torch.testing.assert_close(compiled(x), plain)


@pytest.mark.parametrize("way", ["script", "trace"])
def test_scripted_models_are_seen(way: str) -> None:
    class Simple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x.flatten(2).transpose(1, 2))
            weights = torch.softmax(q @ q.transpose(1, 2), -1)
            return (weights @ q).transpose(1, 2).unflatten(2, (4, 6))

    model, x = nets.around(Simple()), nets.images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated upstream,
        warnings.simplefilter("ignore", DeprecationWarning)  # which torch 2.10 to 2.12 say so
        scripted = torch.jit.script(model) if way == "script" else torch.jit.trace(model, x)
    with torch.no_grad():
        for _ in range(3):  # the executor profiles its first runs
            plain = scripted(x)
        with watch(scripted) as seen:
            assert torch.equal(scripted(x), plain)
    (record,) = seen.values()
    assert record.weights is not None
    assert record.weights.shape == (2, 1, 24, 24)


class Counting(TorchDispatchMode):
    """Another mode, which counts softmaxes and asks for something of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.softmaxes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.softmaxes += func is torch.ops.aten._softmax.default
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            out.isnan()
        return out


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_mode_of_somebody_else_around_or_within_sees_what_it_would(
    name: str, inside: bool
) -> None:
    model, x = MODELS[name]()
    with torch.no_grad(), Counting() as alone:
        plain = model(x)
    with torch.no_grad():
        if inside:
            with watch(model) as seen, Counting() as other:
                again = model(x)
        else:
            with Counting() as other, watch(model) as seen:
                again = model(x)
        with watch(model) as expected:
            model(x)
    assert torch.equal(plain, again)
    assert other.softmaxes == alone.softmaxes
    assert list(seen) == list(expected)


class Wrapped(Tensor):
    """A parameter that handles its ops itself, as quantised weights do."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        made: Wrapped = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)  # type: ignore[attr-defined]
        made.held = held
        return made

    held: Tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].held)
        plain = [x.held * 1 if isinstance(x, cls) else x for x in args]
        return func(*plain, **(kwargs or {}))


def test_what_a_parameter_of_its_own_class_computes_is_no_attention() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = (
                nn.Parameter(Wrapped(torch.randn(8, 8)), requires_grad=False) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.mm(torch.mm(x, self.one), self.two)

    model, x = Rows(), torch.randn(4, 8)
    plain = model(x)
    with watch(model, empty=True) as seen:
        assert torch.equal(model(x), plain)
    assert not len(seen)


def test_an_interrupt_at_any_line_leaves_no_watch_on() -> None:
    """Ctrl-C may come between any two lines; here it comes at every seventeenth of ours."""
    model, x = MODELS["plain"]()
    before = state()
    stopped, number = True, 0
    while stopped:
        number += 17
        stopped = False
        try:
            with torch.no_grad(), watch(model):
                tracer = sys.gettrace()
                sys.settrace(interrupting(number))
                try:
                    model(x)
                finally:
                    sys.settrace(tracer)
        except KeyboardInterrupt:
            stopped = True
        assert op_mode.modes() == []
        assert state() == before
    assert number > 700


def test_an_ensemble_by_vmap_runs_as_it_would_and_holds_no_attention() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)
    weights = {name: torch.stack([p.detach()] * 3) for name, p in model.named_parameters()}

    def run(weights: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(model, weights, (x,))
        return out

    plain = torch.func.vmap(run)(weights)
    with watch(model, empty=True) as seen:
        assert torch.equal(torch.func.vmap(run)(weights), plain)
    assert not len(seen)
