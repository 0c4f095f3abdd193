"""Maps of generated tokens and of words of the prompt, against eager attention by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers as hub
from torch import Tensor

import attnviz as av
from attnviz.capture import reductions
from attnviz.errors import InputError
from attnviz.maps.token_maps import _mean
from tests.maps.language_models import IMAGE, Letters, by_hand, inputs_of, llava, prompt

TOKENS = 4


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def layout(model: Any, pixels: Tensor) -> Any:
    """The places of the prompt that most tests use."""
    return av.locate(model, pixels[:1], inputs=inputs_of(prompt(5, 6)))


def generated(model: Any, given: dict[str, Any], reduce: Any = "steps", **options: Any) -> Any:
    with torch.no_grad(), av.watch(model, reduce=reduce) as seen:
        out = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, **options)
    return seen, out


def mean_row(out: Any, step: int, row: int = 0) -> Tensor:
    """The last query's attention in one step, the mean over layers and heads."""
    return torch.stack([layer[row].mean(0)[-1] for layer in out.attentions[step]]).mean(0)


def places(ids: Tensor) -> Tensor:
    return (ids == IMAGE).nonzero()[:, 0]


@pytest.mark.parametrize("token", [0, 2, -1])
def test_the_map_of_a_generated_token_is_the_row_it_was_predicted_from(
    model: Any, pixels: Tensor, layout: Any, token: int
) -> None:
    inputs = inputs_of(prompt(5, 6))
    seen, _ = generated(model, inputs(pixels[:1]))
    maps = av.token_map(seen, token, layout=layout)
    row = mean_row(by_hand(model, inputs(pixels[:1]), max_new_tokens=TOKENS), token)
    at = places(inputs(pixels)["input_ids"][0])
    torch.testing.assert_close(maps, row[at].view(1, 4, 4), rtol=0, atol=1e-6)
    whole, _ = generated(model, inputs(pixels[:1]), reduce=None)
    torch.testing.assert_close(av.token_map(whole, token, layout=layout), maps)


def test_rows_by_layer_and_head_and_their_mean_over_tokens(
    model: Any, pixels: Tensor, layout: Any
) -> None:
    inputs = inputs_of(prompt(5, 6))
    seen, _ = generated(model, inputs(pixels[:1]))
    each = torch.stack(
        [
            av.token_map(seen, token, layout=layout, layers=layer, heads="each")
            for token in (1, 3)
            for layer in (0, 1)
        ]
    )
    assert each.shape == (4, 1, 4, 4, 4)
    both = av.token_map(seen, [1, 3], layout=layout)
    torch.testing.assert_close(each.mean((0, 2)), both)
    named = av.token_map(seen, [1, 3], layout=layout, layers="*.layers.1.*", heads=2)
    torch.testing.assert_close(named, each[1::2, :, 2].mean(0))
    fed = av.token_map(seen, 1, layout=layout, at="input")
    torch.testing.assert_close(fed, av.token_map(seen, 2, layout=layout))


def test_steps_hold_one_row_per_generated_token(model: Any, pixels: Tensor) -> None:
    inputs = inputs_of(prompt(5, 6))
    seen, _ = generated(model, inputs(pixels[:1]))
    steps = seen.steps["model.language_model.layers.1.self_attn"]
    assert (steps.prompt, steps.tokens) == (21, TOKENS)
    assert steps.rows.shape == (1, 4, TOKENS, 21 + TOKENS - 1)
    torch.testing.assert_close(steps.rows.sum(-1), torch.ones(1, 4, TOKENS))
    hand = by_hand(model, inputs(pixels[:1]), max_new_tokens=TOKENS)
    for token, layers in enumerate(hand.attentions):
        row = layers[1][:, :, -1]
        torch.testing.assert_close(steps.rows[:, :, token, : row.shape[-1]], row)
    record = seen["model.language_model.layers.1.self_attn"]
    assert record.weights is None
    assert record.key is None
    assert record.reduced["steps"].shape == (1, 4, 1, 21)


@pytest.mark.parametrize("kind", ["beams", "static", "no cache", "sliding"])
def test_any_cache_gives_the_rows_of_eager_attention(model: Any, pixels: Tensor, kind: str) -> None:
    """A beam search exchanges rows, a static cache has keys to come, a sliding one drops some."""
    inputs = inputs_of(prompt(5, 6))
    net = llava(window=12) if kind == "sliding" else model
    options: dict[str, Any] = {
        "beams": {"num_beams": 3, "output_scores": True, "num_return_sequences": 2},
        "static": {"cache_implementation": "static", "disable_compile": True},
        "no cache": {"use_cache": False},
        "sliding": {},
    }[kind]
    seen, out = generated(net, inputs(pixels[:1]), return_dict_in_generate=True, **options)
    layout = av.locate(net, pixels[:1], inputs=inputs)
    hand = by_hand(net, inputs(pixels[:1]), max_new_tokens=TOKENS, **options)
    assert torch.equal(out.sequences, hand.sequences)
    at = places(inputs(pixels)["input_ids"][0])
    for token in range(TOKENS):
        maps = av.token_map(seen, token, layout=layout, output=out)
        for answer in range(len(maps)):
            row = int(out.beam_indices[answer, token]) if kind == "beams" else 0
            weights = mean_row(hand, token, row)
            if kind == "sliding":
                weights = torch.cat([torch.zeros(21 + token - len(weights)), weights])
            torch.testing.assert_close(
                maps[answer], weights[at].view(4, 4), rtol=0, atol=1e-6, msg=f"{token} {answer}"
            )
    if kind == "beams":
        assert next(iter(seen.steps.values())).prompt
        assert seen.steps["model.language_model.layers.0.self_attn"].reordered
        with pytest.raises(InputError, match="a beam search has exchanged rows"):
            av.token_map(seen, 0, layout=layout)
        with pytest.raises(InputError, match="which may be beams"):
            av.token_map(seen, 0, layout=layout, output=out.sequences)


