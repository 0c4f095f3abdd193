"""Records of `attnviz.watch` on published models: expected, seen, unchanged, overhead.

The models of torchvision, timm and transformers are built with random weights; nothing is
downloaded. How many records to expect is counted without `attnviz`: from the modules of the
attention and gate classes of that library, by name. Parameters that start at zero (heads, layer
scales) are made random first: an output that is zero throughout would be "identical" for nothing.

    python benchmarks/architectures.py                       # minutes; writes docs/architectures.md
    python benchmarks/architectures.py --only swin --out ""  # some of them, and no file

Exit code 1 if anything was missed, invented or changed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture import Capture, watch

SE = "SEModule"
SQUEEZE = "SqueezeExcite"


@dataclass(frozen=True)
class Entry:
    """A model, and its attention and gate classes.

    Attributes:
        name: `library:name`.
        attention: Classes that attend, and how often each does in one pass; a function of the
            module where that depends on it.
        gates: The same of gates.
        size: Side of the images; the model's own if not given.
    """

    name: str
    attention: Mapping[str, int | Callable[[nn.Module], int]]
    gates: Mapping[str, int | Callable[[nn.Module], int]]
    size: int | None = None


def _timm(name: str, attention: Any = (), gates: Any = (), size: int | None = None) -> Entry:
    return Entry(f"timm:{name}", _counts(attention), _counts(gates), size)


def _vision(name: str, attention: Any = (), gates: Any = (), size: int | None = 64) -> Entry:
    return Entry(f"torchvision:{name}", _counts(attention), _counts(gates), size)


def _hf(name: str, attention: Any, size: int = 64) -> Entry:
    return Entry(f"transformers:{name}", _counts(attention), {}, size)


def _counts(classes: Any) -> dict[str, Any]:
    if isinstance(classes, str):
        return dict.fromkeys(classes.split(), 1)
    return dict(classes)


def _ghost(module: nn.Module) -> int:
    """GhostNet's DFC attention belongs to some of its modules only."""
    return int(getattr(module, "mode", "") == "shortcut" and hasattr(module, "gate_fn"))


def _heads_in_turn(module: nn.Module) -> int:
    qkvs: Any = module.qkvs
    return len(qkvs)


