"""The run folder: what the lab leaves and the reading room finds, and all that lies between them.

```
<root>/<id>/run.json                  replaced last: schema, status, settings, summary, files
            curves.jsonl              one line per epoch
            samples.parquet           one row per test image
            maps/<name>.safetensors   (n,h,w) or (n,heads,h,w): scaled fp16 and the fp32 scale
            gates/<name>.safetensors  (n,c) or (n,h,w)
            rows/<name>.safetensors   (k,heads,q,keys) for a few chosen images
            model.safetensors
<root>/datasets/<digest>/             test images, masks, boxes and labels, shared by the runs
```

Writing is local, atomic and locked (`beginning`, `writing`); reading trusts nothing and works on
remote stores too (`reading`, `storage`). No pickle, no torch.
"""

from attnviz.runs.datasets import Dataset, list_datasets, open_dataset, save_dataset
from attnviz.runs.diff import ABSENT, differing, flat
from attnviz.runs.header import STALE_AFTER, STATES, File, State
from attnviz.runs.lifecycle import (
    amend_run,
    migrate_run,
    resume_run,
    save_run,
    start_run,
    this_environment,
)
from attnviz.runs.locking import BusyError
from attnviz.runs.migrations import SCHEMA
from attnviz.runs.reader import Run, RunList, list_runs, open_run
from attnviz.runs.verify import Fault, verify
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
    "Run",
    "RunList",
    "RunWriter",
    "State",
    "amend_run",
    "differing",
    "flat",
    "list_datasets",
    "list_runs",
    "migrate_run",
    "open_dataset",
    "open_run",
    "resume_run",
    "save_dataset",
    "save_run",
    "start_run",
    "this_environment",
    "verify",
]