def test_padded_prompts_of_a_batch_have_maps_of_their_own(model: Any, pixels: Tensor) -> None:
    inputs = inputs_of(prompt(5, 6, 9), prompt(5, left=2))
    seen, out = generated(model, inputs(pixels), return_dict_in_generate=True)
    layout = av.locate(model, pixels, inputs=inputs)
    maps = av.token_map(seen, 1, layout=layout, output=out)
    hand = by_hand(model, inputs(pixels), max_new_tokens=TOKENS)
    for i, ids in enumerate(inputs(pixels)["input_ids"]):
        row = mean_row(hand, 1, i)[places(ids)]
        torch.testing.assert_close(maps[i], row.view(4, 4), rtol=0, atol=1e-6)


def test_one_of_several_images_and_tiles_of_one(model: Any, pixels: Tensor) -> None:
    inputs = inputs_of(prompt(5, images=2))
    seen, _ = generated(model, inputs(pixels))
    layout = av.locate(model, pixels, inputs=inputs)
    row = mean_row(by_hand(model, inputs(pixels), max_new_tokens=TOKENS), 2)
    own = row[places(inputs(pixels)["input_ids"][0])].view(2, 1, 4, 4)
    for image in (0, 1):
        maps = av.token_map(seen, 2, layout=layout, image=image)
        torch.testing.assert_close(maps, own[image], rtol=0, atol=1e-6)
    wide = av.token_map(seen, 2, layout=layout, tiles=(1, 2))
    torch.testing.assert_close(wide, torch.cat([own[0], own[1]], -1), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="the prompt has 2 images: choose one by image=0 … 1"):
        av.token_map(seen, 2, layout=layout)
    with pytest.raises(InputError, match="image: expected 0 to 1, got 2"):
        av.token_map(seen, 2, layout=layout, image=2)


