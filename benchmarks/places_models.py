"""The models of `benchmarks/places.py`: eight families, random weights, small where possible.

Each is built by a function without arguments that returns the model, its images, and from images to
what the model is called with (None for the images alone).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], tuple[nn.Module, Any, Callable[[Any], Any] | None]]


def timm_model(name: str, size: tuple[int, ...] | None = None, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any, None]:
        import timm

        model = timm.create_model(name, **options)
        c, h, w = model.pretrained_cfg.get("input_size", (3, 224, 224))
        return model, torch.randn(1, c, *(size or (h, w))), None

    return build


def torchvision_model(name: str, *size: int, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any, None]:
        from torchvision import models

        return models.get_model(name, weights=None, **options), torch.randn(1, 3, *size), None

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


def mvit() -> tuple[nn.Module, Any, None]:
    """The first four blocks of `mvit_v2_s`, whose own builder fixes the size of its video."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    blocks = [
        MSBlockConfig(heads, width, out, [3, 3, 3], [3, 3, 3], [1, q, q], [1, kv, kv])
        for heads, width, out, q, kv in (
            (1, 96, 96, 1, 8), (2, 96, 192, 2, 4), (2, 192, 192, 1, 4), (4, 192, 384, 2, 2)
        )
    ]  # fmt: skip
    model = MViT(
        spatial_size=(64, 64), temporal_size=8, block_setting=blocks, residual_pool=True,
        residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True,
    )  # fmt: skip
    return model, torch.randn(1, 3, 8, 64, 64), None


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
        **{name: timm_model(name, depth=2) for name in (
            "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "flexivit_small",
            "vit_wee_patch16_reg1_gap_256", "vit_medium_patch16_reg4_gap_256", "cait_xxs24_224",
            "xcit_nano_12_p16_224", "eva02_tiny_patch14_224",
        )},
        "vit_small_patch14_reg4_dinov2": timm_model(
            "vit_small_patch14_reg4_dinov2", (126, 126), img_size=126, depth=2),
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
        **{name: timm_model(name, size, **options) for name, size, options in (
            ("hiera_tiny_224", None, {"embed_dim": 48, "stages": (1, 2, 2, 1)}),
            ("swin_tiny_patch4_window7_224", (112, 112),
             {"embed_dim": 48, "depths": (2, 2, 2), "num_heads": (3, 6, 12), "img_size": 112}),
            ("swinv2_tiny_window8_256", (128, 128),
             {"embed_dim": 48, "depths": (2, 2, 2), "num_heads": (3, 6, 12), "img_size": 128}),
            ("pvt_v2_b0", (96, 160), {"depths": (1, 1, 1, 1)}),
            ("mvitv2_tiny", None, {}),
            ("twins_svt_small", None, {"depths": (2, 2, 2, 2)}),
            ("twins_pcpvt_small", (96, 96), {"depths": (1, 1, 1, 1), "img_size": 96}),
            ("davit_tiny", (128, 96), {"depths": (1, 1, 1, 1)}),
            ("maxvit_rmlp_pico_rw_256", (128, 128), {"img_size": 128}),
            ("nest_tiny", None, {}),
            ("gcvit_xxtiny", None, {}),
            ("volo_d1_224", (96, 96), {"img_size": 96}),
            ("levit_128s", None, {}),
            ("crossvit_tiny_240", None, {}),
        )},
        "torchvision swin_t": torchvision_model("swin_t", 160, 224),
        "torchvision swin_v2_t": torchvision_model("swin_v2_t", 160, 224),
        "Swin": hf("SwinConfig:SwinModel", (2, 3, 96, 64), embed_dim=32, depths=[2, 2],
                   num_heads=[2, 2], window_size=7, image_size=64),
    },
    "CNN hybrids": {
        **{name: timm_model(name, size, **options) for name, size, options in (
            ("coatnet_pico_rw_224", (128, 96), {"img_size": (128, 96)}),
            ("vit_small_r26_s32_224", (160, 160), {"img_size": 160, "depth": 2}),
            ("mobilevit_xxs", (128, 192), {}),
            ("mobilevitv2_050", (128, 192), {}),
            ("botnet26t_256", None, {}),
            ("halonet26t", None, {}),
            ("efficientformer_l1", None, {}),
            ("efficientformerv2_s0", None, {}),
            ("fastvit_sa12", (128, 160), {}),
            ("tiny_vit_5m_224", None, {}),
            ("convit_tiny", None, {}),
            ("visformer_tiny", (128, 128), {"img_size": 128}),
            ("edgenext_xx_small", (128, 96), {}),
            ("mobilenetv4_hybrid_medium", (192, 128), {}),
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
        "torchvision mvit_v2_s": mvit,
        "MONAI ViT": monai_model(
            "ViT", 32, 32, 32, img_size=(32, 32, 32), patch_size=(8, 8, 8), hidden_size=48,
            mlp_dim=64, num_layers=2, num_heads=4, classification=True, num_classes=2),
        "MONAI SwinUNETR": monai_model(
            "SwinUNETR", 64, 32, 32, out_channels=2, feature_size=12, window_size=4),
        "MONAI UNETR": monai_model(
            "UNETR", 64, 64, 64, out_channels=2, img_size=(64, 64, 64), hidden_size=48,
            mlp_dim=64, num_heads=4, feature_size=8),
    },
}  # fmt: skip
