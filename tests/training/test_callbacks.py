"""The monitor inside other people's trainers, and beside a second process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import attnviz as av
from attnviz.training.callbacks import lightning_callback, trainer_callback
from attnviz.training.recording import is_main
from tests.training.made import SIDE, Attending, Gated, scenes
from tests.training.test_monitor import is_one_curve, session

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own, about loggers and workers


def loader(collate=None):
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(8, 3, SIDE, SIDE, generator=generator)
    items = [(image, number % 2) for number, image in enumerate(images)]
    return torch.utils.data.DataLoader(items, batch_size=4, collate_fn=collate)


def test_lightning_calls_it_after_each_epoch_with_its_own_metrics(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Gated()

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, number):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trained(callbacks):
        torch.manual_seed(0)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=2, callbacks=callbacks, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(module, loader())
        return module.state_dict()

    with av.start_run(tmp_path / "run") as run:
        monitor = av.Monitor(scenes(), run=run, budget=None)
        watched = trained([lightning_callback(monitor, lambda module: module.net)])
    curves = av.open_run(tmp_path / "run").curves()
    assert curves["epoch"].tolist() == [1, 2]
    assert curves["train_loss"].notna().all()
    assert curves["val_energy_pointing_game"].notna().all()
    plain = trained([])
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())


def test_the_trainer_of_transformers_calls_it_after_each_epoch(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.ViTConfig(
        image_size=SIDE, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, num_labels=2,
    )  # fmt: skip

    def collate(items):
        return {
            "pixel_values": torch.stack([image for image, _ in items]),
            "labels": torch.tensor([label for _, label in items]),
        }

    items = loader().dataset
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=4,
        report_to=[], save_strategy="no", eval_strategy="epoch", logging_strategy="epoch",
        disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    with av.start_run(tmp_path / "run") as run:
        monitor = av.Monitor(scenes(), run=run, budget=None)
        transformers.Trainer(
            model=transformers.ViTForImageClassification(config), args=arguments,
            train_dataset=items, eval_dataset=items, data_collator=collate,
            callbacks=[trainer_callback(monitor)],
        ).train()  # fmt: skip
    curves = av.open_run(tmp_path / "run").curves()
    assert curves["epoch"].tolist() == [1, 2]
    assert curves[["loss", "eval_loss", "val_energy_pointing_game"]].notna().all().all()
    assert av.open_run(tmp_path / "run").summary["map"] == "class_row"


def test_the_callback_of_transformers_joins_what_was_logged_since_the_last_epoch():
    """The same order of events without the trainer, which needs accelerate."""
    transformers = pytest.importorskip("transformers")
    monitor = av.Monitor(scenes(), budget=None)
    callback = trainer_callback(monitor)
    assert isinstance(callback, transformers.TrainerCallback)
    state, model = transformers.TrainerState(), Attending()
    for epoch in (1, 2):
        callback.on_epoch_begin(None, state, None, model=model)
        state.epoch = float(epoch)
        callback.on_log(None, state, None, logs={"loss": 1.0 / epoch, "epoch": float(epoch)})
        callback.on_epoch_end(None, state, None, model=model)
        callback.on_log(None, state, None, logs={"eval_loss": 2.0 / epoch})
    callback.on_train_end(None, state, None, model=model)
    callback.on_train_end(None, state, None, model=model)
    assert [row["epoch"] for row in monitor.rows] == [1, 2]
    assert [(row["loss"], row["eval_loss"]) for row in monitor.rows] == [(1.0, 2.0), (0.5, 1.0)]


PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

PROCESS = """
import os, signal, sys
import torch
from tests.training.test_monitor import session

rank, folder, page = int(sys.argv[1]), sys.argv[2], sys.argv[3]
meeting = f'"gloo", init_method="file://{folder}/meeting", rank={rank}, world_size=2'
names = {"__name__": "page"}
exec(page.replace('"gloo"', meeting), names)
model, row = names["main"](folder)
assert bool(row) == (rank == 0), row
torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")

if len(sys.argv) > 4:  # Accelerate's example, in two processes
    meeting = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[5]}
    os.environ |= meeting
    os.chdir(folder)
    exec(sys.argv[4], names)
    assert len(names["monitor"].rows) == (3 if rank == 0 else 0)
    torch.distributed.destroy_process_group()
    for name in meeting:
        del os.environ[name]

