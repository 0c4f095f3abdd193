"""What watching costs, as ratios in one run against the plain forward, beside other ways.

Each model runs plainly, watched, reduced and streamed in turn, `--repeats` times; a ratio is taken
within each turn, and their median is printed, so that a machine that slows down slows all of them.
Each turn begins with another one of them, so that none always follows the one that leaves the most
memory behind. The plain forward is in each turn twice, and "plain, again" shows the noise of a
ratio.

Floors, printed beside: lower bounds for any watch of this kind. "ops through Python" hands every op
to Python and does nothing with it: a large convolution leaves the caches cold, and Python reads its
own code from memory again for each op. "hook that keeps" and "hook that reduces" are given the
place of the weights. "kernel" computes the weights of a fused kernel, or their column means, too.

Peers: a forward hook on the module that attends (what a tutorial does; it sees outputs, not
weights), timm's `AttentionExtract` on the unfused model (the fused one it cannot see), captum's
`LayerActivation`, and nnsight where it is installed.

    python benchmarks/overhead.py                       # some minutes, on a machine without others
    python benchmarks/overhead.py --only written        # one group of models
    python benchmarks/overhead.py --repeats 3 --batch 2 # a smoke run

Exit code 1 if a demand is not met.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnviz.capture import stream, watch
from attnviz.capture.fused_weights import Fused, column_means, from_sums
from attnviz.capture.op_mode import OpMode

Run = Callable[[], Any]


class Small(nn.Module):
    """A small CNN with attention over 24 × 24 places, its softmax written out or fused."""

    def __init__(self, width: int = 32, heads: int = 4, *, fused: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.attn = Written(width, heads, fused)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, 2)`."""
        logits: Tensor = self.head(self.attn(self.features(x).flatten(2).mT).mean(1))
        return logits


class Written(nn.Module):
    """Self-attention with `softmax(q kᵀ) v` written out, or by the fused kernel."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.fused, self.num_heads, self.qkv = fused, heads, nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(b, n, c)` to the same."""
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(b, n, c)


def medians(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Each run's time relative to the first one's, the median over the turns."""
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
        run()
    names = [*runs]
    for turn in range(repeats):
        times: dict[str, float] = {}
        begin = turn % len(names)
        for name in (*names[begin:], *names[:begin]):
            start = time.perf_counter()
            runs[name]()
            times[name] = time.perf_counter() - start
        for name, seconds in times.items():
            ratios[name].append(seconds / times[names[0]])
    return {name: statistics.median(values) for name, values in ratios.items()}


def ours(model: nn.Module, x: Tensor) -> dict[str, Run]:
    """Plain, watched, reduced and streamed."""

    def watched(**options: Any) -> Run:
        def run() -> None:
            with watch(model, **options):
                model(x)

        return run

    flow = stream(model, itertools.repeat(x), reduce="received", progress=False)
    whole = stream(model, itertools.repeat(x), reduce=None, progress=False)
    return {
        "plain": lambda: model(x),
        "plain, again": lambda: model(x),
        "watch": watched(),
        "watch, received": watched(reduce="received"),
        "stream": lambda: next(whole),
        "stream, received": lambda: next(flow),
        "floor: ops through Python": passed(model, x),
    }


class Passing(OpMode):
    """Runs every op that it is handed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **kwargs) if kwargs else func(*args)


def passed(model: nn.Module, x: Tensor) -> Run:
    """Every op is handed to Python, as to a watch, and run."""

    def run() -> None:
        with Passing():  # type: ignore[no-untyped-call]  # torch has no types here
            model(x)

    return run


def hooked(model: nn.Module, x: Tensor, kinds: tuple[str, ...]) -> Run:
    """A plain forward hook that keeps the output of each module of these classes."""

    def run() -> None:
        kept: list[Any] = []
        handles = [
            module.register_forward_hook(lambda m, given, out: kept.append(out))
            for module in model.modules()
            if type(module).__name__ in kinds
        ]
        model(x)
        for handle in handles:
            handle.remove()

    return run


def keeping(model: nn.Module, x: Tensor, of: Callable[[Tensor], Tensor] = lambda x: x) -> Run:
    """A hook that keeps what the dropout after the softmax is given: weights, or something of."""

    def run() -> None:
        kept: list[Tensor] = []
        handles = [
            block.attn.attn_drop.register_forward_pre_hook(
                lambda m, given: kept.append(of(given[0]))
            )
            for block in model.blocks  # type: ignore[union-attr]
        ]
        model(x)
        for handle in handles:
            handle.remove()

    return run


