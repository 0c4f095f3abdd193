"""What torch and Python do around and within a watch goes on as without it."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import pdb
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _python_dispatch
from torch.utils.flop_counter import FlopCounterMode

from attnviz.capture import frame_locals, op_mode, stream, watch
from attnviz.capture.watch import check_model
from attnviz.errors import InputError
from tests.capture import nets
from tests.capture.test_gates import Blocks

PACKAGE = str(Path(op_mode.__file__).parent)


def written() -> nn.Sequential:
    return nets.around(nets.Attention())


def fused() -> nn.Sequential:
    return nets.around(nets.Attention(nets.fused))


def state() -> tuple[object, ...]:
    """What a watch could leave behind in torch."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")
    return (
        op_mode.modes(),
        _python_dispatch._is_in_torch_dispatch_mode,
        None if eval_frame is None else eval_frame._stance.stance,
        str(torch._C._dispatch_keyset_to_string(torch._C._dispatch_tls_local_include_set())),
        str(torch._C._dispatch_keyset_to_string(torch._C._dispatch_tls_local_exclude_set())),
        torch.is_grad_enabled(),
    )


@pytest.fixture(autouse=True)
def _left_as_found() -> Iterator[None]:
    before = state()
    yield
    after = state()
    assert after[:2] == before[:2]
    assert after[2] in (None, "default")
    assert after[3:] == before[3:]


# objects that are made within a watch ----------------------------------------------------------


def _loaded(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer, weights_only=True), assign=True)
    return model


MADE: dict[str, Callable[[], Any]] = {
    "parameter": lambda: nn.Parameter(torch.zeros(2)),
    "linear": lambda: nn.Linear(2, 3),
    "lazy": lambda: nn.LazyLinear(3)(torch.ones(2, 2)),
    "model": written,
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2),
    "deepcopy": lambda: copy.deepcopy(fused()),
    "load": lambda: _loaded(fused()),
    "pickle": lambda: pickle.loads(pickle.dumps(nn.Linear(2, 2))),
    "meta": lambda: nn.Linear(2, 2, device="meta").to_empty(device="cpu"),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "buffer": lambda: nn.BatchNorm2d(3).double(),
    "optimiser": lambda: torch.optim.AdamW(nn.Linear(2, 2).parameters()),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_parameters_models_and_copies_are_made_within_a_watch(name: str, grad: bool) -> None:
    model, x = written(), nets.images()
    torch.manual_seed(0)
    plain = MADE[name]()
    with torch.set_grad_enabled(grad), watch(model) as seen:
        model(x)
        torch.manual_seed(0)
        made = MADE[name]()
        model(x)
    assert list(seen) == ["attn#0", "attn#1"]
    assert type(made).__name__ == type(plain).__name__
    if isinstance(made, nn.Module) and name not in ("meta",):
        for (one, a), (other, b) in zip(
            made.state_dict().items(), plain.state_dict().items(), strict=True
        ):
            assert one == other
            assert torch.equal(a, b)
    if isinstance(made, nn.Parameter):
        assert made.requires_grad
        assert made.is_leaf


# modes and transforms of torch ------------------------------------------------------------------


def _flops(model: nn.Module, x: Tensor) -> Any:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def _profiled(model: nn.Module, x: Tensor) -> Any:
    with torch.autograd.profiler.profile() as profile:
        model(x)
    return sorted({event.name for event in profile.function_events if "softmax" in event.name})


def _graph(model: nn.Module, x: Tensor) -> Any:
    graph = make_fx(model)(x).graph  # torch 2.9 adds an unused detach under any mode
    return [str(node.target) for node in graph.nodes if "detach" not in str(node.target)]


def _called(model: nn.Module, x: Tensor) -> Any:
    twice = {name: parameter * 2 for name, parameter in model.named_parameters()}
    return torch.func.functional_call(model, twice, (x,))


def _faked(model: nn.Module, x: Tensor) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return model(mode.from_tensor(x)).shape


