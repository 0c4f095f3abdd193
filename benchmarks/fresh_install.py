"""Wheel and sdist, installed into fresh environments and tested.

    uv run python benchmarks/fresh_install.py [--case "3.11 lowest" …] [--keep FOLDER]

Builds both with `uv build`, makes one virtual environment per case (the Pythons that attnviz
names, every extra, the oldest dependencies that pyproject.toml allows, from the sdist, and one
from which Captum and Streamlit are taken away again), installs, and does there what a new user
does: the command line, a model watched and measured, a run saved and read back, the dashboard
requested over HTTP, the demo painted by a browser within ten seconds. A Python that this machine
lacks is reported as not run. The exit code is 1 if anything failed. Needs `uv`, Chromium and a
package index; some gigabytes on the first run, for torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attnviz.text import table

ROOT = Path(__file__).resolve().parent.parent

USE = """
import sys
import attnviz as av
import pandas as pd
import torch

model = av.build_model("mha").eval()
clean = torch.rand(2, 3, 96, 96) * 2 - 1
images, masks, boxes = av.inject_patch(clean, size=16, seed=0)
with torch.no_grad(), av.watch(model) as seen:
    logits = model(images)
maps = av.received(seen["features.attention.attend"], size=images.shape[-2:])
scores = av.localization(maps, masks)
assert scores["energy_pointing_game"].shape == (2,)
if "captum" not in sys.argv[2:]:
    assert av.attribute(model, images, layer="features.conv3").shape == (2, 96, 96)
table = pd.DataFrame({"received/energy_pointing_game": scores["energy_pointing_game"].numpy()})
av.save_run(sys.argv[1] + "/first", variant="mha", settings={}, seed=0,
            samples=table, maps={"received": maps.numpy()})
