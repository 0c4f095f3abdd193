"""Heatmaps of words and object queries in many families, and what a generation costs.

Each model is small and has random weights. `token_map` after a `generate` of six tokens and
`key_map` after two denoising steps are compared with the same rows and columns of eager attention,
taken and laid out by hand: of language models by `output_attentions`, of denoisers by an eager
`scaled_dot_product_attention` in the place of torch's. The code that draws the map is the same for
every family, two lines after the model has run. Of detectors with deformable attention, on a padded
batch where they take one, the points of `object_maps` are compared with what the model gave to
`grid_sample`, and the maps, times feature maps of random values, with weighted samples of these.

    python benchmarks/words.py                     # all tables and the memory; three minutes
    python benchmarks/words.py --only vlm memory   # some of them
    uv run --with diffusers python benchmarks/words.py --only diffusion

transformers is in the dev group; diffusers is needed for the second table. Memory is the largest
resident size of a process of its own for each way of generating, with the allocator's defaults.
Exit code 1 if a map is off by more than 1e-5, or the peak is above 1.2 times the plain one.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnviz as av

LIMIT, RATIO = 1e-5, 1.2
TOKENS, IMAGE = 6, 150
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**TINY, "intermediate_size": 64, "vocab_size": 160, "num_key_value_heads": 2}
VISION = {**TINY, "intermediate_size": 64, "image_size": 56, "patch_size": 14}

Built = tuple[nn.Module, Tensor, Callable[[Tensor], dict[str, Any]], dict[str, Any]]
"""A model, images or latents, from these to its arguments, and options of the map."""


def ids_of(*parts: int | list[int]) -> Tensor:
    return torch.tensor(
        [[n for part in parts for n in (part if isinstance(part, list) else [part])]]
    )


def plain(hub_model: Any, ids: Tensor, side: int, count: int = 1, **map_options: Any) -> Built:
    """A model that takes `pixel_values` as they are."""
    return (
        hub_model, torch.randn(count, 3, side, side),
        lambda pixels: {"input_ids": ids, "pixel_values": pixels}, map_options,
    )  # fmt: skip


def llava(count: int = 1) -> Built:
    import transformers as hub

    config = hub.LlavaConfig(
        vision_config=hub.CLIPVisionConfig(**VISION), text_config=hub.LlamaConfig(**TEXT),
        image_token_id=IMAGE, vision_feature_layer=-1,
    )  # fmt: skip
    ids = ids_of(1, 5, *[[6, *[IMAGE] * 16] for _ in range(count)], 7, 8)
    options = {"image": 1} if count == 2 else {}
    return plain(hub.LlavaForConditionalGeneration(config), ids, 56, count, **options)


def llava_next() -> Built:
    """Three tiles: the whole image, and its two halves with a token at the end of each row."""
    import transformers as hub

    config = hub.LlavaNextConfig(
        vision_config=hub.CLIPVisionConfig(**VISION), text_config=hub.LlamaConfig(**TEXT),
        image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )  # fmt: skip
    ids = ids_of(1, 5, 6, [IMAGE] * (16 + 4 * 9), 7, 8)
    return (
        hub.LlavaNextForConditionalGeneration(config), torch.randn(3, 3, 56, 56),
        lambda x: {"input_ids": ids, "pixel_values": x[None],
                   "image_sizes": torch.tensor([[56, 112]])}, {"image": 0},
    )  # fmt: skip


def qwen(kind: str) -> Built:
    """Dynamic resolution: 8 × 12 patches, merged by two."""
    import transformers as hub

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 64, "num_heads": 4, "patch_size": 14}
    if kind == "Qwen2VL":
        vision["embed_dim"] = 64
    else:
        vision |= {"out_hidden_size": 64, "intermediate_size": 64, "window_size": 56,
                   "fullatt_block_indexes": [1]}  # fmt: skip
    config = getattr(hub, f"{kind}Config")(
        image_token_id=IMAGE, video_token_id=151, vision_start_token_id=152,
        vision_end_token_id=153, vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
    )  # fmt: skip
    ids = ids_of(1, 152, [IMAGE] * 24, 153, 7)

    def inputs(x: Tensor) -> dict[str, Any]:
        blocks = x.view(3, 4, 2, 14, 6, 2, 14).permute(1, 4, 2, 5, 0, 3, 6)
        patches = blocks.reshape(96, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).reshape(96, -1)
        return {
            "input_ids": ids, "pixel_values": patches, "mm_token_type_ids": (ids == IMAGE).long(),
            "image_grid_thw": torch.tensor([[1, 8, 12]]),
        }  # fmt: skip

    model = getattr(hub, f"{kind}ForConditionalGeneration")(config)
    return model, torch.randn(1, 3, 112, 168), inputs, {}


def paligemma() -> Built:
    import transformers as hub

    config = hub.PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        text_config={**TEXT, "model_type": "gemma", "head_dim": 16},
        image_token_index=IMAGE, vocab_size=160, projection_dim=64, hidden_size=64,
    )  # fmt: skip
    ids = ids_of([IMAGE] * 16, 1, 5, 6, 7)
    model, x, inputs, _ = plain(hub.PaliGemmaForConditionalGeneration(config), ids, 56)
    return model, x, lambda p: {**inputs(p), "token_type_ids": torch.zeros_like(ids)}, {}


def tiled(kind: str) -> Built:
    """Two tiles side by side, four patches of each merged into one token."""
    import transformers as hub

    config = getattr(hub, f"{kind}Config")(
        vision_config=VISION, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE,
        scale_factor=2,
    )  # fmt: skip
    ids = ids_of(1, 5, [IMAGE] * 4, 6, [IMAGE] * 4, 7, 8)
    model = getattr(hub, f"{kind}ForConditionalGeneration")(config)
    inputs = lambda x: {"input_ids": ids, "pixel_values": x[None]}  # noqa: E731
    return model, torch.randn(2, 3, 56, 56), inputs, {"tiles": (1, 2)}


def internvl() -> Built:
    import transformers as hub

    config = hub.InternVLConfig(
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config={**TEXT, "model_type": "qwen2"}, image_token_id=IMAGE, downsample_ratio=0.5,
    )  # fmt: skip
    ids = ids_of(1, 5, [IMAGE] * 4, 7, 8)
    return plain(hub.InternVLForConditionalGeneration(config), ids, 56)


def gemma3() -> Built:
    """A layer with a sliding cache, which drops a part of the image, and a full one."""
    import transformers as hub

    config = hub.Gemma3Config(
        vision_config={**VISION, "image_size": 112, "model_type": "siglip_vision_model"},
        text_config={**TEXT, "head_dim": 16, "sliding_window": 12,
                     "layer_types": ["sliding_attention", "full_attention"]},
        mm_tokens_per_image=16, image_token_index=IMAGE, boi_token_index=151, eoi_token_index=152,
    )  # fmt: skip
    ids = ids_of(1, 5, 151, [IMAGE] * 16, 152, 7, 8)
    model, x, inputs, _ = plain(hub.Gemma3ForConditionalGeneration(config), ids, 112)
    return model, x, lambda p: {**inputs(p), "token_type_ids": (ids == IMAGE).long()}, {}


def mllama() -> Built:
    """The image is met by cross-attention, in the second layer."""
    import transformers as hub

    config = hub.MllamaConfig(
        vision_config={
            "hidden_size": 64, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4,
            "image_size": 56, "patch_size": 14, "intermediate_size": 64, "vision_output_dim": 128,
            "intermediate_layers_indices": [1], "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
        text_config={
            **TEXT, "cross_attention_layers": [1], "bos_token_id": 1, "pad_token_id": 0,
            "eos_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        image_token_index=IMAGE,
    )  # fmt: skip
    ids = ids_of(1, IMAGE, 6, 7, 8)
    ones = torch.ones(1, 1, 1, dtype=torch.long)
    return (
        hub.MllamaForConditionalGeneration(config), torch.randn(1, 3, 56, 56),
        lambda x: {"input_ids": ids, "pixel_values": x[:, None, None], "aspect_ratio_mask": ones,
                   "aspect_ratio_ids": ones[0],
                   "cross_attention_mask": ones[..., None].expand(1, 5, 1, 1)}, {},
    )  # fmt: skip


def blip() -> Built:
    import transformers as hub

    text = {**TINY, "encoder_hidden_size": 64, "intermediate_size": 64, "vocab_size": 160,
            "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}  # fmt: skip
    config = hub.BlipConfig(text_config=text, vision_config=VISION)
    return plain(hub.BlipForConditionalGeneration(config), ids_of(1, 5, 6), 56)


def git() -> Built:
    """Places before the words, in one self-attention."""
    import transformers as hub

    config = hub.GitConfig(
        vision_config=VISION, **TINY, intermediate_size=64, vocab_size=160, bos_token_id=1
    )
    return plain(hub.GitForCausalLM(config), ids_of(1, 5, 6), 56)


def idefics() -> Built:
    """Gated cross-attention, as in Flamingo."""
    import transformers as hub

    vision = {"embed_dim": 64, "image_size": 56, "patch_size": 14, "num_hidden_layers": 2,
              "num_attention_heads": 4, "intermediate_size": 64}  # fmt: skip
    config = hub.IdeficsConfig(
        **TINY, vocab_size=160, intermediate_size=64, cross_layer_interval=1, vision_config=vision,
        use_resampler=False, additional_vocab_size=0, vision_embed_dim=64, alpha_initializer="ones",
    )  # fmt: skip
    ids = ids_of(1, 5, 6, 7)
    ones = torch.ones(1, 4, 1, dtype=torch.long)
    return (
        hub.IdeficsForVisionText2Text(config), torch.randn(1, 3, 56, 56),
        lambda x: {"input_ids": ids, "pixel_values": x[:, None], "image_attention_mask": ones,
                   "attention_mask": ones[..., 0]}, {},
    )  # fmt: skip


LANGUAGE: dict[str, Callable[[], Built]] = {
    "LLaVA": llava,
    "LLaVA, the second of two images": lambda: llava(2),
    "LLaVA-NeXT, a tile": llava_next,
    "Qwen2-VL": lambda: qwen("Qwen2VL"),
    "Qwen2.5-VL": lambda: qwen("Qwen2_5_VL"),
    "PaliGemma": paligemma,
    "Idefics3, two tiles": lambda: tiled("Idefics3"),
    "SmolVLM, two tiles": lambda: tiled("SmolVLM"),
    "InternVL": internvl,
    "Gemma 3, sliding cache": gemma3,
    "Llama 3.2 Vision, cross-attention": mllama,
    "BLIP, cross-attention": blip,
    "GIT": git,
    "Idefics, gated cross-attention": idefics,
}


def unet(xl: bool) -> Built:
    from diffusers import UNet2DConditionModel

    text = torch.randn(1, 12, 24)
    given: dict[str, Any] = {"timestep": 5, "encoder_hidden_states": text}
    common: dict[str, Any] = {
        "sample_size": 16, "layers_per_block": 1, "block_out_channels": (64, 128),
        "norm_num_groups": 8, "cross_attention_dim": 24, "attention_head_dim": 8,
    }  # fmt: skip
    if xl:
        model = UNet2DConditionModel(
            **common, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
        )  # fmt: skip
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, 32),
            "time_ids": torch.ones(1, 6),
        }
    else:
        model = UNet2DConditionModel(
            **common, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
    return model, torch.randn(1, 4, 16, 24), lambda x: {"sample": x, **given}, {}


def pixart() -> Built:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=32, sample_size=16, patch_size=2, caption_channels=24,
        norm_num_groups=8, use_additional_conditions=False,
    )  # fmt: skip
    given = {
        "timestep": torch.tensor([3]), "encoder_hidden_states": torch.randn(1, 12, 24),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    return model, torch.randn(1, 4, 16, 16), lambda x: {"hidden_states": x, **given}, {}


def sd3() -> Built:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32,
        pooled_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    given = {
        "timestep": torch.tensor([3]), "encoder_hidden_states": torch.randn(1, 12, 24),
        "pooled_projections": torch.randn(1, 16),
    }  # fmt: skip
    return model, torch.randn(1, 4, 16, 24), lambda x: {"hidden_states": x, **given}, {}


def flux() -> Built:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    given = {
        "timestep": torch.tensor([0.3]), "encoder_hidden_states": torch.randn(1, 12, 24),
        "pooled_projections": torch.randn(1, 16), "txt_ids": torch.zeros(12, 3),
        "img_ids": torch.stack([torch.zeros(8, 12), rows, columns], -1).view(-1, 3),
    }  # fmt: skip

    def inputs(x: Tensor) -> dict[str, Any]:
        packed = x.view(1, 4, 8, 2, 12, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 96, 16)
        return {"hidden_states": packed, **given}

    return model, torch.randn(1, 4, 16, 24), inputs, {}


def sana() -> Built:
    """Linear attention between places, cross-attention to words."""
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=4, cross_attention_head_dim=8, cross_attention_dim=32,
        caption_channels=24, sample_size=16, patch_size=1, mlp_ratio=1.0,
    )  # fmt: skip
    given = {"timestep": torch.tensor([3]), "encoder_hidden_states": torch.randn(1, 12, 24)}
    return model, torch.randn(1, 4, 16, 24), lambda x: {"hidden_states": x, **given}, {}


def sd3_fused() -> Built:
    model, latents, inputs, options = sd3()
    model.fuse_qkv_projections()
    return model, latents, inputs, options


DIFFUSION: dict[str, Callable[[], Built]] = {
    "Stable Diffusion U-Net": lambda: unet(False),
    "Stable Diffusion XL U-Net": lambda: unet(True),
    "PixArt": pixart,
    "Stable Diffusion 3": sd3,
    "Stable Diffusion 3, projections fused": sd3_fused,
    "Flux": flux,
    "Sana": sana,
}


def ready(build: Callable[[], Built]) -> Built:
    """A model whose layers are not zero at the start, or nothing would pass through them."""
    torch.manual_seed(0)
    built = build()
    for parameter in built[0].parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    built[0].eval()
    return built


def language(name: str, build: Callable[[], Built]) -> tuple[str, ...]:
    """One line of the first table."""
    model, pixels, inputs, options = ready(build)
    model.generation_config.eos_token_id = None
    generate = {"max_new_tokens": TOKENS, "do_sample": False}
    off = 0.0
    with torch.no_grad(), av.watch(model, reduce="steps") as seen:
        output = model.generate(**inputs(pixels), **generate)
    for token in range(TOKENS):
        layout = av.locate(model, pixels, inputs=inputs)
        heat = av.token_map(seen, token, layout=layout, **options)
        if not token:
            own = model.config._attn_implementation
            model.set_attn_implementation("eager")
            with torch.no_grad(), crossing() as crossed:
                hand = model.generate(
                    **inputs(pixels), **generate, output_attentions=True,
                    return_dict_in_generate=True,
                )  # fmt: skip
            model.set_attn_implementation(own)
            assert torch.equal(output, hand.sequences), name
        found = hand.attentions[token]
        if name in CROSSING:
            found = crossed[2 * token : 2 * token + 2]
        row = by_hand(found, inputs(pixels)["input_ids"][0], name)
        off = max(off, float((heat - row.reshape(heat.shape)).abs().max()))
    grid = "×".join(map(str, heat.shape[1:]))
    return name, grid, str(len(layout)), f"{float(heat.sum()):.2f}", f"{off:.0e}"


CROSSING = ("BLIP, cross-attention", "Idefics, gated cross-attention")
"""Families whose cross-attention `output_attentions` leaves out."""


@contextmanager
def crossing() -> Iterator[list[Tensor]]:
    """Every softmax from words to 16 places and a class token, while a model runs."""
    found: list[Tensor] = []
    softmax = F.softmax

    def kept(x: Tensor, *args: Any, **options: Any) -> Tensor:
        out = softmax(x, *args, **options)
        if out.dim() == 4 and out.shape[-1] == 17 and out.shape[-2] != 17:
            found.append(out)
        return out

    F.softmax = kept  # type: ignore[assignment]
    try:
        yield found
    finally:
        F.softmax = softmax


def by_hand(layers: Any, ids: Tensor, name: str) -> Tensor:
    """The mean over layers and heads of the last query's row, at the places of the image."""
    if name.startswith("Llama"):
        return layers[1][0].mean(0)[-1, 1:17]  # behind the class token
    if "cross-attention" in name:
        return torch.stack([layer[0].mean(0)[-1, 1:17] for layer in layers]).mean(0)
    if name == "GIT":  # the image first, behind its class token
        return torch.stack([layer[0].mean(0)[-1, 1:17] for layer in layers]).mean(0)
    longest = max(layer.shape[-1] for layer in layers)
    rows = [F.pad(layer[0].mean(0)[-1], (longest - layer.shape[-1], 0)) for layer in layers]
    row = torch.stack(rows).mean(0)[(ids == IMAGE).nonzero()[:, 0]]
    if "two tiles" in name:
        return torch.cat([row[:4].view(2, 2), row[4:].view(2, 2)], 1)
    return row[16:] if "second" in name else row[:16] if "a tile" in name else row