def _exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,), strict=False).module()(x)


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "flops": _flops,
    "profiler": _profiled,
    "make_fx": _graph,
    "vmap": lambda model, x: torch.vmap(lambda y: model(y[None])[0])(x),
    "grad": lambda model, x: torch.func.grad(lambda y: model(y).sum())(x),
    "jacrev": lambda model, x: torch.func.jacrev(lambda y: model(y[None])[0])(x[0]),
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x,)),
    "functional_call": _called,
    "fake": _faked,
    "export": _exported,
}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (tuple, list)) and not isinstance(one, torch.Size):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:There is a performance drop because we have not yet implemented the batching rule",
)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_what_they_give_without_a_watch(name: str, inside: bool) -> None:
    model, x, run = written(), nets.images(), TRANSFORMS[name]

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with watch(model, empty=True) as seen:
                out: Tensor = model(x)
            records.extend(seen)
            return out

    records: list[str] = []
    plain = run(model, x)
    if inside and name not in ("export", "functional_call"):  # these two need the model itself
        again = run(Watched(), x)
    else:
        with watch(model, empty=True) as seen:
            again = run(model, x)
        records.extend(seen)
    assert _same(plain, again)
    assert bool(records) is (name not in ("fake", "export"))


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", ["fsdp", "tensor parallel"])
@pytest.mark.parametrize("attend", [nets.plain, nets.fused])
def test_models_on_a_device_mesh_are_seen_as_they_are_without_it(
    mesh: Any, attend: nets.Attend, way: str
) -> None:
    model, x = nets.around(nets.Attention(attend)), nets.images()
    with watch(model) as truth:
        plain = model(x)
    if way == "fsdp":
        fully_shard(model.attn, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model, mesh, {"attn.qkv": ColwiseParallel()})
    for grad in (False, True):
        with torch.set_grad_enabled(grad), watch(model) as seen:
            out = model(x)
        assert torch.equal(out, plain)
        assert list(seen) == ["attn"]
        one, other = seen["attn"].weights, truth["attn"].weights
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_fused_kernel_on_distributed_tensors_is_seen_on_the_local_ones(mesh: Any) -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = DTensor.from_local(x, mesh, [Replicate()])
            out = nn.functional.scaled_dot_product_attention(x, x, x)
            assert isinstance(out, DTensor)
            return out.to_local()

    model, x = Attend(), torch.randn(2, 2, 5, 8)
    try:
        plain = model(x)
    except NotImplementedError as error:  # torch 2.9 and 2.10
        pytest.skip(f"this torch has no such kernel for distributed tensors: {error}")
    with watch(model) as seen:
        assert torch.equal(model(x), plain)
    (record,) = seen.values()
    assert record.how == "fused"
    assert record.check is not None
    assert record.check < 1e-5
    assert record.source.startswith("test_surroundings.py:")


# watches that overlap ----------------------------------------------------------------------------


def _steps(model: nn.Module, x: Tensor, found: dict[str, list[str]], name: str) -> Iterator[None]:
    with torch.no_grad():
        model(x)
    with watch(model) as seen:
        for _ in range(3):
            with torch.no_grad():
                model(x)
            yield
    found[name] = list(seen)


EXPECTED = [f"attn#{i}" for i in range(3)]


@pytest.mark.parametrize("first", ["a", "b"])
def test_generators_that_take_turns_leave_nothing_on(first: str) -> None:
    x, found = nets.images(), dict[str, list[str]]()
    a, b = (_steps(written(), x, found, name) for name in "ab")
    next(a), next(b)
    one, other = (a, b) if first == "a" else (b, a)
    for flow in (one, other):
        for _ in flow:
            pass
    assert found == {"a": EXPECTED, "b": EXPECTED}
    assert op_mode.modes() == []


def test_a_generator_that_is_dropped_leaves_nothing_on() -> None:
    flows = [_steps(written(), nets.images(), {}, str(i)) for i in range(3)]
    for flow in flows:
        next(flow)
    assert len(op_mode.modes()) == 3
    del flow
    del flows[1]
    gc.collect()
    assert len(op_mode.modes()) == 2
    flows.clear()
    gc.collect()
    assert op_mode.modes() == []


def test_tasks_that_take_turns_see_their_own_models() -> None:
    found: dict[str, list[str]] = {}

    async def look(name: str, wait: int) -> None:
        model, x = written(), nets.images()
        with watch(model) as seen:
            for _ in range(3):
                model(x)
                for _ in range(wait):
                    await asyncio.sleep(0)
        found[name] = list(seen)

    async def both() -> None:
        await asyncio.gather(look("a", 1), look("b", 3), look("c", 2))

    asyncio.run(both())
    assert found == {"a": EXPECTED, "b": EXPECTED, "c": EXPECTED}
    assert op_mode.modes() == []