ENTRIES = (
    # plain transformers
    _timm("vit_tiny_patch16_224", "Attention"),
    _timm("deit3_small_patch16_224", "Attention"),
    _timm("vit_small_patch14_reg4_dinov2", "Attention"),
    _timm("beit_base_patch16_224", "Attention"),
    _timm("eva02_tiny_patch14_224", "EvaAttention"),
    _timm("cait_xxs24_224", "TalkingHeadAttn ClassAttn"),
    _timm("crossvit_tiny_240", "Attention CrossAttention"),
    _timm("convit_tiny", "GPSA MHSA"),
    _timm("tnt_s_patch16_224", "Attention"),
    _timm("volo_d1_224", "OutlookAttention Attention ClassAttention"),
    _timm("pit_ti_224", "Attention"),
    _timm("xcit_nano_12_p16_224", "XCA ClassAttn"),
    _timm("visformer_tiny", "Attention"),
    # windows and pyramids
    _timm("swin_tiny_patch4_window7_224", "WindowAttention"),
    _timm("swinv2_tiny_window8_256", "WindowAttention"),
    _timm("swinv2_cr_tiny_ns_224", "WindowMultiHeadAttention"),
    _timm("maxvit_pico_rw_256", "AttentionCl", SE),
    _timm("gcvit_xxtiny", "WindowAttentionGlobal", SE),
    _timm("nest_tiny_jx", "Attention"),
    _timm("twins_svt_small", "LocallyGroupedAttn GlobalSubSampleAttn"),
    _timm("pvt_v2_b0", "Attention", size=128),
    _timm("mvitv2_tiny", "MultiScaleAttention"),
    _timm("hiera_tiny_224", "MaskUnitAttention"),
    _timm("davit_tiny", "WindowAttention ChannelAttention", size=128),
    _timm("coat_lite_tiny", "FactorAttnConvRelPosEnc"),
    # convolution and attention
    _timm("coatnet_pico_rw_224", "Attention2d", SE),
    _timm("mobilevit_xxs", "Attention", size=128),
    _timm("mobilevitv2_050", "LinearSelfAttention", size=128),
    _timm("levit_128s", "Attention AttentionDownsample"),
    _timm("efficientformer_l1", "Attention"),
    _timm("efficientformerv2_s0", "Attention2d Attention2dDownsample"),
    _timm("edgenext_xx_small", "CrossCovarianceAttn", size=128),
    _timm("tiny_vit_5m_224", "Attention", size=128),
    _timm("fastvit_sa12", "Attention", SE, size=128),
    _timm("efficientvit_b0", "LiteMLA", size=128),
    _timm("efficientvit_m0", {"CascadedGroupAttention": _heads_in_turn}, SE),
    _timm("botnet26t_256", "BottleneckAttn"),
    _timm("halonet26t", "HaloAttn", size=256),
    _timm("lambda_resnet26t", "LambdaLayer", size=128),
    _timm("nextvit_small", "EfficientAttention", size=128),
    _timm("mobilenetv4_hybrid_medium", "MultiQueryAttention2d Attention2d", size=128),
    _timm("shvit_s1", "SHSA", SE, size=128),
    _timm("caformer_s18", "Attention", size=128),
    # gates
    _timm("gcresnet33ts", "GlobalContext", size=128),
    _timm("seresnet33ts", (), SE, size=128),
    _timm("eca_resnet33ts", (), "EcaModule", size=128),
    _timm("skresnet18", (), "SelectiveKernelAttn", size=128),
    _timm("resnest14d", (), "SplitAttn", size=128),
    _timm("mobilenetv3_small_050", (), SQUEEZE, size=128),
    _timm("efficientnet_b0", (), SQUEEZE, size=128),
    _timm("regnety_002", (), SE, size=128),
    _timm("ghostnetv3_050", (), {SQUEEZE: 1, "GhostModuleV3": _ghost}, size=128),
    _timm("tresnet_m", (), SE, size=128),
    _timm("ese_vovnet19b_dw", (), "EffectiveSEModule", size=128),
    _timm("rexnet_100", (), SE, size=128),
    _timm("repvit_m0_9", (), SE, size=128),
    _timm("rdnet_tiny", (), "EffectiveSEModule", size=128),
    _timm("nfnet_l0", (), SE, size=128),
    # nothing to see
    _timm("resnet26t", size=128),
    _timm("convnextv2_atto", size=128),
    _timm("poolformer_s12", size=128),
    _timm("mixer_s16_224"),
    _timm("gmlp_s16_224"),
    # torchvision
    _vision("vit_b_16", "MultiheadAttention", size=224),
    _vision("swin_t", "ShiftedWindowAttention"),
    _vision("swin_v2_t", "ShiftedWindowAttentionV2"),
    _vision("maxvit_t", "RelativePositionalMultiHeadAttention", "SqueezeExcitation", size=224),
    _vision("mobilenet_v3_small", (), "SqueezeExcitation"),
    _vision("efficientnet_b0", (), "SqueezeExcitation"),
    _vision("efficientnet_v2_s", (), "SqueezeExcitation"),
    _vision("regnet_y_400mf", (), "SqueezeExcitation"),
    _vision("resnet18"),
    _vision("convnext_tiny"),
    # transformers
    _hf("ViT", "ViTAttention ViTSelfAttention"),
    _hf("ViT eager", "ViTAttention ViTSelfAttention"),
    _hf("DeiT", "DeiTAttention DeiTSelfAttention"),
    _hf("Beit", "BeitAttention BeitSelfAttention"),
    _hf("Swin", "SwinAttention SwinSelfAttention"),
    _hf("Dinov2WithRegisters", "Dinov2WithRegistersAttention Dinov2WithRegistersSelfAttention"),
    _hf("CLIPVision", "CLIPAttention"),
    _hf("SiglipVision", "SiglipAttention MultiheadAttention"),
    _hf("Segformer", "SegformerAttention SegformerEfficientSelfAttention"),
    _hf("Pvt", "PvtAttention PvtEfficientSelfAttention", size=224),
)


@dataclass(frozen=True)
class Row:
    """What one model showed."""

    name: str
    size: int
    expected: tuple[int, int]
    seen: tuple[int, int]
    how: str
    identical: bool
    rows: float
    check: float
    overhead: float

    @property
    def good(self) -> bool:
        """Whether all was seen, nothing invented, nothing changed."""
        return self.identical and self.expected == self.seen


def initialised(entry: Entry) -> nn.Module:
    """The model as its library initialises it, in eval mode."""
    torch.manual_seed(0)
    library, _, name = entry.name.partition(":")
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(name)
    elif library == "torchvision":
        from torchvision.models import get_model

        model = get_model(name, weights=None)
    else:
        model = _configured(name)
    return model.eval()


def build(entry: Entry) -> nn.Module:
    """The same with random values for parameters that are zero."""
    model = initialised(entry)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def side_of(entry: Entry) -> int:
    """Side of a model's images."""
    library, _, name = entry.name.partition(":")
    if entry.size is None and library == "timm":
        import timm

        config: Any = timm.get_pretrained_cfg(name)
        return int(config.input_size[-1])
    return entry.size or {"torchvision": 224}.get(library, 64)


