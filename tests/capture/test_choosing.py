"""Which records are kept, in what form, and what is said when there are none."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attnviz.capture import Capture, watch
from attnviz.errors import InputError, NothingSeenError
from tests.capture import nets
from tests.capture.test_gates import Blocks


class Both(nn.Module):
    """Two attentions and two gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nets.Attention(), nets.Attention(nets.fused)
        self.cbam = Blocks()

    def forward(self, x: Tensor) -> Tensor:
        return self.cbam(self.second(self.first(x)))


def seen(**options: object) -> Capture:
    model = nets.around(Both())
    with torch.no_grad(), watch(model, **options) as capture:  # type: ignore[arg-type]  # by name
        model(nets.images())
    return capture


ALL = ["attn.first", "attn.second", "attn.cbam.ca", "attn.cbam.sa"]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, ALL),
        ("*", ALL),
        ("attention", ALL[:2]),
        ("gate", ALL[2:]),
        ("attn.first", ALL[:1]),
        ("*.cbam.*", ALL[2:]),
        ("attn.cbam.ca.2", ALL[2:3]),
        (["gate", "*.second"], ALL[1:]),
        (lambda name, module: isinstance(module, nets.Attention), ALL[:2]),
    ],
)
def test_modules_are_chosen_by_glob_kind_and_function(where: object, names: list[str]) -> None:
    assert list(seen(where=where)) == names


def test_heads_devices_and_types_of_what_is_kept() -> None:
    whole = seen()["attn.first"].weights
    assert whole is not None
    for heads in (1, [1], (1,)):
        record = seen(heads=heads, where="attn.first", dtype=torch.float16, to="cpu")["attn.first"]
        assert record.weights is not None
        assert record.heads == 2
        assert torch.equal(record.weights, whole[:, 1:].half())
    gate = seen(dtype=torch.float16)["attn.cbam.ca"].scale
    assert gate is not None
    assert gate.dtype == torch.float16


def test_a_head_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"'attn.first' has 2 heads, got heads=\(2,\)"):
        seen(heads=2)


def test_a_capture_is_a_mapping_with_lenient_names() -> None:
    capture = seen()
    assert list(capture) == ALL
    assert len(capture) == 4
    assert list(capture.attention) == ALL[:2]
    assert list(capture.gates) == ALL[2:]
    assert "attn.first" in capture
    assert "attn.first.qkv" not in capture
    assert capture["attn.cbam.ca.2"].name == "attn.cbam.ca"  # where the sigmoid itself runs
    assert {name: record.name for name, record in capture.items()} == {n: n for n in ALL}
    with pytest.raises(KeyError, match=r"no record 'attn\.frist': did you mean 'attn\.first'\?"):
        capture["attn.frist"]
    with pytest.raises(InputError, match=r"'attn' stands for several records: choose one of"):
        capture["attn"]
    assert capture.get("nothing at all") is None


@pytest.mark.usefixtures("unchecked")
def test_a_capture_is_no_list():
    with pytest.raises(InputError, match=r"expected the name of a record, got -1: for the last"):
        Capture()[-1]


def test_a_parents_name_finds_its_only_record() -> None:
    model = nets.around(nn.Sequential(nets.Attention()))
    with watch(model) as capture:
        model(nets.images())
    assert capture["attn"] is capture["attn.0"]


def test_the_table_is_what_one_would_paste() -> None:
    text = re.sub(r"±\de-\d\d", "±1e-07", str(seen()))
    text = re.sub(r"\.py:\d+", ".py:1", text)
    rows = [re.split(r"\s{2,}", line) for line in text.splitlines()]
    assert rows[0] == ["name", "kind", "shape", "axis", "grid", "how", "source"]
    assert rows[2] == ["attn.first", "attention", "2×2×24×24", "k", "4×6", "qk", "nets.py:1"]
    assert rows[3] == ["attn.second", "attention", "2×2×24×24", "k", "4×6", "fused ±1e-07",
                       "nets.py:1"]  # fmt: skip
    assert rows[4] == ["attn.cbam.ca", "gate", "2×8×1×1", "channel", "–", "gate", "test_gates.py:1"]
    assert rows[-1] == ["2 attention, 2 gates"]
    assert str(Capture()) == "Capture: nothing seen"


def test_repr_of_a_record_says_the_essential() -> None:
    capture = seen()
    assert repr(capture["attn.first"]) == (
        "Record('attn.first', attention 2×2×24×24, k, qk, grid 4×6)"
    )
    assert repr(capture["attn.cbam.ca"]) == "Record('attn.cbam.ca', gate 2×8×1×1, channel, gate)"


def test_a_plain_network_raises_with_what_was_looked_for_and_the_remedy() -> None:
    model = nets.around(nn.Conv2d(nets.WIDTH, nets.WIDTH, 1))
    with pytest.raises(NothingSeenError) as caught, watch(model):
        model(nets.images())
    message = str(caught.value)
    for part in ("Sequential ran", "looked for softmax weights", "attnviz.attribute"):
        assert part in message


@pytest.mark.parametrize("kind", ["meta", "FakeTensor"])
def test_tensors_without_values_hold_nothing_to_see(kind: str) -> None:
    around: Any = FakeTensorMode() if kind == "FakeTensor" else torch.device("meta")
    with around:
        model, x = nets.around(nets.Attention(nets.fused)), torch.randn(2, 3, 16, 24)
        with torch.no_grad(), watch(model, empty=True) as seen:
            assert model(x).shape == (2, 2)
        assert not len(seen)
        with (
            pytest.raises(NothingSeenError, match=f"whose values cannot be read: {kind}; watch it"),
            watch(model),
        ):
            model(x)


def test_nothing_seen_names_the_nearest_candidates() -> None:
    class WeirdAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nets.around(WeirdAttention())
    with (
        pytest.raises(NothingSeenError, match=r"nearest by name: attn \(WeirdAttention\)"),
        watch(model),
    ):
        model(nets.images())


def test_a_block_without_a_forward_pass_says_so() -> None:
    model = nets.around(nets.Attention())
    with (
        pytest.raises(NothingSeenError, match="no op of Sequential ran in this thread"),
        watch(model),
    ):
        pass
    with (
        pytest.raises(NothingSeenError, match=r"watch and call model\.module"),
        watch(nn.DataParallel(model)),
    ):
        pass
    with watch(model, empty=True) as capture:
        pass
    assert not len(capture)


def test_a_choice_that_means_nothing_names_what_there_was() -> None:
    with pytest.raises(NothingSeenError, match=r"where='attn\.frist' chose none .*did you mean "
                                               r"'attn\.first'"):  # fmt: skip
        seen(where="attn.frist")


def test_an_exception_within_the_block_is_not_replaced() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = nets.around(Raises())
    with pytest.raises(ZeroDivisionError), watch(model):
        model(nets.images())


def test_reducing_and_keeping_the_graph_exclude_each_other() -> None:
    with pytest.raises(InputError, match="choose one"):
        seen(reduce="received", keep_graph=True)
