"""A layer's channels and places are proved by data or given, and what is neither is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from attnviz.attribution import attribute
from attnviz.attribution.layer_layout import Arrangement, arrangement_of
from attnviz.errors import InputError
from attnviz.model_state import frozen
from attnviz.places import Layout, locate


def images(b: int = 2, side: tuple[int, int] = (16, 24)) -> Tensor:
    return torch.rand(b, 3, *side, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Staged(nn.Module):
    """A convolution, a layer whose output lies as `lay` has it, and the way back."""

    def __init__(self, lay, back, *, channels: int = 8, fixed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.place = nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.Identity()
        self.mix, self.head = nn.Conv2d(channels, channels, 3, padding=1), nn.Linear(channels, 3)
        self.lay, self.back, self.fixed = lay, back, fixed

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed and tuple(x.shape[-2:]) not in ((16, 24), (16, 16)):
            raise ValueError("another size")
        features = self.conv(x)
        features = self.back(self.place(self.lay(features)), features.shape)
        return self.head(F.relu(self.mix(features)).mean((2, 3)))


LAYS = {
    "first": (lambda f: f, lambda o, _: o),
    "last": (lambda f: f.permute(0, 2, 3, 1), lambda o, _: o.permute(0, 3, 1, 2)),
    "between": (lambda f: f.transpose(1, 2), lambda o, _: o.transpose(1, 2)),
    "turned": (lambda f: f.transpose(2, 3), lambda o, _: o.transpose(2, 3)),
}


def right_map(model: Staged, x: Tensor, target: int) -> Tensor:
    """Grad-CAM from its definition, on the features before they are laid out."""
    features = model.conv(x).detach().requires_grad_()
    out = model.head(F.relu(model.mix(features)).mean((2, 3)))
    (gradient,) = torch.autograd.grad(out[:, target].sum(), features)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach()


@pytest.mark.parametrize("lay", LAYS)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("side", [(16, 24), (16, 16)])  # at (16, 16) a square (b, 8, 8, 8)
def test_every_order_of_axes_gives_the_map_of_the_definition(lay, fixed, side):
    model, x = Staged(*LAYS[lay], fixed=fixed).eval(), images(side=side)
    drawn = attribute(model, x, layer="place", target=1, sign="signed", size="own")
    assert_close(drawn, right_map(model, x, 1))
    assert not model.place._forward_hooks


@pytest.mark.parametrize(
    ("lay", "word"), [("first", "first"), ("last", "last"), ("turned", lambda o: o.mT)]
)
def test_a_layout_that_is_given_is_taken(lay, word):
    model, x = Staged(*LAYS[lay]).eval(), images()
    options = {"layer": "place", "target": 2, "sign": "signed", "size": "own"}
    expected = right_map(model, x, 2)
    assert_close(attribute(model, x, layout=word, **options), expected)
    if isinstance(word, str):
        assert_close(attribute(model, x, channels=word, **options), expected)


class Places:
    """As `attnviz.places` has them."""

    def __init__(self, grid, cell) -> None:
        self.grid, self.cell = grid, cell


def tokens(order: Tensor, extra: Tensor):
    """Tokens in any order behind two that are no places, and the way back."""

    def lay(f: Tensor) -> Tensor:
        flat = f.flatten(2).transpose(1, 2)[:, order]
        return torch.cat([extra.expand(len(f), 2, f.shape[1]), flat], 1)

    def back(o: Tensor, shape: torch.Size) -> Tensor:
        flat = torch.empty_like(o[:, 2:]).index_copy(1, order, o[:, 2:])
        return flat.transpose(1, 2).reshape(shape)

    return lay, back


def test_tokens_are_read_with_the_places_that_they_have():
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    model, x = Staged(*tokens(order, torch.randn(1, 2, 8))).eval(), images()
    places = Places((8, 12), torch.cat([torch.tensor([-1, -1]), order]))
    options = {"layer": "place", "target": 0, "sign": "signed", "size": "own"}
    assert_close(attribute(model, x, layout=places, **options), right_map(model, x, 0))
    inverse = order.argsort()
    function = lambda t: t[:, 2:][:, inverse].transpose(1, 2).unflatten(2, (8, 12))  # noqa: E731
    assert_close(attribute(model, x, layout=function, **options), right_map(model, x, 0))
    with pytest.raises(InputError, match="got 98 tokens, and which token is which place"):
        attribute(model, x, **options)


class Tokens(nn.Module):
    """A transformer's block behind a class token, and a layer of tokens in any order after it."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.place = nn.Conv2d(3, 8, 4, stride=4), nn.Identity()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        t = self.stem(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(len(t), 1, 8), t], 1)
        t = t + self.attention(t, t, t)[0]
        return self.head(torch.relu(self.place(t[:, self.order])).mean(1))


