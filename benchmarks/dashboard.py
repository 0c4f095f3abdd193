"""The dashboard in a real Chromium, beside the naive way, in one run on one machine.

    uv run python benchmarks/dashboard.py [--runs RUNS] [--rounds 7] [--chromium PATH] [--json OUT]

Four apps, each on a server of its own, are driven by the same browser in turn:

    empty     a title: what Streamlit costs by itself
    naive     48 overlays by `st.image` and a `st.slider` for the threshold, IoU below each
    figure    the same as one matplotlib figure
    ours      the gallery of `attnviz dashboard`

What is measured, medians of the rounds, orders alternating:

    step      threshold moved → the last tile painted (two animation frames after the DOM is quiet)
    change    a click on a page link → the other page's script has run and its picture is painted;
              for `empty` a page of one title
    first     a new reader's first visit, warm server: from nothing to the page's script having run
              and all content requested by then being drawn; `answer` is when the
              sentence, the dot plot and the strip of pictures of Compare are painted, `ours` when
              what lies below them has come too (it is requested when it comes into view)
    memory    resident memory of our server with one and with three readers, each on every page
    requests  what the page asks the network for during a step

Claims that the numbers are held against are printed with them; the exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"

NAIVE = """
import sys
import numpy as np
import streamlit as st
from attnviz import figures
from attnviz.runs import list_runs, open_dataset
from attnviz.figures import resized
from dashboard.overlap import stretched

ROOT, KIND = sys.argv[1], sys.argv[2]

@st.cache_data
def load():
    run = next(r for r in list_runs(ROOT).complete if r.summary.get("map") in r.map_names)
    held = open_dataset(ROOT, run.dataset)
    where = np.flatnonzero(held.masks().any((1, 2)))
    where = np.resize(where, 48).tolist()
    maps = stretched(resized(run.maps(run.summary["map"], where), held.images([0]).shape[1:3]))
    return held.images(where), maps, held.masks(where), held.boxes()[where]

st.title("Naive")
threshold = st.slider("Threshold", 0.0, 1.0, 0.5, 0.01)
images, maps, masks, boxes = load()
hot = maps >= threshold
ious = (hot & masks).sum((1, 2)) / (hot | masks).sum((1, 2))
overlays = [
    figures.overlay(image, np.where(h, m, 0), box, scale=2)
    for image, m, h, box in zip(images, maps, hot, boxes)
]
if KIND == "images":
    columns = st.columns(8)
    for i, picture in enumerate(overlays):
        columns[i % 8].image(picture, caption=f"IoU {ious[i]:.3f}")
else:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(6, 8, figsize=(16, 13))
    for i, axis in enumerate(axes.flat):
        axis.imshow(overlays[i])
        axis.set_title(f"IoU {ious[i]:.3f}", fontsize=8)
        axis.axis("off")
    st.pyplot(figure)
    plt.close(figure)
st.markdown(f"<span id='mark' data-threshold='{threshold:.2f}'></span>", unsafe_allow_html=True)
"""

EMPTY = """
import streamlit as st

def one():
    st.title("One")

def two():
    st.title("Two")

pages = [st.Page(one, title="One", default=True), st.Page(two, title="Two", url_path="two")]
page = st.navigation(pages)
page.run()
"""

PAINTED = """
() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
"""

PICTURES = """
() => [...document.images].every((image) => image.complete && image.naturalWidth)
"""

SHADOWED = """
(selector) => [document, ...[...document.querySelectorAll('*')].map((e) => e.shadowRoot)
  .filter(Boolean)].map((root) => root.querySelector(selector)).find(Boolean)
"""

# Every gallery has painted, every chart holds its marks.
DRAWN = """
() => [...document.querySelectorAll('*')].map((e) => e.shadowRoot).filter(Boolean)
  .map((root) => root.querySelector('.tiles')).every((list) => !list || list.dataset.painted)
  && [...document.querySelectorAll('[data-testid=stVegaLiteChart]')]
    .every((chart) => chart.querySelector('svg, canvas'))
