"""Run folders like those of `experiments`, made in a second: photographs, patches, maps, curves.

The numbers are invented, the relations between them are not: every score is computed from the map
that is stored beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnviz.figures import resized
from attnviz.runs import open_run, save_dataset, save_run, start_run
from dashboard.overlap import iou_curves, stretched

SIDE, GRID, PATCH = 96, 24, 16
# variant: how much of the map is on the patch, how diffuse it is, accuracy, its primary map
VARIANTS = {
    "cnn": (0.30, 9.0, 0.99, "layer_gradcam"),
    "mha_reshape": (0.00, 0.0, 0.74, "received"),
    "mha": (0.75, 2.2, 0.99, "received"),
    "mha_conv1d": (0.55, 4.0, 0.98, "received"),
    "cbam_channel": (0.22, 6.0, 0.99, "channel_gated"),
    "cbam": (0.50, 5.0, 0.99, "gate_map"),
}
SETTINGS = {
    "data": "photos",
    "side": SIDE,
    "test_images": 64,
    "shape": "square",
    "size": PATCH,
    "opacity": 1.0,
    "epochs": 12,
    "batch": 32,
    "lr": 4e-3,
    "device": "cpu",
    "model": {},
}
ATTENTION = ("mha_reshape", "mha", "mha_conv1d")


def photographs(n: int, seed: int = 0) -> np.ndarray:
    """Crops of scikit-image's own colour photographs, (n, 96, 96, 3) uint8."""
    from skimage import data

    rng = np.random.default_rng(seed)
    sources = [data.astronaut(), data.chelsea(), data.coffee()]
    crops = []
    for i in range(n):
        photo = sources[i % len(sources)][::2, ::2]
        y, x = rng.integers(0, photo.shape[0] - SIDE), rng.integers(0, photo.shape[1] - SIDE)
        crops.append(photo[y : y + SIDE, x : x + SIDE])
    return np.stack(crops)


def dataset(root: Path, n: int = 64, *, seed: int = 0, patch: int = PATCH) -> str:
    """Test images, every other one with a white square, below `root/datasets`."""
    images = photographs(n, seed).copy()
    rng = np.random.default_rng(seed + 1)
    masks = np.zeros((n, SIDE, SIDE), bool)
    boxes = np.zeros((n, 4), np.int64)
    for i in range(0, n, 2):
        y, x = rng.integers(0, SIDE - patch, 2)
        images[i, y : y + patch, x : x + patch] = 255
        masks[i, y : y + patch, x : x + patch] = True
        boxes[i] = x, y, x + patch, y + patch
    labels = masks.any((1, 2)).astype(np.int64)
    named = {"train": {"retina": "a retina"}, "test": {"coffee": "a cup of coffee"}}
    info = {
        "data": "photos", "split": "test", "patch": {"size": patch, "shape": "square"},
        "photographs": named,
    }  # fmt: skip
    return save_dataset(root, images=images, masks=masks, boxes=boxes, labels=labels, info=info)


def looking(masks: np.ndarray, on: float, width: float, rng: np.random.Generator) -> np.ndarray:
    """Maps (n, 24, 24) that lay a share `on` of their mass around the mask, the rest anywhere."""
    n = len(masks)
    coarse = masks.reshape(n, GRID, SIDE // GRID, GRID, SIDE // GRID).mean((2, 4))
    noise = rng.gamma(0.6, 1.0, (n, GRID, GRID)).astype(np.float32)
    noise /= noise.sum((1, 2), keepdims=True)
    y, x = np.mgrid[:GRID, :GRID]
    blobs = np.zeros((n, GRID, GRID), np.float32)
    for i in range(n):
        if coarse[i].any():
            cy, cx = (np.average(axis, weights=coarse[i]) for axis in (y, x))
        else:
            cy, cx = rng.uniform(0, GRID, 2)
        blobs[i] = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / max(width, 1.0) ** 2)
    blobs /= blobs.sum((1, 2), keepdims=True)
    wander = np.clip(on + rng.normal(0, 0.15, (n, 1, 1)) * (on > 0), 0, 1)
    return (wander * blobs + (1 - wander) * noise).astype(np.float32)


