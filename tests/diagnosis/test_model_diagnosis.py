"""What `diagnose` says of models, and that it leaves them as they came."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnviz as av
from attnviz.capture import watch
from attnviz.diagnosis import diagnose
from attnviz.diagnosis.examination import Examination, is_trained
from attnviz.diagnosis.outputs import flat_output
from attnviz.diagnosis.rules.effects import measured_changes, randomly_scaled
from attnviz.diagnosis.statistics import interval
from attnviz.errors import InputError
from attnviz.model_state import frozen
from attnviz.patches import inject_patch
from tests.diagnosis.twins import TWINS, C, Net
from tests.diagnosis.twins.gates import SpatialGate


def noise(n: int = 8, side: int = 48) -> Tensor:
    images = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))
    return images.mul(0.3).clamp(-1, 1)


@pytest.mark.parametrize("name", ["cnn", "mha", "mha_conv1d", "cbam_channel", "cbam"])
def test_the_reference_models_have_no_error(name: str) -> None:
    torch.manual_seed(0)
    found = diagnose(av.build_model(name, width=16), noise(), name=name)
    assert not found.errors
    assert not found.warnings
    assert found.headline.startswith(f"{name}: nothing wrong was found")


def test_the_scrambled_reference_is_named_in_one_line() -> None:
    torch.manual_seed(0)
    found = diagnose(av.build_model("mha_reshape"), noise(4, 96), name="mha_reshape")
    start = "mha_reshape: error scrambled-tokens at features.attention.attend: "
    assert found.headline.startswith(start)
    assert "\n" not in found.headline
    assert found.errors.codes == ("scrambled-tokens",)
    assert 0 < found.errors[0].evidence["share"] < 0.5


@pytest.mark.parametrize("name", ["mha", "mha_reshape"])
def test_attention_is_judged_alike_where_its_softmax_is_written_out(name: str) -> None:
    torch.manual_seed(0)
    model = av.build_model(name, width=16)
    fused = diagnose(model, noise())
    attend = model.get_submodule("features.attention.attend")
    handle = attend.get_submodule("softmax").register_forward_hook(lambda *_: None)
    written = diagnose(model, noise())
    handle.remove()
    assert written.errors.codes == fused.errors.codes


def test_only_what_points_at_no_place_says_so() -> None:
    said = {
        name: "nothing-spatial" in diagnose(av.build_model(name, width=16), noise()).codes
        for name in ("cnn", "mha", "cbam_channel", "cbam")
    }
    assert said == {"cnn": False, "mha": False, "cbam_channel": True, "cbam": False}


class Jumpy(nn.Module):
    """Counts its calls in a buffer, and raises on the call that it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fails_at = fails_at
        self.inner = TWINS["reshaped tokens"].make(mended=True)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if int(self.calls) == self.fails_at:
            raise RuntimeError("as it was told")
        return self.inner(images)