def test_another_mode_between_two_watches_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = "_is_in_torch_dispatch_mode"  # that mode restores it to what it found
    monkeypatch.setattr(_python_dispatch, flag, getattr(_python_dispatch, flag))
    model, x = written(), nets.images()
    outer, other, inner = ExitStack(), FlopCounterMode(display=False), ExitStack()
    seen = outer.enter_context(watch(model, empty=True))
    with other:
        late = inner.enter_context(watch(model))
        outer.close()
        assert [type(mode).__name__ for mode in op_mode.modes()][1:] == ["Watcher"]
        model(x)
        inner.close()
        before = other.get_total_flops()
        model(x)
        assert other.get_total_flops() == 2 * before > 0
    assert list(late) == ["attn"]
    assert not len(seen)


def test_a_watch_that_another_thread_ends_is_dropped_and_keeps_nothing() -> None:
    model, x = written(), nets.images()
    around = ExitStack()
    seen = around.enter_context(watch(model))
    model(x)
    thread = threading.Thread(target=around.close)
    thread.start()
    thread.join()
    (mode,) = op_mode.modes()
    assert vars(mode)["session"] is None
    model(x)
    assert list(seen) == ["attn"]
    with watch(model) as again:  # which drops it
        assert len(op_mode.modes()) == 1
        model(x)
    assert list(again) == ["attn"]
    assert op_mode.modes() == []