"""

FIND = SHADOWED.strip()
TILES = f"({FIND})('.tiles')?.dataset.painted"
ANSWER = f"({FIND})('.dot') && {TILES}"

STEP = f"""
([selector, value]) => new Promise((done) => {{
  const find = {FIND};
  const [input, list] = [find(selector), find('.tiles')];
  const before = list.dataset.painted;
  const start = performance.now();
  input.value = value;
  input.dispatchEvent(new Event('input', {{ bubbles: true }}));
  const wait = () => list.dataset.painted === before
    ? requestAnimationFrame(wait)
    : requestAnimationFrame(() => done(performance.now() - start));
  requestAnimationFrame(wait);
}})
"""


def main() -> int:
    arguments = parsed()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = arguments.runs or made(folder / "runs")
        (folder / "naive.py").write_text(NAIVE)
        (folder / "empty.py").write_text(EMPTY)
        serve = lambda *words: stack.enter_context(server(folder, *words))  # noqa: E731
        apps = {
            "empty": serve(folder / "empty.py")[0],
            "naive": serve(folder / "naive.py", runs, "images")[0],
            "figure": serve(folder / "naive.py", runs, "figure")[0],
        }
        apps["ours"], process = serve(REPOSITORY / "dashboard" / "app.py", runs)
        browser = stack.enter_context(chromium(arguments.chromium))
        found = measured(browser, apps, process, arguments.rounds)
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(one["holds"] for one in found["claims"]) else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="a folder of runs; made if not given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium")
    )
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    found = parser.parse_args()
    if not found.chromium:
        parser.error("no chromium found; install one and name it with --chromium")
    return found


def made(root: Path) -> Path:
    """Runs as the tests make them, 96 test images, 48 of them with a patch."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.dashboard import made_runs

    root.mkdir()
    return made_runs.good_runs(root, seeds=1, n=96)