def test_tokens_of_a_transformer_lie_where_its_attention_has_them():
    model, x = Tokens(torch.arange(25)).eval(), images()
    options = {"layer": "place", "target": 1, "sign": "signed", "size": "own"}
    drawn = attribute(model, x, **options)
    function = lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 6))  # noqa: E731
    assert_close(drawn, attribute(model, x, layout=function, **options))
    assert_close(drawn, attribute(model, x, layout=locate(model, x), **options))
    wrapped = nn.Sequential(model, nn.Softmax(1))
    assert attribute(wrapped, x, **options | {"layer": model.place}).shape == (2, 4, 6)


def test_tokens_in_another_order_than_the_attention_s_are_refused():
    order = torch.cat([torch.zeros(1).long(), 24 - torch.arange(24)])
    model, x = Tokens(order).eval(), images()
    with pytest.raises(InputError, match="do not respond most to the pixels of the places"):
        attribute(model, x, layer="place", target=1)
    with pytest.raises(InputError, match="got 25 tokens, and which token is which place is known"):
        attribute(model, x, layer="place", target=1, layout=Layout({}))


class Attending(nn.Module):
    """Attention over patches, its weights a layer of their own."""

    def __init__(self, kind: str, fixed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.weights, self.head = nn.Conv2d(3, 8, 4, 4), nn.Softmax(-1), nn.Linear(8, 3)
        self.kind, self.fixed = kind, fixed

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed and tuple(x.shape[-2:]) != (16, 24):
            raise ValueError("another size")
        f = self.patch(x)
        b = len(x)
        if self.kind == "all":  # (b, heads, q, k)
            t = f.flatten(2).transpose(1, 2).reshape(b, -1, 2, 4).transpose(1, 2)
        elif self.kind == "latents":  # (b, heads, latents, k)
            t = f.flatten(2).transpose(1, 2).reshape(b, -1, 2, 4).transpose(1, 2)
            return self.head((self.weights(t[:, :, :5] @ t.mT) @ t).mean(2).flatten(1))
        elif self.kind == "rows":  # (b, h, w, w)
            t = f.permute(0, 2, 3, 1)
        else:  # (b * h, heads, w, w)
            t = f.permute(0, 2, 3, 1).reshape(-1, f.shape[3], 2, 4).transpose(1, 2)
        out = self.weights(t @ t.mT) @ t
        return self.head(out.reshape(b, -1, 8).mean(1))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["all", "latents", "rows", "folded"])
def test_attention_weights_are_no_feature_map(kind, fixed):
    with pytest.raises(InputError, match=r"grow|folded into the batch|nothing proves to be height"):
        attribute(Attending(kind, fixed).eval(), images(), layer="weights", target=1)


def test_of_attention_weights_the_message_says_what_they_are():
    with pytest.raises(InputError, match=r"two axes grow with one side .* \(b, heads, q, k\)"):
        attribute(Attending("all", False).eval(), images(), layer="weights", target=1)


