"""The doctor on correct models and on faulty layers, and its cost.

    python benchmarks/doctor.py                  all four tables
    python benchmarks/doctor.py --only correct   or: null, faulty, cost
    python benchmarks/doctor.py --only correct --kept FILE --minutes 10      in several runs

Exit code 1 if a correct model has an error, a faulty layer lacks its code or has another error, or
the cost is more than 25 forward passes. Nothing is downloaded: weights are random, but for the
reference models, which are also trained for some seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from attnviz.diagnosis import RULES, SEVERITIES, diagnose, diagnose_split
from attnviz.diagnosis.rules.cost import DEARER
from attnviz.diagnosis.rules.localization import best_of
from attnviz.diagnosis.rules.splits import FEWER, different_places
from attnviz.diagnosis.run_diagnosis import Training
from attnviz.models import build_model
from attnviz.patches import inject_patch
from benchmarks.architectures import ENTRIES, Entry, initialised, side_of
from benchmarks.isolated import isolated
from tests.diagnosis.twins import TWINS

REFERENCES = ("cnn", "mha", "mha_conv1d", "cbam_channel", "cbam", "vit")
LIMIT = 25.0  # forward passes that the standard examination may cost
WRITE = False  # whether the numbers on correct models go to docs/doctor/correct.json
_COSTED = ("torchvision:swin_t", "timm:vit_tiny_patch16_224", "timm:cait_xxs24_224",
           "timm:efficientnet_b0", "timm:coatnet_pico_rw_224", "timm:mobilevit_xxs")  # fmt: skip
LARGEST = 256  # side of images; models of larger ones are built for smaller ones
SEEDS = 4  # trainings of each reference model
_PLAIN, _MASKED = 4, 64  # images of models with random weights, and of trained ones, with masks


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
    """The models of `architectures.py` and the reference models, with random weights."""
    for name in REFERENCES:
        yield Correct(f"attnviz {name}", 96, partial(build_model, name))
    yield from map(_published, ENTRIES)


def trained_models() -> Iterator[Correct]:
    """The reference models, each trained `SEEDS` times."""
    for name in REFERENCES:
        for seed in range(SEEDS):
            yield Correct(f"attnviz {name}, seed {seed}", 48, partial(train, name, seed), True)


def _small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 16, 12, 3, 192, 768)


def _small_beit() -> nn.Module:
    import timm

    return timm.create_model("beit_base_patch16_224", embed_dim=192, num_heads=3)


def _shallow_cait() -> nn.Module:
    import timm

    return timm.create_model("cait_xxs24_224", depth=8)


_SMALLER = {
    "torchvision:vit_b_16": _small_vit, "timm:beit_base_patch16_224": _small_beit,
    "timm:cait_xxs24_224": _shallow_cait,
}  # fmt: skip
"""Narrow or shallow models of the same architecture, for those that take more than is needed."""


def _published(entry: Entry) -> Correct:
    side = side_of(entry)
    if entry.name in _SMALLER:
        return Correct(entry.name, side, _SMALLER[entry.name])
    if side > LARGEST:  # of 518², the runs that the doctor keeps would take 20 GB
        import timm

        name = entry.name.removeprefix("timm:")
        return Correct(entry.name, 98, partial(timm.create_model, name, img_size=98))
    return Correct(entry.name, side, partial(initialised, entry))


def train(name: str, seed: int, steps: int = 150) -> nn.Module:
    """A reference model that has learned to see a patch in noise."""
    torch.manual_seed(seed)
    model = build_model(name, width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        images, labels, _ = patched(32, 1 + step + steps * seed)
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


def examine(one: Correct) -> dict[str, Any]:
    """The codes found by severity, what was examined, and the seconds that it took."""
    torch.manual_seed(0)
    model = one.make()
    images, _, masks = patched(_MASKED if one.trained else _PLAIN, 0, one.side)
    start = time.perf_counter()
    found = diagnose(model, images, masks if one.trained else None, trained=one.trained)
    codes = {severity: list(found.of(severity).codes) for severity in SEVERITIES}
    return codes | {"checked": dict(found.checked), "seconds": time.perf_counter() - start}


def correct_table(kept: Path | None = None, minutes: float | None = None) -> bool:
    """Correct models, each in a process of its own."""
    print("Correct models: no error is right\n")
    print("| model | images | attention | gates | errors | warnings | notes | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    every = sorted((*correct_models(), *trained_models()), key=lambda one: one.side)
    models = {one.name: one for one in every}  # the quick ones first
    todo = [(name, partial(examine, one)) for name, one in models.items()]
    results = {}
    for name, found in isolated(todo, kept, minutes):
        results[name] = found
        print(_row(models[name], found), flush=True)
    left = len(models) - len(results)
    failed = [name for name, found in results.items() if "failure" in found]
    wrong = [name for name, found in results.items() if found.get("error")]
    print(
        f"\n{len(results)} models, with an error: {wrong or 'none'}; failed: {failed or 'none'}\n"
    )
    if left:
        print(f"{left} are left; run again with the same --kept to continue\n")
    if WRITE:
        path = Path(__file__).parents[1] / "docs" / "doctor" / "correct.json"
        written = {
            word: _counted(
                [found for name, found in results.items() if models[name].trained is state]
            )
            for word, state in (("untrained", None), ("trained", True))
        }
        path.write_text(json.dumps(written | {"left": left}, indent=1) + "\n")
    return not (wrong or failed or left)


def _row(one: Correct, found: dict[str, Any]) -> str:
    if "failure" in found:
        return f"| {one.name} | {one.side}² | {found['failure']} |"
    cells = [one.name, f"{one.side}²", *(str(n) for n in found["checked"].values())]
    cells += [", ".join(found[severity]) for severity in SEVERITIES]
    return f"| {' | '.join(cells)} | {found['seconds']:.1f} |"


def _counted(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of models, and by severity of those with each finding."""
    results = [found for found in results if "failure" not in found]
    counts = {
        severity: Counter(code for found in results for code in found[severity])
        for severity in SEVERITIES
    }
    return {"models": len(results)} | {
        severity: dict(sorted(counted.items())) for severity, counted in counts.items()
    }


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
    models += [_published(entry) for entry in ENTRIES if entry.name in _COSTED]
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


