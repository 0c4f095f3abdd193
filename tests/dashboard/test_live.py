"""A run's model, asked live."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnviz.attribution import attribute
from attnviz.errors import InputError
from attnviz.models import build_model, rebuild_model
from dashboard import live


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "variant", ["cnn", "mha_reshape", "mha", "mha_conv1d", "cbam_channel", "cbam"]
)
def test_the_rebuilt_model_is_the_saved_one(variant, image):
    torch.manual_seed(3)
    model = build_model(variant).eval()
    again = rebuild_model(variant, {}, weights_of(model))
    pixels = live.as_input(image)
    with torch.no_grad():
        expected = model(pixels)
        assert torch.equal(expected, again(pixels))
    assert not again.training
    answer = live.ask(again, image)
    assert answer.logit == pytest.approx(float(expected), abs=1e-6)
    assert 0 < answer.probability < 1
    assert answer.views
    assert answer.views[-1].construction == "layer_gradcam"


def test_an_enormous_model_is_refused_before_it_takes_memory():
    weights = weights_of(build_model("mha"))
    with pytest.raises(InputError, match="the weights do not fit 'mha'"):
        rebuild_model("mha", {"model": {"width": 10**7}}, weights)


@pytest.mark.parametrize("asked", [{"nonsense": 1}, {"width": "x"}, {"width": -1}])
def test_settings_that_no_model_takes_are_refused_in_words(asked):
    with pytest.raises(InputError):
        rebuild_model("mha", {"model": asked}, weights_of(build_model("mha")))


def test_a_variant_is_a_name_and_no_path():
    with pytest.raises(InputError, match=r"unknown variant 'os\.system'"):
        rebuild_model("os.system", {}, {})


def test_weights_of_another_variant_are_refused():
    with pytest.raises(InputError, match="do not fit 'cnn'"):
        rebuild_model("cnn", {}, weights_of(build_model("mha")))


class TestPatched:
    def test_it_is_where_it_was_put_and_nothing_else_changed(self, image):
        out, mask = live.patched(image, x=10, y=70, size=16)
        assert mask.sum() == 256
        assert mask[70:86, 10:26].all()
        assert (out[mask] == 255).all()
        assert (out[~mask] == image[~mask]).all()

    def test_opacity_mixes_and_fill_is_grey(self, image):
        out, mask = live.patched(image, x=0, y=0, size=8, fill=0.0, opacity=0.5)
        expected = image[mask] / 2 + 127.5 / 2
        assert abs(out[mask] - expected).max() <= 1

    def test_it_is_moved_inside(self, image):
        _, mask = live.patched(image, x=95, y=-40, size=16)
        assert mask[:16, 80:].all()

    def test_size_zero_leaves_the_image(self, image):
        out, mask = live.patched(image, x=0, y=0, size=0)
        assert out is image
        assert not mask.any()

    @pytest.mark.parametrize("shape", ["disc", "ring", "cross", "L", "dots", "texture"])
    def test_every_shape_is_inject_patchs_own(self, shape, image):
        _, mask = live.patched(image, x=4, y=4, size=16, shape=shape)
        assert 0 < mask.sum() < 256


class TestInterventions:
    def test_each_head_and_each_gate_has_a_switch(self, image):
        heads = live.ask(rebuild_model("mha", {}, weights_of(build_model("mha"))), image)
        assert [switch.head for switch in heads.switches] == [0, 1, 2, 3]
        gates = live.ask(rebuild_model("cbam", {}, weights_of(build_model("cbam"))), image)
        assert [switch.head for switch in gates.switches] == [None, None]
        assert all("gate at one" in switch.words for switch in gates.switches)

    def test_switching_changes_the_answer_and_only_while_it_lasts(self, image):
        torch.manual_seed(0)
        model = rebuild_model("mha", {}, weights_of(build_model("mha")))
        before = live.ask(model, image)
        off = live.ask(model, image, [switch.key for switch in before.switches])
        assert off.logit != before.logit
        assert live.ask(model, image).logit == before.logit

    def test_a_gate_at_one_is_the_model_without_the_gate(self, image):
        torch.manual_seed(0)
        model = rebuild_model("cbam", {}, weights_of(build_model("cbam")))
        keys = [switch.key for switch in live.ask(model, image).switches]
        open_gates = live.ask(model, image, keys)
        with torch.no_grad():
            from attnviz.capture import edits, watch

            edit = dict.fromkeys(keys, edits.constant(1.0))
            with watch(model, edit=edit):
                expected = float(model(live.as_input(image)))
        assert open_gates.logit == pytest.approx(expected, abs=1e-6)
        assert {view.construction for view in open_gates.views} == {"gate_map", "channel_gated"}

    def test_unknown_switches_are_left_out(self, image):
        model = rebuild_model("mha", {}, weights_of(build_model("mha")))
        assert live.ask(model, image, ["nothing.9"]).logit == live.ask(model, image).logit


def test_gradcam_is_of_the_layer_that_the_run_recorded(image):
    """The last convolution of a gated network is the gate's own: its Grad-CAM is another map."""
    model = build_model("cbam").eval()
    layer = "features.conv3"
    recorded = live.ask(model, image, recorded=live.Recorded(cam=layer)).views[-1].values
    expected = attribute(
        model, live.as_input(image), method="layer_gradcam", layer=layer, size="own"
    )
    assert np.allclose(recorded, expected[0].numpy(), atol=1e-6)
    assert not np.allclose(recorded, live.ask(model, image).views[-1].values)


def test_several_outputs_are_classes():
    answer = live.Answer((0.0, 2.0, 1.0), (), ())
    assert answer.best == 1
    assert answer.logit == 2.0
    assert answer.probability == pytest.approx(np.exp(2) / (1 + np.exp(2) + np.exp(1)))