@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (lambda f: f.flatten(2).unflatten(1, (2, 4)), "one axis grows with both sides"),
        (lambda f: f.mean((2, 3), keepdim=True).expand_as(f), "nothing proves|grows with both"),
        (lambda f: f.flatten(1), r"got \(b, 768\); a layer must put out \(b, c, h, w\)"),
        (lambda f: f[:, :, None], r"got \(b, 8, 1, 8, 12\); a layer must"),
        (lambda f: (f, f), "an output as one tensor, got tuple"),
    ],
)
def test_outputs_without_proved_places_are_refused(lay, message):
    class Odd(Staged):
        def forward(self, x: Tensor) -> Tensor:
            if tuple(x.shape[-2:]) != (16, 24) and "nothing" in message:
                raise ValueError("another size")
            features = self.conv(x)
            self.place(lay(features))
            return self.head(features.mean((2, 3)))

    with pytest.raises(InputError, match=message):
        attribute(Odd(None, None).eval(), images(), layer="place", target=1)


def test_a_layer_that_does_not_run_is_refused():
    class Idle(Staged):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    with pytest.raises(InputError, match=r"'place'.*a layer that runs in the forward pass"):
        attribute(Idle(None, None).eval(), images(), layer="place", target=1)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("middle", "layout: expected 'first', 'last', token places or a function"),
        (3, r"token places with \.grid and \.cell, or a function, got int"),
        (Places((8, 12), torch.arange(96)), r"expected tokens \(b, 96, c\), as many as the layout"),
        (Places((2, 8, 12), torch.arange(96)), r"places on a grid \(h, w\), the same for all"),
        (lambda o: o.flatten(2), r"the function to return \(b, c, h, w\), got \(1, 8, 96\)"),
        (lambda o: o.mean(1, keepdim=True), "to rearrange numbers only"),
        (lambda o: o.repeat(1, 2, 1, 1), "to rearrange numbers only"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout, message, unchecked):
    with pytest.raises(InputError, match=message):
        attribute(Staged(*LAYS["first"]).eval(), images(), layer="place", target=1, layout=layout)


def test_places_without_a_token_each_are_refused():
    model = Staged(*tokens(torch.arange(96), torch.zeros(1, 2, 8))).eval()
    places = Places((8, 12), torch.cat([torch.full((4,), -1), torch.arange(94)]))
    with pytest.raises(InputError, match="one token for each of the 8 x 12 places, got 94 places"):
        attribute(model, images(), layer="place", target=1, layout=places)
    with pytest.raises(InputError, match="an output of four axes for layout='last'"):
        attribute(model, images(), layer="place", target=1, layout="last")


def test_a_layout_belongs_to_a_layer():
    with pytest.raises(InputError, match=r"saliency: expected no layout= \(or channels='first'"):
        attribute(Staged(*LAYS["last"]), images(), method="saliency", target=1, channels="last")


def test_the_layers_input_is_read_in_its_own_order():
    """`attribute_to_layer_input` explains what the layer was given."""
    model, x = Staged(*LAYS["last"]).eval(), images()
    options = {"target": 1, "sign": "signed", "size": "own", "layer": "place"}
    drawn = attribute(model, x, attribute_to_layer_input=True, **options)
    assert_close(drawn, right_map(model, x, 1))


def test_captum_objects_of_ones_own_are_refused_where_they_would_take_rows_for_channels():
    captum_attr = pytest.importorskip("captum.attr")
    model = Staged(*LAYS["last"]).eval()
    for kind in (captum_attr.LayerGradCam, captum_attr.LayerActivation):
        mine = kind(model, model.place)
        target = {"target": 1} if kind is captum_attr.LayerGradCam else {}
        with pytest.raises(InputError, match="it puts out its channels elsewhere; use method='lay"):
            attribute(model, images(), method=mine, **target)
    whole = captum_attr.LayerGradCam(model, model.conv)
    drawn = attribute(model, images(), method=whole, target=1, sign="signed")
    assert_close(drawn, attribute(model, images(), layer="conv", target=1, sign="signed"))


