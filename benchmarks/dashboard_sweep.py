"""The dashboard over 60 and 1,000 runs of one sweep, beside an empty Streamlit app, in one run.

    uv run python benchmarks/dashboard_sweep.py [--rounds 3] [--chromium PATH]

Medians over the rounds, orders alternating, servers warm:

    first    a new reader's first visit: from nothing to the sentence, the dots and the pictures of
             Compare being painted; of the empty app to its title
    page     a click on Next in the gallery → the tiles of the next page are painted
    tile     a click on a tile → its sample's pictures are painted
    metric   another metric on Compare → the sentence and the dots of that metric are painted
    rerun    a click on a button of the empty app → its script has run and its text is painted

The exit code is 1 where a ratio is above its limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
from benchmarks import dashboard as measuring  # noqa: E402

LIMITS = {60: {"first": 2.0, "page": 3.0, "tile": 3.0, "metric": 3.0},
          1000: {"first": 3.0, "page": 5.0, "tile": 5.0, "metric": 5.0}}  # fmt: skip
EMPTY = """
import streamlit as st
st.title("Empty")
st.session_state.setdefault("n", 0)
if st.button("Again"):
    st.session_state.n += 1
st.text(f"run {st.session_state.n}")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium")
    )
    arguments = parser.parse_args()
    if not arguments.chromium:
        parser.error("no chromium found; install one and name it with --chromium")
    from tests.dashboard import made_runs

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "empty.py").write_text(EMPTY)
        app = REPOSITORY / "dashboard" / "app.py"
        empty, _ = stack.enter_context(measuring.server(folder, folder / "empty.py"))
        ours = {}
        for count in LIMITS:
            root = made_runs.sweep(folder / f"sweep{count}", count)
            ours[count], _ = stack.enter_context(measuring.server(folder, app, root))
        browser = stack.enter_context(measuring.chromium(arguments.chromium))
        times = measured(browser, empty, ours, arguments.rounds)
    return told(times)


def measured(
    browser: Any, empty: str, ours: dict[int, str], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """All times in milliseconds, by app and by what was done; the first round is not counted."""
    times: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds + 1):
        apps: list[tuple[str, str, Any]] = [("empty", empty, of_empty)]
        apps += [(str(count), address, of_ours) for count, address in ours.items()]
        for name, address, measure in apps if turn % 2 else apps[::-1]:
            for what, spent in measure(browser, address).items():
                if turn:
                    times.setdefault(name, {}).setdefault(what, []).append(spent)
    return times


def of_empty(browser: Any, address: str) -> dict[str, float]:
    first = measuring.first_visit(browser, address)
    page = measuring.new_tab(browser)
    page.goto(address)
    measuring.settled(page)
    start = time.perf_counter()
    page.get_by_role("button", name="Again").click()
    page.get_by_text("run 1", exact=True).wait_for()
    measuring.settled(page)
    spent = 1000 * (time.perf_counter() - start)
    page.context.close()
    return {"first": first, "rerun": spent}


def of_ours(browser: Any, address: str) -> dict[str, float]:
    found = {"first": measuring.first_visit(browser, address, measuring.ANSWER)}
    page = measuring.new_tab(browser)
    page.goto(f"{address}/gallery?run=run-0007")
    painted(page)
    found["page"] = timed(page, lambda: page.get_by_role("button", name="Next").click(), "page")
    found["tile"] = timed(page, lambda: page.locator(".tile").first.click(), "tile")
    page.goto(address)
    page.wait_for_function(f"() => {measuring.ANSWER}", timeout=120_000)
    measuring.settled(page)
    board = page.get_by_role("region", name="Variants by several metrics")
    press = board.get_by_role("button", name="IoU", exact=True)
    found["metric"] = timed(page, press.click, "metric")
    page.context.close()
    return found


def timed(page: Any, act: Any, what: str) -> float:
    """Milliseconds from an act to what it asked for being painted."""
    start = time.perf_counter()
    act()
    if what == "page":
        page.get_by_text("49 to 64").wait_for(timeout=120_000)
    elif what == "tile":
        page.get_by_role("heading", name="Sample", level=1).wait_for(timeout=120_000)
    else:
        page.get_by_role("heading", name="IoU").first.wait_for(timeout=120_000)
    painted(page)
    return 1000 * (time.perf_counter() - start)


def painted(page: Any) -> None:
    measuring.settled(page)
    page.wait_for_function(f"() => {measuring.TILES}", timeout=120_000)
    page.evaluate(measuring.PAINTED)


def told(times: dict[str, dict[str, list[float]]]) -> int:
    """Print times and ratios; 1 where a ratio is above its limit."""
    middle = {
        name: {w: statistics.median(v) for w, v in one.items()} for name, one in times.items()
    }
    for name, one in middle.items():
        print(f"{name:>6}  " + ", ".join(f"{what} {ms:.0f} ms" for what, ms in one.items()))
    failed = 0
    for count, limits in LIMITS.items():
        for what, limit in limits.items():
            beside = middle["empty"]["first" if what == "first" else "rerun"]
            ratio = middle[str(count)][what] / beside
            failed |= ratio > limit
            word = "holds" if ratio <= limit else "FAILS"
            print(f"{word}  {count} runs, {what}: {ratio:.2f} x the empty app's, limit {limit:g}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
