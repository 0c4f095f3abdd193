"""Trainings of a second, for tests of what is around them."""

from __future__ import annotations

from experiments.settings import Settings

TINY = Settings(
    variant="mha", side=32, size=8, train_images=16, val_images=8, test_images=12, batch=8,
    epochs=2, patience=99, precision="fp32", device="cpu", threads=1, faithful=0,
)  # fmt: skip

WORDS = (  # noqa: SIM905 - reads as it would be typed
    "--side 32 --size 8 --train-images 16 --val-images 8 --test-images 12 --batch 8 --epochs 2 "
    "--patience 99 --precision fp32 --device cpu --threads 1 --faithful 0"
).split()
