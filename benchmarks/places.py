"""Whether `attnviz.locate` finds the right places, in models of eight families with random weights.

Each place that it gives is compared with an independent measurement: single patches of the image
are changed one at a time, with attention off, and the token that is said to be this place has to be
among those that change most, the tokens said to be no place have to stay as they are, and the
changes have to lie round the patch.

Patches lie two cells or more from the border where a grid has six: what a corner moves lies on one
side of it, and the centre of the changes is not the corner even where the place is right. Changes
are summed over three draws of each patch, since single ones may cancel in a token.

    python benchmarks/places.py                        # minutes; writes a table to docs/places.md
    python benchmarks/places.py --only swin --out ""   # some of them, and no file

timm, torchvision and transformers are in the dev group; diffusers, monai and segment-anything are
in the group `models`; missing packages are skipped with a note. Exit code 1 for a wrong place.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.capture import watch
from attnviz.places import Layout, Places, locate

START, END = "<!-- measured -->", "<!-- end -->"
LEAST = 0.2  # of the largest change: what the token at the changed patch has to change by
FAR = 1.0  # cells between a changed patch and the centre of what changes
PATCHES = 4  # changed patches for each grid
DRAWS = 3  # noise fields for each patch
BORDER = 2  # cells

Build = Callable[[], tuple[nn.Module, Any, Callable[[Any], Any] | None]]


@dataclass
class Result:
    """What came out for one model."""

    family: str
    name: str
    sides: int = 0
    places: int = 0
    nowhere: int = 0
    refused: int = 0
    wrong: int = 0
    compared: int = 0
    error: float = 0.0
    off: float = 0.0
    passes: int = 0
    seconds: float = 0.0
    reasons: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def timm_model(name: str, size: tuple[int, ...] | None = None, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any, None]:
        import timm

        model = timm.create_model(name, **options)
        c, h, w = model.pretrained_cfg.get("input_size", (3, 224, 224))
        return model, torch.randn(1, c, *(size or (h, w))), None

    return build


def torchvision_model(name: str, *size: int) -> Build:
    def build() -> tuple[nn.Module, Any, None]:
        from torchvision import models

        return models.get_model(name, weights=None), torch.randn(1, 3, *size), None

    return build


TINY = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
RESNET = {
    "embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1] * 4,
    "layer_type": "basic",
}  # fmt: skip
DETECTOR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 64,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 24,
}  # fmt: skip


def hf(kind: str, images: tuple[int, ...], inputs: Any = None, **config: Any) -> Build:
    """A model of transformers: its class, or `Config:Class` where the names differ."""

    def build() -> tuple[nn.Module, Any, Any]:
        import transformers as hub

        settings, _, name = kind.partition(":")
        made = {
            key: getattr(hub, value[0])(**value[1]) if isinstance(value, tuple) else value
            for key, value in config.items()
        }
        return getattr(hub, name)(getattr(hub, settings)(**made)), torch.randn(*images), inputs

    return build


def words(*ids: int) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda images: {"input_ids": torch.tensor([ids] * 1), "pixel_values": images}


def qwen() -> tuple[nn.Module, Any, Any]:
    import transformers as hub

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = hub.Qwen2VLConfig(
        image_token_id=150, video_token_id=151, vision_start_token_id=152, vision_end_token_id=153,
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4,
                       "patch_size": 14},
        text_config={**TINY, "vocab_size": 160, "num_key_value_heads": 2, "rope_parameters": rope},
    )  # fmt: skip
    ids = torch.tensor([[1, 152, *[150] * 24, 153, 7]])

    def inputs(x: Tensor) -> dict[str, Tensor]:
        blocks = x.view(3, 4, 2, 14, 6, 2, 14).permute(1, 4, 2, 5, 0, 3, 6)
        patches = blocks.reshape(96, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).reshape(96, -1)
        return {
            "input_ids": ids, "pixel_values": patches, "mm_token_type_ids": (ids == 150).long(),
            "image_grid_thw": torch.tensor([[1, 8, 12]]),
        }  # fmt: skip

    return hub.Qwen2VLForConditionalGeneration(config), torch.randn(1, 3, 112, 168), inputs


def llava(images: int) -> Build:
    ids = (1, 5, 6, *[100] * 16, 7, 8, *([100] * 16 if images == 2 else []), 9, 10)
    vision = {**TINY, "image_size": 56, "patch_size": 14}
    text = {**TINY, "vocab_size": 120, "num_key_value_heads": 2}
    return hf(
        "LlavaConfig:LlavaForConditionalGeneration", (images, 3, 56, 56), words(*ids),
        vision_config=("CLIPVisionConfig", vision), text_config=("LlamaConfig", text),
        image_token_id=100, vision_feature_layer=-1,
    )  # fmt: skip


def unet(size: int, heads: int, b: int = 1) -> Build:
    def build() -> tuple[nn.Module, Any, Any]:
        from diffusers import UNet2DConditionModel

        model = UNet2DConditionModel(
            sample_size=size, layers_per_block=1, block_out_channels=(64, 128), norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=heads,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=24,
        )  # fmt: skip
        text = torch.randn(b, 77, 24)
        return model, torch.randn(b, 4, size, size * 3 // 2), lambda x: (x, 5, text)

    return build


def dit() -> tuple[nn.Module, Any, Any]:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=16,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=8,
    )  # fmt: skip
    step, label = torch.tensor([3]), torch.tensor([1])
    return model, torch.randn(1, 4, 16, 16), lambda x: {
        "hidden_states": x, "timestep": step, "class_labels": label
    }  # fmt: skip


def pixel_unet() -> tuple[nn.Module, Any, Any]:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=32, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    return model, torch.randn(1, 3, 32, 48), lambda x: (x, 5)


def monai_model(name: str, *size: int, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any, None]:
        from monai.networks import nets

        return getattr(nets, name)(in_channels=1, **options), torch.randn(1, 1, *size), None

    return build


def sam() -> tuple[nn.Module, Any, Any]:
    from segment_anything.modeling import ImageEncoderViT

    model = ImageEncoderViT(
        depth=2, embed_dim=64, img_size=112, num_heads=4, patch_size=8, use_rel_pos=True,
        global_attn_indexes=[1], window_size=4, out_chans=16,
    )  # fmt: skip
    return model, torch.randn(1, 3, 112, 112), None


FAMILIES: dict[str, dict[str, Build]] = {
    "plain and register ViTs": {
        **{name: timm_model(name) for name in (
            "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "flexivit_small",
            "vit_wee_patch16_reg1_gap_256", "vit_medium_patch16_reg4_gap_256", "cait_xxs24_224",
            "xcit_nano_12_p16_224", "eva02_tiny_patch14_224",
        )},
        "vit_small_patch14_reg4_dinov2": timm_model(
            "vit_small_patch14_reg4_dinov2", (126, 126), img_size=126),
        "ViT": hf("ViTConfig:ViTForImageClassification", (1, 3, 64, 64), **TINY, image_size=64,
                  patch_size=8),
        "DeiT": hf("DeiTConfig:DeiTForImageClassification", (2, 3, 64, 64), **TINY, image_size=64,
                   patch_size=8),
        "BEiT": hf("BeitConfig:BeitForImageClassification", (1, 3, 64, 64), **TINY, image_size=64,
                   patch_size=8),
        "DINOv2 with registers": hf(
            "Dinov2WithRegistersConfig:Dinov2WithRegistersForImageClassification", (1, 3, 56, 84),
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56,
            patch_size=14),
    },
    "hierarchical and windowed": {
        **{name: timm_model(name) for name in (
            "hiera_tiny_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
            "pvt_v2_b0", "mvitv2_tiny", "twins_svt_small", "twins_pcpvt_small", "davit_tiny",
            "maxvit_rmlp_pico_rw_256", "nest_tiny", "gcvit_xxtiny", "volo_d1_224", "levit_128s",
            "crossvit_tiny_240",
        )},
        "torchvision swin_t": torchvision_model("swin_t", 160, 224),
        "torchvision swin_v2_t": torchvision_model("swin_v2_t", 160, 224),
        "Swin": hf("SwinConfig:SwinModel", (2, 3, 96, 64), embed_dim=32, depths=[2, 2],
                   num_heads=[2, 2], window_size=7, image_size=64),
    },
    "CNN hybrids": {
        **{name: timm_model(name) for name in (
            "coatnet_pico_rw_224", "vit_small_r26_s32_224", "mobilevit_xxs", "mobilevitv2_050",
            "botnet26t_256", "halonet26t", "efficientformer_l1", "efficientformerv2_s0",
            "fastvit_sa12", "tiny_vit_5m_224", "convit_tiny", "visformer_tiny",
            "edgenext_xx_small", "mobilenetv4_hybrid_medium",
        )},
        "torchvision maxvit_t": torchvision_model("maxvit_t", 224, 224),
    },
    "detection": {
        "DETR": hf("DetrConfig:DetrForObjectDetection", (1, 3, 192, 256), **DETECTOR,
                   backbone_config=("ResNetConfig", {**RESNET, "out_features": ["stage4"]})),
        "Conditional DETR": hf(
            "ConditionalDetrConfig:ConditionalDetrForObjectDetection", (1, 3, 192, 256),
            **DETECTOR,
            backbone_config=("ResNetConfig", {**RESNET, "out_features": ["stage4"]})),
        "Deformable DETR": hf(
            "DeformableDetrConfig:DeformableDetrForObjectDetection", (1, 3, 128, 128), **DETECTOR,
            backbone_config=("ResNetConfig",
                             {**RESNET, "out_features": ["stage2", "stage3", "stage4"]})),
        "RT-DETR": hf(
            "RTDetrConfig:RTDetrForObjectDetection", (1, 3, 256, 320),
            **{k: v for k, v in DETECTOR.items() if k != "encoder_layers"}, num_denoising=0,
            backbone_config=("RTDetrResNetConfig",
                             {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}),
            encoder_hidden_dim=64, encoder_in_channels=[32, 64, 64],
            decoder_in_channels=[64] * 3),
        "YOLOS": hf("YolosConfig:YolosForObjectDetection", (1, 3, 64, 96), **TINY,
                    image_size=[64, 96], patch_size=8, num_detection_tokens=7),
    },
    "segmentation": {
        "SegFormer": hf("SegformerConfig:SegformerForSemanticSegmentation", (1, 3, 128, 192),
                        depths=[1] * 4, hidden_sizes=[32, 32, 64, 64], decoder_hidden_size=16),
        "SAM": hf("SamVisionConfig:SamVisionModel", (1, 3, 112, 112), hidden_size=64,
                  output_channels=16, num_hidden_layers=2, num_attention_heads=4, image_size=112,
                  patch_size=8, window_size=4, global_attn_indexes=[1], mlp_dim=32),
        "segment-anything": sam,
        "DPT": hf("DPTConfig:DPTForSemanticSegmentation", (1, 3, 64, 64),
                  **{**TINY, "num_hidden_layers": 4}, image_size=64, patch_size=8,
                  backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16] * 4,
                  fusion_hidden_size=16),
        "BEiT, segmentation": hf("BeitConfig:BeitForSemanticSegmentation", (1, 3, 64, 64),
                                 **{**TINY, "num_hidden_layers": 4}, image_size=64, patch_size=8,
                                 out_indices=[1, 2, 3, 4], use_auxiliary_head=False),
    },
    "vision-language": {
        "LLaVA": llava(1),
        "LLaVA, two images": llava(2),
        "Qwen2-VL": qwen,
        "CLIP": hf("CLIPConfig:CLIPModel", (1, 3, 64, 64), words(*range(1, 12)),
                   text_config={**TINY, "vocab_size": 99},
                   vision_config={**TINY, "image_size": 64, "patch_size": 8}),
        "SigLIP": hf("SiglipConfig:SiglipModel", (1, 3, 128, 128), words(*range(64)),
                     text_config={**TINY, "vocab_size": 99, "max_position_embeddings": 64},
                     vision_config={**TINY, "image_size": 128}),
        "ViLT": hf("ViltConfig:ViltModel", (1, 3, 64, 64), words(*range(1, 8)), **TINY,
                   vocab_size=99, image_size=64, patch_size=8),
        "BLIP": hf("BlipConfig:BlipForConditionalGeneration", (1, 3, 64, 64), words(*range(1, 8)),
                   text_config={**TINY, "vocab_size": 99, "encoder_hidden_size": 64,
                                "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": 0,
                                "eos_token_id": 2},
                   vision_config={**TINY, "image_size": 64, "patch_size": 8}),
    },
    "masked autoencoders": {
        "MAE": hf("ViTMAEConfig:ViTMAEForPreTraining", (1, 3, 128, 128), **TINY, image_size=128,
                  patch_size=16, decoder_hidden_size=64, decoder_num_hidden_layers=1,
                  decoder_num_attention_heads=4, decoder_intermediate_size=32),
        "MAE, two images": hf("ViTMAEConfig:ViTMAEForPreTraining", (2, 3, 128, 128), **TINY,
                              image_size=128, patch_size=16, decoder_hidden_size=64,
                              decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
                              decoder_intermediate_size=32),
        "Hiera, masked": hf("HieraConfig:HieraForPreTraining", (1, 3, 128, 128), embed_dim=32,
                            image_size=[128, 128], depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8],
                            decoder_hidden_size=64, decoder_depth=1, decoder_num_heads=4),
    },
    "diffusion": {
        "Stable Diffusion U-Net": unet(16, 8),
        "Stable Diffusion U-Net, two images": unet(16, 8, 2),
        "U-Net of pixels": pixel_unet,
        "DiT": dit,
    },
    "video and volumes": {
        "VideoMAE": hf("VideoMAEConfig:VideoMAEForVideoClassification", (1, 8, 3, 64, 64), **TINY,
                       image_size=64, num_frames=8),
        "TimeSformer": hf("TimesformerConfig:TimesformerForVideoClassification",
                          (1, 5, 3, 64, 64), **TINY, image_size=64, num_frames=5),
        "ViViT": hf("VivitConfig:VivitForVideoClassification", (1, 8, 3, 64, 64), **TINY,
                    image_size=64, num_frames=8),
        "torchvision swin3d_t": torchvision_model("swin3d_t", 8, 64, 96),
        "torchvision mvit_v2_s": torchvision_model("mvit_v2_s", 16, 224, 224),
        "MONAI ViT": monai_model(
            "ViT", 32, 32, 32, img_size=(32, 32, 32), patch_size=(8, 8, 8), hidden_size=48,
            mlp_dim=64, num_layers=2, num_heads=4, classification=True, num_classes=2),
        "MONAI UNETR": monai_model(
            "UNETR", 64, 64, 64, out_channels=2, img_size=(64, 64, 64), hidden_size=48,
            mlp_dim=64, num_heads=4, feature_size=8),
    },
}  # fmt: skip


def judge(family: str, name: str, build: Build) -> Result | str:
    """Locate, then change single patches."""
    torch.manual_seed(0)
    try:
        model, images, inputs = build()
        model.eval()
        with torch.no_grad():
            run(model, inputs, images)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    started = time.perf_counter()
    torch.manual_seed(0)  # masked autoencoders draw: the passes below start from the same state
    layout = locate(model, images, inputs=inputs)
    result = Result(family, name, passes=layout.passes, seconds=time.perf_counter() - started)
    for places in (side for one in layout.values() for side in (one.queries, one.keys)):
        result.sides += 1
        result.refused += not places.known
        result.nowhere += places.known and not any(c >= 0 for c in places.cell)
        result.places += any(c >= 0 for c in places.cell)
        if places.error == places.error:
            result.error = max(result.error, places.error)
        if places.reason:
            result.reasons.add(places.reason)
    compare(model, images, inputs, layout, result)
    return result


def run(model: nn.Module, inputs: Any, images: Any) -> Any:
    args = images if inputs is None else inputs(images)
    if isinstance(args, dict):
        return model(**args)
    return model(*args) if isinstance(args, tuple) else model(args)


def compare(model: nn.Module, images: Tensor, inputs: Any, layout: Layout, result: Result) -> None:
    """Each place against what changes when one patch does."""
    editable: list[str] = []
    with torch.no_grad(), watch(model, reduce=lambda record: None, empty=True) as seen:
        torch.manual_seed(1)
        run(model, inputs, images)
    editable = [name for name, record in seen.attention.items() if record.shape]

    def tokens(changed: Tensor) -> dict[tuple[str, int], Tensor]:
        torch.manual_seed(0)  # as `locate` was called
        edit = dict.fromkeys(editable, "zero")
        with torch.no_grad(), watch(model, edit=edit, operands=True, reduce=lambda r: None) as seen:
            run(model, inputs, changed)
        return {
            (name, side): x.detach().double()
            for name, record in seen.items()
            for side, x in enumerate((record.query, record.key))
            if x is not None and name in layout
        }

    base = tokens(images)
    grids: dict[Any, None] = {}
    for one in layout.values():
        for places in (one.queries, one.keys):
            for image, grid in enumerate(places.grids or (places.grid,)):
                if grid is not None:
                    grids[image, grid] = None
    for image, grid in grids:
        for cell, draws in patches(images, image, grid):
            energies: dict[tuple[str, int], Tensor] = {}
            for changed in draws:
                for key, x in tokens(changed).items():
                    if base[key].shape == x.shape:
                        energy = (x - base[key]).square().sum((1, 3))
                        energies[key] = energies[key] + energy if key in energies else energy
            for (name, side), energy in energies.items():
                places = (layout[name].queries, layout[name].keys)[side]
                own = places.grids[image] if places.grids else places.grid
                if own == grid:
                    check(name, places, energy, image, grid, cell, result, len(images))


def patches(
    images: Tensor, image: int, grid: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], list[Tensor]]]:
    """A few cells of a grid, and the images with one of them changed, drawn several times."""
    channels = 1 if images.dim() == 4 or images.shape[1] <= 4 else 2
    sides = [n for axis, n in enumerate(images.shape[1:], 1) if axis != channels]
    draw = torch.Generator().manual_seed(11)
    cells = 1
    for n in grid:
        cells *= n
    found = 0
    for index in torch.randperm(cells, generator=draw).tolist():
        cell: list[int] = []
        rest = index
        for n in reversed(grid):
            cell.append(rest % n)
            rest //= n
        cell = cell[::-1]
        margins = [BORDER if n >= 3 * BORDER else 0 for n in grid]
        if any(not m <= i < n - m for i, n, m in zip(cell, grid, margins, strict=True)):
            continue
        found += 1
        if found > PATCHES:
            return
        spans = [slice(None)] + [
            slice(round(i * side / n), max(round((i + 1) * side / n), round(i * side / n) + 1))
            for i, n, side in zip(cell, grid, sides, strict=True)
        ]
        if channels == 2:
            spans[0], spans[1] = spans[1], slice(None)
        draws = []
        for _ in range(DRAWS):
            changed = images.clone()
            part = changed[image][tuple(spans)]
            changed[image][tuple(spans)] = part + 0.3 * torch.randn(part.shape, generator=draw)
            draws.append(changed)
        yield tuple(cell), draws


def check(
    name: str, places: Places, energy: Tensor, image: int, grid: tuple[int, ...],
    cell: tuple[int, ...], result: Result, images: int,
) -> None:  # fmt: skip
    """One side of one record, one patch."""
    flat = energy.flatten()
    largest = float(flat.max())
    if largest == 0 or not places.known:
        return  # behind attention without a residual connection, or a patch that is masked
    repeat = len(flat) // len(places.cell) if places.image is None else 1
    cells = torch.tensor(places.cell * repeat)
    of = (
        torch.arange(repeat).repeat_interleave(len(places.cell))
        if places.image is None
        else torch.tensor(places.image)
    )
    here = (cells >= 0) & (of == image)
    still = torch.tensor([r not in ("place", "global") for r in places.role] * repeat)
    number = 0
    for i, n in zip(cell, grid, strict=True):
        number = number * n + i
    own = here & (cells == number)
    if not bool(own.any()):
        return  # this patch is not among the visible ones
    result.compared += 1
    rest, at = cells, []
    for n in reversed(grid):
        at.append(rest % n)
        rest = rest // n
    position = torch.stack(at[::-1], -1).double()[here]
    weight = flat[here] / flat[here].sum()
    off = float(((weight[:, None] * position).sum(0) - torch.tensor(cell)).abs().max())
    result.off = max(result.off, off)
    if bool((flat[still] > 1e-8 * largest).any()):
        result.faults.append(f"{name}: a token that is said to be no place moves")
    elif float(flat[own].max()) < LEAST * largest:
        result.faults.append(
            f"{name}: cell {cell} of {grid} moves by {float(flat[own].max()) / largest:.2f}"
        )
    elif off > FAR and max(grid) > 4:
        result.faults.append(f"{name}: cell {cell} of {grid}, changes lie {off:.2f} cells away")
    else:
        return
    result.wrong += 1


def table(results: list[Result]) -> str:
    """One line per model, and one per family."""
    lines = [
        f"Measured by `benchmarks/places.py` on {len(results)} models with random weights "
        f"(torch {torch.__version__.split('+')[0]}): "
        f"{sum(r.compared for r in results)} comparisons with single changed patches, "
        f"**{sum(r.wrong for r in results)} wrong**; of {sum(r.sides for r in results)} sides "
        f"(queries or keys of a record) {sum(r.places for r in results)} are on a grid, "
        f"{sum(r.nowhere for r in results)} hold no place, {sum(r.refused for r in results)} "
        f"({sum(r.refused for r in results) / max(1, sum(r.sides for r in results)):.1%}) are "
        f"refused; largest error {max(r.error for r in results):.2f} cells, "
        f"at most {max(r.passes for r in results)} forward passes.",
        "",
        "| family | model | sides | on a grid | no place | refused | wrong of compared | "
        "error, cells | passes | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        lines.append(
            f"| {r.family} | {r.name} | {r.sides} | {r.places} | {r.nowhere} | {r.refused} | "
            f"{r.wrong} of {r.compared} | {r.error:.2f} | {r.passes} | {r.seconds:.1f} |"
        )
    reasons = sorted({reason for r in results for reason in r.reasons})
    lines += ["", "Refused because:", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name or family contains this")
    parser.add_argument("--out", default="docs/places.md", help="page to write the table into")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    results: list[Result] = []
    for family, models in FAMILIES.items():
        for name, build in models.items():
            if args.only not in f"{family} {name}":
                continue
            found = judge(family, name, build)
            if isinstance(found, str):
                print(f"{name}: not built ({found})", flush=True)
                continue
            results.append(found)
            print(
                f"{name}: {found.places} on a grid, {found.nowhere} no place, {found.refused} "
                f"refused, {found.wrong} wrong of {found.compared}, error {found.error:.2f}, off "
                f"{found.off:.2f}, {found.passes} passes, {found.seconds:.1f} s",
                *found.faults[:3], *sorted(found.reasons)[:3], sep="\n    ", flush=True,
            )  # fmt: skip
    written = table(results)
    print("\n" + written.splitlines()[0])
    if args.out:
        page = Path(args.out)
        before, _, rest = page.read_text().partition(START)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{START}\n\n{written}\n\n{END}{after}")
    return int(any(r.wrong for r in results))


if __name__ == "__main__":
    sys.exit(main())
