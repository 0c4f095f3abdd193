"""Effects of faults on run folders, as tables.

    uv run python benchmarks/faults.py kills [--kills 120] [--seed 0]
    uv run python benchmarks/faults.py work [--kills 120] [--seed 0]
    uv run python benchmarks/faults.py steps
    uv run python benchmarks/faults.py damage
    uv run python benchmarks/faults.py surroundings
    uv run python benchmarks/faults.py attacks
    uv run python benchmarks/faults.py command --runs runs [--kills 20] [--longest 30] -- COMMAND …

`kills` ends a writer with SIGKILL at random moments, `steps` in each of its system calls in turn;
`work` does the same as `kills` to a small network that is trained, measured and attributed by
`experiments` and the command line: what is finished afterwards must be, to the last bit, what it
would have been undisturbed. `damage` spoils files of a finished run; `surroundings` fills the
disk, forbids to write, writes twice and turns the clock back; `attacks` counts what else was done
to runs, command line and dashboard. `command` kills any command that writes runs (such as
`python -m experiments sweep …`, which resumes) with all its processes, again and again, then lets
it end. After each fault the folder is listed, verified and, where something is unfinished,
finished. The exit code is 1 if a run was unreadable, or lost once it was complete.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnviz.errors import AttnvizError
from attnviz.runs import list_runs, open_run, verify
from attnviz.text import table
from tests.runs.made import make
from tests.runs.stepwise import JOBS, Job, Step, kill_everywhere
from tests.runs.test_faults import FILES, cut, emptied, flip, lengthen, remove


@dataclass
class Tally:
    """What was left after the kills of one kind of writer."""

    kills: int = 0
    unharmed: int = 0
    left: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def row(self, name: str) -> tuple[object, ...]:
        """Its line in the table."""
        left = ", ".join(f"{count} {state}" for state, count in self.left.most_common())
        return name, self.kills, self.unharmed, left, len(self.bad)


HEADER = ("writer", "kills", "came through", "left behind", "unreadable or lost")


def forked(job: Step, home: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job(home)
            code = 0
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_random(name: str, work: Job, kills: int, root: Path, rng: random.Random) -> Tally:
    """Kill one kind of writer at moments drawn over the time that it takes undisturbed."""
    before, job, check, end = work
    tally, span = Tally(), 0.0
    while tally.kills < kills:
        home = root / f"{name}-{tally.kills + tally.unharmed}"
        home.mkdir()
        before(home)
        start = time.perf_counter()
        child = forked(job, home)
        if span:
            time.sleep(rng.random() * span)
            os.kill(child, signal.SIGKILL)
        died = exit_code(child) != 0
        assert span or not died, f"{name} fails undisturbed"
        span = span or time.perf_counter() - start
        tally.kills += died
        tally.unharmed += not died
        try:
            tally.left[check(home)] += 1
            if check(home) != end:
                assert exit_code(forked(job, home)) == 0, "cannot be finished"
            assert check(home) == end, "did not finish"
        except (AssertionError, AttnvizError) as error:
            tally.bad.append(f"{name}: {type(error).__name__} {error}")
        shutil.rmtree(home)
    return tally


def kills(args: argparse.Namespace) -> int:
    """SIGKILL at random moments of saving, training, amending, migrating, keeping images."""
    with tempfile.TemporaryDirectory() as root:
        return killed(JOBS, args, Path(root))


def work(args: argparse.Namespace) -> int:
    """SIGKILL at random moments of training, measuring and attributing."""
    from benchmarks.real_work import real_jobs

    with tempfile.TemporaryDirectory() as root:
        return killed(real_jobs(Path(root)), args, Path(root))


def killed(jobs: Mapping[str, Job], args: argparse.Namespace, root: Path) -> int:
    """Kill each of some jobs as often, and print what was left."""
    rng, rows, bad = random.Random(args.seed), [], []
    share = -(-args.kills // len(jobs))
    for name, one in jobs.items():
        tally = kill_at_random(name, one, share, root, rng)
        rows.append(tally.row(name))
        bad += tally.bad
    print(table(HEADER, rows))
    print(f"\n{sum(row[1] for row in rows)} kills, {len(bad)} unreadable or lost")
    print("\n".join(bad))
    return 1 if bad else 0


def steps(args: argparse.Namespace) -> int:
    """Death in each system call that touches files, one after the other."""
    rows = []
    for name in JOBS:
        with tempfile.TemporaryDirectory() as root:
            left = kill_everywhere(name, Path(root))
        rows.append(Tally(left.total() - 1, 1, left).row(name))
    print(table(HEADER, rows))
    return 0


def damage(args: argparse.Namespace) -> int:
    """One fault in one file of a run: what the listing says, and what verify says."""
    rows, missed = [], 0
    for name in FILES:
        for spoil in (cut, emptied, flip, lengthen, remove):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                make(root / "a")
                make(root / "b")
                spoil(root / "a" / name)
                found, faults = list_runs(root), verify(root)
                (listed,) = [f"{r.state}: {r.reason}" for r in found if r.id == "a"] or ["left out"]
                said = "; ".join(f"{fault.kind}: {fault.file}" for fault in faults) or "–"
                missed += not faults
                assert found.named("b").state == "complete"
            rows.append((name, spoil.__name__, listed.rstrip(": "), said))
    print(table(("file", "damage", "listed as", "verify says"), rows))
    return 1 if missed else 0


def surroundings(args: argparse.Namespace) -> int:
    """A full disk, a read-only folder, two writers, a clock that goes backwards."""
    from benchmarks.surroundings import HEADER, rows

    print(table(HEADER, rows()))
    return 0


def attacks(args: argparse.Namespace) -> int:
    """Links, sizes, names, forks, interrupts, foreign hosts: tried and survived."""
    from benchmarks.run_attacks import HEADER, rows

    found = list(rows())
    print(table(HEADER, found))
    return 0 if all(tried == survived for _, tried, survived in found) else 1


def command(args: argparse.Namespace) -> int:
    """Kill a command that writes runs, again and again; then let it end."""
    rng, tally, complete = random.Random(args.seed), Tally(), {}
    for _ in range(args.kills):
        with subprocess.Popen(
            args.command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=-1
        ) as child:
            try:
                child.wait(rng.random() * args.longest)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                tally.kills += 1
            else:
                tally.unharmed += 1
        complete = _looked_at(args.runs, complete, tally)
    code = subprocess.run(args.command).returncode
    _looked_at(args.runs, complete, tally)
    states = Counter(run.state for run in list_runs(args.runs))
    print(table(HEADER, [tally.row(" ".join(args.command)[:40])]))
    print(f"\nundisturbed at last: exit code {code}; {dict(states)}")
    print("\n".join(tally.bad))
    return 1 if tally.bad or code else 0


def _looked_at(root: Path, before: dict[str, bytes], tally: Tally) -> dict[str, bytes]:
    """Note every run's state, and whether one that was complete has changed or gone."""
    found = list_runs(root) if root.exists() else ()
    if not found:
        tally.left["no runs"] += 1
        tally.bad += [f"{name}: was complete" for name in before]
        return before
    tally.left.update(run.state for run in found)
    tally.bad += [f"{run.id}: {run.reason}" for run in found if run.state in ("broken", "newer")]
    tally.bad += [f"{name}: {reason}" for name, reason in found.left_out.items()]
    tally.bad += [str(fault) for fault in verify(root)]
    after = {run.id: (run.path / "run.json").read_bytes() for run in found.complete}
    tally.bad += [f"{name}: was complete" for name in before if name not in after]
    for name in before.keys() & after.keys():
        if before[name] != after[name] and open_run(root / name).verify():
            tally.bad.append(f"{name}: was complete and is spoiled")
    return after


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    jobs: dict[str, Callable[[argparse.Namespace], int]] = {
        "kills": kills, "work": work, "steps": steps, "damage": damage,
        "surroundings": surroundings, "attacks": attacks, "command": command,
    }  # fmt: skip
    parser.add_argument("what", choices=jobs)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where COMMAND writes")
    parser.add_argument("--longest", type=float, default=30, help="seconds until a kill, at most")
    words = sys.argv[1:]
    cut_at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut_at])
    args.command = words[cut_at + 1 :]
    return jobs[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