def diffusion(name: str, build: Callable[[], Built]) -> tuple[str, ...]:
    """One line of the second table."""
    model, latents, inputs, _ = ready(build)
    with torch.no_grad(), av.watch(model) as seen:
        for step in (1, 2):
            model(**inputs(latents * step))
    layout = av.locate(model, latents, inputs=inputs)
    off = 0.0
    for word in range(12):
        heat = av.key_map(seen, word, layout=layout)
        with torch.no_grad(), eager() as weights:
            for step in (1, 2):
                model(**inputs(latents * step))
        off = max(off, float((heat - columns(weights, word, heat.shape[1:])).abs().max()))
    grid = "×".join(map(str, heat.shape[1:]))
    used = sum("word" in one.keys.role for one in layout.values())
    return name, grid, str(used), f"{float(heat.mean()):.3f}", f"{off:.0e}"


@contextmanager
def eager() -> Iterator[list[Tensor]]:
    """The fused attention of torch written out, and the weights of every call."""
    found: list[Tensor] = []
    fused = F.scaled_dot_product_attention

    def written_out(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        found.append((logits if attn_mask is None else logits + attn_mask).softmax(-1))
        return found[-1] @ value

    F.scaled_dot_product_attention = written_out  # type: ignore[assignment]
    try:
        yield found
    finally:
        F.scaled_dot_product_attention = fused


def columns(weights: list[Tensor], word: int, grid: torch.Size) -> Tensor:
    """The column of a word in every attention that has words, resized, averaged."""
    drawn = []
    whole = grid.numel()
    for one in weights:
        k = one.shape[-1]
        if k == 12:
            rows, key = slice(None), word
        elif k == whole + 12:
            flux_like = one.shape[1] == 2  # two heads: words first
            rows, key = (slice(12, None), word) if flux_like else (slice(whole), whole + word)
        else:
            continue
        column = one[:, :, rows, key].mean(1)
        side = (grid[0] * grid[1] // column.shape[1]) ** 0.5
        h, w = int(grid[0] / side), int(grid[1] / side)
        maps = column.view(-1, 1, h, w)
        drawn.append(F.interpolate(maps, tuple(grid), mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(drawn).mean(0)


def backbone(rt: bool) -> Any:
    import transformers as hub

    kind = hub.RTDetrResNetConfig if rt else hub.ResNetConfig
    return kind(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


SMALL = {
    "d_model": 32, "num_queries": 7, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "disable_custom_kernels": True,
}  # fmt: skip


def deformable(**options: Any) -> nn.Module:
    import transformers as hub

    return hub.DeformableDetrForObjectDetection(hub.DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone(False), num_feature_levels=4, **SMALL, **options,
    ))  # fmt: skip


def rt_detr(version: str, **options: Any) -> nn.Module:
    import transformers as hub

    config = getattr(hub, f"RTDetr{version}Config")(
        backbone_config=backbone(True), num_feature_levels=3, encoder_in_channels=[32, 48, 64],
        decoder_in_channels=[32, 32, 32], encoder_hidden_dim=32, hidden_expansion=0.5,
        feat_strides=[8, 16, 32], **SMALL, **options,
    )  # fmt: skip
    return getattr(hub, f"RTDetr{version}ForObjectDetection")(config)


def mask2former() -> nn.Module:
    import transformers as hub

    swin = hub.SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return hub.Mask2FormerForUniversalSegmentation(hub.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=4,
        dim_feedforward=32, num_queries=5,
    ))  # fmt: skip


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "Deformable DETR": deformable,
    "Deformable DETR, two stages, boxes refined": lambda: deformable(
        two_stage=True, with_box_refine=True, two_stage_num_proposals=7
    ),
    "RT-DETR": lambda: rt_detr(""),
    "RT-DETRv2": lambda: rt_detr("V2", decoder_n_levels=3),
    "Mask2Former, pixel decoder": mask2former,
}


def detector(name: str, build: Callable[[], nn.Module]) -> tuple[str, ...]:
    """One line of the third table: sampling points, and what they read."""
    torch.manual_seed(0)
    model = build().eval()
    given, mask = {"pixel_values": torch.randn(2, 3, 96, 128)}, None
    if name.startswith("Deformable"):  # the second image is smaller
        mask = torch.ones(2, 96, 128, dtype=torch.long)
        mask[1, 60:] = mask[1, :, 100:] = 0
        given["pixel_mask"] = mask
    with torch.no_grad(), sampling() as grids, av.watch(model, where="attention") as seen:
        output = model(**given)
    records = [one for one in seen.values() if one.points is not None]
    off, read = 0.0, 0.0
    for record in records:
        levels = len(record.points.sides)
        own, grids[:levels] = grids[:levels], []
        boxes = output if "decoder" in record.name and "pred_boxes" in output else None
        found = av.object_maps(record, boxes, mask=mask, heads="each")
        hand = torch.cat([(one.view(2, -1, *one.shape[1:]) + 1) / 2 for one in own], 3)
        off = max(off, float((found.points.transpose(1, 2) - hand).abs().max()))
        read = max(read, off_reading(record, own))
    assert not grids, name
    shape = "·".join(map(str, records[-1].points.at.shape[1:4]))
    return name, str(len(records)), shape, f"{read:.0e}", f"{off:.0e}"


def off_reading(record: Any, grids: list[Tensor]) -> float:
    """The largest difference between maps times random values and weighted samples of these."""
    most = 0.0
    for number, side in enumerate(record.points.sides):
        keys = [i for i, level in enumerate(record.points.level) if level == number]
        at, weights = record.points.at[..., keys, :], record.weights[..., keys]
        alone = av.capture.SamplingPoints(at, (0,) * len(keys), (side,))
        maps = av.object_maps(weights, points=alone, heads="each").maps.transpose(1, 2)
        values = torch.rand(len(grids[number]), 1, *side)
        sampled = F.grid_sample(values, grids[number], align_corners=False)[:, 0]
        hand = (sampled * weights.flatten(0, 1)).sum(-1)
        own = (maps.flatten(0, 1) * values).sum((-1, -2))
        most = max(most, float((own - hand).abs().max()))
    return most


@contextmanager
def sampling() -> Iterator[list[Tensor]]:
    """The points of every `grid_sample`."""
    found: list[Tensor] = []
    sample = F.grid_sample

    def kept(values: Tensor, grid: Tensor, **options: Any) -> Tensor:
        found.append(grid)
        return sample(values, grid, **options)

    F.grid_sample = kept  # type: ignore[assignment]
    try:
        yield found
    finally:
        F.grid_sample = sample


WAYS = ("plain", "token rows", "output_attentions")


def generate(way: str) -> None:
    """In a process of its own: 64 tokens over 2,025 places; prints sizes in MB."""
    import transformers as hub

    torch.manual_seed(0)
    text = {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 2000,
    }  # fmt: skip
    vision = {**TINY, "intermediate_size": 64, "image_size": 630, "patch_size": 14}
    config = hub.LlavaConfig(
        vision_config=hub.CLIPVisionConfig(**vision), text_config=hub.LlamaConfig(**text),
        image_token_id=IMAGE, vision_feature_layer=-1,
    )  # fmt: skip
    model = hub.LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    given = {
        "input_ids": ids_of(1, [IMAGE] * 2025, 7, 8),
        "pixel_values": torch.randn(1, 3, 630, 630),
    }
    options: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False}
    before = peak()
    if way == "output_attentions":
        model.set_attn_implementation("eager")
        options |= {"output_attentions": True, "return_dict_in_generate": True}
    with torch.no_grad():
        if way == "token rows":
            with av.watch(model, reduce="steps") as seen:
                model.generate(**given, **options)
            assert seen.steps["model.language_model.layers.7.self_attn"].tokens == 64
        else:
            model.generate(**given, **options)
    print(before, peak())


def peak() -> float:
    """The largest resident size of this process so far, in MB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def memory() -> bool:
    """The peaks of the three ways, as a table; whether rows stay below the limit."""
    peaks: dict[str, tuple[float, float]] = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--generate", way]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        peaks[way] = float(out[-2]), float(out[-1])
    print("\n64 tokens over 2,025 places, 8 layers of 8 heads, float32\n")
    print("| way | before, MB | peak, MB | of plain | above the model, of plain |")
    print("| --- | ---: | ---: | ---: | ---: |")
    base = peaks["plain"]
    for way, (before, most) in peaks.items():
        above = (most - before) / (base[1] - base[0])
        print(f"| {way} | {before:.0f} | {most:.0f} | {most / base[1]:.2f} | {above:.2f} |")
    return peaks["token rows"][1] <= RATIO * base[1]


KINDS = ["vlm", "diffusion", "detectors", "memory"]


def table(title: str, head: str, lines: list[tuple[str, ...]]) -> bool:
    print(f"\n{title}\n\n{head}\n|{' --- |' * (head.count('|') - 1)}")
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)
    return all(float(cell) <= LIMIT for line in lines for cell in line[3:] if "e" in cell)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)  # fmt: skip
    parser.add_argument("--generate", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.generate:
        generate(args.generate)
        return 0
    fine = True
    if "vlm" in args.only:
        lines = [language(name, build) for name, build in LANGUAGE.items()]
        fine &= table("A generated token on the image",
                      "| family | grid | attentions | on the image | largest difference |",
                      lines)  # fmt: skip
    if "diffusion" in args.only:
        lines = [diffusion(name, build) for name, build in DIFFUSION.items()]
        fine &= table("A word on the image",
                      "| family | grid | attentions with words | mean | largest difference |",
                      lines)  # fmt: skip
    if "detectors" in args.only:
        lines = [detector(name, build) for name, build in DETECTORS.items()]
        head = "| family | layers | heads · queries · points | of what is read | of points |"
        fine &= table("Sampling points, largest differences", head, lines)
    if "memory" in args.only:
        fine &= memory()
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
