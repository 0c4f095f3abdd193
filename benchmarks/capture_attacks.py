"""Attacks on a watch, and whether all state is restored.

    uv run python benchmarks/capture_attacks.py            # some minutes
    uv run python benchmarks/capture_attacks.py --quick    # a tenth of it
    uv run python benchmarks/capture_attacks.py --only memory images  # these

Prints a table: the attack, how often it was tried, and how often it was survived: the model put out
what it does without a watch, and afterwards no mode was on, the compiler's stance and flags,
autograd and the model were as before. For memory it prints by how much it grew. Exit code 1 if
anything was not survived. The tests of `tests/capture/test_surroundings.py` assert the same on
fewer tries.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch

from attnviz.capture import op_mode, stream, watch
from attnviz.text import table

PACKAGE = str(Path(op_mode.__file__).parent)
Row = tuple[str, str, str]


class Attend(nn.Module):
    """A convolution, fused attention over its places, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.gate = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(b, 3, h, w)` to `(b, 8)`."""
        x = self.stem(x)
        q, k, v = self.qkv(x.flatten(2).mT)[:, None].chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0].mT.view_as(x)
        return (y * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3))


def made() -> tuple[nn.Module, Tensor, Tensor]:
    """A model, its input and its output."""
    model, x = Attend().eval(), torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        return model, x, model(x)


def state() -> tuple[object, ...]:
    """State that a watch could leave changed."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return (
        op_mode.modes(),
        _python_dispatch._is_in_torch_dispatch_mode,
        "default" if compiler is None else compiler._stance.stance,
        torch.is_grad_enabled(),
        str(torch._C._dispatch_keyset_to_string(torch._C._dispatch_tls_local_exclude_set())),
    )


def _as_before(before: object, model: nn.Module, x: Tensor, plain: Tensor) -> bool:
    if state() != before:
        return False
    with torch.no_grad():
        return torch.equal(model(x), plain)


def _watched(model: nn.Module, x: Tensor) -> None:
    with watch(model, reduce="received"):
        model(x)


def _streamed(model: nn.Module, x: Tensor) -> None:
    for _ in stream(model, [x, x], reduce="received", progress=False):
        pass


def lines(name: str, run: Callable[[nn.Module, Tensor], None], step: int) -> Row:
    """An interrupt before each line of the package that runs, from entry to exit."""
    model, x, _ = made()
    before, tried, survived, number, stopped = state(), 0, 0, 0, True
    while stopped:
        number += step
        left, stopped = number, False

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            left -= event == "line"
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        try:
            sys.settrace(trace)
            run(model, x)
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.settrace(None)
        gc.collect(0)
        tried += 1
        survived += state() == before and all("forward" not in vars(m) for m in model.modules())
    return f"interrupt before a line of a {name}", f"{tried}", f"{survived}"


def signals(count: int) -> Row:
    """A real signal, at a moment drawn over what a watched forward takes."""
    model, x, plain = made()
    before, survived = state(), 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(count):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 4e-3))
                    _watched(model, x)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            survived += _as_before(before, model, x, plain)
    finally:
        signal.signal(signal.SIGALRM, old)
    return "a real signal during a watch", f"{count}", f"{survived}"


def overlapping(count: int) -> Row:
    """Generators and tasks that begin and end their watches in any order."""
    before, survived = state(), 0
    model, x, plain = made()

    def look() -> Iterator[int]:
        with watch(model) as seen:
            for _ in range(random.randrange(1, 4)):
                model(x)
                yield len(seen)

    async def task() -> None:
        with watch(model):
            model(x)
            for _ in range(random.randrange(5)):
                await asyncio.sleep(0)

    async def several() -> None:
        await asyncio.gather(*(task() for _ in range(4)))

    for number in range(count):
        if number % 2:
            asyncio.run(several())
        else:
            flows = [look() for _ in range(4)]
            while flows:
                flow = random.choice(flows)
                if next(flow, None) is None or random.random() < 0.1:
                    flows.remove(flow)
                    flow.close()
        survived += _as_before(before, model, x, plain)
    return "watches of tasks and generators that overlap", f"{count}", f"{survived}"


def threads(count: int) -> Row:
    """Eight threads watch and stream one model and their own, with quick switches."""
    before, survived = state(), 0
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(count):
            shared, wrong = made(), []

            def work(number: int, shared: Any = shared, wrong: list[int] = wrong) -> None:
                model, x, plain = shared if number % 2 else made()
                for _, seen in stream(model, [x] * 3, reduce="received"):
                    if len(seen) != 2 or not torch.equal(seen.output, plain):
                        wrong.append(number)
                with torch.no_grad(), watch(model) as seen:
                    if not torch.equal(model(x), plain):
                        wrong.append(number)
                if len(seen) != 2:
                    wrong.append(number)

            running = [threading.Thread(target=work, args=(n,)) for n in range(8)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            survived += not wrong and state() == before
    finally:
        sys.setswitchinterval(interval)
    return "eight threads, four of them on one model", f"{count}", f"{survived}"


FIRST = """
import sys, threading, torch
from torch import nn
import attnviz as av
class Attend(nn.Module):
    def forward(self, x): return nn.functional.scaled_dot_product_attention(x, x, x)
sys.setswitchinterval(1e-6)
start, seen = threading.Barrier(8), []
def work():
    model, x = Attend(), torch.randn(1, 2, 9, 8)
    start.wait()
    with av.watch(model) as found:
        model(x)
    seen.extend(found)
running = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in running], [t.join() for t in running]
sys.exit(seen != ["Attend"] * 8)
"""


def first_watches(count: int) -> Row:
    """The first watches of a process, by eight threads at once."""
    done = [subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST]) for _ in range(count)]
    good = sum(one.returncode == 0 for one in done)
    return "first watches of a process, in eight threads", f"{count}", f"{good}"


class Failing(_python_dispatch.TorchDispatchMode):
    """Raises at one of the ops."""

    left = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.left -= 1
        if not self.left:
            raise ValueError("on purpose")
        return func(*args, **(kwargs or {}))


def raising(count: int) -> Row:
    """An exception from a random op of the model."""
    model, x, plain = made()
    before, survived = state(), 0

    for _ in range(count):
        failing = Failing()  # type: ignore[no-untyped-call]  # torch has no types here
        failing.left = random.randrange(1, 40)
        try:
            with failing:
                _watched(model, x)
        except ValueError:
            pass
        survived += _as_before(before, model, x, plain)
    return "an exception from an op", f"{count}", f"{survived}"


def memory(count: int) -> Row:
    """Many watches, one after the other."""
    model, x, _ = made()

    def many(times: int) -> int:
        for _ in range(times):
            with torch.no_grad():
                _watched(model, x)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    before = many(300)
    grown = many(count) - before
    tracemalloc.stop()
    name = f"watches, memory + {grown / 1000:.0f} kB"
    return name, f"{count}", f"{count if grown < 200 * count else 0}"


def images(count: int) -> Row:
    """A reduced stream over many images, whose results are dropped."""
    model, _, _ = made()

    def many(times: int) -> int:
        batches = (torch.randn(4, 3, 32, 32) for _ in range(times // 4))
        for _, seen in stream(model, batches, reduce="received", progress=False):
            del seen
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    before = many(400)
    grown = many(count) - before
    tracemalloc.stop()
    name = f"images of a reduced stream, memory + {grown / 1000:.0f} kB"
    return name, f"{count}", f"{count if grown < 200 * count else 0}"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tries")
    names = (
        "watch", "stream", "signals", "raising", "overlapping", "threads", "first", "memory",
        "images",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these attacks")
    args = parser.parse_args()
    few = 10 if args.quick else 1
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    attacks: tuple[Callable[[], Row], ...] = (
        lambda: lines("watch", _watched, few),
        lambda: lines("stream", _streamed, 3 * few),
        lambda: signals(5000 // few),
        lambda: raising(1000 // few),
        lambda: overlapping(400 // few),
        lambda: threads(50 // few),
        lambda: first_watches(20 // few),
        lambda: memory(2000 // few),
        lambda: images(4000 // few),
    )
    rows = []
    for name, attack in zip(names, attacks, strict=True):
        if name not in args.only:
            continue
        rows.append(attack())
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(("attack", "tried", "survived"), rows))
    return int(any(tried != survived for _, tried, survived in rows))


if __name__ == "__main__":
    sys.exit(main())
