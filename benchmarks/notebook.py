"""`av.show` in a real JupyterLab, in marimo, and in the HTML of a saved notebook without a server.

    uv run --group integrations python benchmarks/notebook.py [jupyter] [marimo] [html]

Each is driven by Chromium on the loopback interface: the threshold is moved 20 times, and the time
from the input to the repainted status is taken in the browser; axe examines the view. Printed are
the median in milliseconds and the violations.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import axe_playwright_python
import nbformat
from playwright.sync_api import sync_playwright

CELL = """import torch
import attnviz as av
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 16, 8, stride=8)
        self.attend = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        return (x + self.attend(x, x, x)[0]).mean(1)
images, masks = torch.rand(24, 3, 96, 96), torch.zeros(24, 96, 96, dtype=torch.bool)
masks[:, 24:60, 30:70] = True
net = Net().eval()
with torch.no_grad(), av.watch(net) as seen:
    net(images)
view = av.show(images, seen, masks=masks)
view"""

STEP = """async () => {
  const inside = (e) => e.shadowRoot ? [e, ...all(e.shadowRoot)] : [e];
  const all = (root) => [...root.querySelectorAll('*')].flatMap(inside);
  const found = all(document);
  const slider = found.find((e) => e.matches('input[type=range][aria-label=Threshold]'));
  const root = slider.getRootNode();
  const status = found.find((e) => e.matches('p.status') && e.getRootNode() === root);
  const times = [];
  for (let i = 1; i <= 20; i++) {
    const started = performance.now();
    slider.value = (i / 25).toFixed(2);
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    const wanted = Number(slider.value).toFixed(2);
    while (!status.textContent.includes(wanted)) await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - started);
  }
  return times;
}"""
EXAMINE = "(e) => axe.run(e.parentElement, {resultTypes: ['violations']})"
VIEW = "section[aria-label='Maps above the threshold']"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(words: list[str], address: str, folder: Path) -> Iterator[None]:
    """A server on the loopback interface, until the block ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                if time.monotonic() > end or server.poll() is not None:
                    raise RuntimeError((folder / "log").read_text()[-2000:]) from None
                time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait(20)


def told(name: str, page: Any) -> None:
    """Find the view in the page or one of its frames, move its threshold, examine it."""
    axe = (resources.files(axe_playwright_python) / "axe.min.js").read_text("utf-8")
    end = time.monotonic() + 180
    while time.monotonic() < end:
        for frame in page.frames:
            if frame.locator("input[aria-label=Threshold]").count():
                times = frame.evaluate(STEP)
                frame.evaluate(axe)
                found = frame.evaluate(EXAMINE, frame.locator(VIEW).element_handle())
                bad = ", ".join(one["id"] for one in found["violations"]) or "none"
                middle = statistics.median(times)
                print(f"| {name} | {middle:.1f} | {max(times):.1f} | {bad} |", flush=True)
                return
        page.wait_for_timeout(500)
    raise RuntimeError(f"{name}: no view was shown")


def notebook(folder: Path, *, executed: bool) -> Path:
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    document.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    file = folder / "view.ipynb"
    nbformat.write(document, file)
    if executed:
        words = [sys.executable, "-m", "nbconvert", "--to", "html", "--execute", str(file)]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return file


def jupyter(page: Any, folder: Path) -> None:
    notebook(folder, executed=False)
    port = free_port()
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
             "--IdentityProvider.token=", "--ServerApp.ip=127.0.0.1"]  # fmt: skip
    with serving(words, f"http://127.0.0.1:{port}/api", folder):
        page.goto(f"http://127.0.0.1:{port}/lab/tree/view.ipynb?reset", timeout=120_000)
        page.locator(".jp-CodeCell .cm-content").first.click(timeout=120_000)
        page.wait_for_timeout(3000)
        page.keyboard.press("Shift+Enter")
        told("JupyterLab", page)


def marimo(page: Any, folder: Path) -> None:
    lines = "\n    ".join(CELL.splitlines())
    source = f"import marimo\napp = marimo.App()\n\n@app.cell\ndef _():\n    {lines}\n    return\n"
    (folder / "view.py").write_text(source)
    port = free_port()
    words = [sys.executable, "-m", "marimo", "run", "view.py", "--headless", "--host", "127.0.0.1",
             "--port", str(port), "--no-token"]  # fmt: skip
    with serving(words, f"http://127.0.0.1:{port}/health", folder):
        page.goto(f"http://127.0.0.1:{port}/", timeout=120_000)
        told("marimo", page)


def html(page: Any, folder: Path) -> None:
    notebook(folder, executed=True)
    page.context.set_offline(True)
    page.goto((folder / "view.html").as_uri())
    told("saved HTML, offline", page)


def main() -> None:
    chosen = sys.argv[1:] or ["jupyter", "marimo", "html"]
    print("| where | median ms | max ms | axe |\n| --- | --- | --- | --- |", flush=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
                {"jupyter": jupyter, "marimo": marimo, "html": html}[name](page, Path(folder))
                page.context.close()
        browser.close()


if __name__ == "__main__":
    main()
