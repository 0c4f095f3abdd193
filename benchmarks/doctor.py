"""The doctor on correct models and on faulty layers, and its cost.

    python benchmarks/doctor.py                  all three tables
    python benchmarks/doctor.py --only correct   or: faulty, cost

Exit code 1 if a correct model has an error, a faulty layer lacks its code or has another error, or
the cost is more than 25 forward passes. Nothing is downloaded: weights are random, but for the
reference models, which are also trained for some seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
LIMIT = 25.0  # forward passes that the standard examination may cost
WRITE = False  # whether the numbers on correct models go to docs/doctor/correct.json
_COSTED = ("torchvision swin_t", "timm vit_tiny_patch16_224", "timm cait_xxs24_224",
           "timm efficientnet_b0", "timm test_coatnet", "timm cs3se_edgenet_x")  # fmt: skip


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
    "cs3se_edgenet_x": 96, "repvit_m1": 96, "convnextv2_atto": 96, "mobilenetv4_conv_small": 96,
    "hgnetv2_b0": 96, "rexnet_100": 96, "tinynet_e": 96, "botnet26t_256": 256,
    "visformer_tiny": 224, "pit_ti_224": 224, "twins_pcpvt_small": 224, "crossvit_tiny_240": 240,
    "tnt_s_legacy_patch16_224": 224, "convit_tiny": 224, "coat_lite_tiny": 224,
    "focalnet_tiny_srf": 224, "fastvit_t8": 128, "tiny_vit_5m_224": 224, "efficientformer_l1": 224,
    "poolformerv2_s12": 96, "mixer_s32_224": 224, "resmlp_12_224": 224, "test_resnet": 160,
    "test_efficientnet": 160,
}  # fmt: skip
_FIXED = ("patch14", "patch16", "cait")  # these need their images' size


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
    count, wrong, alarms = 0, 0, Counter[str]()
    for one in correct_models():
        try:
            found, seconds = examine(one)
        except RuntimeError as error:  # a name that this version of the library does not have
            print(f"| {one.name} | not examined: {str(error)[:60]} |", flush=True)
            continue
        count, wrong = count + 1, wrong + bool(found.errors)
        alarms.update(found.codes)
        cells = [one.name, f"{one.side}²", *(str(n) for n in found.checked.values())]
        cells += [", ".join(part.codes) for part in (found.errors, found.warnings, found.notes)]
        print(f"| {' | '.join(cells)} | {seconds:.1f} |", flush=True)
    print(f"\n{count} models, {wrong} with an error\n")
    if WRITE:
        path = Path(__file__).parents[1] / "docs" / "doctor" / "correct.json"
        written = {"models": count, "alarms": dict(sorted(alarms.items()))}
        path.write_text(json.dumps(written, indent=1) + "\n")
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


def cost_table(n: int = 8) -> bool:
    """Forward passes of a standard examination, counted by a hook on the model."""
    print(f"Cost of the standard examination of {n} images, in forward passes of {n} images\n")
    print("| model | calls | images | passes | backward passes |")
    print("| --- | --- | --- | --- | --- |")
    worst = 0.0
    models = [Correct(f"attnviz {name}", 96, partial(build_model, name)) for name in REFERENCES]
    models += [one for one in (*_torchvision(), *_timm()) if one.name in _COSTED]
    for one in models:
        torch.manual_seed(0)
        model = one.make().eval()
        images, _, _ = patched(n, 0, one.side)
        plain: list[float] = []
        differentiated: list[float] = []

        def count(
            _: Any, args: Any, to: list[float] = plain, back: list[float] = differentiated,
            area: int = one.side**2,
        ) -> None:  # fmt: skip
            images = len(args[0]) * args[0].shape[-1] * args[0].shape[-2] / area
            (back if torch.is_grad_enabled() else to).append(images)

        model.register_forward_pre_hook(count)
        diagnose(model, images, trained=True)  # which applies every rule
        passes = (sum(plain) + sum(differentiated)) / n
        worst = max(worst, passes)
        print(f"| {one.name} | {len(plain) + len(differentiated)} | "
              f"{sum(plain) + sum(differentiated):.0f} | {passes:.1f} | {len(differentiated)} |",
              flush=True)  # fmt: skip
    print(f"\nworst {worst:.1f} passes, limit {LIMIT:.0f}\n")
    return worst <= LIMIT


TABLES = {"correct": correct_table, "faulty": faulty_table, "cost": cost_table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES)
    parser.add_argument("--write", action="store_true", help="docs/doctor/correct.json")
    args = parser.parse_args()
    only = args.only
    global WRITE
    WRITE = args.write
    warnings.simplefilter("ignore")  # foreign libraries' deprecations
    results = [table() for name, table in TABLES.items() if only in (None, name)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
