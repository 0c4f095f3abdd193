"""Tags, notes and named views of readers, kept beside the runs in one JSON file.

```
<root>/notes.json   {"schema": 1,
                     "runs":   {"<run id>": {"tags": [...], "note": "..."}},
                     "images": {"<digest>": {"<index>": {"tags": [...], "note": "..."}}},
                     "views":  {"<name>": "<address>"}}
```

The file is replaced whole. A change reads the newest content under a lock of the folder, so that
a file that two readers change at once holds the changes of both. Nothing inside a run is touched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnviz.errors import InputError, RunError
from attnviz.runs.documents import SIZE_LIMIT, Document, loaded
from attnviz.runs.locking import BusyError, Lock
from attnviz.runs.storage import MissingFileError, Place, local_path, open_store, write_inside

NOTES = "notes.json"
"""The file's name in a folder of runs."""

LONGEST_TAG = 40
LONGEST_NOTE = 2000
MOST_TAGS = 20
_LONGEST_NAME = 80
_LONGEST_ADDRESS = 4000
_PATIENCE = 5.0  # seconds that a change waits for another one


@dataclass(frozen=True)
class Note:
    """What a reader noted of a run or an image.

    Attributes:
        tags: Short words, each once.
        note: Free text.
    """

    tags: tuple[str, ...] = ()
    note: str = ""

    def __bool__(self) -> bool:
        return bool(self.tags or self.note)


@dataclass(frozen=True)
class Notes:
    """All notes of a folder of runs.

    Attributes:
        runs: Run id → its note.
        images: Digest of a data set → index of an image → its note.
        views: Name of a view → the query of its address.
    """

    runs: Mapping[str, Note] = field(default_factory=dict)
    images: Mapping[str, Mapping[int, Note]] = field(default_factory=dict)
    views: Mapping[str, str] = field(default_factory=dict)

    def tags_of_images(self, digest: str) -> list[str]:
        """The tags that images of a data set have, in alphabetical order."""
        return sorted({tag for note in self.images.get(digest, {}).values() for tag in note.tags})


def read_notes(root: Place) -> Notes:
    """The notes of a folder of runs; empty where there are none.

    Raises:
        RunError: The file cannot be read, or is no file of notes.
    """
    return _parsed(_document(root))


def note_run(root: Place, run_id: str, *, tags: Sequence[str] = (), note: str = "") -> Notes:
    """Replace the note of a run; without tags and text there is none.

    Raises:
        InputError: A tag or a note that is too long.
        RunError: It cannot be written, as on a remote store.
    """
    entry = _entry(tags, note)
    return _changed(root, lambda content: _put(content.setdefault("runs", {}), run_id, entry))


def note_image(
    root: Place, digest: str, index: int, *, tags: Sequence[str] = (), note: str = ""
) -> Notes:
    """Replace the note of an image of a data set; see `note_run`."""
    entry = _entry(tags, note)

    def change(content: Document) -> None:
        of_set = content.setdefault("images", {}).setdefault(digest, {})
        _put(of_set, str(index), entry)

    return _changed(root, change)


def tag_images(
    root: Place, digest: str, indices: Sequence[int], tag: str, *, on: bool = True
) -> Notes:
    """Add a tag to images of a data set, or take it away; see `note_run`."""
    word = _text("tag", tag, LONGEST_TAG)
    if not word:
        raise InputError("tag: expected a word, got none")

    def change(content: Document) -> None:
        of_set = content.setdefault("images", {}).setdefault(digest, {})
        for index in map(str, map(int, indices)):
            before = _note(of_set.get(index))
            others = [one for one in before.tags if one != word]
            _put(of_set, index, _entry([*others, *([word] if on else [])], before.note))

    return _changed(root, change)


def name_view(root: Place, name: str, address: str | None) -> Notes:
    """Keep a view under a name, or forget it where the address is None.

    Raises:
        InputError: A name or an address that is empty or too long.
        RunError: It cannot be written.
    """
    name = _text("name of a view", name, _LONGEST_NAME)
    if not name:
        raise InputError("name of a view: expected a name, got none")
    if address is not None:
        address = _text("address of a view", address, _LONGEST_ADDRESS)
    return _changed(root, lambda content: _put(content.setdefault("views", {}), name, address))


def _put(entries: Document, key: str, value: Any) -> None:
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value


def _entry(tags: Sequence[str], note: str) -> Document | None:
    words = dict.fromkeys(_text("tag", tag, LONGEST_TAG) for tag in tags)
    kept = [word for word in words if word]
    if len(kept) > MOST_TAGS:
        raise InputError(f"tags: expected at most {MOST_TAGS}, got {len(kept)}")
    text = _text("note", note, LONGEST_NOTE)
    return {"tags": kept, "note": text} if kept or text else None


def _text(what: str, value: str, longest: int) -> str:
    if not isinstance(value, str) or len(value.strip()) > longest:
        raise InputError(f"{what}: expected text of at most {longest} characters")
    return value.strip()


def _changed(root: Place, change: Callable[[Document], None]) -> Notes:
    """Apply a change to the newest content and write it whole."""
    folder = local_path(root)
    lock = _locked(folder)
    try:
        content = _document(root)
        change(content)
        text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)
        write_inside(folder, NOTES, f"{text}\n".encode())
        return _parsed(content)
    finally:
        lock.release()


def _locked(folder: Path) -> Lock:
    """The folder's lock; another reader's change is waited for.

    Raises:
        RunError: There is no such folder, or the other does not end.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return Lock(folder)
        except BusyError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        except OSError as error:
            raise RunError(f"write {folder / NOTES}: no such folder") from error


def _document(root: Place) -> Document:
    store = open_store(root)
    try:
        found = loaded(store.read(NOTES, SIZE_LIMIT))
    except MissingFileError:
        return {"schema": 1}
    except ValueError as error:
        raise RunError(f"read {store.where}/{NOTES}: not JSON") from error
    if not isinstance(found, dict) or found.get("schema") != 1:
        raise RunError(f"read {store.where}/{NOTES}: expected notes of schema 1")
    for name in ("runs", "images", "views"):
        if not isinstance(found.get(name, {}), dict):
            raise RunError(f"read {store.where}/{NOTES}: {name} should be an object")
    return found


def _parsed(content: Document) -> Notes:
    images = {
        digest: {int(index): _note(entry) for index, entry in entries.items() if index.isdecimal()}
        for digest, entries in content.get("images", {}).items()
        if isinstance(entries, dict)
    }
    runs = {name: _note(entry) for name, entry in content.get("runs", {}).items()}
    views = {k: v for k, v in content.get("views", {}).items() if isinstance(v, str)}
    return Notes(runs, images, views)


def _note(entry: Any) -> Note:
    if not isinstance(entry, dict):
        return Note()
    tags, note = entry.get("tags"), entry.get("note")
    words = tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
    return Note(words, note if isinstance(note, str) else "")