def beside_kernel(model: nn.Module, x: Tensor, of: Callable[[Fused, Tensor], Any]) -> Run:
    """The fused kernel is replaced by itself and what a watch computes beside it."""
    given = F.scaled_dot_product_attention

    def run() -> None:
        kept: list[Any] = []

        def attend(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
            out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
            kept.append(of(Fused(q, k, v, scale=q.shape[-1] ** -0.5), sums))
            return out  # type: ignore[no-any-return]  # an op without types

        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
        try:
            model(x)
        finally:
            F.scaled_dot_product_attention = given

    return run


def extracted(model: nn.Module, x: Tensor) -> Run:
    """Timm's own extractor, which traces the model once."""
    from timm.utils import AttentionExtract

    extract = AttentionExtract(model, method="fx")
    return lambda: extract(x)


def activated(model: nn.Module, x: Tensor, layer: nn.Module) -> Run:
    """Captum's activation of one layer."""
    from captum.attr import LayerActivation

    method: Any = LayerActivation(model, layer)
    return lambda: method.attribute(x)


def nnsighted(model: nn.Module, x: Tensor) -> Run:
    """nnsight, saving the softmax's result of every block."""
    from nnsight import NNsight

    wrapped: Any = NNsight(model)

    def run() -> None:
        with wrapped.trace(x):
            _ = [block.attn.attn_drop.input.save() for block in wrapped.blocks]

    return run


def report(title: str, ratios: dict[str, float], demands: dict[str, float]) -> bool:
    """Print a model's ratios; whether they meet what is demanded."""
    print(f"\n{title}")
    good = True
    for name, ratio in ratios.items():
        limit = demands.get(name)
        met = limit is None or ratio <= limit
        good = good and met
        verdict = "" if limit is None else f"  demanded ≤ {limit:.2f}{'' if met else '  MISSED'}"
        print(f"  {name:28} × {ratio:.3f}{verdict}")
    return good


def vit(fused: bool) -> nn.Module:
    """vit_tiny with or without its fused path."""
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(fused)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224").eval()
    set_fused_attn(True)
    return model


def main() -> int:
    """Measure all models and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    groups = {"gates": _gates, "written": _written, "fused": _fused}
    parser.add_argument("--only", choices=groups, help="one group of models")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        good = [run(args) for name, run in groups.items() if args.only in (None, name)]
    return 0 if all(good) else 1


def _gates(args: argparse.Namespace) -> bool:
    import timm

    model: nn.Module = timm.create_model("efficientnet_b0").eval()
    x = torch.randn(args.batch, 3, 224, 224)
    runs = {**ours(model, x), "forward hook": hooked(model, x, ("SqueezeExcite",))}
    ratios = medians(runs, args.repeats)
    return report(
        f"efficientnet_b0, gates alone, batch {args.batch}", ratios,
        {"watch": 1.15},
    )  # fmt: skip


def _written(args: argparse.Namespace) -> bool:
    model, x = Small().eval(), torch.randn(args.batch, 3, 96, 96)
    good = report(
        f"a small CNN with attention written out, batch {args.batch}",
        medians({**ours(model, x), "forward hook": hooked(model, x, ("Written",))}, args.repeats),
        {"watch": 1.25},
    )
    model, x = vit(fused=False), torch.randn(args.batch, 3, 224, 224)
    runs = {
        **ours(model, x),
        "forward hook": hooked(model, x, ("Attention",)),
        "floor: hook that keeps": keeping(model, x),
        "floor: hook that reduces": keeping(model, x, lambda weights: weights.mean(-2)),
        "timm AttentionExtract": extracted(model, x),
        "captum, one layer": activated(model, x, model.blocks[5].attn.attn_drop),  # type: ignore[index, union-attr, arg-type]
    }
    if importlib.util.find_spec("nnsight"):
        runs["nnsight"] = nnsighted(model, x)
    else:
        print("nnsight is not installed, and left out")
    ratios = medians(runs, args.repeats)
    return report(f"vit_tiny, unfused, batch {args.batch}", ratios, {"watch": 1.25}) and good


def _fused(args: argparse.Namespace) -> bool:
    good = True
    for title, models, size, demands in (
        ("a small CNN with fused attention", (Small(fused=True), Small()), 96, {}),
        ("vit_tiny, fused", (vit(fused=True), vit(fused=False)), 224, {"watch": 1.40}),
    ):
        model, unfused = (one.eval() for one in models)
        x = torch.randn(args.batch, 3, size, size)
        theirs = ours(unfused, x)
        runs = {
            **ours(model, x),
            "unfused, plain": theirs["plain"],
            "unfused, watch, received": theirs["watch, received"],
            "floor: kernel, keeping": beside_kernel(model, x, from_sums),
            "floor: kernel, received": beside_kernel(model, x, column_means),
        }
        ratios = medians(runs, args.repeats)
        good &= report(f"{title}, batch {args.batch}", ratios, demands)
    return good


if __name__ == "__main__":
    sys.exit(main())
