"""Every command given something wrong: one line that says what, exit code 2, no traceback."""

from __future__ import annotations

import re
import shlex
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from attnviz.cli import available, run
from attnviz.errors import InputError
from attnviz.runs import amend_run
from tests.cli.trained import write_trained
from tests.runs.made import arrays, make

SCORE = "received/energy_pointing_game"
RAISES = "raise ValueError('boom')\n"
FAILS = """
import torch

class Fails(torch.nn.Module):
    def forward(self, images):
        raise RuntimeError("inside the model\\nand more of it")

number = 3
def needs(something): ...
def breaks(): raise OSError("no disk")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every wrong thing lies beside a right one."""
    place = tmp_path_factory.mktemp("place")
    make(place / "runs" / "a")
    make(place / "runs" / "b", seed=1)
    write_trained(place / "trained")
    table = arrays()["samples"].assign(x0=0, y0=0, x1=2, y1=2, correct=True)
    make(place / "ranked" / "a", samples=table.rename(columns={"received/iou": SCORE}))
    write_trained(place / "unfit")
    with amend_run(place / "unfit" / "mha-0") as writer:
        writer.weights({"other": np.zeros(3, np.float32)})
    torch.save({"odd": torch.zeros(1)}, place / "other.pt")
    for name, text in {"file.txt": "x", "junk.pt": "x", "raises_here.py": RAISES,
                       "fails_here.py": FAILS, "pictures/a.png": "x"}.items():  # fmt: skip
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    for name in ("empty", "empty.png"):
        (place / name).mkdir()
    return place


