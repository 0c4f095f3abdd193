"""The page's one style sheet: light and dark, readable at any width, and on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #55585f; --paper: #ffffff;
  --line: #d9dbe0; --tint: #f4f5f7; --link: #0b57a4; --bad: #a3261b; --warn: #7a5200; }
@media (prefers-color-scheme: dark) { :root { --ink: #eeeeee; --soft: #b4b7bf; --paper: #1b1d22;
  --line: #3a3d44; --tint: #24272e; --link: #8ec5ff; --bad: #ff9d94; --warn: #f3c06a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
p { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.answer { font-size: 1.2rem; padding: .9rem 1.1rem; background: var(--tint);
  border-left: 4px solid var(--link); margin: 1rem 0; max-width: none; }
.soft, figcaption, caption, nav { color: var(--soft); font-size: .9rem; }
.bad { color: var(--bad); font-weight: 600; } .warning { color: var(--warn); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .2rem 0 .4rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
tbody th { font-weight: 600; } tr.level th, tr.level td { font-weight: 400; color: var(--soft); }
.n { text-align: right; white-space: nowrap; }
thead .n { white-space: normal; }
.strip th { text-align: center; padding: .2rem; border: 0; font-size: .85rem; }
.hatched { background: repeating-linear-gradient(135deg, transparent 0 5px,
  color-mix(in srgb, currentColor 25%, transparent) 5px 6.5px); padding: 0 .25rem; }
.strip td { border: 0; padding: .2rem .35rem .2rem 0; }
figure { margin: 0; } figure.tile { width: 8.5rem; } figcaption { line-height: 1.3; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .3rem 0 .8rem; padding: 0; }
.tiles li { list-style: none; } .tiles .tile { width: 7.6rem; }
.tiles figcaption { font-size: .82rem; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1.75rem; }
img { max-width: 100%; height: auto; display: block; } .tile img { width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: .5rem 0;
  font-size: .9rem; } dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } }
"""
