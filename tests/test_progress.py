"""Progress: a bar on a terminal, lines with the time left elsewhere, nothing for short work."""

from __future__ import annotations

import io
import subprocess
import sys
import weakref

import pytest

from attnviz.progress import EVERY, Progress, interval, tracked


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def work(seconds: float, steps: int, *, initial: int = 0, total: bool = True) -> None:
    clock = Clock()
    count = steps if total else None
    with Progress(count, label="train", unit="steps", initial=initial, clock=clock) as progress:
        for _ in range(steps - initial):
            clock.now += seconds
            progress.update()


def test_work_shorter_than_the_first_interval_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work(1.0, int(EVERY) - 1)
    assert capsys.readouterr().err == ""


def test_a_line_says_how_much_is_done_since_when_and_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work(4.0, 6)
    assert capsys.readouterr().err.splitlines() == [
        "train: 3 of 6 steps, 0:12 so far, about 0:12 left",
        "train: 6 of 6 steps, 0:24 so far, about 0:00 left",
        "train: 6 of 6 steps in 0:24",
    ]


def test_what_was_done_before_counts_for_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    work(10.0, 100, initial=98)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "train: 99 of 100 steps, 0:10 so far, about 0:10 left"


def test_a_day_of_work_prints_less_than_a_hundred_lines(capsys: pytest.CaptureFixture[str]) -> None:
    work(1.0, 86_400)
    told = capsys.readouterr().err.splitlines()
    assert 40 < len(told) < 100
    assert told[-1] == "train: 86,400 of 86,400 steps in 24:00:00"


def test_an_unknown_total_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    work(10.0, 1, total=False)
    assert capsys.readouterr().err.splitlines() == ["train: 1 steps, 0:10 so far",
                                              "train: 1 steps in 0:10"]  # fmt: skip


def test_notes_stand_behind_and_are_only_wanted_when_due(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress(4, label="train", unit="steps", clock=clock) as progress:
        assert not progress.due
        clock.now += EVERY
        assert progress.due
        progress.update(2, {"loss": "0.50"})
        assert not progress.due
    assert capsys.readouterr().err.splitlines()[0].endswith("about 0:10 left, loss 0.50")


def test_interrupted_work_prints_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    def interrupted() -> None:
        with Progress(9, label="train", unit="steps", clock=clock) as progress:
            clock.now += EVERY
            progress.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_has_a_bar_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(3, label="train", unit="steps") as progress:
        assert progress.due
        progress.update(3, {"loss": "0.5"})
    assert "train: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_workers_and_hidden_progress_print_nothing(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock()
    with Progress(3, label="a", unit="b", clock=clock, shown=False) as progress:
        clock.now += EVERY
        progress.update()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with Progress(3, label="a", unit="b", clock=clock) as progress:
        clock.now += EVERY
        progress.update()
        assert not progress.due
    assert stream.getvalue() == ""


def test_tracked_items_are_the_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked([1, 2, 3], label="a", unit="b")) == [1, 2, 3]
    assert list(tracked(iter("xy"), label="a", unit="b")) == ["x", "y"]
    assert capsys.readouterr().err == ""


def test_across_a_pipe_long_work_prints_its_lines() -> None:
    program = (
        "import time, attnviz.progress as p\n"
        "p.EVERY = 0.01\n"
        "for _ in p.tracked(range(3), label='measure', unit='pieces'): time.sleep(0.05)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == ""
    told = done.stderr.splitlines()
    assert told[-1].startswith("measure: 3 of 3 pieces in ")
    assert all(line.startswith("measure: ") for line in told)
    assert "\r" not in done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65, "1:05"), (7384, "2:03:04"), (90_000, "25:00:00")]
)
def test_intervals(seconds: float, text: str) -> None:
    assert interval(seconds) == text


def test_an_item_is_held_by_the_caller_alone() -> None:
    class Batch:
        pass

    tracking = tracked((Batch() for _ in range(2)), label="a", unit="b")
    alive = weakref.ref(next(tracking))
    assert alive() is None
    tracking.close()