class Killer:
    def scalars(self, values, step):
        if rank == 0 and step == 4: os.kill(os.getpid(), signal.SIGKILL)
    def pictures(self, name, pictures, step):
        if rank == 1 and step == 3: os.kill(os.getpid(), signal.SIGKILL)
    def table(self, name, table, step): pass
    def finish(self): pass

session(f"{folder}/killed-{rank}", 1, 5, trackers=[Killer()])
"""


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """Blocks that need what is not installed are left out."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for code in BLOCKS:
        needs = re.match(r"# needs (\w+)", code)
        if needs is None or find_spec(needs[1]) is not None:
            exec(compile(code, "training.md", "exec"), names)
    said = capsys.readouterr().out
    assert "[1, 2, 3, 4, 5]" in said
    assert all(run.state == "complete" for run in av.list_runs("runs"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Two processes over gloo run the page's own program; then a training of each is killed."""
    folder = tmp_path_factory.mktemp("processes")
    page = "import torch\nimport attnviz as av\n" + BLOCKS[0] + next(
        code for code in BLOCKS if code.startswith("# train.py")
    )  # fmt: skip
    assert 'init_process_group("gloo")' in page
    more = []
    if find_spec("accelerate") is not None:
        more = [next(code for code in BLOCKS if code.startswith("# needs accelerate")), free_port()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(folder), page, *more],
            env=environment, stderr=subprocess.PIPE, text=True, cwd=PAGE.parents[1],
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for process in running:
            said = process.communicate()[1]
            assert process.returncode == -signal.SIGKILL, said[-3000:]
    finally:
        for process in running:
            process.kill()
    return folder


def test_of_two_processes_rank_0_alone_measures_and_neither_waits(processes):
    found = av.open_run(processes / "ddp")
    assert found.state == "complete"
    assert found.curves()["epoch"].tolist() == [1, 2, 3]
    assert found.curves()["val_energy_pointing_game"].notna().all()
    one, other = (torch.load(processes / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_accelerate_in_two_processes_measures_in_one(processes):
    pytest.importorskip("accelerate")
    found = av.open_run(processes / "runs" / "accelerated")
    assert found.state == "complete"
    assert found.curves()["val_energy_pointing_game"].notna().tolist() == [True] * 3


LIGHTNING = """
import sys, torch
import attnviz as av
from attnviz.training.callbacks import lightning_callback
from lightning.pytorch import LightningModule, Trainer
from tests.training.made import Attending, scenes

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Attending()
    def training_step(self, batch, number):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

items = [(scene["image"], scene["label"]) for scene in scenes(8)]
with av.start_run(sys.argv[1]) as run:
    monitor = av.Monitor(scenes(4), run=run, budget=None)
    Trainer(
        max_epochs=2, callbacks=[lightning_callback(monitor, lambda module: module.net)],
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Module(), torch.utils.data.DataLoader(items, batch_size=2))
"""


def test_lightning_in_two_processes_measures_in_one(tmp_path):
    """Its launcher starts the script again, and says only the local rank."""
    pytest.importorskip("accelerate")  # of the group of integrations, as this test is
    (tmp_path / "train.py").write_text(LIGHTNING)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = av.open_run(tmp_path / "run")
    assert found.state == "complete"
    assert found.curves()["epoch"].tolist() == [1, 2]
    assert found.curves()["val_energy_pointing_game"].notna().all()


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"SLURM_PROCID": "2"}, False),
    ],
)
def test_the_launchers_variables_tell_the_main_process(monkeypatch, variables, main):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main() is main


@pytest.mark.parametrize(("rank", "rows"), [(0, 4), (1, 2)])
def test_a_training_that_was_killed_goes_on_to_one_curve(processes, rank, rows):
    """After the row of an epoch, and in the middle of an epoch's measurement."""
    path = processes / f"killed-{rank}"
    left = av.open_run(path)
    assert left.state != "complete"
    assert len(left.curves()) == rows
    session(path, 3, 5)  # from the checkpoint of epoch 2
    is_one_curve(path, [1, 1, 3, 3, 3])


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(av.UnsupportedError, match=r"pip install 'attnviz\[lightning\]'"):
        lightning_callback(av.Monitor(scenes()))
