"""Maps are Captum's own numbers, whatever the pieces, and the model stays what it was."""

from __future__ import annotations

import subprocess
import sys
import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import attnviz as av
from attnviz.attribution import attribute, methods
from attnviz.attribution.request import bytes_per_image
from attnviz.errors import InputError, UnsupportedError
from tests.attribution.nets import Squeezed, images, plain

NAMES = sorted(methods())
SPEEDY = {
    "integrated_gradients": {"n_steps": 7},
    "gradient_shap": {"n_samples": 3},
    "kernel_shap": {"n_samples": 40, "segments": 6},
    "feature_ablation": {"segments": 6},
    "occlusion": {"sliding_window_shapes": 4, "strides": 3},
}
EACH = pytest.mark.parametrize("method", NAMES)


def asked(method, model=None, x=None, **options):
    return attribute(
        plain() if model is None else model,
        images() if x is None else x,
        method=method,
        **(SPEEDY.get(method, {}) | options),
    )


def test_the_front_door_knows_it():
    assert av.attribute is attribute


def test_without_captum_it_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UnsupportedError, match=r"saliency: expected captum.*; pip install captum"):
        attribute(plain(), images(), method="saliency")
    assert "saliency" in methods()


def test_all_methods_are_listed_with_what_they_mean():
    assert NAMES == [
        "deep_lift",
        "feature_ablation",
        "gradient_shap",
        "guided_backprop",
        "guided_gradcam",
        "input_x_gradient",
        "integrated_gradients",
        "kernel_shap",
        "layer_gradcam",
        "occlusion",
        "saliency",
    ]
    assert all(meaning and "\n" not in meaning for meaning in methods().values())


@EACH
def test_every_method_gives_a_finite_map_per_image_that_says_something(method):
    maps = asked(method, sign="signed")
    assert maps.shape == (3, 10, 12)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert (maps.flatten(1).std(1) > 0).any()


def captums_own(name, model, x, target):
    """Each method as its documentation calls it."""
    attr, last = captum.attr, model[0][4]
    x = x.clone().requires_grad_()
    return {
        "saliency": lambda: attr.Saliency(model).attribute(x, target, abs=False).sum(1),
        "input_x_gradient": lambda: attr.InputXGradient(model).attribute(x, target).sum(1),
        "integrated_gradients": lambda: (
            attr.IntegratedGradients(model).attribute(x, target=target, n_steps=7).sum(1)
        ),
        "deep_lift": lambda: attr.DeepLift(model).attribute(x, target=target).sum(1),
        "guided_backprop": lambda: attr.GuidedBackprop(model).attribute(x, target).sum(1),
        "guided_gradcam": lambda: attr.GuidedGradCam(model, last).attribute(x, target).sum(1),
        "occlusion": lambda: (
            attr.Occlusion(model).attribute(x, (3, 4, 4), (3, 3, 3), target=target).mean(1)
        ),
        "layer_gradcam": lambda: torch.nn.functional.interpolate(
            attr.LayerGradCam(model, last).attribute(x, target), x.shape[-2:], mode="bilinear"
        )[:, 0],
    }[name]()


@pytest.mark.filterwarnings("ignore:Setting:UserWarning")
@pytest.mark.parametrize(
    "method", [n for n in NAMES if n not in ("kernel_shap", "gradient_shap", "feature_ablation")]
)
@pytest.mark.parametrize("target", [0, torch.tensor([2, 0, 1])])
def test_the_numbers_are_captums_own(method, target):
    model = plain(3).eval()
    expected = captums_own(method, model, images(), target).detach()
    assert_close(asked(method, model, target=target, sign="signed"), expected)


@EACH
@pytest.mark.parametrize("memory", [1, 40_000, 120_000])
def test_a_smaller_budget_gives_the_same_map(method, memory):
    model = plain(3)
    target = torch.tensor([2, 0, 1])
    whole = asked(method, model, target=target, sign="signed", memory=2**40)
    pieces = asked(method, model, target=target, sign="signed", memory=memory)
    assert_close(pieces, whole)


