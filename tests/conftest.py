"""What every test shares."""

from __future__ import annotations

import gc
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

# The tests' models are tiny: threads would wait for one another, the more so beside other workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jaxtyping
import pytest
import torch

import tests.checker  # noqa: F401 - the run-time checks name it; it must be there before attnviz

# A loaded machine draws its examples slowly, and that says nothing about the code. The examples
# are the same on every run, so that a change is judged by what it changed; new ones are sought
# with HYPOTHESIS_PROFILE=explore.
_patient = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("same", _patient, derandomize=True)
hypothesis.settings.register_profile("explore", _patient)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_finish() -> None:
    """Take what is imported out of the garbage collector's rounds: a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


_THREADS = torch.get_num_threads()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Take back the threads that a test gave torch: with them all later tests would be slower."""
    torch.set_num_threads(_THREADS)


def pytest_unconfigure() -> None:
    """Give it back: extension modules look for leaks at exit."""
    gc.unfreeze()


def pytest_report_header() -> str:
    """The processor and what torch makes of it, since bits differ between processors."""
    return _machine()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The same once more, where the end of a long run is all that is kept."""
    terminalreporter.write_line(_machine())


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    amx = any(line.startswith("flags") and " amx_tile" in line for line in lines)
    level = torch.backends.cpu.get_cpu_capability()
    return (
        f"processor: {name or platform.processor()}, {os.cpu_count()} cores, "
        f"{'with' if amx else 'without'} AMX; torch {torch.__version__}, {level}"
    )


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time shape checks off, as a user runs: for tests of our own error messages."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium, or the one that CHROMIUM names."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.skip("no chromium on this machine: apt-get install chromium, or set CHROMIUM")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[object]:
    """One headless Chromium for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
