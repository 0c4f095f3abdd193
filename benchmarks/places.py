"""Whether `attnviz.locate` finds the right places, in models of eight families with random weights.

Each place that it gives is compared with an independent measurement. One cell of the grid, and only
that part of the image, is changed at a time, with attention off; half of these cells lie at the
border. Four things have to hold, for each side (queries or keys) of each record:

1. Tokens that are said to be no place stay as they are.
2. The token that is said to be this cell is among those that change most.
3. The centre of the changes lies where it is expected, to within 0.75 cells, or half a cell and two
   standard errors where that is more: the changes of a model that mixes pixels are spread over
   several cells, and uneven. At the border they lie on one side only, so the expected centre is
   that of the changes around the other cells, made symmetric and cut off where the image ends.
   (The centre of changes inside the image is the cell itself.)
4. Over all cells together the centres are off by less than half a cell: strided convolutions see up
   to half a cell above and to the left.

All tokens one row farther, judged in the same way, have to be found wrong; the share is printed.

    python benchmarks/places.py --results places.json               # resumes what was begun
    python benchmarks/places.py --results places.json --only swin --again
    python benchmarks/places.py --results places.json --docs docs/places.md   # writes the table

Each model runs in a child process with limits of memory and time, and its result is written when it
is known. timm, torchvision and transformers are in the dev group; diffusers, monai and
segment-anything are in the group `models`; what is missing is named. Exit code 1 for a wrong place.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from places_models import FAMILIES, Build
from torch import Tensor, nn

from attnviz.capture import watch
from attnviz.places import Layout, Places, locate
from attnviz.token_places import NO_QUERIES

START, END = "<!-- measured -->", "<!-- end -->"
LEAST = 0.2  # of the largest change: what the token at the changed cell has to change by
FAR = 0.75  # cells between the centre of what changes and where it is expected
MEAN = 0.5  # cells, the same over all changed cells of a side
INSIDE, OUTSIDE = 2, 2  # changed cells of each grid, within the image and at its border
DRAWS = 3  # noise fields for each cell, since single ones may cancel in a token
MEMORY = 6 << 30  # bytes that a child may allocate

Cell = tuple[int, ...]


@dataclass
class Result:
    """What came out for one model."""

    family: str
    name: str
    sides: int = 0
    places: int = 0
    nowhere: int = 0
    refused: int = 0
    wrong: int = 0
    compared: int = 0
    error: float = 0.0
    off: float = 0.0
    mean_off: float = 0.0
    shifted: int = 0
    noticed: int = 0
    passes: int = 0
    seconds: float = 0.0
    roles: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    failed: str = ""


def judge(family: str, name: str, build: Build) -> Result:
    """Locate, then change single cells."""
    torch.manual_seed(0)
    model, images, inputs = build()
    model.eval()
    started = time.perf_counter()
    torch.manual_seed(0)  # masked autoencoders draw: the passes below start from the same state
    located = locate(model, images, inputs=inputs)
    attention = {n: one for n, one in located.items() if one.queries.reason != NO_QUERIES}
    layout = Layout(attention, located.passes)
    result = Result(family, name, passes=layout.passes, seconds=time.perf_counter() - started)
    reasons, roles = set(), set()
    for places in (side for one in layout.values() for side in (one.queries, one.keys)):
        result.sides += 1
        result.refused += not places.known
        result.nowhere += places.known and not any(c >= 0 for c in places.cell)
        result.places += any(c >= 0 for c in places.cell)
        roles.update(places.role)
        if places.error == places.error:
            result.error = max(result.error, places.error)
        if not places.known:
            reasons.add(places.reason)
    result.reasons, result.roles = sorted(reasons), sorted(roles)
    compare(model, images, inputs, layout, result)
    return result


def run(model: nn.Module, inputs: Any, images: Any) -> Any:
    args = images if inputs is None else inputs(images)
    if isinstance(args, dict):
        return model(**args)
    return model(*args) if isinstance(args, tuple) else model(args)


def compare(model: nn.Module, images: Tensor, inputs: Any, layout: Layout, result: Result) -> None:
    """Each place against what changes when one cell does."""
    with torch.no_grad(), watch(model, reduce=lambda record: None, empty=True) as seen:
        torch.manual_seed(0)
        run(model, inputs, images)
    edit = dict.fromkeys([n for n, record in seen.attention.items() if record.shape], "zero")

    def tokens(changed: Tensor) -> dict[tuple[str, int], Tensor]:
        torch.manual_seed(0)  # as `locate` was called
        with torch.no_grad(), watch(model, edit=edit, operands=True, reduce=lambda r: None) as seen:
            run(model, inputs, changed)
        return {
            (name, side): x.detach().double()
            for name, record in seen.items()
            for side, x in enumerate((record.query, record.key))
            if x is not None and name in layout
        }

    base = tokens(images)
    grids: dict[Any, None] = {}
    for one in layout.values():
        for places in (one.queries, one.keys):
            for image, grid in enumerate(places.grids or (places.grid,) * len(images)):
                if grid is not None:
                    grids[image, grid] = None
    for image, grid in grids:
        changes: dict[tuple[str, int], list[tuple[Cell, Tensor]]] = {}
        for cell, draws in cells(images, image, grid):
            energies: dict[tuple[str, int], Tensor] = {}
            for changed in draws:
                for key, x in tokens(changed).items():
                    if base[key].shape == x.shape:
                        energy = (x - base[key]).square().sum((1, 3))
                        energies[key] = energies[key] + energy if key in energies else energy
            for key, energy in energies.items():
                changes.setdefault(key, []).append((cell, energy.flatten()))
        for (name, side), found in changes.items():
            places = (layout[name].queries, layout[name].keys)[side]
            if places.known and (places.grids[image] if places.grids else places.grid) == grid:
                check(f"{name}, {('queries', 'keys')[side]}", places, found, image, grid, result)


def cells(images: Tensor, image: int, grid: Cell) -> Iterator[tuple[Cell, list[Tensor]]]:
    """Cells of a grid, and the images with one of them changed, drawn several times."""
    channels = 1 if images.dim() == 4 or images.shape[1] <= 4 else 2
    sides = [n for axis, n in enumerate(images.shape[1:], 1) if axis != channels]
    draw = torch.Generator().manual_seed(11)
    left = {True: OUTSIDE, False: INSIDE}
    count = int(torch.tensor(grid).prod())
    order = [0, *torch.randperm(count, generator=draw).tolist()]  # the corner, then any
    for index in dict.fromkeys(order):
        cell = unravelled(torch.tensor(index), grid)
        at = tuple(int(i) for i in cell)
        border = any(n >= 3 and i in (0, n - 1) for i, n in zip(at, grid, strict=True))
        if not left[border]:
            continue
        left[border] -= 1
        spans = [slice(None)] + [
            slice(round(i * side / n), max(round((i + 1) * side / n), round(i * side / n) + 1))
            for i, n, side in zip(at, grid, sides, strict=True)
        ]
        if channels == 2:
            spans[0], spans[1] = spans[1], slice(None)
        draws = []
        for _ in range(DRAWS):
            changed = images.clone()
            part = changed[image][tuple(spans)]
            changed[image][tuple(spans)] = part + 0.3 * torch.randn(part.shape, generator=draw)
            draws.append(changed)
        yield at, draws


def unravelled(numbers: Tensor, grid: Cell) -> Tensor:
    """From cells counted row by row to rows and columns, `(…, axes)`."""
    columns = []
    for side in reversed(grid):
        columns.append(numbers % side)
        numbers = numbers // side
    return torch.stack(columns[::-1], -1)


def check(
    name: str, places: Places, found: Sequence[tuple[Cell, Tensor]], image: int, grid: Cell,
    result: Result,
) -> None:  # fmt: skip
    """One side of one record, all cells that were changed; then the same, one row off."""
    count = len(found[0][1])
    repeat = count // len(places.cell) if places.image is None else 1
    cell = torch.tensor(places.cell * repeat)
    of = (
        torch.arange(repeat).repeat_interleave(len(places.cell))
        if places.image is None
        else torch.tensor(places.image)
    )
    cell = cell.where(of == image, -1)
    still = torch.tensor([r not in ("place", "global") for r in places.role] * repeat)
    moved = [
        (changed, energy) for changed, energy in found if _compared(changed, energy, cell, grid)
    ]
    result.compared += len(moved)
    for _, energy in moved:
        if bool((energy[still] > 1e-8 * float(energy.max())).any()):
            fault(result, f"{name}: a token that is said to be no place moves")
    judged = judgement(moved, cell, grid)
    result.off, result.mean_off = max(result.off, judged.off), max(result.mean_off, judged.mean)
    for words in judged.faults:
        fault(result, f"{name}: {words}")
    if moved and len(moved) == len(found) and max(grid) > 2:
        result.shifted += 1
        result.noticed += bool(judgement(moved, one_row_off(cell, grid), grid).faults)


def _compared(changed: Cell, energy: Tensor, cell: Tensor, grid: Cell) -> bool:
    """Whether a token has the changed cell, and any token moves; not so of a masked patch."""
    return float(energy.max()) > 0 and bool((cell == sum(raveled(changed, grid))).any())


@dataclass
class Judgement:
    """What speaks against some cells of tokens, and how far the centres of changes are off."""

    faults: list[str] = field(default_factory=list)
    off: float = 0.0
    mean: float = 0.0


def judgement(found: Sequence[tuple[Cell, Tensor]], cell: Tensor, grid: Cell) -> Judgement:
    """What changes around single cells, against the cells that tokens are said to be."""
    out, here = Judgement(), cell >= 0
    position = unravelled(cell[here], grid)
    for changed, energy in found:
        share = float(energy[cell == sum(raveled(changed, grid))].max() / energy.max())
        if share < LEAST:
            out.faults.append(f"cell {changed} of {grid} moves by {share:.2f}")
    around = [(changed, energy[here]) for changed, energy in found]
    away = []
    for i, (changed, energy) in enumerate(around):
        others = around[:i] + around[i + 1 :] or around
        away.append(centre(energy, position) - expected(changed, others, position, grid))
        allowed = (MEAN + 2 * standard_error(energy, position)).clamp_min(FAR)
        out.off = max(out.off, float(away[-1].abs().max()))
        if bool((away[-1].abs() > allowed).any()):
            far = float(away[-1].abs().max())
            out.faults.append(f"changes of cell {changed} of {grid} lie {far:.2f} cells away")
    if away:
        out.mean = float(torch.stack(away).mean(0).abs().max())
        if out.mean > MEAN:
            out.faults.append(f"changes on {grid} lie {out.mean:.2f} cells away on average")
    return out


def one_row_off(cell: Tensor, grid: Cell) -> Tensor:
    """Wrong cells: all one row farther along the longest axis, the last row first."""
    axis = grid.index(max(grid))
    at = unravelled(cell.clamp_min(0), grid)
    at[:, axis] = (at[:, axis] + 1) % grid[axis]
    steps = torch.tensor(raveled((1,) * len(grid), grid))
    return (at * steps).sum(1).where(cell >= 0, -1)


def raveled(cell: Cell, grid: Cell) -> list[int]:
    steps = [int(torch.tensor(grid[i + 1 :]).prod()) for i in range(len(grid))]
    return [i * step for i, step in zip(cell, steps, strict=True)]


def fault(result: Result, words: str) -> None:
    result.wrong += 1
    result.faults.append(words)


def centre(energy: Tensor, position: Tensor) -> Tensor:
    """Where changes lie on average, in cells."""
    return (energy[:, None] * position).sum(0) / energy.sum()


def standard_error(energy: Tensor, position: Tensor) -> Tensor:
    """Of the centre of changes, by axis: `σ / √n`, with `n = (Σ e)² / Σ e²` tokens that change."""
    apart = (position - centre(energy, position)).square()
    spread = (energy[:, None] * apart).sum(0) / energy.sum()
    return (spread * energy.square().sum()).sqrt() / energy.sum()


def expected(
    changed: Cell, others: Sequence[tuple[Cell, Tensor]], position: Tensor, grid: Cell
) -> Tensor:
    """Where the centre of changes around a cell is expected, from those around other cells."""
    weight = torch.ones(len(position), dtype=torch.float64)
    for axis, side in enumerate(grid):
        weight *= profile(others, position[:, axis], axis, side)[
            (position[:, axis] - changed[axis]).abs()
        ]
    return centre(weight, position)


def profile(found: Sequence[tuple[Cell, Tensor]], row: Tensor, axis: int, side: int) -> Tensor:
    """The change of a token by its distance from the changed cell along one axis, both ways alike.

    `Σ change at distance d / Σ change at distance 0`, over the cells that have such tokens.
    """
    above, below = torch.zeros(side).double(), torch.zeros(side).double()
    tokens = row.bincount(minlength=side)
    for changed, energy in found:
        rows = torch.zeros(side).double().index_add_(0, row, energy) / tokens.clamp_min(1)
        rows /= rows.sum()
        at = changed[axis]
        for other in range(side):
            if tokens[other]:
                above[abs(other - at)] += rows[other]
                below[abs(other - at)] += rows[at]
    known = below > 0
    values = torch.where(known, above / below.clamp_min(1e-300), 0.0)
    last = float(values[known][-1]) if bool(known.any()) else 0.0
    return torch.where(known, values, last)


def in_child(family: str, name: str, build: Build, seconds: int) -> Result:
    """Judge one model in a process of its own, with limits."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(send, family, name, build, seconds)
    )
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        child.join()
        return Result(family, name, failed=f"ended with {child.exitcode}")
    finally:
        child.join()