@pytest.mark.parametrize("fails_at", [None, 1])
def test_the_model_is_left_as_it_came(fails_at: int | None) -> None:
    model = Jumpy(fails_at)
    model.train()
    model.inner.stem.eval()
    model(noise(4, 32)).sum().backward() if fails_at is None else None
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    if fails_at is None:
        diagnose(model, noise(8, 32))
    else:
        with pytest.raises(RuntimeError, match="as it was told"):
            diagnose(model, noise(8, 32))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for parameter, before in zip(model.parameters(), grads, strict=True):
        assert (before is None) == (parameter.grad is None)
        assert before is None or torch.equal(parameter.grad, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_the_same_model_and_images_give_the_same_findings() -> None:
    model, images = TWINS["heads by view"].make(mended=False), noise(8, 32)
    assert diagnose(model, images).as_dicts() == diagnose(model, images).as_dicts()


def test_one_image_is_enough_for_a_fault_of_structure() -> None:
    case = TWINS["reshaped tokens"]
    assert "scrambled-tokens" in diagnose(case.make(mended=False), case.images()[:1]).codes


def test_what_random_weights_do_is_not_held_against_them() -> None:
    case = TWINS["queries and keys hardly trained"]
    model, images = case.make(mended=False), case.images()
    severities = {
        trained: [one.severity for one in diagnose(model, images, trained=trained)
                  if one.code == "near-uniform"]
        for trained in (True, False)
    }  # fmt: skip
    assert severities == {True: ["warning"], False: []}


def test_whether_weights_are_trained_is_read_off_the_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert is_trained(nn.Conv2d(3, 4, 1)) is None
    assert is_trained(model) is False
    model.train()(noise(2, 8))
    assert is_trained(model) is True
    layer = nn.LayerNorm(4)
    assert is_trained(layer) is False
    layer.weight.data[0] = 0.9
    assert is_trained(layer) is True


def test_a_zeroed_branch_is_an_error_only_in_a_trained_model() -> None:
    model = TWINS["scores between channels"].make(mended=True)  # its gamma starts at zero
    codes = [diagnose(model, noise(8, 32), trained=t).errors.codes for t in (True, False)]
    assert codes == [("no-effect",), ()]


def masked(side: int = 32, n: int = 16) -> tuple[Tensor, Tensor]:
    images, masks, _ = inject_patch(noise(n, side), size=8, seed=3)
    return images, masks


class Bright(nn.Module):
    """A spatial gate that opens where the image is bright, or where it is not."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign, self.conv = sign, nn.Conv2d(3, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.sign * 8 * (x.mean(1, keepdim=True) - 0.5)).sigmoid()
        return (self.conv(x) * gate).mean((2, 3))


def test_a_map_that_finds_the_mask_raises_nothing_and_one_that_avoids_it_does() -> None:
    images, masks = masked()
    assert not diagnose(Bright(1).eval(), images, masks, trained=True).warnings
    found = diagnose(Bright(-1).eval(), images, masks, trained=True).warnings
    assert found.codes == ("outside-mask",)
    assert found[0].evidence["high"] < 1
    assert found[0].evidence["images"] == 16
    assert "outside-mask" not in diagnose(Bright(-1).eval(), images, trained=True).codes


def test_crops_of_one_photograph_count_as_one() -> None:
    images, masks = masked(n=32)
    flat = TWINS["gate elsewhere"].make(mended=False).eval()
    alone = diagnose(flat, images, masks, trained=True)
    crops = diagnose(flat, images, masks, trained=True, groups=[n // 4 for n in range(32)])
    assert "not-above-chance" in alone.codes
    assert "not-above-chance" not in crops.codes
    (few,) = (one for one in crops if one.code == "too-few-images")
    assert few.evidence["images"] == 8
    with pytest.raises(InputError, match="expected groups of 32 images, got 3"):
        diagnose(flat, images, masks, groups=[1, 2, 3])


def test_intervals_hold_their_level_for_the_best_of_several_maps() -> None:
    """Of maps at chance the best one is above or below chance in one of twenty trials at most."""
    noise = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(400):
        maps = 1 + 0.5 * torch.randn(6, 16, generator=noise)
        best = max((interval(one, maps=6) for one in maps), key=lambda one: one[0])
        wrong += not best[1] <= 1 <= best[2]
    assert wrong / 400 < 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_a_map_of_elsewhere_is_not_above_chance() -> None:
    case = TWINS["queries and keys hardly trained"]
    images, masks = masked()
    found = diagnose(case.make(mended=False), images, masks, trained=True)
    assert "not-above-chance" in found.codes
    model = case.make(mended=False)
    assert "not-above-chance" not in diagnose(model, images, masks, trained=False).codes


def test_images_are_examined_too() -> None:
    model = TWINS["reshaped tokens"].make(mended=True)
    images = noise(8, 32)
    broken = images.clone()
    broken[0, 0, 0, 0] = torch.nan
    broken[1] = broken[2]
    broken[3] = 0.5
    found = diagnose(model, broken)
    assert found.errors.codes == ("input-not-finite",)
    assert found.errors[0].evidence == {"images": 1}
    assert "input-constant" in found.codes
    assert "input-range" in diagnose(model, (images + 1) * 127.5).codes
    copies = images.clone()
    copies[1] = copies[2]
    assert "input-repeated" in diagnose(model, copies).codes
    assert "input-repeated" not in diagnose(model, images).codes
    assert diagnose(model, images * torch.nan).codes == ("input-not-finite",)


def test_images_unlike_those_of_training_are_noticed() -> None:
    model = TWINS["reshaped tokens"].make(mended=True).train()
    for seed in range(60):
        model(noise(8, 32) + 0.01 * seed / 60)
    model.eval()
    assert "input-statistics" not in diagnose(model, noise(8, 32)).codes
    assert "input-statistics" in diagnose(model, noise(8, 32) * 12).codes


def test_training_mode_is_mentioned_where_it_matters() -> None:
    model = TWINS["reshaped tokens"].make(mended=True)
    assert "left-in-training" not in diagnose(model, noise(8, 32), trained=True).codes
    found = diagnose(model.train(), noise(8, 32), trained=True)
    assert found.warnings.codes[0] == "left-in-training"


def test_outputs_of_any_nesting_are_one_table() -> None:
    x = torch.ones(2, 3)
    outputs = (x, [{"a": x[:, :1]}], torch.ones(5), torch.ones(2).long())
    assert flat_output(outputs, 2).shape == (2, 4)
    with pytest.raises(InputError, match="expected a model that returns tensors, got int"):
        flat_output(3, 2)


@pytest.mark.parametrize(
    "packed",
    [
        lambda x: list(x),
        lambda x: tuple(x),
        lambda x: [{"boxes": one[:, :1], "scores": one[:, 1:]} for one in x],
        lambda x: {"masks": list(x), "note": "of each image"},
        lambda x: (list(x), x.mean()),
    ],
)
@pytest.mark.parametrize("b", [1, 2, 4])
def test_one_item_per_image_is_one_row(packed, b: int) -> None:
    x = torch.rand(b, 5, 3)
    rows = flat_output(packed(x), b)
    assert len(rows) == b
    assert torch.equal(rows[:, :15].sort(1).values, x.flatten(1).sort(1).values)


def test_items_of_several_lengths_are_filled_and_batches_stay_batches() -> None:
    rows = flat_output([torch.ones(2, 4), torch.ones(1, 4)], 2)
    assert rows.sum(1).tolist() == [8, 4]
    x = torch.rand(2, 3)
    assert torch.equal(flat_output((x, x + 1), 2), torch.cat([x, x + 1], 1))
    assert torch.equal(flat_output((x, torch.ones(5)), 2), x)  # two outputs, of two images
    assert flat_output([x.sum(), x.sum()], 2).shape == (2, 1)
    assert flat_output(torch.rand(7), 1).shape == (1, 7)  # squeezed


def test_outputs_without_rows_of_images_are_refused() -> None:
    integers = r"expected a model that returns floating-point tensors, got torch.int64 \(2,\);"
    with pytest.raises(InputError, match=integers + " wrap it in a module that returns the logits"):
        flat_output(torch.ones(2, 3).argmax(1), 2)
    rows = r"one row for each of 2 images, got torch.float32 \(5, 3\); wrap it in a module whose"
    with pytest.raises(InputError, match=rows):
        flat_output(torch.ones(5, 3), 2)


class Detector(nn.Module):
    """One dictionary per image, or one number."""

    def __init__(self, *, scalars: bool) -> None:
        super().__init__()
        self.inner = TWINS["reshaped tokens"].make(mended=True)
        self.scalars = scalars

    def forward(self, images: Tensor) -> list[Any]:
        rows = self.inner(images)
        if self.scalars:
            return [one.sum() for one in rows]
        return [{"boxes": one, "scores": one[:1]} for one in rows]


@pytest.mark.parametrize("scalars", [False, True])
def test_a_model_that_returns_one_item_per_image_leaks_nothing(scalars: bool) -> None:
    found = diagnose(Detector(scalars=scalars), noise())
    assert not found.errors
    assert not found.warnings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_images_of_any_precision_with_or_without_a_gradient_can_be_examined(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    images = noise(3).to(dtype)
    images[2] = images[1]
    images.requires_grad_()
    found = diagnose(av.build_model("mha", width=16).to(dtype), images)
    assert [(one.code, one.evidence) for one in found if one.code.startswith("input")] == [
        ("input-repeated", {"images": 1})
    ]
    assert images.requires_grad


def test_masks_and_padding_are_welcome_as_arrays() -> None:
    torch.manual_seed(0)
    model, images = av.build_model("mha", width=16), noise(8)
    masks, padding = noise(8)[:, 0] > 0.5, torch.zeros(8, 48, 48, dtype=torch.bool)
    padding[:, :12] = True
    expected = diagnose(model, images, masks, padding=padding, trained=True)
    found = diagnose(model, images, masks.numpy(), padding=padding.numpy(), trained=True)
    assert found.as_dicts() == expected.as_dicts()
    assert {"padding-attention", "too-few-images"} <= set(found.codes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, "diagnose: expected floating point images"),
        ({"images": torch.zeros(2, 3, 8, 8).byte()}, "got torch.uint8"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "expected one image or more, got none"),
        ({"model": len}, "expected a torch module, got builtin_function_or_method"),
        ({"masks": torch.zeros(2, 8, 8)}, r"expected masks as booleans \(2, 8, 8\), got torch.fl"),
        ({"padding": torch.zeros(1, 8, 8).bool()}, "expected padding as booleans"),
    ],
)
def test_wrong_arguments_are_named(given: dict, message: str) -> None:
    whole = {"model": nn.Identity(), "images": torch.zeros(2, 3, 8, 8)} | given
    with pytest.raises(InputError, match=message):
        diagnose(**whole)


def test_a_gate_of_fewer_places_that_is_resized_is_recorded_and_not_reported() -> None:
    class Resized(SpatialGate):
        def forward(self, x: Tensor) -> Tensor:
            gate = self.conv(nn.functional.avg_pool2d(x, 4)).sigmoid()
            return x * nn.functional.interpolate(gate, x.shape[-2:], mode="bilinear")

    torch.manual_seed(0)
    found = diagnose(Net(Resized()).eval(), noise())
    assert found.checked["gates"] == 1
    assert found.codes == ("untrained",)


class InPlace(nn.Module):
    """Normalises its images where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TWINS["reshaped tokens"].make(mended=True)

    def forward(self, images: Tensor) -> Tensor:
        images.sub_(0.1).div_(0.5)
        return self.inner(images)


def test_a_model_that_changes_its_images_in_place_is_not_accused() -> None:
    images = noise()
    before = images.clone()
    found = diagnose(InPlace(), images)
    assert not found.errors
    assert not found.warnings
    assert torch.equal(images, before)


class BatchGate(nn.Module):
    """A gate of each channel that all images of the batch share, closed by its bias or not."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.squeeze, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.constant_(self.squeeze.bias, bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = x + x * self.squeeze(x.mean((0, 2, 3))).sigmoid()[None, :, None, None]
        return self.head(y.mean((2, 3)))


def test_a_gate_that_all_images_share_has_the_effect_that_it_has() -> None:
    model, images = BatchGate(0.0).eval(), noise()
    assert "no-effect" not in diagnose(model, images).codes
    with frozen(model):
        case = Examination(model, images)
        (found,) = measured_changes(case).values()
        plain = model(case.some)
        with watch(model, edit={"*": randomly_scaled}):
            other = model(case.some)
    assert found == pytest.approx(float((other - plain).norm() / plain.norm()), rel=1e-4)


def test_a_gate_that_is_closed_by_its_bias_is_told_once() -> None:
    found = diagnose(BatchGate(-40.0).eval(), noise(), trained=True)
    assert "gate-closed" in found.codes
    assert "no-effect" not in found.codes
    assert "no-effect" in diagnose(BatchGate(-40.0).eval(), noise(), trained=False).notes.codes


class Coordinates(nn.Module):
    """Coordinate attention (Hou et al. 2021): gates of rows and of columns, from one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.squeeze = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.rows, self.columns, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        both = torch.cat([x.mean(3), x.mean(2)], 2)[..., None]
        rows, columns = self.squeeze(both).relu().split(x.shape[2:], 2)
        x = x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()
        return self.head(x.mean((2, 3)))


class InSeries(Coordinates):
    """A channel gate and a spatial gate after it, each of what it multiplies, as in CBAM."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        x = x * self.rows(x.mean((2, 3), keepdim=True)).sigmoid()
        x = x * self.columns(x).mean(1, keepdim=True).sigmoid()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("model", [Coordinates, InSeries])
def test_gates_that_multiply_the_same_features_in_turn_are_their_own(model: Any) -> None:
    assert "gate-of-other-features" not in diagnose(model().eval(), noise()).codes


class TwoInputs(nn.Module):
    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        return images.mean((1, 2, 3)) + text


def test_a_model_of_several_inputs_is_refused() -> None:
    words = r"diagnose: expected a model that takes images alone, got TwoInputs.forward\(.*text.*"
    with pytest.raises(InputError, match=words + "wrap it in a module that holds the other inputs"):
        diagnose(TwoInputs(), noise())


class ClassTokenLast(nn.Module):
    """The class token lies behind the places, and the head reads the first token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.token = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 1, 32))
        self.place, self.norm = nn.Parameter(torch.randn(37, 32) / 2), nn.LayerNorm(32)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        t = self.cut(images).flatten(2).mT
        t = torch.cat([t, self.token.expand(len(t), 1, 32)], 1) + self.place
        return self.head(self.norm(t + self.attend(t, t, t)[0])[:, 0])


def test_a_head_that_reads_a_place_is_told_where_the_class_token_lies() -> None:
    (found,) = diagnose(ClassTokenLast().eval(), noise()).errors
    assert found.code == "head-token"
    assert "token 36 depends on no image, as a class token" in found.meaning
    assert "x[:, -1] if last" in found.remedy
