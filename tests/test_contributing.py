"""One of each kind is added from outside the package, in one place, and is there everywhere.

Operators and doctor rules have theirs in `tests/capture/test_registry.py` and
`tests/diagnosis/test_registry.py`; metrics and maps are tried here together, as a package of
one's own would add them, and pages and data sets as a new file in a copy of the tree.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OWN = """
import torch
import attnviz as av
from attnviz import faithfulness
from attnviz.capture import rule
from attnviz.diagnosis import observed
from attnviz.diagnosis import rule as doctor_rule
from attnviz.maps import construction, maps_of

@av.metric(av.MetricDefinition(key="peak_inside", title="peak inside", meaning="whether",
                               source="here", better="higher", bound=1.0))
def peak_inside(maps, masks):
    best = maps.flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, best)[:, 0].double()

@faithfulness.metric(av.MetricDefinition(key="mirror_drop", title="mirror drop", meaning="whether",
                                         source="here", family="faithfulness"))
def mirror_drop(model, images, maps):
    return model(images) - model(images.flip(-1))

@construction(title="strongest query", meaning="max over queries", subject="attention")
def strongest_query(record, size=None, interpolation="bilinear", **where):
    return av.received(record.weights.amax(2, keepdim=True), size, interpolation,
                       grid=record.key_grid)

@doctor_rule(code="always-here", severity="note", summary="s", meaning="{heads} heads",
             evidence={"heads": "number of heads"}, remedy="r", appearance="a", cause="c",
             method="m")
def always_here(case):
    for _, record in case.attention():
        yield observed(record.name, heads=record.heads)

ran = []

@rule("aten.erf.default")
def erf(session, func, args, kwargs):
    ran.append(func)
    return func(*args, **kwargs)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = av.build_model("mha")
    def forward(self, x):
        return self.inner(torch.erf(x))

model = Model().eval()
images, masks, _ = av.inject_patch(torch.rand(8, 3, 48, 48) * 2 - 1, size=12, seed=0)
with torch.no_grad(), av.watch(model) as seen:
    model(images)
assert len(ran) == 1
drawn = maps_of(seen, ["strongest_query"], size=(48, 48))
scores = av.localization(drawn["strongest_query"], masks, metrics=["peak_inside"])
assert set(scores["peak_inside"].tolist()) <= {0.0, 1.0}
assert "peak_inside" in str(scores)
with torch.no_grad():
    expected = model(images) - model(images.flip(-1))
    drops = av.faithfulness_scores(model, images, drawn["strongest_query"], metrics=["mirror_drop"])
assert torch.equal(drops["mirror_drop"], expected)
compared = av.compare({"a": scores, "b": scores}, primary="peak_inside", resamples=50)
assert compared.variants
assert "always-here" in {finding.code for finding in av.diagnose(model, images, masks)}
"""


def test_metrics_a_map_a_rule_and_an_operator_of_one_s_own_in_one_module(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    done = subprocess.run([sys.executable, str(own)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


SOURCE = """
import numpy as np
from experiments.data.registry import source

@source("grey", on_disk=False)
def grey_images(split, count, *, seed, side):
    return np.full((count, side, side, 3), 128, np.uint8)
"""

PAGE = """
PAGE = {"title": "Notes", "icon": ":material/note:", "order": 4.5}
"""

READ = """
from dashboard.pages import listed
from experiments.loading import load_images
from experiments.settings import Settings
images = load_images(Settings(data="grey", test_images=3, side=16, size=4), "test")
print(images.shape, [page.name for page in listed()][6:9])
"""


def test_a_data_set_and_a_page_are_one_new_file_each(tmp_path: Path) -> None:
    for package in ("experiments", "dashboard"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("results")
        )
    (tmp_path / "experiments" / "data" / "grey.py").write_text(SOURCE)
    (tmp_path / "dashboard" / "views" / "notes.py").write_text(PAGE)
    done = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 16, 16, 3) ['diagnosis', 'notes', 'training']"