def _in_threads(*work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.parametrize("loaded", [False, True])
def test_threads_that_overlap_leave_the_compiler_as_it_was(loaded: bool) -> None:
    if loaded:
        import torch._dynamo  # noqa: F401  # from now on its stance is held, too
    x = nets.images()
    a, b = written(), written()
    a_in, b_in, a_out = threading.Event(), threading.Event(), threading.Event()

    def one() -> None:
        with watch(a):
            a(x)
            a_in.set()
            b_in.wait()
        a_out.set()

    def two() -> None:
        a_in.wait()
        with watch(b):
            b(x)
            b_in.set()
            a_out.wait()

    before = state()
    _in_threads(one, two)
    assert state()[1] == before[1]
    assert state()[2] in (None, "default")


COMPILED_WITHIN = """
import sys, torch
from attnviz.capture import watch
from tests.capture import nets
assert "torch._dynamo" not in sys.modules
model, x = nets.around(nets.Attention()), nets.images()
with torch.no_grad(), watch(model) as seen:
    compiled = torch.compile(model, backend="eager")
    out = compiled(x)
    frames = torch._dynamo.utils.counters["frames"]
    assert not frames, frames
assert list(seen) == ["attn"], list(seen)
with torch.no_grad():
    assert torch.equal(compiled(x), out)
"""


def test_a_compiler_that_is_imported_within_a_watch_compiles_nothing_in_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED_WITHIN],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_first_watches_in_eight_threads() -> None:
    start, found = threading.Barrier(8), dict[int, list[str]]()

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            model, x = fused(), nets.images()
            start.wait()
            with torch.no_grad(), watch(model) as seen:
                model(x)
            found[number] = list(seen)

        return run

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        _in_threads(*(work(n) for n in range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert found == {n: ["attn"] for n in range(8)}


def test_two_streams_of_one_model_in_threads_each_see_all_of_theirs() -> None:
    model = fused()
    found: dict[int, list[list[str]]] = {}

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            batches = [nets.images(number)] * 20
            found[number] = [list(seen) for _, seen in stream(model, batches, reduce="received")]

        return run

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        _in_threads(work(1), work(2))
    finally:
        sys.setswitchinterval(interval)
    assert found == {n: [["attn"]] * 20 for n in (1, 2)}
    assert all("forward" not in vars(module) for module in model.modules())


# interrupts --------------------------------------------------------------------------------------


def _interrupting(at: int, on: Callable[[FrameType], bool]) -> Any:
    """A trace function that raises before that line of the package, counted where `on` says so."""
    left = at

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and on(frame):
            left -= 1
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    return trace


def _at_every_line(run: Callable[[], None]) -> int:
    """Run something once for each line of the package that it executes, interrupted there."""
    number, stopped, before, tracer = 0, True, state(), sys.gettrace()
    while stopped:
        number += 1
        stopped = False
        try:
            sys.settrace(_interrupting(number, lambda _: True))
            run()
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.settrace(tracer)
        gc.collect(0)
        assert state() == before, f"interrupted at line {number}"
    return number


def test_an_interrupt_at_any_line_of_entry_and_exit_leaves_nothing_on() -> None:
    model = nn.Linear(2, 2)

    def run() -> None:
        with watch(model, empty=True):
            pass

    assert _at_every_line(run) > 60


def test_an_interrupt_at_any_line_of_a_stream_leaves_nothing_on() -> None:
    model, x = nets.around(Blocks()), nets.images()

    def run() -> None:
        for _ in stream(model, [x], reduce=None, progress=False):
            pass

    count, tracer = 0, sys.gettrace()
    before = state()
    for number in (*range(1, 120), *range(120, 3000, 37)):
        stopped = False
        try:
            sys.settrace(_interrupting(number, lambda _: True))
            run()
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.settrace(tracer)
        gc.collect(0)
        assert state() == before, f"interrupted at line {number}"
        count += stopped
        if not stopped:
            break
    assert count > 100
    assert all("forward" not in vars(module) for module in model.modules())


# readers of the stack -----------------------------------------------------------------------------


class Stopped(nn.Module):
    """A model in which a debugger stops, attends at its prompt and changes a variable."""

    def forward(self, t: Tensor) -> Tensor:
        scale = 3
        commands = io.StringIO("!scale = 5\np (t @ t.mT).softmax(-1) @ t\nn\nn\nc\n")
        pdb.Pdb(stdin=commands, stdout=io.StringIO(), nosigint=True, readrc=False).set_trace()
        out = (t @ t.mT).softmax(-1) @ t * scale
        held = self.training
        return out if held else -out


def test_a_debugger_keeps_its_locals_and_its_changes() -> None:
    model, x = Stopped(), torch.randn(2, 5, 8)
    tracer = sys.gettrace()
    try:
        plain = model(x)
        with torch.no_grad(), watch(model) as seen:
            again = model(x)
    finally:
        sys.settrace(tracer)
    assert torch.equal(plain, again)
    assert torch.equal(plain, 5 * ((x @ x.mT).softmax(-1) @ x))
    assert len(seen) == 2  # one at the prompt


@pytest.mark.parametrize("hook", ["trace", "profile"])
def test_tracers_and_profilers_change_nothing(hook: str) -> None:
    model, x = written(), nets.images()
    with torch.no_grad():
        plain = model(x)
    names: list[dict[str, Any]] = []

    def look(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name == "forward":
            names.append(dict(frame.f_locals))  # as a coverage tool or a debugger reads them
        return look

    setter, tracer = (sys.settrace, sys.gettrace()) if hook == "trace" else (sys.setprofile, None)
    try:
        setter(look)
        with torch.no_grad(), watch(model) as seen:
            again = model(x)
    finally:
        setter(tracer)
    assert torch.equal(plain, again)
    assert list(seen) == ["attn"]
    assert any("self" in found for found in names)


def test_reading_a_local_keeps_no_reference_and_finds_cells() -> None:
    class Held:
        pass

    def inner(held: Held, free: list[Held]) -> tuple[Any, Callable[[], Any]]:
        def closed() -> Any:
            return free

        found = frame_locals.read(sys._getframe(), "held")
        assert found is held
        assert frame_locals.read(sys._getframe(), "free") is free
        assert frame_locals.read(sys._getframe(), "later") is None
        assert frame_locals.read(sys._getframe(), "absent") is None
        later = found
        assert frame_locals.read(sys._getframe(), "later") is later
        return sys.getrefcount(held), closed

    held = Held()
    before = sys.getrefcount(held)
    inner(held, [held])
    assert sys.getrefcount(held) == before


# misuse and memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["watch", "stream"])
@pytest.mark.parametrize("model", [None, torch.relu, "model"])
def test_a_model_that_is_none_is_refused(function: str, model: object) -> None:
    expected = (
        rf"{function}: expected a model \(torch.nn.Module\), got {type(model).__name__}; wrap"
    )
    with pytest.raises(InputError, match=expected):
        check_model(function, model)


def test_memory_does_not_grow_with_the_number_of_watches() -> None:
    model, x = written(), nets.images()

    def many(count: int) -> int:
        for _ in range(count):
            with torch.no_grad(), watch(model, reduce="received"):
                model(x)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = many(40)
        grown = many(60) - first
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # one session that stays is more than five thousand bytes