"""

PAINTED_WITHIN = 10.0
PICTURES = "[data-testid=stBidiComponentIsolated] >> visible=true"
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"

FRAMEWORKS = ("torch", "numpy", "streamlit", "captum")


class FailedError(Exception):
    """A step failed; the text has which one and how."""


@dataclass(frozen=True)
class Case:
    """One way of installing.

    Attributes:
        name: For the table.
        python: Its version, major and minor.
        extras: Names of the extras.
        lowest: Whether dependencies are the oldest that are allowed, not the newest.
        sdist: Whether the source distribution is installed, and not the wheel.
        without: Packages taken away again after the installation.
    """

    name: str
    python: str = "3.11"
    extras: tuple[str, ...] = ()
    lowest: bool = False
    sdist: bool = False
    without: tuple[str, ...] = ()


EXTRAS = ("dask", "remote", "torchmetrics")
CASES = (
    Case("3.11"),
    Case("3.12", "3.12"),
    Case("3.13", "3.13"),
    Case("3.14", "3.14"),
    Case("3.11, every extra", extras=EXTRAS),
    Case("3.13, every extra", "3.13", EXTRAS),
    Case("3.11 lowest", lowest=True),
    Case("3.11 lowest, every extra", extras=EXTRAS, lowest=True),
    Case("3.11 from sdist", sdist=True),
    Case("3.11 without Captum, Streamlit", without=("captum", "streamlit")),
)


@dataclass(frozen=True)
class Place:
    """A fresh environment: its interpreter, its scripts and a folder to work in."""

    python: Path
    work: Path

    def run(self, *words: str | Path, code: int = 0, limit: float = 300) -> str:
        """Run a script of the environment; its output, if it ends as it should."""
        found = self.python.parent / words[0]
        done = subprocess.run(
            [found, *map(str, words[1:])],
            cwd=self.work, env=environment(), capture_output=True, text=True, timeout=limit,
        )  # fmt: skip
        if done.returncode != code:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [""]
            raise FailedError(f"{words[0]} {words[1]}: exit code {done.returncode}: {last[0]}")
        return done.stdout + done.stderr


def environment() -> dict[str, str]:
    """This process's, without what would lead a fresh environment back to the checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def uv(*words: str | Path) -> str:
    done = subprocess.run(
        ["uv", *map(str, words)], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise FailedError(f"uv {words[0]}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return done.stdout


def interpreter(version: str) -> str | None:
    """An interpreter of that version on this machine, verified by running it."""
    homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    for candidate in [*map(str, homes), f"python{version}", sys.executable]:
        where = shutil.which(candidate)
        if where is None:
            continue
        asked = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([where, "-c", asked], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return where
    return None


def built(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution; the wheel is built from the latter."""
    uv("build", "--quiet", "--out-dir", folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def requirements(wheel: Path, extras: tuple[str, ...]) -> list[str]:
    """Requirements of the wheel, from its metadata."""
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    wanted = []
    for line in found.requires or ():
        name, _, condition = line.partition(";")
        extra = re.search(r"extra == ['\"](.+?)['\"]", condition)
        if extra is None or extra[1] in extras:
            wanted.append(name.strip())
    return wanted


def installed(case: Case, wheel: Path, sdist: Path, folder: Path) -> Place:
    """A fresh environment with attnviz in it."""
    home = folder / re.sub(r"\W+", "-", case.name)
    uv("venv", "--quiet", "--python", str(interpreter(case.python)), home)
    place = Place(home / "bin" / "python", home / "work")
    place.work.mkdir()
    archive = sdist if case.sdist else wheel
    into = ("pip", "install", "--quiet", "--python", place.python)
    if case.lowest:
        uv(*into, "--resolution", "lowest-direct", *requirements(wheel, case.extras))
    brackets = f"[{','.join(case.extras)}]" if case.extras else ""
    uv(*into, f"attnviz{brackets} @ {archive.as_uri()}")
    if case.without:
        uv("pip", "uninstall", "--quiet", "--python", place.python, *case.without)
    return place


def only_itself(place: Place, case: Case) -> None:
    """The package put `attnviz`, its metadata and its script there, and nothing else."""
    listed = place.run("python", "-c", "import importlib.metadata as m; print(*m.files('attnviz'))")
    tops = {name.split("/")[0] for name in listed.split() if not name.startswith("..")}
    if {top for top in tops if not top.startswith("attnviz-")} != {"attnviz"}:
        raise FailedError(f"site-packages gained {sorted(tops)}")


def speaks(place: Place, case: Case) -> None:
    """`--help` lists the commands, `--version` the version."""
    if "dashboard" not in place.run("attnviz", "--help"):
        raise FailedError("attnviz --help does not list the dashboard")
    place.run("attnviz", "--version")


def works(place: Place, case: Case) -> None:
    """A model is watched, mapped, measured and attributed, and a run saved."""
    place.run("python", "-c", USE, place.work / "runs", *case.without)


def reads(place: Place, case: Case) -> None:
    """The commands about runs."""
    if "1 run" not in place.run("attnviz", "ls", "runs"):
        raise FailedError("attnviz ls does not find the run")
    place.run("attnviz", "verify", "runs")
    place.run("attnviz", "show", Path("runs") / "first")


def serves(place: Place, case: Case) -> None:
    """The dashboard responds, or names in one line what to install."""
    port = free_port()
    words = ("dashboard", "runs", "--no-browser", "--port", str(port))
    if "streamlit" in case.without:
        said = place.run("attnviz", *words, code=2)
        if said.count("\n") != 1 or "pip install streamlit" not in said:
            raise FailedError(f"without Streamlit, attnviz dashboard says {said!r}")
        return
    with serving(place, words):
        for path in ("/_stcore/health", "/"):
            answered(f"http://127.0.0.1:{port}{path}")


def paints(place: Place, case: Case) -> str:
    """Seconds from `attnviz demo` to the first page with its pictures, at first and again.

    The first start compiles what was installed.
    """
    if "streamlit" in case.without:
        return "–"
    taken = [painted(place, place.work / "demo") for _ in range(2)]
    if max(taken) > PAINTED_WITHIN:
        raise FailedError(f"painted after {taken[0]:.1f} s, and again after {taken[1]:.1f} s")
    return f"{taken[0]:.1f} s, {taken[1]:.1f} s"


def painted(place: Place, folder: Path) -> float:
    """Seconds from the command to a painted first page in Chromium, which is open already."""
    from playwright.sync_api import sync_playwright

    chromium, port = shutil.which("chromium"), free_port()
    if chromium is None:
        raise FailedError("no chromium on this machine")
    words = ("demo", "--no-browser", "--port", str(port), "--folder", str(folder))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        start = time.perf_counter()
        with serving(place, words):
            answered(f"http://127.0.0.1:{port}/_stcore/health")
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector(PICTURES, timeout=60_000)
            page.wait_for_selector(IDLE, timeout=60_000)
            taken = time.perf_counter() - start
        browser.close()
    return taken


def refuses(place: Place, case: Case) -> None:
    """A feature without its package raises an error of one line that names the remedy."""
    lacking = []
    if "captum" in case.without:
        model, images = "av.build_model('cnn')", "torch.rand(1, 3, 96, 96)"
        call = f"av.attribute({model}, {images}, layer='features.conv3')"
        lacking.append((call, "pip install captum"))
    if "torchmetrics" not in case.extras:
        lacking.append(("attnviz.metrics.LocalizationMetric", "attnviz[torchmetrics]"))
    if "dask" not in case.extras:
        call = "executor_of(Workers(scheduler='tcp://127.0.0.1:9')).__enter__()"
        lacking.append((call, "pip install 'attnviz[dask]'"))
    for call, remedy in lacking:
        asked = (
            "import attnviz.metrics, attnviz as av, torch\n"
            "from attnviz.executors import Workers, executor_of\n"
            f"try: {call}\nexcept av.AttnvizError as error: print(error)"
        )
        said = place.run("python", "-c", asked)
        if remedy not in said:
            raise FailedError(f"{call} says {said[-100:]!r}")


STEPS: tuple[Callable[[Place, Case], str | None], ...] = (
    only_itself, paints, speaks, works, reads, serves, refuses,
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextmanager
def serving(place: Place, words: tuple[str, ...]) -> Iterator[None]:
    command = [place.python.parent / "attnviz", *words]
    with subprocess.Popen(
        command, cwd=place.work, env=environment(), stdout=subprocess.DEVNULL, stderr=-3
    ) as child:
        try:
            yield
        finally:
            child.terminate()


def answered(address: str, within: float = 60) -> None:
    end = time.monotonic() + within
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError as error:
            if time.monotonic() > end:
                raise FailedError(f"the dashboard does not answer: {error}") from error
        time.sleep(0.2)


def tried(case: Case, wheel: Path, sdist: Path, folder: Path) -> tuple[list[str], str]:
    """One line of the table, and what went wrong."""
    if interpreter(case.python) is None:
        return [case.name, "not run: no such Python here", *[""] * len(STEPS)], ""
    marks: list[str] = []
    try:
        place = installed(case, wheel, sdist, folder)
        versions = place.run("python", "-c", "import importlib.metadata as m\n"
                             f"for name in {FRAMEWORKS}:\n"
                             "    try: print(m.version(name))\n"
                             "    except m.PackageNotFoundError: print('–')")  # fmt: skip
        line = [case.name, " ".join(versions.split())]
    except FailedError as error:
        return [case.name, "not installed", *[""] * len(STEPS)], f"{case.name}: {error}"
    problem = ""
    for step in STEPS:
        try:
            marks.append(step(place, case) or "yes")
        except (FailedError, subprocess.TimeoutExpired) as error:
            marks.append("NO")
            problem += f"\n{case.name}: {step.__name__}: {error}"
    return [*line, *marks], problem


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, help="only this; may be repeated")
    parser.add_argument("--keep", type=Path, help="leave the environments in this folder")
    args = parser.parse_args()
    header = ("case", " ".join(FRAMEWORKS), *(s.__name__.replace("_", " ") for s in STEPS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        wheel, sdist = built(folder / "dist")
        results = [
            tried(case, wheel, sdist, folder)
            for case in CASES
            if not args.case or case.name in args.case
        ]
    print(table(header, [line for line, _ in results]))
    problems = [problem for _, problem in results if problem]
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
