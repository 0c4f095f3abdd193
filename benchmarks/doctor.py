"""The doctor on models that are right, on layers that are wrong, and what it costs.

    python benchmarks/doctor.py                  all three tables
    python benchmarks/doctor.py --only correct   or: faulty, cost

Exit code 1 if a correct model has an error, a faulty layer lacks its code or has another error, or
the cost is 20 forward passes or more. Nothing is downloaded: weights are random, but for the
reference models, which are also trained for some seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from attnviz.diagnosis import Findings, diagnose
from attnviz.models import build_model
from attnviz.patches import inject_patch
from tests.diagnosis.twins import TWINS

REFERENCES = ("cnn", "mha", "mha_conv1d", "cbam_channel", "cbam", "vit")
LIMIT = 20.0  # forward passes that a diagnosis may cost


@dataclass(frozen=True)
class Correct:
    """A model that has no fault.

    Attributes:
        name: In the table.
        side: Of its images.
        make: Builds it.
        trained: Whether its weights are.
    """

    name: str
    side: int
    make: Callable[[], nn.Module]
    trained: bool | None = None


def correct_models() -> Iterator[Correct]:
    for name in REFERENCES:
        yield Correct(f"attnviz {name}", 96, lambda name=name: build_model(name))
    for name in REFERENCES:
        yield Correct(f"attnviz {name}, trained", 48, lambda name=name: train(name), True)
    yield from _torchvision()
    yield from _timm()
    yield from _transformers()


def train(name: str, steps: int = 150) -> nn.Module:
    """A reference model that has learned to see a patch in noise."""
    torch.manual_seed(0)
    model = build_model(name, width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        images, labels, _ = patched(32, step)
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def patched(n: int, seed: int, side: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    numbers = torch.arange(n) + n * seed
    clean = noise.mul(0.3).clamp(-1, 1)
    images, masks, _ = inject_patch(clean, size=12, seed=7, fraction=0.5, indices=numbers)
    return images, masks.flatten(1).any(1).float(), masks


def _torchvision() -> Iterator[Correct]:
    from torchvision import models

    for name in ("resnet18", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"):
        yield Correct(f"torchvision {name}", 64, lambda name=name: models.get_model(name))
    for name in ("swin_t", "swin_v2_t"):
        yield Correct(f"torchvision {name}", 96, lambda name=name: models.get_model(name))
    yield Correct(
        "torchvision VisionTransformer", 64,
        lambda: models.VisionTransformer(64, 8, 4, 4, 64, 128, num_classes=10),
    )  # fmt: skip
    yield Correct(
        "torchvision MaxVit", 64,
        lambda: models.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=10),
    )  # fmt: skip


_TIMM = {
    "test_vit": 160, "test_vit_relpos": 160, "test_coatnet": 160, "test_maxvit": 160,
    "vit_tiny_patch16_224": 96, "deit_tiny_distilled_patch16_224": 96, "cait_xxs24_224": 96,
    "xcit_nano_12_p16_224": 96, "eva02_tiny_patch14_224": 98, "vit_small_patch14_reg4_dinov2": 98,
    "pvt_v2_b0": 96, "levit_128s": 224, "mobilevit_xxs": 128,
    "mobilevitv2_050": 128, "edgenext_xx_small": 96, "efficientvit_b0": 96, "davit_tiny": 96,
    "lambda_resnet26t": 128, "seresnet18": 96, "skresnet18": 96,
    "resnest14d": 96, "gcresnet33ts": 96, "ecaresnet26t": 96, "efficientnet_b0": 96,
    "mobilenetv3_small_100": 96, "ghostnet_100": 96, "convnext_atto": 96, "poolformer_s12": 96,
    "cs3se_edgenet_x": 96, "repvit_m1": 96,
}  # fmt: skip
_FIXED = ("patch14", "patch16", "cait")  # these are told their images' size


def _timm() -> Iterator[Correct]:
    import timm

    for name, side in _TIMM.items():
        given = {"img_size": side} if any(part in name for part in _FIXED) else {}
        if name.startswith("xcit"):
            given = {}
        yield Correct(
            f"timm {name}", side, lambda n=name, g=given: timm.create_model(n, num_classes=10, **g)
        )


def _transformers() -> Iterator[Correct]:
    import transformers as hf

    small = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 96, "image_size": 64, "patch_size": 8}  # fmt: skip
    for kind in ("ViT", "DeiT", "Beit", "Data2VecVision", "ViTMSN", "Dinov2",
                 "Dinov2WithRegisters", "SiglipVision", "CLIPVision"):  # fmt: skip
        yield _hf(hf, kind, 64, **small)
    yield _hf(hf, "Swin", 64, image_size=64, embed_dim=24, depths=[2, 2], num_heads=[2, 4],
              window_size=4)  # fmt: skip
    yield _hf(hf, "Segformer", 64, num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32],
              num_attention_heads=[1, 2], sr_ratios=[4, 2], patch_sizes=[7, 3], strides=[4, 2],
              mlp_ratios=[2, 2])  # fmt: skip
    yield _hf(hf, "ConvNext", 64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])


def _hf(hf: Any, kind: str, side: int, **settings: Any) -> Correct:
    config, model = getattr(hf, f"{kind}Config"), getattr(hf, f"{kind}Model")
    return Correct(f"transformers {kind}", side, lambda: model(config(**settings)))


def examine(one: Correct) -> tuple[Findings, float]:
    torch.manual_seed(0)
    model = one.make()
    images, _, masks = patched(8, 0, one.side)
    start = time.perf_counter()
    found = diagnose(model, images, masks if one.trained else None, trained=one.trained)
    return found, time.perf_counter() - start


def correct_table() -> bool:
    print("Correct models: no error is right\n")
    print("| model | images | attention | gates | errors | warnings | notes | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    count, wrong = 0, 0
    for one in correct_models():
        found, seconds = examine(one)
        count, wrong = count + 1, wrong + bool(found.errors)
        cells = [one.name, f"{one.side}²", *(str(n) for n in found.checked.values())]
        cells += [", ".join(part.codes) for part in (found.errors, found.warnings, found.notes)]
        print(f"| {' | '.join(cells)} | {seconds:.1f} |", flush=True)
    print(f"\n{count} models, {wrong} with an error\n")
    return not wrong


def faulty_table() -> bool:
    print("Faulty layers: the code is found, no other error, and the twin is clean\n")
    print("| layer | code | found | other errors | other | mended: errors |")
    print("| --- | --- | --- | --- | --- | --- |")
    right = 0
    for name, case in TWINS.items():
        found, twin = case.findings(mended=False), case.findings(mended=True)
        hits = [one.severity for one in found if one.code == case.code]
        errors = [code for code in found.errors.codes if code != case.code]
        others = [code for code in found.codes if code not in (case.code, "untrained", *errors)]
        clean = not twin.errors and case.code not in twin.codes
        right += case.severity in hits and not errors and clean
        cells = (name, case.code, hits[0] if hits else "–", ", ".join(errors), ", ".join(others),
                 ", ".join(twin.errors.codes) or ("none" if clean else case.code))  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print(f"\n{right} of {len(TWINS)} as they should be\n")
    return right == len(TWINS)


def cost_table(n: int = 64, repeats: int = 5) -> bool:
    print(f"Cost of a diagnosis of {n} images of 96², in forward passes of those images\n")
    print("| model | forward ms | diagnosis ms | ratio | with masks ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for name in ("cnn", "mha_reshape", *REFERENCES[1:]):
        torch.manual_seed(0)
        model = build_model(name).eval()
        images, _, masks = patched(n, 0, 96)
        with torch.no_grad():
            plain = _median(lambda m=model, x=images: m(x), repeats)
        bare = _median(lambda m=model, x=images: diagnose(m, x), repeats)
        full = _median(lambda m=model, x=images, y=masks: diagnose(m, x, y, trained=True), repeats)
        worst = max(worst, bare / plain, full / plain)
        print(f"| {name} | {plain * 1e3:.0f} | {bare * 1e3:.0f} | {bare / plain:.1f} "
              f"| {full * 1e3:.0f} | {full / plain:.1f} |", flush=True)  # fmt: skip
    print(f"\nworst {worst:.1f}, limit {LIMIT:.0f}; {torch.get_num_threads()} threads\n")
    return worst < LIMIT


def _median(run: Callable[[], Any], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


TABLES = {"correct": correct_table, "faulty": faulty_table, "cost": cost_table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES)
    only = parser.parse_args().only
    warnings.simplefilter("ignore")  # foreign libraries' deprecations
    results = [table() for name, table in TABLES.items() if only in (None, name)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
