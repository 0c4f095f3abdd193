"""The reference models: what they are, and that anyone's hook can look into them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnviz as av
from attnviz import InputError, build_model
from attnviz.layers import LearnedQuery
from attnviz.layers.attention import position_code
from attnviz.maps import maps_of
from attnviz.models import PatchNet, VisionTransformer, variants
from attnviz.models.pixels import as_bytes, as_input
from experiments.published import as_published, published_loss

NAMES = list(variants())
PUBLISHED = NAMES[:6]
"""The main tutorial's; `experiments.published` has their published forms."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(name: str) -> torch.nn.Module:
    """A model for images of 32 × 32; only one of them has to know."""
    return build_model(name, **({"side": 32} if name == "linear_tokens_channels" else {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_gives_one_logit_per_image_and_trains_all_its_weights(name: str) -> None:
    model = small(name)
    logits = model(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2,)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


PRIMARY = {
    **dict.fromkeys(NAMES, "received"),
    **dict.fromkeys(("cbam_channel", "se", "eca"), "channel_gated"),
    **dict.fromkeys(("cbam", "bam"), "gate_map"),
    **dict.fromkeys(("cnn", "pointwise_channels", "linear_tokens_channels")),  # none of places
    "mha_reshape": None,  # its tokens are no places
    "vit": "class_row",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_primary_map_of_a_model_follows_from_its_attention(name: str) -> None:
    model, images = small(name).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad(), av.watch(model, features=True, empty=True) as seen:
        model(images)
    records = dict(seen)
    if name.endswith("_channels") or name == "mha_early":  # whose tokens are pixels
        records = av.locate(model, images).onto(records)
    assert maps_of(records).primary == PRIMARY[name]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("training", [False, True])
def test_the_published_form_agrees_on_the_same_weights(name: str, training: bool) -> None:
    model = build_model(name).train(training)
    images = torch.rand(3, 3, 48, 48) * 2 - 1
    torch.manual_seed(1)
    ours = model(images).sigmoid()
    model = build_model(name).train(training) if training else model
    if training:  # batch norm has moved; start from the same state again
        torch.manual_seed(0)
        model = build_model(name).train()
    assert isinstance(model, PatchNet)
    torch.manual_seed(1)
    published = as_published(model)(images)
    torch.testing.assert_close(ours, published, atol=1e-5, rtol=0)


def test_the_published_loss_is_the_binary_cross_entropy() -> None:
    logits, labels = torch.randn(64), (torch.rand(64) > 0.5).float()
    ours = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(published_loss(logits.sigmoid(), labels), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mha_reshape", "mha", "mha_conv1d"])
def test_any_hook_on_the_softmax_sees_the_weights_and_moves_nothing(name: str) -> None:
    model = build_model(name).eval()
    images = torch.rand(2, 3, 32, 32)
    plain = model(images)
    seen: list[torch.Tensor] = []
    softmax = model.get_submodule("features.attention.attend.softmax")
    handle = softmax.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    hooked = model(images)
    handle.remove()
    assert seen[0].shape == (2, 4, 64, 64)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 4, 64))
    torch.testing.assert_close(hooked, plain, atol=1e-6, rtol=1e-5)
    assert torch.equal(model(images), plain)


def test_gates_are_modules_a_hook_can_see() -> None:
    model = build_model("cbam").eval()
    shapes: dict[str, torch.Size] = {}
    for name, module in model.named_modules():
        if name.endswith(".gate"):

            def keep(_module: object, _inputs: object, out: torch.Tensor, name: str = name) -> None:
                shapes[name] = out.shape

            module.register_forward_hook(keep)
    model(torch.rand(2, 3, 32, 32))
    assert shapes == {
        "features.attention.channel.gate": (2, 32),
        "features.attention.spatial.gate": (2, 1, 8, 8),
    }


def test_tokens_as_places_follow_their_places_and_reshaped_ones_do_not() -> None:
    """Permuting the places of the input permutes the output; after a reshape it does not."""
    x = torch.randn(1, 32, 6, 6)
    order = torch.randperm(36)

    def permuted(t: torch.Tensor) -> torch.Tensor:
        return t.flatten(2)[:, :, order].reshape(t.shape)

    for name, follows in (("mha", True), ("mha_conv1d", True), ("mha_reshape", False)):
        layer = build_model(name).eval().get_submodule("features.attention")
        same = torch.allclose(layer(permuted(x)), permuted(layer(x)), atol=1e-4)
        assert same is follows, name


def test_a_positional_code_tells_every_place_from_every_other() -> None:
    code = position_code(32, 6, 5, torch.zeros(1)).flatten(1)
    distance = torch.cdist(code.T, code.T) + torch.eye(30) * 9
    assert code.shape == (32, 30)
    assert distance.min() > 0.1
    assert position_code(3, 4, 4, torch.zeros(1)).shape == (3, 4, 4)


@pytest.mark.parametrize("placement", [0, 1, 2, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cnn", "vit")])
def test_every_attention_works_at_every_placement(name: str, placement: int) -> None:
    settings = {"side": 16} if name == "linear_tokens_channels" else {}
    model = build_model(name, placement=placement, **settings)
    logits = model(torch.rand(2, 3, 16, 16))
    logits.sum().backward()
    assert logits.shape == (2,)
    attention = model.get_submodule("features.attention")
    assert all(p.grad is not None for p in attention.parameters())
    with torch.no_grad(), av.watch(model.eval()) as seen:
        model(torch.rand(2, 3, 16, 16))
    assert all(record.name.startswith("features.attention") for record in seen.values())


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_models_without_a_place_for_attention_say_so(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' does not take .*'placement'"):
        build_model(name, placement=1)


def test_a_learned_query_replaces_the_mean_or_adds_to_every_place() -> None:
    x = torch.rand(2, 32, 4, 4)
    torch.manual_seed(0)
    gathered = LearnedQuery(32)(x)
    torch.manual_seed(0)
    added = LearnedQuery(32, added=True)(x)
    assert gathered.shape == (2, 32, 1, 1)
    torch.testing.assert_close(added, x + gathered)


def test_the_vision_transformer_reads_its_class_token_and_knows_where_a_place_is() -> None:
    model = build_model("vit").eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad(), av.watch(model) as seen:
        logits = model(images)
    assert list(seen) == [f"blocks.{n}.attend" for n in range(3)]
    assert all(r.weights.shape == (2, 4, 145, 145) for r in seen.values())  # type: ignore[union-attr]  # kept
    assert all((r.prefix, r.key_grid) == (1, (12, 12)) for r in seen.values())
    with torch.no_grad():
        flipped = model(images.flip(3))
        model.positions.zero_()
        blind = model(images)
    assert not torch.allclose(flipped, logits, atol=1e-4)
    assert not torch.allclose(blind, logits, atol=1e-4)


def test_the_vision_transformers_positions_keep_their_places_at_another_size() -> None:
    model = VisionTransformer(width=16, depth=1)
    with torch.no_grad():
        model.positions.copy_(torch.linspace(0, 1, 12).expand(1, 16, 12, 12))
    wide = model._positions(torch.zeros(1, 16, 24, 24))
    assert wide.shape == (1, 16, 24, 24)
    assert (wide.diff(dim=3) >= 0).all()
    torch.testing.assert_close(wide[..., ::2, 1:-1:2].mean(), torch.tensor(0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"heads": 5}, "a width that heads and 4 divide, got 64 and 5 heads"),
     ({"depth": 0}, "1 block or more, got 0")],
)  # fmt: skip
def test_a_vision_transformer_that_cannot_be_is_named(
    settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_model("vit", **settings)


@pytest.mark.parametrize("placement", [0, 1, 2, 3])
def test_attention_sits_where_it_is_placed(placement: int) -> None:
    model = build_model("cbam", placement=placement)
    names = [name for name, _ in model.get_submodule("features").named_children()]
    before = {0: None, 1: "pool1", 2: "pool2", 3: "conv3"}[placement]
    at = names.index("attention")
    assert (names[at - 1] if at else None) == before
    assert model(torch.rand(1, 3, 16, 16)).shape == (1,)


def test_training_under_autocast_keeps_gradients_finite() -> None:
    model = build_model("mha")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 32, 32))
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_unknown_variant_is_offered_its_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown variant 'mha_conv': did you mean 'mha_conv1d'"):
        build_model("mha_conv")


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(InputError, match=r"'mha' does not take .*'colour'"):
        build_model("mha", colour=3)
    with pytest.raises(InputError, match=r"expected a placement from 0 to 3, got 4"):
        build_model("mha", placement=4)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("mha", {"heads": 0}, "expected heads and d_k of 1 or more, got 0 and 8"),
        ("cnn", {"width": 0}, "expected a width of 1 or more, got 0"),
        ("cbam", {"reduction": 0}, "there is no 'cbam' of .*: integer division"),
        ("mha", {"dropout": 2.0}, "there is no 'mha' of .*: dropout probability"),
        ("mha_early", {"placement": 3, "width": 9}, "there is no 'mha_early' of .*: embed_dim"),
    ],
)
def test_settings_of_which_no_model_can_be_made_say_so(
    name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        build_model(name, **settings)


def test_bytes_come_back_from_what_the_models_take() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    images = as_input(pixels)
    assert (images[0], images[-1], images.dtype) == (-1, 1, torch.float32)
    assert torch.equal(as_bytes(images), pixels)
    assert as_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