def null_table(draws: int = 2000) -> bool:
    """False-alarm rates of the rules on masks, trainings and splits, of simulated correct ones."""
    print(f"Rules without a fault to find, {draws} draws each\n")
    print("| rule | simulated | alarms |\n| --- | --- | --- |")
    rates = {}
    for code, (of, alarm) in _nulls().items():
        generator = np.random.default_rng(0)
        rates[code] = {"of": of, "rate": sum(alarm(generator) for _ in range(draws)) / draws}
        print(f"| {code} | {of} | {rates[code]['rate']:.2%} |", flush=True)
    print()
    if WRITE:
        path = Path(__file__).parents[1] / "docs" / "doctor" / "null.json"
        path.write_text(json.dumps({"draws": draws, "rules": rates}, indent=1) + "\n")
    return all(one["rate"] <= 0.05 for one in rates.values())


Alarm = Callable[[np.random.Generator], bool]


def _nulls() -> dict[str, tuple[str, Alarm]]:
    return {
        "not-above-chance": (
            "12 maps whose true lift is 1.25, spread 0.5, 64 images",
            partial(_of_lift, "not-above-chance", 1.25, 64),
        ),
        "outside-mask": (
            "12 maps at chance (lift 1, spread 0.5), 16 images",
            partial(_of_lift, "outside-mask", 1.0, 16),
        ),
        "no-learning": ("losses that halve in 20 epochs, noise 5 %", _of_training("no-learning")),
        "overfitting": ("losses that halve in 20 epochs, noise 5 %", _of_training("overfitting")),
        "shared-places": ("400 and 200 places drawn at random on 96²", _of_places),
        "unlikely-places": ("200 places drawn at random on 96²", _of_few_places),
        "shared-photographs": ("20 and 10 images of smooth noise", _of_photographs),
        "slower-than-plain": ("equal cost, noise 10 %", _of_cost),
        "heavier-than-plain": ("equal cost, noise 10 %", _of_cost),
    }


def _of_lift(code: str, lift: float, images: int, generator: np.random.Generator) -> bool:
    spread = math.sqrt(math.log(1 + (0.5 / lift) ** 2))
    lifts = {
        str(i): torch.from_numpy(
            generator.lognormal(math.log(lift) - spread**2 / 2, spread, images)
        )
        for i in range(12)
    }  # fmt: skip
    best = best_of(lifts)
    case = types.SimpleNamespace(cached=lambda _: best)
    return any(True for _ in RULES[code].find(case))


def _of_training(code: str) -> Alarm:
    def alarm(generator: np.random.Generator) -> bool:
        falling = 0.35 + 0.35 * np.exp(-np.arange(20) / 5)
        curves = {name: falling * generator.lognormal(0, 0.05, 20)
                  for name in ("train_loss", "val_loss")}  # fmt: skip
        return any(True for _ in RULES[code].find(Training(pd.DataFrame(curves))))

    return alarm


def _boxes(generator: np.random.Generator, n: int) -> NDArray[np.int64]:
    corner = generator.integers(0, 96 - 24 + 1, (n, 2))
    return np.concatenate([corner, corner + 24], 1)


def _of_places(generator: np.random.Generator) -> bool:
    boxes = {"train_boxes": _boxes(generator, 400), "test_boxes": _boxes(generator, 200)}
    return bool(diagnose_split(**boxes, size=(96, 96)))


def _of_few_places(generator: np.random.Generator) -> bool:
    places, expected = different_places(_boxes(generator, 200), (96, 96))
    return places < FEWER * expected


def _of_photographs(generator: np.random.Generator) -> bool:
    coarse = generator.integers(0, 256, (30, 6, 6, 3)).astype(np.uint8)
    images = coarse.repeat(8, 1).repeat(8, 2) + generator.integers(0, 4, (30, 48, 48, 3))
    images = images.astype(np.uint8)
    return bool(diagnose_split(train_images=images[:20], test_images=images[20:]))


def _of_cost(generator: np.random.Generator) -> bool:
    own, plain = generator.lognormal(0, 0.1, 2)
    return bool(own > DEARER * plain)


TABLES = {
    "correct": correct_table, "null": null_table, "faulty": faulty_table, "cost": cost_table,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES)
    parser.add_argument("--write", action="store_true", help="docs/doctor/correct.json, null.json")
    parser.add_argument("--kept", type=Path, help="file of results on correct models, to continue")
    parser.add_argument("--minutes", type=float, help="after which to stop examining them")
    args = parser.parse_args()
    global WRITE
    WRITE = args.write
    warnings.simplefilter("ignore")  # foreign libraries' deprecations
    tables = TABLES | {"correct": partial(correct_table, args.kept, args.minutes)}
    results = [table() for name, table in tables.items() if args.only in (None, name)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