@contextmanager
def server(
    folder: Path, script: Path, *words: Any
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Streamlit server of its own; its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(script)),
        *("--server.port", str(port), "--server.address", "localhost", "--server.headless", "true"),
        *("--browser.gatherUsageStats", "false", "--server.fileWatcherType", "none"),
        *("--", *map(str, words)),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "ATTNVIZ_RUNS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://localhost:{port}"
    try:
        until(lambda: answers(f"{address}/_stcore/health"), 60)
        yield address, process
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def until(question: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not question():
        if time.monotonic() > end:
            raise TimeoutError("a server did not start")
        time.sleep(0.1)


@contextmanager
def chromium(path: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def measured(
    browser: Any, apps: dict[str, str], process: subprocess.Popen[bytes], rounds: int
) -> dict[str, Any]:
    """All numbers, medians of the rounds."""
    for address in apps.values():  # every server warm, every import done
        first_visit(browser, address)
    first_visit(browser, f"{apps['ours']}/gallery")
    firsts: dict[str, list[float]] = {"empty": [], "ours": [], "answer": [], "gallery": []}
    changes: dict[str, list[float]] = {"empty": [], "ours": []}
    steps: dict[str, list[float]] = {"naive": [], "figure": [], "ours": []}
    for turn in range(rounds):
        visits = [
            ("empty", apps["empty"], ""), ("ours", apps["ours"], ""),
            ("answer", apps["ours"], ANSWER), ("gallery", f"{apps['ours']}/gallery?run=mha-0", ""),
        ]  # fmt: skip
        for name, address, painted in visits if turn % 2 else visits[::-1]:
            firsts[name].append(first_visit(browser, address, painted))
        changes["empty"].append(page_change(browser, apps["empty"], "Two", "Two"))
        changes["ours"].append(page_change(browser, apps["ours"], "Gallery", "Gallery"))
    requests = 0
    for name in steps:
        found, asked = threshold_steps(browser, apps[name], name, rounds)
        steps[name] = found
        requests = asked if name == "ours" else requests
    memory = readers_memory(browser, apps["ours"], process)
    middle = {
        "first": {name: statistics.median(values) for name, values in firsts.items()},
        "change": {name: statistics.median(values) for name, values in changes.items()},
        "step": {name: statistics.median(values) for name, values in steps.items()},
    }
    return {
        "rounds": rounds, "milliseconds": middle, "memory_mb": memory, "step_requests": requests,
        "all": {"first": firsts, "change": changes, "step": steps},
        "claims": claims(middle, memory, requests),
    }  # fmt: skip


def claims(
    middle: dict[str, dict[str, float]], memory: dict[str, float], requests: int
) -> list[dict[str, Any]]:
    first, change, step = middle["first"], middle["change"], middle["step"]
    grown = memory["three_readers"] - memory["one_reader"]
    rows = [
        ("threshold step, st.image over ours", step["naive"] / step["ours"], ">=", 10.0),
        ("threshold step, matplotlib over ours", step["figure"] / step["ours"], ">=", 10.0),
        (
            "page change, ours less the empty app's, ms",
            change["ours"] - change["empty"],
            "<=",
            300.0,
        ),
        (
            "first visit until the answer, over the empty app's",
            first["answer"] / first["empty"],
            "<=",
            1.5,
        ),
        (
            "first visit of the gallery, over the empty app's",
            first["gallery"] / first["empty"],
            "<=",
            1.5,
        ),
        ("network requests during our steps", float(requests), "<=", 0.0),
        ("memory of two more readers, MB", grown, "<=", 60.0),
    ]
    return [
        {"claim": words, "found": found, "limit": limit, "sign": sign,
         "holds": found >= limit if sign == ">=" else found <= limit}
        for words, found, sign, limit in rows
    ]  # fmt: skip


def new_tab(browser: Any) -> Any:
    return browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()


def settled(page: Any) -> None:
    """Script done, nothing left to draw."""
    page.wait_for_selector(IDLE, timeout=120_000)
    page.wait_for_function(PICTURES, timeout=120_000)
    page.evaluate(PAINTED)


def first_visit(browser: Any, address: str, until: str = "") -> float:
    """Milliseconds from nothing to painted, for a first-time reader."""
    page = new_tab(browser)
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("h1", timeout=120_000)
    if until:
        page.wait_for_function(f"() => {until}", timeout=120_000)
    else:
        settled(page)
        page.wait_for_function(DRAWN, timeout=120_000)
    page.evaluate(PAINTED)
    spent = 1000 * (time.perf_counter() - start)
    page.context.close()
    return spent


def page_change(browser: Any, address: str, link: str, title: str) -> float:
    """Milliseconds from a click on a page's link to that page, painted."""
    page = new_tab(browser)
    page.goto(address)
    page.wait_for_selector("h1", timeout=120_000)
    settled(page)
    page.wait_for_load_state("networkidle")  # what lies below the fold is not the change's cost
    page.evaluate(PAINTED)
    start = time.perf_counter()
    page.get_by_role("link", name=link).click()
    page.get_by_role("heading", name=title, level=1).wait_for()
    settled(page)
    if title == "Gallery":
        page.wait_for_function(f"() => {TILES}")
        page.evaluate(PAINTED)
    spent = 1000 * (time.perf_counter() - start)
    page.context.close()
    return spent


def threshold_steps(browser: Any, address: str, name: str, rounds: int) -> tuple[list[float], int]:
    """Milliseconds from each step of the threshold to the last tile; requests made meanwhile."""
    page = new_tab(browser)
    asked: list[str] = []
    if name == "ours":
        page.goto(f"{address}/gallery?run=mha-0&order=number&size=16&tau=0.50")
        settled(page)
        page.wait_for_function(f"() => {TILES}")
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        steps = [
            page.evaluate(STEP, ["input[aria-label=Threshold]", 0.5 + 0.01 * turn])
            for turn in range(1, rounds + 1)
        ]
    else:
        page.goto(address)
        page.wait_for_selector("#mark", state="attached", timeout=120_000)
        settled(page)
        steps = [naive_step(page, 0.5 + 0.01 * turn) for turn in range(1, rounds + 1)]
    page.context.close()
    return steps, len(asked)


def naive_step(page: Any, value: float) -> float:
    """A press of → on Streamlit's slider, until the script has run and every image is there."""
    thumb = page.get_by_role("slider").first
    thumb.focus()
    start = time.perf_counter()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(
        f"#mark[data-threshold='{value:.2f}']", state="attached", timeout=120_000
    )
    settled(page)
    return 1000 * (time.perf_counter() - start)


def readers_memory(
    browser: Any, address: str, process: subprocess.Popen[bytes]
) -> dict[str, float]:
    """Resident megabytes of our server after one reader, and after three, on every page."""
    pages = ("", "gallery", "gallery?order=best", "sample", "attributions", "diagnosis", "training",
             "runs", "about")  # fmt: skip
    tabs, found = [], {}
    for reader in (1, 2, 3):
        page = new_tab(browser)
        tabs.append(page)
        for name in pages:
            page.goto(f"{address}/{name}")
            settled(page)
        if reader in (1, 3):
            found["one_reader" if reader == 1 else "three_readers"] = resident(process.pid)
    for page in tabs:
        page.context.close()
    return found


def resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell a process's resident memory")


def table(found: dict[str, Any]) -> str:
    lines = [f"medians of {found['rounds']} rounds, one machine, one run", ""]
    for what, values in found["milliseconds"].items():
        told = ", ".join(f"{name} {value:.0f}" for name, value in values.items())
        lines.append(f"{what:<8} ms   {told}")
    memory = ", ".join(
        f"{name.replace('_', ' ')} {mb:.0f}" for name, mb in found["memory_mb"].items()
    )
    lines += [f"memory   MB   {memory}", ""]
    for one in found["claims"]:
        verdict = "holds" if one["holds"] else "FAILS"
        lines.append(
            f"{verdict}  {one['claim']}: {one['found']:.2f} {one['sign']} {one['limit']:g}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