def test_words_of_the_prompt_are_their_own_query(model: Any, pixels: Tensor, layout: Any) -> None:
    inputs, text = inputs_of(prompt(5, 6)), Letters()
    seen, out = generated(model, inputs(pixels[:1]), reduce=reductions.Steps(layout))
    word = av.token_map(seen, prompt="w005", layout=layout, output=out, tokenizer=text)
    hand = by_hand(model, inputs(pixels[:1]), max_new_tokens=TOKENS)
    rows = torch.stack([layer[0].mean(0)[19] for layer in hand.attentions[0]]).mean(0)
    torch.testing.assert_close(word, rows[2:18].view(1, 4, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(word, av.token_map(seen, prompt=19, layout=layout))
    few, _ = generated(model, inputs(pixels[:1]), reduce=reductions.Steps([19]))
    torch.testing.assert_close(word, av.token_map(few, prompt=19, layout=layout))
    with pytest.raises(InputError, match="a word that stands before the image does not see it"):
        av.token_map(seen, prompt=0, layout=layout)
    with pytest.raises(InputError, match="the row of token 18 was not kept"):
        av.token_map(few, prompt=18, layout=layout)


def test_words_are_found_in_the_text(model: Any, pixels: Tensor, layout: Any) -> None:
    inputs, text = inputs_of(prompt(5, 6)), Letters()
    seen, out = generated(model, inputs(pixels[:1]))
    answer = out[0, -TOKENS:].tolist()
    for i, token in enumerate(answer):
        if answer.count(token) == 1:
            word = text.decode([token]).strip()
            found = av.token_map(seen, word, layout=layout, output=out, tokenizer=text)
            torch.testing.assert_close(found, av.token_map(seen, i, layout=layout))
    with pytest.raises(InputError, match=r"'giraffe' is not in the text"):
        av.token_map(seen, "giraffe", layout=layout, output=out, tokenizer=text)
    with pytest.raises(InputError, match=r"'w0008' is not in the text .*: did you mean .*'w008'"):
        av.token_map(seen, prompt="w0008", layout=layout, output=out, tokenizer=text)
    with pytest.raises(InputError, match=r"pass output= \(what generate returned\)"):
        av.token_map(seen, "giraffe", layout=layout)
    with pytest.raises(InputError, match=r"expected tokenizer= with a method decode"):
        av.token_map(seen, "giraffe", layout=layout, output=out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected a generated token or prompt=, got neither"),
        ({"token": 0, "prompt": 0}, "got both"),
        ({"token": 9}, "expected numbers of generated tokens from 0 to 3, got 9"),
        ({"token": []}, "expected numbers of generated tokens"),
        ({"token": 0, "layers": 7}, "expected a glob or numbers below 2"),
        ({"token": 0, "layers": "vision*"}, "expected a glob or numbers below 2"),
        ({"token": 0, "heads": 4}, "expected 'mean', 'each' or a number below 4"),
        ({"token": 0, "at": "end"}, "at: expected 'output' or 'input', got 'end'"),
        ({"token": 0, "layout": None}, "call av.locate(model, images)"),
        ({"token": 0, "output": "text"}, "expected what model.generate returned"),
    ],
)
def test_requests_that_have_no_map_say_why(
    model: Any, pixels: Tensor, layout: Any, options: dict[str, Any], message: str
) -> None:
    inputs = inputs_of(prompt(5, 6))
    seen, _ = generated(model, inputs(pixels[:1]))
    known = {"layout": layout, **options}
    with pytest.raises(InputError, match=re.escape(message)):
        av.token_map(seen, **known)


def test_passes_that_do_not_continue_each_other_are_named(
    model: Any, pixels: Tensor, layout: Any
) -> None:
    """Assisted decoding takes tokens back; a second generation begins anew."""
    given = inputs_of(prompt(5, 6))(pixels[:1])
    seen, _ = generated(model, given, assistant_model=model)
    with pytest.raises(InputError, match="assisted generation"):
        av.token_map(seen, 0, layout=layout)
    with torch.no_grad(), av.watch(model, reduce="steps") as seen:
        for _ in range(2):
            model.generate(**given, max_new_tokens=2, do_sample=False)
    with pytest.raises(InputError, match="generate once in each watch"):
        av.token_map(seen, 0, layout=layout)


def test_the_answer_of_a_queries_resampler_is_refused_with_what_can_be_drawn() -> None:
    """A Q-Former's tokens are no places, though its own queries have maps."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"intermediate_size": 32, "vocab_size": 120}
    config = hub.Blip2Config(
        vision_config={**small, "intermediate_size": 32, "image_size": 56, "patch_size": 14},
        qformer_config={**small, **words, "encoder_hidden_size": 32,
                        "cross_attention_frequency": 1},
        text_config={**small, "vocab_size": 120, "model_type": "opt", "ffn_dim": 32,
                     "word_embed_proj_dim": 32},
        num_query_tokens=5, image_token_index=IMAGE,
    )  # fmt: skip
    torch.manual_seed(0)
    net = hub.Blip2ForConditionalGeneration(config).eval()
    net.generation_config.eos_token_id = None
    ids = torch.tensor([[IMAGE] * 5 + [1, 5, 6]])
    inputs = lambda x: {  # noqa: E731
        "input_ids": ids, "pixel_values": x, "attention_mask": torch.ones_like(ids)
    }  # fmt: skip
    image = torch.randn(1, 3, 56, 56)
    with torch.no_grad(), av.watch(net, reduce="steps") as seen:
        net.generate(**inputs(image), max_new_tokens=2, do_sample=False)
    layout = av.locate(net, image, inputs=inputs)
    with pytest.raises(
        InputError, match=r"Q-Former, perceiver\), these are no places: object_maps"
    ):
        av.token_map(seen, 0, layout=layout)
    with torch.no_grad(), av.watch(net.qformer, where="*crossattention*") as seen:
        net.get_image_features(image)
    (record,) = seen.values()
    places = layout["qformer." + record.name]
    found = av.object_maps(record, layout=places)
    assert record.weights is not None
    torch.testing.assert_close(found.maps, record.weights.mean(1)[..., 1:].view(1, 5, 4, 4))


def test_a_layout_of_another_prompt_is_refused(model: Any, pixels: Tensor) -> None:
    seen, _ = generated(model, inputs_of(prompt(5, 6))(pixels[:1]))
    layout = av.locate(model, pixels[:1], inputs=inputs_of(prompt(5, 6, 9)))
    with pytest.raises(InputError, match=r"call av\.locate with the same prompt"):
        av.token_map(seen, 0, layout=layout)


def test_without_the_keys_a_cache_of_a_batch_is_not_followed(model: Any, pixels: Tensor) -> None:
    inputs = inputs_of(prompt(5, 6), prompt(5, 9))
    seen, out = generated(model, inputs(pixels), reduce=None, return_dict_in_generate=True)
    layout = av.locate(model, pixels, inputs=inputs)
    with pytest.raises(InputError, match=r"steps of 'model.*which follows the keys"):
        av.token_map(seen, 1, layout=layout, output=out)


def test_captures_without_rows_and_other_things_are_refused(model: Any, pixels: Tensor) -> None:
    seen, _ = generated(model, inputs_of(prompt(5, 6))(pixels[:1]), reduce="received")
    with pytest.raises(InputError, match="steps: no record holds rows of attention"):
        av.token_map(seen, 0)
    with pytest.raises(InputError, match=r"expected the capture of av\.watch, got list"):
        av.token_map([seen], 0)
    with pytest.raises(InputError, match="layers with different heads or grids"):
        _mean([torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)])
