"""Pictures of every page of the dashboard in both themes, from a real Chromium.

    uv run python benchmarks/dashboard_pictures.py ADDRESS OUT [--run ID] [--image 2]

`ADDRESS` is where `attnviz dashboard RUNS` answers. Writes `OUT/<page>-<theme>.png`, whole pages at
1400 pixels, to be looked at; some are kept for the README.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

PAGES = ("compare", "gallery", "sample", "attributions", "diagnosis", "training", "runs", "try_it",
         "about")  # fmt: skip
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
TALL = 6000  # pixels; a first look at this height brings what lies below the fold


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", help="the run that gallery and Try it show")
    parser.add_argument("--image", type=int, help="the image that Compare and Sample show")
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument(
        "--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium")
    )
    asked = parser.parse_args()
    if not asked.chromium:
        parser.error("no chromium found; install one and name it with --chromium")
    from playwright.sync_api import sync_playwright

    asked.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            for page in asked.pages:
                picture(browser, asked, page, theme)
        browser.close()
    return 0


def picture(browser: object, asked: argparse.Namespace, page: str, theme: str) -> None:
    """One page in one theme, as high as it is."""
    words = {"run": asked.run if page in ("gallery", "try_it") else None}
    words["image"] = asked.image if page in ("compare", "sample") else None
    query = urlencode({name: value for name, value in words.items() if value is not None})
    path = "" if page == "compare" else page
    context = browser.new_context(color_scheme=theme, viewport={"width": 1400, "height": TALL})
    tab = context.new_page()
    tab.goto(f"{asked.address.rstrip('/')}/{path}?{query}")
    tab.wait_for_selector("h1")
    tab.wait_for_selector(IDLE, timeout=120_000)
    tab.wait_for_timeout(2500)  # charts fade in
    tab.wait_for_selector(IDLE, timeout=120_000)
    height = tab.evaluate(
        "() => document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight"
    )
    tab.set_viewport_size({"width": 1400, "height": min(TALL, max(700, height))})
    tab.wait_for_timeout(700)
    tab.screenshot(path=asked.out / f"{page}-{theme}.png")
    context.close()


if __name__ == "__main__":
    sys.exit(main())
