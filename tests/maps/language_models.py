"""Small vision-language models with random weights, and their attention by `output_attentions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hub
from torch import Tensor

IMAGE = 100  # the id of a place of an image
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_TINY, "intermediate_size": 64, "image_size": 56, "patch_size": 14}
_TEXT = {**_TINY, "intermediate_size": 64, "vocab_size": 120, "num_key_value_heads": 2}

Inputs = Callable[[Tensor], dict[str, Any]]


def llava(window: int | None = None, **options: Any) -> Any:
    """LLaVA with 16 places an image; with a window, a language model with a sliding cache."""
    kind = {"sliding_window": window} if window else {}
    text = (hub.MistralConfig if window else hub.LlamaConfig)(**_TEXT, **kind)
    config = hub.LlavaConfig(
        vision_config=hub.CLIPVisionConfig(**_VISION), text_config=text, image_token_id=IMAGE,
        vision_feature_layer=-1, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hub.LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompt(*parts: int, images: int = 1, left: int = 0) -> list[int]:
    """Ids of a prompt: padding, a first word, the images, further words."""
    picture = [7, *[IMAGE] * 16]
    return [*[0] * left, 1, *(picture * images), 8, *parts]


def inputs_of(*rows: list[int]) -> Inputs:
    """What the model is called with, for rows of ids; zeros are padding."""
    ids = torch.tensor(rows)
    return lambda pixels: {
        "input_ids": ids, "pixel_values": pixels, "attention_mask": (ids != 0).long()
    }  # fmt: skip


def by_hand(model: Any, given: dict[str, Any], **options: Any) -> Any:
    """The same generation by eager attention, with `attentions` step by step."""
    model.set_attn_implementation("eager")
    out = model.generate(
        **given, do_sample=False, output_attentions=True, return_dict_in_generate=True, **options
    )
    model.set_attn_implementation("sdpa")
    return out


class Letters:
    """A tokenizer whose token n is spelled with letters of its own."""

    def decode(self, ids: Any) -> str:
        return "".join(f" w{int(i):03d}" if i % 3 else f"-{int(i):03d}" for i in ids)