def scores(maps: np.ndarray, masks: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Energy, pointing game and IoU of maps, NaN where there is no patch."""
    large = np.maximum(resized(maps, (SIDE, SIDE)), 0)
    there = masks.any((1, 2))
    energy = (large * masks).sum((1, 2)) / large.sum((1, 2))
    best = large.reshape(len(maps), -1).argmax(1)
    hit = masks.reshape(len(maps), -1)[np.arange(len(maps)), best].astype(float)
    hot = stretched(large) >= threshold
    iou = (hot & masks).sum((1, 2)) / np.maximum((hot | masks).sum((1, 2)), 1)
    oracle = np.full(len(maps), np.nan)
    oracle[there] = np.nanmax(iou_curves(maps[there], masks[there]), axis=1)
    found = {"energy_pointing_game": energy, "pointing_game": hit, "max_iou": iou}
    found = {name: np.where(there, values, np.nan) for name, values in found.items()}
    return found | {"oracle_iou": oracle}


def run(
    root: Path,
    variant: str,
    seed: int,
    digest: str,
    *,
    run_id: str | None = None,
    weights: Any = None,
    settings: dict[str, Any] | None = None,
    rows: bool = False,
) -> Path:
    """One complete run of a variant."""
    from attnviz.runs import open_dataset

    held = open_dataset(root, digest)
    masks, boxes, labels = held.masks(), held.boxes(), held.labels()
    rng = np.random.default_rng([seed, *variant.encode()])
    on, width, accuracy, primary = VARIANTS[variant]
    maps = {primary: looking(masks, on, width, rng)}
    heads = {}
    if variant in ATTENTION:
        each = [looking(masks, on * share, width, rng) for share in (1.2, 1, 0.6, 0.2)]
        heads = {f"{primary}.heads": np.stack(each, axis=1)}
        maps[primary] = np.mean(each, axis=0)
    if primary != "layer_gradcam":
        maps["layer_gradcam"] = looking(masks, 0.35, 7.0, rng)
    maps["integrated_gradients"] = looking(masks, 0.4, 3.0, rng)
    table, summary = _table(maps, masks, boxes, labels, accuracy, primary, rng)
    path = root / (run_id or f"{variant}-{seed}")
    held_rows = {"received": attention_rows(masks[:4:2], rng)} if rows else {}
    gates = {}
    if variant.startswith("cbam"):
        gates["channel_gated"] = rng.beta(2, 2, (len(masks), 32))
    if variant == "cbam":
        gates["gate_map"] = maps[primary]
    save_run(
        path,
        variant=variant,
        seed=seed,
        dataset=digest,
        settings=SETTINGS | {"factory": f"attnviz:{variant}"} | (settings or {}),
        samples=table,
        maps=maps | heads,
        gates=gates,
        curves=curves(12, on, accuracy, rng),
        summary=summary,
        weights=weights,
        environment={"device": "cpu", "torch": "2.15.0", "attnviz": "0.1.0"},
        thing="patch",
    )
    if held_rows:
        from attnviz.runs import amend_run

        with amend_run(path) as writer:
            about = {"query_grid": [GRID, GRID], "key_grid": [GRID, GRID], "prefix": 0}
            writer.rows("received", held_rows["received"], images=[0, 2], about=about)
    return path


def _table(
    maps: dict[str, np.ndarray],
    masks: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    accuracy: float,
    primary: str,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    n = len(masks)
    right = rng.random(n) < accuracy
    prediction = np.where(right, labels, 1 - labels)
    logit = np.where(prediction == 1, 1, -1) * rng.uniform(0.5, 6, n)
    table = pd.DataFrame(
        {
            "index": np.arange(n),
            "label": labels,
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
            "prediction": prediction,
            "correct": right,
            **{name: boxes[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))},
        }
    )
    metrics: dict[str, Any] = {}
    thresholds = {}
    levels = {
        "energy_pointing_game": (0.028, 0.036, 0.811),
        "pointing_game": (0.028, 0.051, 1.0),
        "max_iou": (0.028, 0.087, 0.959),
        "oracle_iou": (0.036, 0.087, 0.959),
    }
    for name, values in maps.items():
        thresholds[name] = 0.35
        metrics[name] = {}
        for metric, column in scores(values, masks, thresholds[name]).items():
            table[f"{name}/{metric}"] = column
            chance, centre, redrawn = levels[metric]
            metrics[name][metric] = {
                "mean": float(np.nanmean(column)),
                "valid": int(np.isfinite(column).sum()),
                "n": n,
                "low": float(np.nanmean(column)) - 0.03,
                "high": float(np.nanmean(column)) + 0.03,
                "chance": chance,
                "centre": centre,
                "redrawn": redrawn,
            }
    if primary != "layer_gradcam":
        for key, low, high in (("spearman", -0.2, 0.9), ("ssim", 0, 0.6), ("topk_iou", 0, 0.7)):
            table[f"{primary}/agreement_{key}"] = rng.uniform(low, high, n)
    summary = {
        "accuracy": float(right.mean()),
        "loss": 0.1,
        "seconds": 41.5,
        "map": primary,
        "threshold": thresholds,
        "metrics": metrics,
        "findings": findings(primary),
        "knockout": [] if primary == "layer_gradcam" else cuts(rng),
    }
    return table, summary


def cuts(rng: np.random.Generator) -> list[dict[str, Any]]:
    """What `attnviz.faithfulness.knockout` would say of four heads."""
    return [
        {
            "name": "features.attention.attend", "kind": "attention", "head": head, "way": way,
            "effect": effect, "low": effect - 0.2, "high": effect + 0.2, "size": abs(effect),
            "images": 16,
        }
        for head in range(4)
        for way in ("uniform", "zero")
        for effect in [float(rng.normal(-0.5, 0.5))]
    ]  # fmt: skip


def findings(where: str) -> list[dict[str, Any]]:
    """Two findings as `attnviz.diagnose` words them."""
    return [
        {
            "code": "attention-sink",
            "severity": "warning",
            "where": where,
            "evidence": {"keys": 3, "share": 0.41},
            "meaning": "A few keys take most of the attention of every query.",
            "remedy": "look at the maps without these keys, or add register tokens",
            "page": "docs/findings.md#attention-sink",
        },
        {
            "code": "uniform-heads",
            "severity": "note",
            "where": where,
            "evidence": {"head": 3, "entropy": 0.998},
            "meaning": "A head attends everywhere alike.",
            "remedy": "leave the head out of the mean, or train with fewer heads",
            "page": "docs/findings.md#uniform-heads",
        },
    ]


def curves(epochs: int, on: float, accuracy: float, rng: np.random.Generator) -> list[dict]:
    """One row per epoch, the map's score rising with it."""
    rows = []
    for epoch in range(1, epochs + 1):
        share = 1 - np.exp(-epoch / 3)
        rows.append(
            {
                "epoch": epoch,
                "seconds": 3.4,
                "train_loss": 0.7 - 0.6 * share + rng.normal(0, 0.01),
                "val_loss": 0.7 - 0.55 * share + rng.normal(0, 0.02),
                "train_accuracy": 0.5 + (accuracy - 0.5) * share,
                "val_accuracy": 0.5 + (accuracy - 0.52) * share + rng.normal(0, 0.005),
                "val_energy_pointing_game": 0.028 + 0.7 * on * share + abs(rng.normal(0, 0.01)),
            }
        )
    return rows


def attention_rows(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Full attention (k, 4, 576, 576): each head looks at the patch, near itself, or anywhere."""
    places = GRID * GRID
    coarse = masks.reshape(-1, GRID, SIDE // GRID, GRID, SIDE // GRID).mean((2, 4))
    coarse = coarse.reshape(len(masks), 1, places)
    y, x = np.divmod(np.arange(places), GRID)
    near = -((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 18.0
    heads = []
    for patch_pull, near_pull in ((5, 0), (3, 1), (0, 2), (0, 0)):
        logits = patch_pull * coarse + near_pull * near + rng.normal(0, 0.4, (places, places))
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True))
    return np.stack(heads, axis=1).astype(np.float32)


def good_runs(root: Path, *, seeds: int = 2, n: int = 64, model: bool = False) -> Path:
    """All six variants, several seeds, on the same images; rows of two images for seed 0."""
    digest = dataset(root, n)
    for variant in VARIANTS:
        for seed in range(seeds):
            kept = _weights(variant) if model and seed == 0 else None
            run(root, variant, seed, digest, weights=kept, rows=seed == 0 and variant in ATTENTION)
    return root


def _weights(variant: str) -> dict[str, np.ndarray]:
    import torch

    from attnviz.models import build_model

    torch.manual_seed(0)
    return {name: value.numpy() for name, value in build_model(variant).state_dict().items()}


def training_run(root: Path, run_id: str = "mha-9", *, epochs: int = 5) -> Any:
    """A run in progress with its curves and the maps of four pinned images at each epoch."""
    from attnviz.runs import list_datasets, open_dataset

    digest = list_datasets(root)[0]
    masks = open_dataset(root, digest).masks([0, 2, 4, 6])
    writer = start_run(
        root,
        run_id,
        variant="mha",
        seed=9,
        dataset=digest,
        settings=SETTINGS,
    )
    rng = np.random.default_rng(9)
    for epoch, row in enumerate(curves(epochs, 0.75, 0.99, rng), 1):
        writer.curve(**row)
        writer.heartbeat(epoch=epoch, epochs=12)  # written with the maps below, at the latest
        maps = looking(masks, 0.75 * (1 - np.exp(-epoch / 3)), 2.5, rng)
        writer.maps(f"received@{epoch:04d}", maps, about={"epoch": epoch, "images": [0, 2, 4, 6]})
    return writer


def lasting_training(root: Path, run_id: str) -> None:
    """A run that stays in training however long the tests take: its heartbeat lies far ahead."""
    edited(training_run(root, run_id).path, heartbeat="2999-01-01T00:00:00+00:00")


def bad_runs(root: Path) -> Path:
    """Good runs beside every kind of bad one; nothing here is ranked but mha, cnn and cbam."""
    digest = dataset(root)
    for variant in ("mha", "cnn", "cbam"):
        run(root, variant, 0, digest)
    (root / "no-header").mkdir()
    run(root, "cbam_channel", 0, digest, run_id="short-samples")
    _cut(root / "short-samples" / "samples.parquet")
    run(root, "cbam_channel", 1, digest, run_id="bad-json")
    (root / "bad-json" / "run.json").write_text('{"schema": 1, "stat')
    run(root, "cbam_channel", 2, digest, run_id="newer")
    edited(root / "newer", schema=99)
    lasting_training(root, "training-now")
    stale = training_run(root, "stale-run")
    stale.heartbeat()
    edited(
        root / "stale-run",
        heartbeat="2020-01-01T00:00:00+00:00",
        writer={"host": "elsewhere", "pid": 1},
    )
    training_run(root, "stopped-run").stop("interrupted")
    other = dataset(root, seed=5)
    run(root, "mha_conv1d", 0, other, run_id="other-images")
    return root


def flip_a_byte(path: Path) -> None:
    """The same size, another content: only the checksum or the parser can tell."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def hostile_run(root: Path) -> Path:
    """A run whose variant and settings would be markup or a path if anyone believed them."""
    from attnviz.runs import list_datasets

    path = run(root, "cnn", 7, list_datasets(root)[0], run_id="hostile")
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    return edited(
        path,
        variant=f"{evil} ../../etc :red[x] $a$ [y](javascript:alert(1))",
        settings=SETTINGS | {evil: "../../../etc/passwd"},
    )


EVIL = "![i](http://127.0.0.1:9/beacon) <img src=http://127.0.0.1:9/x> $\\frac{ :red[x] **b** `c`"
"""What a page would fetch, set as a formula or draw bold if it were taken for Markdown."""


def evil_runs(root: Path) -> Path:
    """Two runs in which every string that a run can carry is `EVIL`, names of arrays included."""
    import pandas as pd

    from attnviz.runs import open_dataset

    digest = dataset(root, 8)
    held = open_dataset(root, digest)
    images, masks = held.images(), held.masks()
    info = {EVIL: EVIL}
    digest = save_dataset(root, images=images[::-1], masks=masks[::-1], info=info)
    first = run(root, "mha", 0, dataset(root, 8), run_id="plain")
    from attnviz.runs import open_run

    known = open_run(first)
    table = known.samples().iloc[::-1].reset_index(drop=True)
    table["index"] = range(len(table))
    boxes = open_dataset(root, digest).boxes()
    table[["x0", "y0", "x1", "y1"]] = boxes
    name = "![i](http://127.0.0.1:9/b) $\\frac{ :red[x] **b**"  # as long as a map's may be
    table = table.rename(
        columns={
            column: f"{name}/{column.partition('/')[2]}"
            for column in table.columns
            if column.startswith("received/")
        }
    )
    for extra in (EVIL, "iou of " + EVIL):
        table[f"{name}/{extra}"] = table[f"{name}/energy_pointing_game"]
    metrics = dict(known.summary["metrics"])
    metrics[name] = metrics.pop("received")
    metrics[name][EVIL] = metrics[name]["energy_pointing_game"]
    rng = np.random.default_rng(0)
    finding = {
        "code": EVIL, "severity": "warning", "layer": EVIL, "message": EVIL, "value": 1.0,
        "remedy": EVIL, "title": EVIL, "evidence": {EVIL: 1.0}, "where": EVIL,
    }  # fmt: skip
    summary = dict(known.summary) | {
        "metrics": metrics, "map": name, "findings": [finding], "diagnosis": EVIL,
        "layers": {name: EVIL}, EVIL: EVIL,
        "knockout": [{"name": EVIL, "head": 0, "way": EVIL, "effect": 0.1, "low": 0.0,
                      "high": 0.2, "size": 0.1, "images": 8}],
    }  # fmt: skip
    shutil.rmtree(first)
    for seed in (0, 1):
        save_run(
            root / f"evil-{seed}", variant=EVIL, seed=seed, dataset=digest,
            settings=SETTINGS | {EVIL: EVIL}, samples=pd.DataFrame(table),
            maps={name: known_maps(held, rng), f"{name}.heads": known_heads(held, rng)},
            gates={name: rng.random((len(table), 4))},
            rows={name: attention_rows(masks[:4:2], rng)},
            curves=[{"epoch": n, "train_loss": 1.0, EVIL: 1.0} for n in range(2)],
            summary=summary, environment={EVIL: EVIL}, classes=[EVIL, EVIL], thing=EVIL,
        )  # fmt: skip
    return root


def known_maps(held: Any, rng: np.random.Generator) -> np.ndarray:
    """Maps on the grid, one per image."""
    return rng.random((held.count, GRID, GRID), dtype=np.float32)


def known_heads(held: Any, rng: np.random.Generator) -> np.ndarray:
    """The same for four heads."""
    return rng.random((held.count, 4, GRID, GRID), dtype=np.float32)


def many_runs(root: Path, count: int) -> Path:
    """Copies of one run under many ids: for lists, not for rankings."""
    digest = dataset(root, 8)
    first = run(root, "mha", 0, digest, run_id="run-0000")
    text = (first / "run.json").read_text()
    for i in range(1, count):
        folder = root / f"run-{i:04d}"
        shutil.copytree(first, folder, copy_function=os.link)
        (folder / "run.json").unlink()
        (folder / "run.json").write_text(text.replace('"seed": 0', f'"seed": {i}'))
    return root


def sweep(root: Path, count: int, *, n: int = 64) -> Path:
    """One sweep: `count` complete runs, three seeds of each setting, their files shared."""
    digest = dataset(root, n)
    firsts = [run(root, "mha", seed, digest, run_id=f"first-{seed}") for seed in range(3)]
    for i in range(count):
        first, setting = firsts[i % 3], i // 3
        folder = root / f"run-{i:04d}"
        shutil.copytree(first, folder, copy_function=os.link)
        (folder / "run.json").unlink()
        content = json.loads((first / "run.json").read_text())
        content.pop("seal", None)
        content["settings"] |= {
            "lr": (1e-3, 2e-3, 4e-3, 8e-3)[setting % 4], "batch": (16, 32, 64)[setting // 4 % 3],
            "dropout": setting // 12 / 100,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(content))
    for first in firsts:
        shutil.rmtree(first)
    return root


def large_run(root: Path, n: int) -> Path:
    """One run of many images that are all alike: for pages, not for rankings."""
    few = dataset(root, 8)
    from attnviz.runs import open_dataset
    from attnviz.runs import open_run as opened

    held = open_dataset(root, few)
    turn = np.arange(n) % 8
    boxes = held.boxes()[turn]
    digest = save_dataset(
        root, images=held.images()[turn], masks=held.masks()[turn], boxes=boxes,
        labels=held.labels()[turn], info={},
    )  # fmt: skip
    first = opened(run(root, "mha", 0, few, run_id="few"))
    table = first.samples().iloc[turn].reset_index(drop=True)
    table["received/energy_pointing_game"] = np.linspace(0, 1, n)
    path = root / "many"
    save_run(
        path, variant="cnn", seed=0, dataset=digest, settings=SETTINGS, samples=table,
        maps={"received": first.maps("received")[turn]}, summary=dict(first.summary),
    )  # fmt: skip
    shutil.rmtree(root / "few")
    return path


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edited(path: Path, **fields: Any) -> Path:
    content = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(content | fields))
    return path


if __name__ == "__main__":
    import sys

    target = Path(sys.argv[1])
    began = time.perf_counter()
    good_runs(target, model=True)
    training_run(target)
    print(f"{target}: {time.perf_counter() - began:.1f} s, {open_run(target / 'mha-0').id}")