@EACH
def test_an_images_map_does_not_depend_on_the_images_around_it(method):
    whole = asked(method, sign="signed")
    alone = asked(method, x=images()[1:2], sign="signed")
    assert_close(alone, whole[1:2])


@EACH
def test_the_same_seed_gives_the_same_map_and_leaves_the_generators_alone(method):
    model = plain()
    first = asked(method, model, seed=3)
    numbers = np.random.get_state
    states = torch.get_rng_state(), numbers()[1].copy()
    torch.rand(5)
    assert torch.equal(asked(method, model, seed=3), first)
    torch.set_rng_state(states[0])
    asked(method, model, seed=3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(numbers()[1], states[1])


@pytest.mark.parametrize("method", ["gradient_shap", "kernel_shap"])
def test_another_seed_draws_another_map(method):
    assert not torch.allclose(asked(method, sign="signed"), asked(method, sign="signed", seed=1))


def fingerprint(model):
    """All that a module holds, hooks and flags included."""
    return [
        (
            name,
            module.training,
            getattr(module, "inplace", None),
            sorted(vars(module)),
            {k: len(v) for k, v in vars(module).items() if isinstance(v, dict)},
        )
        for name, module in model.named_modules()
    ]


@EACH
@pytest.mark.parametrize("inplace", [False, True])
def test_the_model_stays_what_it_was(method, inplace):
    model = plain(inplace=inplace).train()
    model[0].eval()
    model[0][0].weight.requires_grad_(False)
    before, state = fingerprint(model), {k: v.clone() for k, v in model.state_dict().items()}
    given = images()
    kept = given.clone()
    asked(method, model, given)
    assert fingerprint(model) == before
    assert torch.equal(given, kept)
    assert not given.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


@pytest.mark.parametrize("method", ["deep_lift", "guided_backprop", "layer_gradcam"])
def test_the_model_stays_what_it_was_when_it_fails_half_way(method):
    class Failing(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    model = plain().train()
    model.append(Failing())
    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt):
        asked(method, model)
    assert fingerprint(model) == before


@EACH
def test_the_callers_gradient_mode_does_not_matter(method):
    model = plain()
    expected = asked(method, model)
    with torch.no_grad():
        assert torch.equal(asked(method, model), expected)
    with torch.inference_mode():
        drawn = asked(method, model, images())
    assert torch.equal(drawn, expected)


def test_images_made_in_inference_mode_can_be_explained():
    with torch.inference_mode():
        x = images()
    assert_close(asked("saliency", x=x), asked("saliency"))


@EACH
def test_a_model_with_one_output_needs_no_target_in_either_shape(method):
    flat = asked(method, Squeezed(), **({"layer": "net.0.4"} if "gradcam" in method else {}))
    assert_close(flat, asked(method, plain()))
    assert_close(asked(method, plain(), target=0), flat)


@EACH
def test_a_model_with_several_outputs_is_never_explained_without_a_target(method):
    with pytest.raises(InputError, match="the model has 3 outputs, so choose one: target="):
        asked(method, plain(3))


@pytest.mark.parametrize("target", [3, -1, [0, 1, 3]])
@pytest.mark.parametrize("method", ["saliency", "occlusion", "integrated_gradients"])
def test_a_target_outside_the_outputs_is_refused(method, target):
    with pytest.raises(InputError, match="indices from 0 to 2"):
        asked(method, plain(3), target=target)


def test_targets_that_are_not_one_per_image_are_refused():
    with pytest.raises(InputError, match=r"one index or 3 of them \(one per image\)"):
        asked("saliency", plain(3), target=[0, 1])


def test_a_model_that_returns_no_logits_is_told_what_to_do():
    class Wrapped(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.net, self.out = plain(), out

        def forward(self, x):
            return self.out(self.net(x))

    with pytest.raises(InputError, match="tensor of logits, got dict; wrap it"):
        asked("saliency", Wrapped(lambda y: {"logits": y}))
    with pytest.raises(InputError, match=r"\(b,\) or \(b, n\), got \(3, 1, 1\)"):
        asked("saliency", Wrapped(lambda y: y[:, None]))


@pytest.mark.parametrize("channels", ["sum", "mean", "max_abs", "norm"])
@pytest.mark.parametrize("sign", ["positive", "abs", "signed"])
def test_channels_are_reduced_and_then_the_sign_is_taken(channels, sign):
    model, x = plain().eval(), images()
    raw = captum.attr.Saliency(model).attribute(x.requires_grad_(), abs=False)
    expected = torch.zeros(3, 10, 12)
    for i in range(3):
        for y in range(10):
            for z in range(12):
                values = raw[i, :, y, z]
                one = {
                    "sum": values.sum(),
                    "mean": values.sum() / 3,
                    "max_abs": max(values.tolist(), key=abs),
                    "norm": (values**2).sum() ** 0.5,
                }[channels]
                fold = {"positive": max(float(one), 0.0), "abs": abs(one), "signed": one}
                expected[i, y, z] = fold[sign]
    assert_close(asked("saliency", model, images(), channels=channels, sign=sign), expected)


def test_simonyans_map_is_captums_default():
    model, x = plain().eval(), images().requires_grad_()
    expected = captum.attr.Saliency(model).attribute(x).amax(1)
    drawn = asked("saliency", model, images(), channels="max_abs", sign="abs")
    assert_close(drawn, expected)


def test_integrated_gradients_add_up_to_the_change_of_the_output():
    model, x = plain().eval(), images()
    for baseline in ("black", "mean", "blur", 0.3):
        maps = asked("integrated_gradients", model, sign="signed", baseline=baseline, n_steps=400)
        from attnviz.baseline_images import blank_like

        change = model(x) - model(blank_like(x, baseline))
        assert_close(maps.sum((1, 2)), change[:, 0], atol=2e-3, rtol=2e-2)


def test_occlusion_of_a_single_pixel_window_is_the_drop_of_the_output():
    class Sum(nn.Module):
        def forward(self, x):
            return x.sum((1, 2, 3))

    x = images()
    maps = asked("occlusion", Sum(), x, sliding_window_shapes=1, strides=1, sign="signed")
    assert_close(maps, x.sum(1))


def test_captum_objects_of_ones_own_are_asked_the_same_way():
    model = plain(3).eval()
    mine = captum.attr.IntegratedGradients(model, multiply_by_inputs=False)
    drawn = attribute(model, images(), method=mine, target=1, n_steps=5, sign="signed", memory=1)
    expected = mine.attribute(images(), target=1, n_steps=5).sum(1)
    assert_close(drawn, expected)
    noisy = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    options = {"method": noisy, "nt_samples": 4, "stdevs": 0.1, "target": 2, "abs": False}
    both = attribute(model, images(), **options)
    assert_close(attribute(model, images()[2:], **options), both[2:])


def test_captum_objects_of_ones_own_are_not_explained_without_a_target_either():
    model = plain(3).eval()
    with pytest.raises(InputError, match="the model has 3 outputs"):
        attribute(model, images(), method=captum.attr.FeatureAblation(model))


def test_an_object_that_was_made_for_another_model_is_refused():
    model, other = plain().eval(), plain(seed=1)
    whole = nn.Sequential(model, nn.Identity())
    for mine in (captum.attr.Saliency(other), captum.attr.NoiseTunnel(captum.attr.Saliency(other))):
        with pytest.raises(InputError, match=r"expected an object made for this model, got one"):
            attribute(model, images(), method=mine)
    expected = asked("saliency", model)
    for mine in (captum.attr.Saliency(whole), captum.attr.Saliency(lambda x: 2 * model(x))):
        attribute(model, images(), method=mine)  # around it, and who knows
    assert_close(
        attribute(whole, images(), method=captum.attr.Saliency(model), abs=False), expected
    )


def test_objects_that_explain_no_output_take_no_target():
    model = plain(3).eval()
    layer = captum.attr.LayerActivation(model, model[0][4])
    expected = nn.functional.interpolate(
        model[0][:5](images()).sum(1, keepdim=True), (10, 12), mode="bilinear"
    )[:, 0]
    assert_close(attribute(model, images(), method=layer, sign="signed"), expected.detach())
    with pytest.raises(InputError, match="LayerActivation: expected no target=, since it explains"):
        attribute(model, images(), method=layer, target=1)


@pytest.mark.filterwarnings("ignore::attnviz.errors.CompletenessWarning")
@pytest.mark.parametrize("name", ["GradientShap", "DeepLiftShap", "LayerGradientShap"])
@pytest.mark.parametrize("n", [2, 3])
def test_every_image_draws_from_the_whole_distribution_however_many_images_there_are(name, n):
    """Three images and three baselines are not three pairs."""
    # Captum's rule for max-pooling is not complete against such baselines, and a warning says so.
    model = plain().eval()
    where = (model[0][4],) if name.startswith("Layer") else ()
    mine = getattr(captum.attr, name)(model, *where)
    methods = [mine, "gradient_shap"] if name == "GradientShap" else [mine]
    for method in methods:
        options = {"method": method, "baseline": images(n, seed=7), "sign": "signed"}
        whole = attribute(model, images(), **options)
        assert_close(attribute(model, images()[1:2], **options), whole[1:2])
        assert whole.any()


def test_an_explainer_that_nobody_knows_is_asked_image_by_image():
    """It may draw at random, and what it draws for an image must not depend on the others."""

    class Noisy:
        def attribute(self, inputs):
            return inputs * torch.rand(inputs.shape)

    whole = attribute(plain(), images(), method=Noisy(), sign="signed")
    assert torch.equal(attribute(plain(), images()[2:], method=Noisy(), sign="signed"), whole[2:])


def test_a_layer_is_found_by_name_by_module_or_where_it_cannot_be_mistaken():
    model = plain()
    by_name = asked("layer_gradcam", model, layer="0.4")
    assert torch.equal(asked("layer_gradcam", model, layer=model[0][4]), by_name)
    assert torch.equal(asked("layer_gradcam", model), by_name)
    own = asked("layer_gradcam", model, size="own")
    assert own.shape == (3, 5, 6)
    nearest = asked("layer_gradcam", model, interpolation="nearest")
    assert torch.equal(nearest, own.repeat_interleave(2, 1).repeat_interleave(2, 2))


class Branched(nn.Module):
    """A main path and a side path: the last convolution defined is not on the main one."""

    def __init__(self):
        super().__init__()
        self.main = nn.Conv2d(3, 4, 3, padding=1)
        self.side = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return (self.main(x) + self.side(x)).mean((1, 2, 3))


def test_a_layer_that_could_be_mistaken_is_asked_for():
    with pytest.raises(InputError, match=r"not certain among main, side; pass layer="):
        asked("layer_gradcam", Branched())
    with pytest.raises(InputError, match=r"has no nn.Conv2d to take by itself"):
        asked("layer_gradcam", nn.Sequential(nn.Flatten(), nn.Linear(360, 1)))
    with pytest.raises(InputError, match=r"unknown layer 'man': did you mean 'main'"):
        asked("layer_gradcam", Branched(), layer="man")
    with pytest.raises(InputError, match="a Conv2d that is none of them"):
        asked("layer_gradcam", Branched(), layer=nn.Conv2d(3, 4, 1))
    with pytest.raises(InputError, match="expected no layer="):
        asked("saliency", Branched(), layer="main")
    with pytest.raises(InputError, match=r"a layer must put out \(b, c, h, w\)"):
        asked("layer_gradcam", plain(), layer="2")


@pytest.mark.parametrize("method", ["guided_backprop", "guided_gradcam"])
def test_guided_methods_do_not_pass_off_plain_gradients_as_guided(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(320, 1))
    with pytest.raises(UnsupportedError, match=r"it also has LeakyReLU.*use method='saliency'"):
        asked(method, model)
    del model[1]
    with pytest.raises(UnsupportedError, match=r"it has no nn\.ReLU"):
        asked(method, model)


def test_deep_lift_on_an_activation_that_runs_twice_says_what_to_do():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.relu = plain(), nn.ReLU()

        def forward(self, x):
            return self.net(self.relu(x) - self.relu(-x))

    model = Twice()
    before = fingerprint(model)
    with pytest.raises(UnsupportedError, match="'relu' runs twice or more; give each place"):
        asked("deep_lift", model)
    assert fingerprint(model) == before


def test_wrong_names_and_options_are_answered_with_the_right_ones(unchecked):
    with pytest.raises(InputError, match=r"did you mean 'saliency'"):
        asked("salience")
    with pytest.raises(InputError, match=r"option of integrated_gradients 'steps'.*n_steps"):
        asked("integrated_gradients", steps=3)
    with pytest.raises(InputError, match=r"unknown option of saliency 'additional_forward_args'"):
        asked("saliency", additional_forward_args=1)
    with pytest.raises(InputError, match=r"unknown sign 'negative'"):
        asked("saliency", sign="negative")
    with pytest.raises(InputError, match=r"unknown channels 'max'.*did you mean 'max_abs'"):
        asked("saliency", channels="max")
    with pytest.raises(InputError, match=r"did you mean 'norm'\? expected one of 46, such as norm"):
        attribute(av.build_model("vit"), torch.zeros(1, 3, 48, 48), layer="nope")
    with pytest.raises(InputError, match=r"expected no baseline="):
        asked("saliency", baseline="black")
    with pytest.raises(InputError, match=r"or an object with .attribute"):
        asked(captum.attr.Saliency)
    with pytest.raises(InputError, match=r"expected floating point images \(b, c, h, w\)"):
        asked("saliency", x=torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"got torch.float32 \(3, 8, 8\); add a batch axis"):
        asked("saliency", x=torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match=r"one tensor \(b, c, h, w\), got tuple; a model of sev"):
        asked("saliency", x=(torch.zeros(1, 3, 8, 8), torch.zeros(1)))
    with pytest.raises(InputError, match=r"memory: expected a number of bytes, got 0"):
        asked("saliency", memory=0)


def test_progress_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setattr("attnviz.progress.EVERY", 0.0)
    asked("integrated_gradients", progress=True)
    assert "integrated_gradients: " in capsys.readouterr().err
    asked("integrated_gradients")
    assert capsys.readouterr().err == ""


def test_no_images_give_no_maps():
    assert asked("saliency", x=images(0)).shape == (0, 10, 12)
    assert asked("integrated_gradients", x=images(0)).shape == (0, 10, 12)


class Counted(nn.Module):
    """Remembers how many rows it was given at once."""

    def __init__(self, net):
        super().__init__()
        self.net, self.most = net, []

    def forward(self, x):
        self.most.append(len(x))
        return self.net(x)


@pytest.mark.parametrize(
    "method",
    [
        "saliency",
        "deep_lift",
        "integrated_gradients",
        "occlusion",
        "feature_ablation",
        "kernel_shap",
    ],
)
@pytest.mark.parametrize("rows", [2, 5, 11])
def test_no_more_rows_are_under_way_than_the_budget_has_room_for(method, rows):
    model = Counted(plain())
    room = rows * bytes_per_image(plain(), images(1))
    asked(method, model, images(7), memory=room)
    assert max(model.most) <= rows
    assert max(model.most) > rows // 2


def test_the_bytes_of_an_image_are_what_its_graph_keeps():
    """One convolution keeps its input; ReLU keeps its output: both counted once, no parameters."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert bytes_per_image(model, torch.rand(1, 3, 8, 10)) == 4 * 80 * (3 + 4)


def test_the_bytes_of_an_image_are_counted_where_gradients_are_off_too():
    """They are remembered, so a question that needs none must not make others too greedy."""
    asked_first, asked_later = plain().eval(), plain().eval()
    with torch.no_grad():
        without = bytes_per_image(asked_first, images(1))
    assert without == bytes_per_image(asked_later, images(1)) > images(1).nbytes


def test_a_residual_network_with_in_place_activations_can_be_explained():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    x = torch.rand(2, 3, 64, 64)
    before = fingerprint(model)
    cam = asked("layer_gradcam", model, x, target=1, layer="layer3", size="own", sign="signed")
    assert cam.shape == (2, 4, 4)
    guided = asked("guided_backprop", model, x, target=1, sign="signed")
    plain_gradient = asked("saliency", model, x, target=1, sign="signed")
    assert guided.abs().max() > 0
    assert not torch.allclose(guided, plain_gradient, rtol=0.1)
    with pytest.raises(InputError, match="the last convolution is not certain"):
        asked("layer_gradcam", model, x, target=1)
    with pytest.raises(UnsupportedError, match="runs twice"):
        asked("deep_lift", model, x, target=1)
    assert fingerprint(model) == before


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit says of itself that it is deprecated
        return torch.jit.script(plain())


# torch hides this warning of its own by replacing what shows it, which "error" comes before
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("made", "remedy"),
    [
        (lambda: torch.compile(plain(), backend="eager"), r"compiled .*\._orig_mod"),
        (scripted, "scripted .*pass the original"),
    ],
)
def test_compiled_and_scripted_models_can_be_explained_where_no_hook_is_needed(made, remedy):
    model = made()
    for method in ("saliency", "integrated_gradients", "occlusion"):
        assert_close(asked(method, model), asked(method, plain()))
    for method in ("layer_gradcam", "deep_lift", "guided_backprop", "guided_gradcam"):
        options = {"layer": model} if "gradcam" in method else {}
        with pytest.raises(UnsupportedError, match=remedy):
            asked(method, model, **options)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "deep_lift", "kernel_shap"])
def test_models_in_double_precision_give_the_same_map_in_single(method):
    expected = asked(method, plain())
    drawn = asked(method, plain().double(), images().double())
    assert drawn.dtype == torch.float32
    assert_close(drawn, expected, atol=1e-6, rtol=1e-4)


def test_captum_is_not_loaded_until_a_map_is_asked_for():
    script = "import sys, attnviz.attribution, attnviz.faithfulness; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"captum", "skimage", "scipy", "pandas"} & set(loaded)


class InPlace(nn.Module):
    """Normalises its images, where they are or not."""

    def __init__(self, *, inplace):
        super().__init__()
        self.model, self.where = plain(), inplace

    def forward(self, x):
        if self.where:
            x.sub_(0.5).div_(0.25)
            return self.model(x)
        return self.model((x - 0.5) / 0.25)


@pytest.mark.filterwarnings("ignore::attnviz.errors.CompletenessWarning")  # of its max-pooling
@EACH
def test_a_model_that_changes_its_images_in_place_has_the_same_maps(method):
    x = images()
    before = x.clone()
    one, other = (
        asked(method, InPlace(inplace=inplace), x, sign="signed") for inplace in (False, True)
    )
    assert_close(other, one)
    assert torch.equal(x, before)


class Detached(nn.Module):
    """A first layer under `no_grad`, as of a frozen backbone."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "layer_gradcam"])
def test_an_output_without_a_gradient_by_the_images_is_refused(method):
    with pytest.raises(InputError, match="the output has no gradient by the images: a layer runs"):
        asked(method, Detached())
    assert asked("occlusion", Detached()).shape == (3, 10, 12)


class TwoInputs(nn.Module):
    def forward(self, x, text):
        return x.mean((1, 2, 3)) + text


@pytest.mark.parametrize("method", ["saliency", "occlusion"])
def test_a_model_of_several_inputs_is_refused(method):
    with pytest.raises(InputError, match=f"{method}: expected a model that takes images alone"):
        asked(method, TwoInputs())
