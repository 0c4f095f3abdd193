"""The dashboard's components as one script that runs without the dashboard.

A component is a folder of the dashboard with its markup, style and script. The scripts share no
names: each becomes a function of its own within one module, to which `view.js` adds the choices
between parts and the theme. The module is anywidget's; a page of it needs no server and no network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from attnviz.errors import UnsupportedError

_PACKAGE = Path(__file__).resolve().parent.parent
_COMPONENTS = {"gallery": ("sheet", "tiles"), "picker": ("picker",)}
"""Folder → its scripts; the last is the component, and has its markup and style beside it."""

_ENTRY = "export default function (component)"

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>html {{ overflow-x: hidden }} body {{ margin: 0 4px 8px }}
h1 {{ font: 600 1.1rem system-ui, sans-serif; margin: 0.4rem 0 }}</style></head><body>
<main><h1>{title}</h1><div id="view"></div></main>
<script type="application/json" id="parts">{parts}</script>
<script>
{script}
const host = document.getElementById("view");
view(host.parentElement, host, JSON.parse(document.getElementById("parts").textContent));
let frame = null;
try {{ frame = window.frameElement; }} catch {{ /* a frame of another site keeps its height */ }}
if (frame) {{
  if (frame.nextElementSibling) frame.nextElementSibling.hidden = true; // the picture
  const fit = () => {{ frame.style.height = `${{document.body.offsetHeight + 24}}px`; }};
  new ResizeObserver(fit).observe(host);
}} else if (isDark(host)) document.documentElement.style.background = "#14161a";
</script></body></html>"""


def component(name: str, end: str) -> str:
    """What a component is made of: its `"html"`, its `"css"`, or its scripts, `"js"`.

    Raises:
        UnsupportedError: The dashboard is not installed beside the package.
    """
    for folder in (_PACKAGE.parent, _PACKAGE / "app"):
        stems = _COMPONENTS[name] if end == "js" else _COMPONENTS[name][-1:]
        files = [folder / "dashboard" / name / f"{stem}.{end}" for stem in stems]
        if all(file.is_file() for file in files):
            return "\n".join(file.read_text("utf-8") for file in files)
    raise UnsupportedError("show: the dashboard's components are missing; install the wheel anew")


@cache
def script() -> str:
    """The module: the components, and the view that holds them."""
    parts = ["const COMPONENTS = {};"]
    for name in _COMPONENTS:
        source = component(name, "js")
        if source.count(_ENTRY) != 1:
            raise UnsupportedError(f"show: the component {name!r} has another entry than expected")
        body = source.replace(_ENTRY, "const mountComponent = function (component)")
        parts.append(f"COMPONENTS.{name} = (() => {{\n{body}\nreturn mountComponent;\n}})();")
    parts.append(Path(__file__).with_name("view.js").read_text("utf-8"))
    return "\n".join(parts)


def page(parts: Sequence[dict[str, Any]], title: str) -> str:
    """A page of its own that shows the parts, without a server and offline."""
    content = json.dumps(list(parts)).replace("<", "\\u003c")
    plain = script().replace("export default {", "const widget = {")
    return _PAGE.format(title=html.escape(title), parts=content, script=plain)
