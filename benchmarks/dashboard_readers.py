"""Several readers of the dashboard at once, while runs under them go, change and grow.

    uv run python benchmarks/dashboard_readers.py [--readers 6] [--minutes 10] [--think 2]

Each reader is a client of the server's own web socket, without a browser: it opens pages with
random runs, images, maps and metrics, thinks for some seconds, and now and then closes its tab and
comes back as another. One of them is hostile: it sends the components of each page values that no
browser sends, among them uploads that are no picture. Meanwhile a run is deleted and comes back,
one is replaced by another under its name, a file is cut short for a while, and one run trains.

Printed: the server's resident memory once every reader has seen every page, at the end and at its
most, the pages that were opened, and the faults: uncaught exceptions on a page or in the server's
log, pages that did not end within `--patience` seconds, connections that broke. Errors that a page
words for its reader ("is missing", "verify") are none, and are counted apart. The exit code is 1
where there is a fault, or where memory grew by more than `--most` megabytes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
from benchmarks import dashboard as measuring  # noqa: E402

PAGES = ("", "explore", "gallery", "sample", "heads", "attributions", "diagnosis", "training",
         "runs", "about")  # fmt: skip
BAD_VALUES: tuple[Any, ...] = (
    None, True, -1, 1e308, "", "<img src=x>", "../../etc/passwd", "A" * 200_000, [], [[[]]],
    {"a": {"b": [1]}}, {"tau": "nan", "change": "x"}, {"ticked": [1], "shown": None},
)  # fmt: skip


@dataclass
class Seen:
    """What all readers have met."""

    pages: int = 0
    worded: int = 0
    faults: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def fault(self, words: str) -> None:
        """Note a fault."""
        with self.lock:
            self.faults.append(words[:300])


class Reader:
    """A reader in a tab of its own."""

    def __init__(self, address: str, seen: Seen, seed: int, patience: float) -> None:
        self.address, self.seen, self.patience = address, seen, patience
        self.random = random.Random(seed)
        self.socket: Any = None
        self.tab = ExitStack()
        self.components: dict[str, str] = {}

    def open(self) -> None:
        """Open a tab."""
        from websockets.sync.client import connect

        url = self.address.replace("http://", "ws://") + "/_stcore/stream"
        self.tab = ExitStack()
        self.socket = self.tab.enter_context(
            connect(
                url,
                max_size=None,
                subprotocols=["streamlit"],
                open_timeout=self.patience,
                ping_interval=None,
            )
        )

    def close(self) -> None:
        """Close the tab."""
        if self.socket is not None:
            self.tab.close()
            self.socket = None

    def visit(self, page: str, values: dict[str, Any] | None = None, **query: Any) -> None:
        """Open a page, or run it again with values of its components, to its end."""
        from urllib.parse import urlencode

        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg()
        message.rerun_script.query_string = urlencode(query)
        message.rerun_script.page_name = page
        for identity, value in (values or {}).items():
            state = message.rerun_script.widget_states.widgets.add()
            state.id, state.json_value = identity, json.dumps(value)
        try:
            if self.socket is None:
                self.open()
            self.socket.send(message.SerializeToString())
            self._until_finished(page, query)
        except (OSError, TimeoutError) as error:
            self.seen.fault(f"{page} {query}: {type(error).__name__} {error}")
            self.close()
        except Exception as error:  # the library's own errors of connections have no common base
            self.seen.fault(f"{page} {query}: {type(error).__name__} {error}")
            self.close()

    def _until_finished(self, page: str, query: dict[str, Any]) -> None:
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        end = time.monotonic() + self.patience
        self.components = {}
        while True:
            left = end - time.monotonic()
            if left < 0:
                raise TimeoutError(f"not ended after {self.patience:g} seconds")
            content = self.socket.recv(timeout=max(0.1, left))
            message = ForwardMsg.FromString(content)
            kind = message.WhichOneof("type")
            if kind == "delta":
                self._element(message.delta.new_element, page, query)
            elif kind == "script_finished":
                rerun = message.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN
                if not rerun:
                    break
        with self.seen.lock:
            self.seen.pages += 1

    def _element(self, element: Any, page: str, query: dict[str, Any]) -> None:
        kind = element.WhichOneof("type")
        if kind == "exception":
            one = element.exception
            self.seen.fault(f"{page} {query}: {one.type} {one.message}")
        elif kind == "alert":
            with self.seen.lock:
                self.seen.worded += 1
        elif kind == "bidi_component":
            self.components[element.bidi_component.id] = element.bidi_component.component_name

    def wander(self, runs: list[str], *, hostile: bool = False) -> None:
        """Open some page with some choice."""
        page = self.random.choice(PAGES)
        query: dict[str, Any] = {"run": self.random.choice(runs)}
        if self.random.random() < 0.3:
            query["runs"] = ",".join(self.random.sample(runs, 3))
        if page in ("", "sample", "heads"):
            query["image"] = self.random.randrange(64)
        if page in ("", "gallery", "explore", "attributions"):
            query["metric"] = self.random.choice(["energy_pointing_game", "max_iou"])
        if page in ("gallery", "explore"):
            query |= {"order": self.random.choice(["worst", "best", "number", "disagreement"])}
        if hostile and self.random.random() < 0.3:
            page, query = "try_it", {"run": "mha-0"}
        self.visit(page, **query)
        if hostile:
            self._attack(page, query)

    def _attack(self, page: str, query: dict[str, Any]) -> None:
        names = ("opened", "sorted", "ticked", "settings", "brush", "picture", "page", "near", "at")
        values = {
            identity: {one: self.random.choice(BAD_VALUES) for one in names}
            for identity in self.components
        }
        self.visit(page, values, **query)


def mischief(root: Path, kept: Path, stop: threading.Event) -> None:
    """Delete, replace, cut and grow runs until told to stop; afterwards all are whole again."""
    from tests.dashboard import made_runs

    writer = made_runs.training_run(root, "growing", epochs=2)
    epoch = 2
    while not stop.is_set():
        shutil.rmtree(root / "cnn-1", ignore_errors=True)
        stop.wait(3)
        shutil.copytree(kept / "cnn-1", root / "cnn-1", dirs_exist_ok=True)
        shutil.rmtree(root / "cbam-1")
        shutil.copytree(kept / ("mha-1" if epoch % 2 else "cbam-1"), root / "cbam-1")
        stop.wait(3)
        table = root / "mha-1" / "samples.parquet"
        whole = table.read_bytes()
        table.write_bytes(whole[:-100])
        epoch += 1
        writer.curve(epoch=epoch, train_loss=1 / epoch, val_loss=1 / epoch)
        writer.heartbeat(epoch=epoch)
        stop.wait(3)
        table.write_bytes(whole)
        stop.wait(1)
    writer.stop("the measurement is over")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--think", type=float, default=2.0, help="seconds between two clicks")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for a page to end")
    parser.add_argument("--most", type=float, default=200.0, help="megabytes of growth allowed")
    arguments = parser.parse_args()
    from tests.dashboard import made_runs

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = folder / "runs"
        root.mkdir()
        made_runs.good_runs(root, model=True)
        kept = shutil.copytree(root, folder / "kept")
        app = REPOSITORY / "dashboard" / "app.py"
        address, process = stack.enter_context(measuring.server(folder, app, root))
        return observed(arguments, address, process.pid, root, kept, next(folder.glob("*.log")))


def observed(
    arguments: argparse.Namespace, address: str, pid: int, root: Path, kept: Path, log: Path
) -> int:
    """Let the readers read; print what was found."""
    seen, stop = Seen(), threading.Event()
    readers = [Reader(address, seen, seed, arguments.patience) for seed in range(arguments.readers)]
    for reader in readers:  # every page once, by each: caches, imports and sessions are there
        for page in (*PAGES, "try_it"):
            reader.visit(page, run="mha-0")
    start = measuring.resident(pid)
    print(f"{arguments.readers} readers have seen every page: {start:.0f} MB", flush=True)
    runs = sorted(path.name for path in kept.iterdir() if path.name != "datasets")
    threads = [
        threading.Thread(target=read, args=(reader, runs, arguments.think, stop, number == 0))
        for number, reader in enumerate(readers)
    ]
    threads.append(threading.Thread(target=mischief, args=(root, kept, stop)))
    for thread in threads:
        thread.start()
    most, at_end = start, time.monotonic() + 60 * arguments.minutes
    told = time.monotonic()
    while time.monotonic() < at_end:
        time.sleep(min(5.0, max(0.0, at_end - time.monotonic())))
        now = measuring.resident(pid)
        most = max(most, now)
        if time.monotonic() - told >= 60:
            told = time.monotonic()
            print(f"{seen.pages} pages, {now:.0f} MB, {len(seen.faults)} faults", flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    end = measuring.resident(pid)
    logged = faults_in(log.read_text(errors="replace"))
    print(
        f"{arguments.readers} readers, {arguments.minutes:g} minutes, {seen.pages} pages: memory "
        f"{start:.0f} MB at the start, {end:.0f} MB at the end, {most:.0f} MB at most; "
        f"{seen.worded} notices for readers; {len(seen.faults)} faults on pages, {logged} in the "
        "server's log"
    )
    for words, times in Counter(seen.faults).most_common(10):
        print(f"  {times} x {words}")
    if seen.faults or logged:
        print(log.read_text(errors="replace")[-6000:])
    return int(bool(seen.faults) or logged > 0 or end - start > arguments.most)


def read(
    reader: Reader, runs: list[str], think: float, stop: threading.Event, hostile: bool
) -> None:
    """One reader's time at the dashboard."""
    turn = 0
    while not stop.wait(think * (0.5 + reader.random.random())):
        turn += 1
        if turn % 25 == 0:
            reader.close()
        reader.wander(runs, hostile=hostile)
    reader.close()


def faults_in(log: str) -> int:
    """How many tracebacks a server's log holds."""
    return log.count("Traceback (most recent call last)") + log.count("Uncaught app exec")


if __name__ == "__main__":
    sys.exit(main())