def _configured(name: str) -> nn.Module:
    """A small model of transformers, by the name of its configuration."""
    import transformers

    kind, _, way = name.partition(" ")
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 64, "image_size": 64, "patch_size": 8}  # fmt: skip
    if kind == "Swin":
        small = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
                 "image_size": 64, "patch_size": 4}  # type: ignore[dict-item]  # fmt: skip
    if kind in ("Segformer", "Pvt"):
        small = {}
    config = getattr(transformers, f"{kind}Config")(**small)
    config._attn_implementation = way or config._attn_implementation
    made: nn.Module = getattr(transformers, f"{kind}Model")(config)
    return made


def count(model: nn.Module, classes: Mapping[str, int | Callable[[nn.Module], int]]) -> int:
    """How many records these classes should give; a class within another one is counted once."""
    total, known = 0, [*classes]
    inside: set[int] = set()
    for module in model.modules():
        times = classes.get(type(module).__name__)
        if times is None or id(module) in inside:
            continue
        total += times if isinstance(times, int) else times(module)
        for other in module.modules():
            if other is not module and type(other).__name__ in known:
                inside.add(id(other))
    return total


def measure(entry: Entry, batch: int, repeats: int) -> Row:
    """Watch a model, and compare it with itself."""
    model, size = build(entry), side_of(entry)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))

    def run() -> Tensor:
        out: Any = model(x)
        return out if isinstance(out, Tensor) else out.last_hidden_state

    with torch.no_grad():
        plain = run()
        with watch(model, empty=True) as seen:
            again = run()
        ratios = [_ratio(model, run) for _ in range(repeats)]
    return Row(
        entry.name,
        size,
        (count(model, entry.attention), count(model, entry.gates)),
        (len(seen.attention), len(seen.gates)),
        _how(seen),
        torch.equal(plain, again) and bool(plain.any()),
        max((_off(record) for record in seen.attention.values()), default=0.0),
        max((r.check for r in seen.attention.values() if r.check is not None), default=0.0),
        statistics.median(ratios) if ratios else float("nan"),
    )


def _ratio(model: nn.Module, run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    middle = time.perf_counter()
    with watch(model, empty=True):
        run()
    return (time.perf_counter() - middle) / (middle - start)


def _off(record: Any) -> float:
    sums = record.row_sums
    return 0.0 if sums is None or not record.softmax or record.mixed else float(
        (sums - 1).abs().max())  # fmt: skip


def _how(seen: Capture) -> str:
    counts = Counter(r.how if r.kind == "attention" else f"{r.axis} gate" for r in seen.values())
    return ", ".join(f"{n} {how}" for how, n in counts.items())


def page(rows: Iterable[Row], batch: int) -> str:
    """The table as Markdown."""
    listed = list(rows)
    lines = [
        "# Architectures",
        "",
        "What `attnviz.watch` sees in models of timm, torchvision and transformers, with random "
        "weights. Expected is",
        "the number of attention and gate modules, counted from the library's own class names; "
        "identical means that",
        "the output is bit for bit the same with and without a watch. Σ − 1 is the largest "
        "deviation of a row's sum from",
        "one (heads that parameters mixed after the softmax apart), check the largest relative "
        "difference of A V from a fused kernel's own",
        f"output. Overhead is the time with a watch that keeps all weights, relative to without, "
        f"batch {batch}. This page is",
        "written by `benchmarks/architectures.py`.",
        "",
        f"{sum(row.good for row in listed)} of {len(listed)} models: all seen, none invented, "
        "nothing changed. "
        f"{sum(row.seen[0] for row in listed)} attention maps and "
        f"{sum(row.seen[1] for row in listed)} gates.",
        "",
        "| model | images | expected | seen | how | identical | Σ − 1 | check | overhead |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in listed:
        expected, seen = (" + ".join(map(str, pair)) for pair in (row.expected, row.seen))
        marked = seen if row.expected == row.seen else f"**{seen}**"
        lines.append(
            f"| {row.name} | {row.size} | {expected} | {marked} | {row.how or '–'} "
            f"| {'yes' if row.identical else '**no**'} | {row.rows:.0e} | {row.check:.0e} "
            f"| {row.overhead:.2f} |"
        )
    lines += [
        "",
        "Counts are attention + gates. Not seen, because there is neither a softmax nor a "
        "squashed gate to see: SwiftFormer's",
        "additive attention (weights of unit length), gMLP and FocalNet (features multiplied by "
        "features).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="docs/architectures.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for entry in ENTRIES:
        if args.only not in entry.name:
            continue
        row = measure(entry, args.batch, args.repeats)
        rows.append(row)
        mark = "ok " if row.good else "BAD"
        print(f"{mark} {row.name:44} expected {row.expected} seen {row.seen} "
              f"identical {row.identical} Σ−1 {row.rows:.0e} check {row.check:.0e} "
              f"× {row.overhead:.2f}  {row.how}", flush=True)  # fmt: skip
    text = page(rows, args.batch)
    if args.out:
        Path(args.out).write_text(text)
    else:
        print(text)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
