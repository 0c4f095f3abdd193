"""Settings: one dataclass that is the command line, the run's name and what is kept."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch

from attnviz import InputError
from experiments.evaluation import environment
from experiments.settings import INCIDENTAL, Settings, add_arguments, chosen


def test_every_setting_is_a_flag_and_comes_back_as_it_was() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(
        ["--variant", "cbam", "--lr", "0.1", "--no-redraw", "--placement", "2"]
    )
    assert chosen(given) == {"variant": "cbam", "lr": 0.1, "redraw": False, "placement": 2}
    flags = parser.format_help()
    assert all("--" + f.name.replace("_", "-") in flags for f in dataclasses.fields(Settings))


def test_settings_survive_a_run_folder() -> None:
    settings = Settings(variant="cbam", placement=1, lr=0.5)
    assert Settings.from_dict(settings.as_dict()) == settings
    assert settings.as_dict()["model"] == {"placement": 1}


def test_a_run_id_tells_apart_what_matters_and_nothing_else() -> None:
    base = Settings()
    assert base.run_id.startswith("mha-s0-")
    for field in dataclasses.fields(Settings):
        other = {"threads": 3, "device": "cpu", "seed": 5, "lr": 0.2}.get(field.name)
        if other is not None:
            changed = dataclasses.replace(base, **{field.name: other})
            assert (changed.run_id == base.run_id) is (field.name in INCIDENTAL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 97}, "--size: expected at most the image's side of 96, got 97"),
        ({"size": -3}, "--size: expected 1 or more, got -3"),
        ({"epochs": 0}, "--epochs: expected 1 or more"),
        ({"lr": 0.0}, "--lr: expected a positive number"),
        ({"lr": float("inf")}, "--lr: expected a positive number, got inf"),
        ({"patience": 0}, "--patience: expected 1 or more, got 0"),
        ({"follow": -1}, "--follow: expected 0 or more, got -1"),
        ({"faithful": -1}, "--faithful: expected 0 or more, got -1"),
        ({"threads": -1}, "--threads: expected 0 or more, got -1"),
        ({"seed": -1}, "--seed: expected 0 or more, got -1"),
        ({"data_seed": 2**32}, "--data-seed: expected less than 2³², got 4294967296"),
        ({"fill": float("nan")}, "--fill: expected a number from -1 to 1, got nan"),
        ({"fill": -2.0}, "--fill: expected a number from -1 to 1, got -2.0"),
        ({"path": ""}, "--path: expected a folder, got an empty word"),
        ({"question": "larger", "size": 3}, "--size: expected 4 pixels or more, of which"),
        ({"opacity": 2.0}, "--opacity: expected a number in (0, 1]"),
        ({"batch": 1000}, "--batch: expected at most the 960 training images, got 1000"),
        ({"data": "stl"}, "unknown --data 'stl': did you mean 'stl10'?"),
    ],
)
def test_numbers_out_of_range_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        Settings(**change)  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_a_run_tells_the_threads_it_was_given_before_they_are_taken() -> None:
    now = torch.get_num_threads()
    assert environment(Settings(threads=now + 3, device="cpu"))["threads"] == now + 3
    assert environment(Settings(device="cpu"))["threads"] == now
    assert torch.get_num_threads() == now