@pytest.mark.parametrize(
    ("build", "layer", "order"),
    [
        ("swin_t", "features.1.0", (0, 2, 3, 1)),
        ("swin_t", "features.3.1.norm2", (0, 2, 3, 1)),
        ("convnext_tiny", "features.1.0.block.2", (0, 2, 3, 1)),
        ("convnext_tiny", "features.1.0", (0, 1, 2, 3)),
    ],
)
def test_torchvisions_networks_give_the_map_of_the_definition(build, layer, order):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = getattr(torchvision.models, build)(weights=None, num_classes=3).eval()
    x, kept = images(1, (64, 96)), {}
    to_first = [order.index(i) for i in range(4)] if order[1] != 1 else [0, 1, 2, 3]

    def keep(_m, _i, output):
        output.retain_grad()
        kept["output"] = output

    handle = model.get_submodule(layer).register_forward_hook(keep)
    model(x)[:, 1].sum().backward()
    handle.remove()
    permute = (0, 3, 1, 2) if order == (0, 2, 3, 1) else to_first
    a, g = (t.permute(permute) for t in (kept["output"], kept["output"].grad))
    expected = (g.mean((2, 3), keepdim=True) * a).sum(1).detach()
    drawn = attribute(model, x, layer=layer, target=1, sign="signed", size="own")
    assert_close(drawn, expected, atol=1e-6, rtol=1e-3)


ELSEWHERE = {
    "flipped": (lambda x: x.flip(-1), "columns respond to pixels . of 12 columns away"),
    "rolled": (lambda x: x.roll(6, -2), "rows respond to pixels 3 of 8 rows away"),
    "cropped": (lambda x: x[..., 4:, :], "does not see the top 3 pixels"),
    "cropped evenly": (lambda x: x[..., 3:-3], "does not see the left 3 pixels"),
    "letterbox": (lambda x: F.pad(x, (0, 0, 12, 12)), "rows respond to pixels . of 20 rows away"),
    "padded": (lambda x: F.pad(x, (0, 16)), "columns respond to pixels . of 20 columns away"),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
@pytest.mark.parametrize("lay", ["first", "last"])
def test_features_of_another_part_of_the_image_are_refused(fault, lay):
    """The map would be stretched over pixels that it does not come from."""
    arranged, message = ELSEWHERE[fault]
    staged, x = Staged(*LAYS[lay]), images()
    model = nn.Sequential(Rearranged(arranged), staged).eval()
    with pytest.raises(InputError, match=message):
        attribute(model, x, layer="1.place", target=1)
    given = attribute(model, x, layer="1.place", target=1, layout=lay, sign="signed", size="own")
    assert_close(given, right_map(staged, arranged(x), 1))


class Rearranged(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("kernel", [1, 7])
def test_features_of_every_fourth_pixel_or_of_a_large_field_are_read(kernel):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, kernel, stride=4, padding=kernel // 2)
    far = nn.Sequential(*(nn.Conv2d(8, 8, 7, padding=3) for _ in range(3)))
    model = nn.Sequential(stem, far, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    assert attribute(model, images(side=(32, 48)), layer="1", target=1, size="own").shape == (
        2, 8, 12,
    )  # fmt: skip


def test_a_layer_that_nothing_moves_is_not_taken_for_another_part_of_the_image():
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), norm, nn.Flatten(2), Rearranged(lambda t: t.mean(2))
    )
    assert attribute(model.eval(), images(), layer="1", target=1, size="own").shape == (2, 4, 6)


def test_it_is_measured_once_per_layer_and_size():
    model, calls = Staged(*LAYS["last"]).eval(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with frozen(model):
        first = arrangement_of(model, model.place, images())
        assert len(calls) == 16
        assert arrangement_of(model, model.place, images()) is first
        assert len(calls) == 16
        arrangement_of(model, model.place, images(side=(16, 16)))
    assert len(calls) == 32


def test_an_output_of_another_shape_than_measured_is_refused():
    index = torch.arange(24).view(2, 3, 4)
    assert Arrangement(index, (2, 3, 4)).unchanged
    turned = Arrangement(index.mT, (2, 3, 4))
    output = torch.rand(5, 2, 3, 4)
    assert torch.equal(turned.feature_map(output), output.mT)
    assert torch.equal(turned.written_back(output.mT + 1, output), output + 1)
    with pytest.raises(InputError, match=r"expected the output \(2, 3, 4\) per image that was"):
        turned.feature_map(output[:, :1])
