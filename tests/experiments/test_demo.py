"""The demonstration runs are examined anew without being trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from attnviz.runs import amend_run, open_run, verify
from experiments.demo import FOLDER, examine

OF_THE_DOCTOR = ("findings", "diagnosis")


def test_findings_are_those_of_today_and_the_rest_of_a_run_stays(tmp_path: Path) -> None:
    name = "mha_reshape-s1"
    for part in (name, "datasets"):
        shutil.copytree(FOLDER / part, tmp_path / part)
    before = open_run(tmp_path / name).summary
    with amend_run(tmp_path / name) as writer:
        writer.finish({"findings": [], "diagnosis": "of another day"})
    (run,) = examine(tmp_path)
    unset = dict.fromkeys(OF_THE_DOCTOR)
    assert run.summary | unset == before | unset
    assert run.summary["diagnosis"] != "of another day"
    assert "scrambled-tokens" in {one["code"] for one in run.summary["findings"]}
    assert verify(tmp_path) == []
    assert '"host"' not in (tmp_path / name / "run.json").read_text()
