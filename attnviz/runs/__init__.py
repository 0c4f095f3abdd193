"""Run folders: what an evaluation writes, and what the dashboard and comparisons read.

```
<root>/<id>/run.json                  replaced last: schema, status, settings, summary, files
            curves.jsonl              one line per epoch
            samples.parquet           one row per test image
            maps/<name>.safetensors   (n,h,w) or (n,heads,h,w): scaled fp16 and the fp32 scale
            gates/<name>.safetensors  (n,c) or (n,h,w)
            rows/<name>.safetensors   (k,heads,q,keys) for a few chosen images
            model.safetensors
            layouts.json              which token is which place, by record
<root>/datasets/<digest>/             test images, masks, boxes and labels, shared by the runs
<root>/notes.json                     tags, notes and named views of readers
```

Writing is local, atomic and locked (`lifecycle`, `writer`); reading validates everything and works
on remote stores too (`reader`, `storage`). Links below a run are not followed (`entries`). No
pickle, no torch.
"""

from attnviz.runs.changes import delete_run, rename_run, restore_run
from attnviz.runs.datasets import Dataset, list_datasets, open_dataset, save_dataset
from attnviz.runs.diff import ABSENT, differing, flat, in_words
from attnviz.runs.faults import Fault
from attnviz.runs.header import STALE_AFTER, STATES, File, State
from attnviz.runs.layout import SCHEMA
from attnviz.runs.lifecycle import (
    amend_run,
    migrate_run,
    resume_run,
    save_run,
    start_run,
    this_environment,
)
from attnviz.runs.locking import BusyError
from attnviz.runs.notes import (
    Note,
    Notes,
    name_view,
    note_image,
    note_run,
    read_notes,
    tag_images,
)
from attnviz.runs.reader import Run, RunList, list_runs, open_run
from attnviz.runs.verify import verify
from attnviz.runs.writer import RunWriter

__all__ = [
    "ABSENT",
    "SCHEMA",
    "STALE_AFTER",
    "STATES",
    "BusyError",
    "Dataset",
    "Fault",
    "File",
    "Note",
    "Notes",
    "Run",
    "RunList",
    "RunWriter",
    "State",
    "amend_run",
    "delete_run",
    "differing",
    "flat",
    "in_words",
    "list_datasets",
    "list_runs",
    "migrate_run",
    "name_view",
    "note_image",
    "note_run",
    "open_dataset",
    "open_run",
    "read_notes",
    "rename_run",
    "restore_run",
    "resume_run",
    "save_dataset",
    "save_run",
    "start_run",
    "tag_images",
    "this_environment",
    "verify",
]