NOT_THERE = "list nowhere: no such file or folder"
CASES: tuple[tuple[str, str], ...] = (
    ("odd", "unknown command 'odd': expected one of attribute, "),
    ("lss", "unknown command 'lss': did you mean 'ls'"),
    ("--odd", "unknown command '--odd'"),
    ("ls", "the following arguments are required: runs"),
    ("ls nowhere", NOT_THERE),
    ("ls ''", "open '': expected a folder or an address"),
    ("ls file.txt", "list file.txt: not a directory"),
    ("ls runs --state odd", "argument --state: invalid choice: 'odd'"),
    ("ls runs more", "unrecognized arguments: more"),
    ("ls runs --jso", "unrecognized arguments: --jso; did you mean --json\\?"),
    ("compare runs --metric iou", "unrecognized arguments: --metric iou; did you mean --metrics"),
    ("ls nosuch://x", "open nosuch://x: ValueError: Protocol not known: nosuch"),
    ("ls memory://nothing", "list memory://nothing: no such file or folder"),
    ("show", "the following arguments are required: RUN|MODEL"),
    ("demo --port many", "expected a whole number, got .many."),
    ("show nowhere", NOT_THERE),
    ("show runs", "open runs: no run here .expected a run.json."),
    ("diff runs/a", "diff: expected two runs or more, got 1"),
    ("diff runs/a nowhere", NOT_THERE),
    ("export nowhere", NOT_THERE),
    ("export empty", "export empty: no complete run among 0"),
    ("export runs --out x.xyz", "--out: expected a name that ends in .csv, .json or .parquet, got"),
    ("export runs --out file.txt/x.csv", "expected folders above 'file.txt/x.csv', 'file.txt' is"),
    ("export runs --table odd", "argument --table: invalid choice: 'odd'"),
    ("verify nowhere", NOT_THERE),
    ("verify file.txt", "list file.txt: not a directory"),
    ("migrate nowhere", NOT_THERE),
    ("migrate memory://x", "list memory://x: no such file or folder"),
    ("dashboard nowhere", "dashboard: no folder 'nowhere'"),
    ("dashboard file.txt", "dashboard: no folder 'file.txt'"),
    ("dashboard ''", "dashboard: no folder ''"),
    ("dashboard runs --port 99999", "--port: expected at most 65535, got 99999"),
    ("dashboard runs --port 0", "--port: expected 1 or more, got 0"),
    ("dashboard runs --port x", "argument --port: expected a whole number, got 'x'"),
    ("dashboard runs --host ''", "argument --host: expected a word, got an empty one"),
    ("compare nowhere", NOT_THERE),
    ("compare empty", "compare: expected at least one complete run, got no run at all"),
    ("compare runs", "expected samples with the columns index, .*, got none called x0"),
    ("compare runs --resamples 0", "argument --resamples: expected 2 or more, got 0"),
    ("compare ranked --seed=-1", "argument --seed: expected 0 or more, got -1"),
    ("compare ranked --map ''", "argument --map: expected a word, got an empty one"),
    ("compare ranked --primary odd", "unknown metric 'odd'"),
    ("compare ranked --map odd", "'odd'"),
    ("compare ranked --figure x.odd", "--figure: expected a name that ends in .png, got 'x.odd'"),
    ("compare nowhere --figure empty.png", "--figure: expected a file, got the folder 'empty.png'"),
    ("compare nowhere --figure file.txt/x.png", "--figure: expected folders above 'file.txt/x"),
    ("report nowhere", NOT_THERE),
    ("report empty", "report: expected at least one complete run, got no run at all"),
    ("report nowhere --out x.pdf", "--out: expected a name that ends in .html or .htm, got 'x"),
    ("report nowhere --out file.txt/x.html", "--out: expected folders above 'file.txt/x.html'"),
    ("measure nowhere", NOT_THERE),
    ("measure empty", "expected at least one complete run, got no run at all"),
    ("measure runs", "a: expected the digest of its test images, the run names none"),
    ("measure trained --maps odd", "unknown map of .* 'odd'"),
    ("measure trained --maps received@0001", "expected maps of all 6 images, 'received@0001' hold"),
    ("measure trained --metrics odd", "'odd'"),
    ("measure trained --faithfulness odd", "unknown faithfulness metric 'odd'"),
    ("measure trained --baseline odd --faithfulness", "odd"),
    ("measure trained --steps 0 --faithfulness", "argument --steps: expected 1 or more, got 0"),
    ("measure trained --steps 9999 --faithfulness", "steps: expected 1 to 1024"),
    ("measure trained --images 0", "--images: expected 1 or more, got 0"),
    ("measure trained --images nan", "--images: expected a whole number, got 'nan'"),
    ("measure trained --agree-with odd", "unknown map of .* 'odd'"),
    ("measure trained --agree-with ''", "--agree-with: expected a word, got an empty one"),
    ("measure trained --agree-with received@0001", "expected maps of all 6 images, 'received@000"),
    ("measure trained --seed 4294967296", "--seed: expected at most 4294967295, got 4294967296"),
    ("measure trained --workers x", "--workers: expected a whole number, got 'x'"),
    ("measure trained --scheduler ''", "--scheduler: expected a word, got an empty one"),
    ("measure trained --device odd", "argument --device: expected cpu or a device that is there"),
    ("attribute nowhere", NOT_THERE),
    ("attribute empty", "expected at least one complete run, got no run at all"),
    ("attribute runs", "a: expected the digest of its test images, the run names none"),
    ("attribute unfit", "mha-0: the weights do not fit 'mha' with .*: Error.* Missing key"),
    ("attribute trained --method odd", "unknown attribution method 'odd'"),
    ("attribute trained --method saliency --layer odd", "expected no layer="),
    ("attribute trained --layer odd", "'odd'"),
    ("attribute trained --method saliency --option x", "--option: expected KEY=VALUE, got 'x'"),
    ("attribute trained --method saliency --option odd=1", "unknown option of saliency 'odd'"),
    ("attribute trained --method saliency --sign odd", "unknown sign 'odd'"),
    ("attribute trained --method saliency --channels odd", "unknown channels 'odd'"),
    ("attribute trained --method saliency --memory 0", "argument --memory: expected 1 or more"),
    ("attribute trained --seed x", "argument --seed: expected a whole number, got 'x'"),
    ("attribute trained --target 1" + 20 * "0", "argument --target: expected at most 92233720368"),
    ("attribute trained --layer ''", "argument --layer: expected a word, got an empty one"),
    ("attribute trained --option sign=1", "--option: expected an argument of Captum's own, got"),
    ("attribute trained --option model=1", "--option: expected an argument of Captum's own, got"),
    ("attribute trained --method integrated_gradients --option n_steps=x",
     "integrated_gradients: expected 1 or more n_steps, got 'x'"),
    ("attribute trained --method occlusion --option strides=0",
     "occlusion: captum fails with .*strides.*division by zero"),
    ("watch", "the following arguments are required: FACTORY"),
    ("watch odd", "model: expected module:callable, .*, got 'odd'"),
    ("watch attnviz:odd", "unknown variant 'odd': expected one of "),
    ("watch timm:odd", "model: timm has no model 'odd'"),
    ("watch torchvision:resnet81", "has no model 'resnet81'; nearest are resnet18"),
    ("watch no_such_module:x", "model: cannot import 'no_such_module'"),
    ("watch raises_here:x", "model: importing 'raises_here' fails: ValueError: boom; --debug"),
    ("watch fails_here:nothing", "unknown name in fails_here 'nothing'"),
    ("watch fails_here:number", "expected fails_here:number to be callable, got 3"),
    ("watch fails_here:needs", "fails_here:needs did not take no arguments: "),
    ("watch fails_here:breaks", "fails_here:breaks fails with no arguments: OSError: no disk"),
    ("watch fails_here:Fails", r"model: Fails fails on images \(1, 3, 224, 224\): RuntimeError: "
                               "inside the model; --debug"),
    ("watch attnviz:cnn", "none of its ops was attention or a gate"),
    ("watch attnviz:mha --where odd", "where=.'odd'. chose none of what PatchNet computed"),
    ("watch attnviz:mha --images nowhere", "expected a picture or a folder of some, found none"),
    ("watch attnviz:mha --images empty", "expected a picture or a folder of some, found none"),
    ("watch attnviz:mha --images pictures", "pictures/a.png: expected one of PNG, JPEG"),
    ("watch attnviz:mha --image file.txt", "file.txt: expected one of PNG, JPEG, .*, got another"),
    ("watch attnviz:mha --count 0", "--count: expected 1 or more, got 0"),
    ("evaluate attnviz:mha --images no --masks no", "expected a folder of images, there is none"),
    ("evaluate attnviz:mha --images no --coco no.json", "no.json: cannot be read"),
    ("watch attnviz:mha --size 0", "--size: expected 1 or more, got 0"),
    ("watch attnviz:mha --image ''", "argument --image: expected a word, got an empty one"),
    ("watch attnviz:mha --weights ''", "argument --weights: expected a word, got an empty one"),
    ("watch attnviz:mha --device meta", "argument --device: expected cpu or a device"),
    ("watch attnviz:mha --normalise odd", "unknown way to normalise 'odd'"),
    ("watch attnviz:mha --setting x", "--setting: expected KEY=VALUE, got 'x'"),
    ("watch attnviz:mha --setting odd=1", "'mha' does not take .'odd': 1."),
    ("watch attnviz:mha --device odd", "argument --device: expected cpu or a device"),
    ("watch attnviz:mha --weights nowhere.pt", "--weights: nowhere.pt cannot be loaded: "),
    ("watch attnviz:mha --weights junk.pt",
     "--weights: junk.pt cannot be loaded: .*; expected a state dict, .safetensors or saved by"),
    ("watch attnviz:mha --weights other.pt",
     "--weights: other.pt holds those of another model than .*: [0-9]+ of its [0-9]+ tensors are "
     "missing, such as .*; 1 are none of its own, such as odd"),
    ("watch odd --out file.txt", "argument --out: expected a folder, got the file 'file.txt'"),
    ("watch odd --out ''", "argument --out: expected a path, got an empty word"),
    ("doctor", "the following arguments are required: "),
    ("doctor nowhere", NOT_THERE),
    ("doctor empty", "doctor: expected runs or a model"),
    ("doctor runs", "a: expected the digest of its test images, the run names none"),
    ("doctor attnviz:mha --trained odd", "unknown answer to --trained 'odd'"),
    ("doctor fails_here:Fails", "model: Fails fails on images"),
    ("doctor attnviz:mha --device odd", "argument --device: expected cpu or a device"),
)  # fmt: skip


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_word_is_answered_in_one_line(
    line: str,
    words: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert run(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    said = err.splitlines()[-1]
    assert re.search(words, said), said
    assert out == ""
    assert "Traceback" not in err
    assert "attnviz: unexpected" not in err
    assert err.splitlines() == [said]
    assert said.startswith("attnviz: ")


def test_every_command_is_given_something_wrong() -> None:
    assert {line.split()[0] for line, _ in CASES} >= set(available())


def test_the_traceback_appears_on_request(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match="inside the model") as raised:
        run(["watch", "fails_here:Fails", "--count", "1", "--debug"])
    cause = raised.value.__cause__
    assert isinstance(cause, RuntimeError)
    assert "fails_here.py" in "".join(traceback.format_exception(cause))