def _child(send: Connection, family: str, name: str, build: Build, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    torch.set_num_threads(1)
    try:
        result = judge(family, name, build)
    except (Exception, MemoryError) as error:
        traceback.print_exc(limit=-3)
        words = str(error).splitlines() or [""]
        result = Result(family, name, failed=f"{type(error).__name__}: {words[0][:200]}")
    send.send(result)


def _late(*_: Any) -> None:
    raise TimeoutError("took longer than its time")


def table(results: Sequence[Result]) -> str:
    """A line per family, and one per model."""
    done = [r for r in results if not r.failed]
    lines = [
        f"Measured by `benchmarks/places.py` on {len(done)} models with random weights (torch "
        f"{torch.__version__.split('+')[0]}, {platform.machine()}, one thread): "
        f"{sum(r.compared for r in done)} comparisons of a side (queries or keys of a record) with "
        f"what one changed cell moves, **{sum(r.wrong for r in done)} wrong**; largest error of a "
        f"place {max(r.error for r in done):.4f} cells, at most {max(r.passes for r in done)} "
        f"forward passes. Judged one row off, {sum(r.noticed for r in done)} of "
        f"{sum(r.shifted for r in done)} sides were found wrong.",
        "",
        "| family | models | sides | on a grid | no place | refused | wrong of compared | "
        "error, cells | passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    families = {r.family: [x for x in done if x.family == r.family] for r in done}
    for family, own in [*families.items(), ("all", done)]:
        lines.append(f"| {family} | {len(own)} | {_cells(own)} |")
    lines += [
        "",
        "| model | family | sides | on a grid | no place | refused | wrong of compared | "
        "error, cells | passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {r.name} | {r.family} | {_cells([r])} |" for r in done]
    missing = {name for models in FAMILIES.values() for name in models} - {r.name for r in done}
    if missing:
        lines += ["", f"Not judged: {', '.join(sorted(missing))}."]
    reasons = sorted({reason for r in done for reason in r.reasons})
    lines += ["", "Refused because:", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines)


def _cells(results: Sequence[Result]) -> str:
    """The columns of a table, of some models together."""
    sides, refused = sum(r.sides for r in results), sum(r.refused for r in results)
    return " | ".join([
        f"{sides}", f"{sum(r.places for r in results)}", f"{sum(r.nowhere for r in results)}",
        f"{refused} ({refused / max(1, sides):.1%})",
        f"{sum(r.wrong for r in results)} of {sum(r.compared for r in results)}",
        f"{max(r.error for r in results):.2f}", f"{max(r.passes for r in results)}",
    ])  # fmt: skip


def told(r: Result) -> str:
    """A line, and what is wrong or refused, of one model."""
    if r.failed:
        return f"{r.name}: failed ({r.failed})"
    lines = [
        f"{r.name}: {r.places} on a grid, {r.nowhere} no place, {r.refused} refused, {r.wrong} "
        f"wrong of {r.compared}, error {r.error:.2f}, off {r.off:.2f}, on average "
        f"{r.mean_off:.2f}, {r.passes} passes, {r.seconds:.1f} s; {', '.join(r.roles)}"
    ]
    return "\n    ".join([*lines, *r.faults[:4], *r.reasons[:4]])


def stored(path: Path) -> dict[str, Result]:
    """The results that a file holds, by model."""
    values = json.loads(path.read_text()) if path.exists() else {}
    return {name: Result(**value) for name, value in values.items()}


def _judge_all(args: argparse.Namespace) -> None:
    """Judge the chosen models, and store each result."""
    started = time.monotonic()
    some = args.only.split("|") if args.only is not None else []
    for family, models in FAMILIES.items():
        for name, build in models.items():
            chosen = any(x in f"{family} {name}" for x in some) if some else True
            if not chosen or (not args.again and name in stored(args.results)):
                continue
            if time.monotonic() - started > args.minutes * 60:
                return
            result = in_child(family, name, build, args.seconds)
            known = {**stored(args.results), name: result}
            args.results.write_text(json.dumps({n: asdict(r) for n, r in known.items()}, indent=1))
            print(told(result), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("places.json"), help="of all models")
    parser.add_argument("--only", default=None, help="models that contain one of these, by |")
    parser.add_argument("--again", action="store_true", help="judge also what is known")
    parser.add_argument("--docs", type=Path, help="page to write the table into, running nothing")
    parser.add_argument("--seconds", type=int, default=240, help="of the processor, for one model")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no model after these")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.docs is None:
        _judge_all(args)
    known = stored(args.results)
    results = [known[n] for models in FAMILIES.values() for n in models if n in known]
    written = table(results)
    print("\n" + written)
    if args.docs is not None:
        before, _, rest = args.docs.read_text().partition(START)
        after = rest.partition(END)[2]
        args.docs.write_text(f"{before}{START}\n\n{written}\n\n{END}{after}")
    return int(any(r.wrong or r.failed for r in results))


if __name__ == "__main__":
    sys.exit(main())
