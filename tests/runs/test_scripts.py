"""The scripts that print docs/reliability.md still run, and still find nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def printed(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_writers_are_killed_and_nothing_is_lost() -> None:
    assert "10 kills, 0 unreadable or lost" in printed(
        "benchmarks/faults.py", "kills", "--kills", "10"
    )


def test_arbitrary_bytes_are_answered_with_our_errors_alone() -> None:
    lines = printed("benchmarks/fuzz_runs.py", "--seconds", "1.5").splitlines()
    assert len([line for line in lines if line.endswith(" 0 findings")]) == 3
