"""Residual blocks of vit-pytorch's models, read off their modules."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild

DEPTH, SIDE, CLASSES = 2, 32, 5
_PLAIN = {"image_size": SIDE, "num_classes": CLASSES, "dim": 16, "depth": DEPTH, "heads": 2, "mlp_dim": 32}
_PATCHES = {**_PLAIN, "patch_size": 8, "dim_head": 8}
_TWO = "Transformer.forward: attn(x) + x, ff(x) + x, in each of 2 layers"


def _build(module: str, name: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = getattr(import_module(f"vit_pytorch.{module}"), name)(**options)
    return model


def _image(side: int = SIDE, samples: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn(samples, 3, side, side),)


def _noise(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, *shape),)


def _wild(
    module: str,
    name: str,
    blocks: int,
    reason: str,
    inputs: Callable[[], tuple[Tensor, ...]] = _image,
    **options: Any,
) -> Wild:
    return Wild(partial(_build, module, name, options), inputs, blocks, reason)


def _like_vit(module: str, name: str = "ViT", *, without: tuple[str, ...] = (), **options: Any) -> Wild:
    kept = {key: value for key, value in _PATCHES.items() if key not in without}
    return _wild(module, name, 2 * DEPTH, _TWO, **(kept | options))


MODELS: dict[str, Wild] = {
    "ViT": _like_vit("vit"),
    "SimpleViT": _like_vit("simple_vit", "SimpleViT"),
    "DeepViT": _like_vit("deepvit", "DeepViT"),
    "ViT_small_dataset": _like_vit("vit_for_small_dataset"),
    "RvT": _like_vit("rvt", "RvT"),
    "ViT_patch_merger": _like_vit("vit_with_patch_merger", patch_merge_layer=1, patch_merge_num_tokens=4),
    "ViT_learnable_memory": _like_vit("learnable_memory_vit"),
    "SimpleViT_register_tokens": _like_vit("simple_vit_with_register_tokens", "SimpleViT"),
    "SimpleViT_qk_norm": _like_vit("simple_vit_with_qk_norm", "SimpleViT"),
    "SimpleViT_flash": _like_vit("simple_flash_attn_vit", "SimpleViT"),
    "SimpleViT_fft": _like_vit("simple_vit_with_fft", "SimpleViT", freq_patch_size=8),
    "SimpleUViT": _like_vit("simple_uvit", "SimpleUViT"),
    "ViT_keel_post_norm": _like_vit("vit_with_keel_post_ln"),
    "nViT": _wild(
        "normalized_vit", "nViT", 2 * DEPTH, "l2norm(lerp(x, l2norm(attn or ff), alpha)): two in each of 2 layers",
        **_PATCHES,
    ),
    "ViT_1d": _wild(
        "vit_1d", "ViT", 2 * DEPTH, _TWO, partial(_noise, 3, 64),
        seq_len=64, **{key: value for key, value in _PATCHES.items() if key != "image_size"},
    ),
    "ViT_3d": _wild(
        "vit_3d", "ViT", 2 * DEPTH, _TWO, partial(_noise, 3, 4, SIDE, SIDE), image_patch_size=8, frames=4,
        frame_patch_size=2, **{key: value for key, value in _PATCHES.items() if key != "patch_size"},
    ),
    "ViViT_factorized_encoder": _wild(
        "vivit", "ViViT", 8, "2 spatial and 2 temporal layers, each attn(x) + x, ff(x) + x",
        partial(_noise, 3, 4, SIDE, SIDE), image_size=SIDE, image_patch_size=8, frames=4, frame_patch_size=2,
        num_classes=CLASSES, dim=16, spatial_depth=2, temporal_depth=2, heads=2, mlp_dim=32, dim_head=8,
    ),
    "ViViT_factorized_attention": _wild(
        "vivit", "ViViT", 6, "spatial_attn(x) + x, temporal_attn(x) + x, ff(x) + x in each of 2 layers",
        partial(_noise, 3, 4, SIDE, SIDE), image_size=SIDE, image_patch_size=8, frames=4, frame_patch_size=2,
        num_classes=CLASSES, dim=16, spatial_depth=2, temporal_depth=2, heads=2, mlp_dim=32, dim_head=8,
        variant="factorized_self_attention",
    ),
    "SimpleViT_value_residual": _wild(
        "simple_vit_with_value_residual", "SimpleViT", 5,
        "attn_out + x, ff(x) + x in 2 layers; in the second v mix + first values (1 - mix) is a gated skip", **_PATCHES,
    ),
    "ViT_parallel": _wild(
        "parallel_vit", "ViT", 8, "sum of 2 branches + x, for attn and for ff, in each of 2 layers", **_PATCHES
    ),
    "CaiT": _wild(
        "cait", "CaiT", 7, "2 layers and 2 class layers of 2; the first class skip is the repeated parameter cls_token",
        **_PATCHES, cls_depth=2,
    ),
    "XCiT": _wild(
        "xcit", "XCiT", 9, "2 layers of 3 (XCA, local, ff), 2 class layers of 2; the first class skip is a parameter",
        **_PATCHES, cls_depth=2,
    ),
    "CCT": _wild(
        "cct", "CCT", 4, "src + self_attn(norm(src)), src + linear2(linear1(src)) in each of 2 layers",
        img_size=SIDE, embedding_dim=16, num_layers=2, num_heads=2, mlp_ratio=2.0, num_classes=CLASSES, n_conv_layers=1,
        kernel_size=3, stride=2, padding=1,
    ),
    "CvT": _wild(
        "cvt", "CvT", 8, "attn(x) + x, ff(x) + x in 1 + 1 + 2 layers", num_classes=CLASSES, s1_emb_dim=8, s2_emb_dim=16,
        s3_emb_dim=16, s1_depth=1, s2_depth=1, s3_depth=2, s2_heads=2, s3_heads=2,
    ),
    "CrossViT": _wild(
        "cross_vit", "CrossViT", 12,
        "1 + 1 layers of 2 and 1 cross layer with 2 sums onto class tokens, all twice", image_size=SIDE,
        num_classes=CLASSES, sm_dim=8, lg_dim=16, sm_patch_size=4, lg_patch_size=8, sm_enc_depth=1, lg_enc_depth=1,
        sm_enc_heads=2, lg_enc_heads=2, sm_enc_mlp_dim=16, lg_enc_mlp_dim=16, sm_enc_dim_head=4, lg_enc_dim_head=4,
        cross_attn_depth=1, cross_attn_heads=2, cross_attn_dim_head=4, depth=2,
    ),
    "PiT": _wild(
        "pit", "PiT", 6, "attn(x) + x, ff(x) + x in 1 + 2 layers", image_size=SIDE, patch_size=8, num_classes=CLASSES,
        dim=16, depth=(1, 2), heads=2, mlp_dim=32, dim_head=8,
    ),
    "LeViT": _wild(
        "levit", "LeViT", 8, "3 stages of 1 layer with 2; two downsampling layers add 0 to attention, then ff(x) + x",
        partial(_image, 64), image_size=64, num_classes=CLASSES, stages=3, dim=(16, 24, 32), depth=1, heads=(2, 2, 2),
        mlp_mult=2, dim_key=4, dim_value=8,
    ),
    "NesT": _wild(
        "nest", "NesT", 8, "attn(x) + x, ff(x) + x in 1 + 1 + 2 layers", image_size=SIDE, patch_size=4,
        num_classes=CLASSES, dim=8, heads=1, num_hierarchies=3, block_repeats=(1, 1, 2),
    ),
    "TwinsSVT": _wild(
        "twins_svt", "TwinsSVT", 32, "3 stages of (1 + 1 layers) x 4, and 1 of (1 + 1) x 2; x + conv(x) in each of 4",
        num_classes=CLASSES, s1_emb_dim=8, s2_emb_dim=8, s3_emb_dim=16, s4_emb_dim=16, s1_patch_size=2,
        s1_local_patch_size=4, s2_local_patch_size=4, s3_local_patch_size=2, s4_local_patch_size=1, s1_global_k=4,
        s2_global_k=4, s3_global_k=2, s4_global_k=1, s3_depth=1, s4_depth=1,
    ),
    "CrossFormer": _wild(
        "crossformer", "CrossFormer", 20, "short attn, ff, long attn, ff in 1 + 1 + 2 + 1 layers", num_classes=CLASSES,
        dim=(32, 32, 32, 64), depth=(1, 1, 2, 1), global_window_size=(4, 2, 2, 1), local_window_size=(4, 2, 2, 1),
        cross_embed_kernel_sizes=((2, 4), (2, 4), (2, 4), (2, 4)), cross_embed_strides=(2, 2, 2, 2),
    ),
    "RegionViT": _wild(
        "regionvit", "RegionViT", 18,
        "attention of regions, of regions and tokens, and ff, in 1 + 1 + 2 + 1 layers; x + conv(x) in 3 stages",
        partial(_image, 64), dim=(8, 8, 16, 16), depth=(1, 1, 2, 1), window_size=2, num_classes=CLASSES,
        local_patch_size=4, use_peg=True,
    ),
    "ScalableViT": _wild(
        "scalable_vit", "ScalableViT", 17,
        "ssa, ff, iwsa, ff in 1 + 2 layers; x + conv(x) in 2 stages; attention + convolution of the values in iwsa "
        "is a projection of its input",
        num_classes=CLASSES, dim=8, heads=(1, 2), depth=(1, 2), ssa_dim_key=(4, 4), ssa_dim_value=(4, 4),
        reduction_factor=(2, 1), window_size=(4, None), iwsa_dim_key=(4, 4), iwsa_dim_value=(4, 4),
    ),
    "SepViT": _wild(
        "sep_vit", "SepViT", 8, "attn(x) + x, ff(x) + x in 1 + 2 layers; x + conv(x) in 2 stages",
        partial(_image, 56), num_classes=CLASSES, dim=8, dim_head=4, heads=(1, 2), depth=(1, 2),
    ),
    "MaxViT": _wild(
        "max_vit", "MaxViT", 13, "block and grid attention with ff: 4 in 3 layers; MBConv in the one that keeps width",
        num_classes=CLASSES, dim=8, depth=(1, 2), dim_head=4, window_size=2,
    ),
    "MobileViT": _wild(
        "mobile_vit", "MobileViT", 9, "MV2Block with stride 1 and equal width: 3 in the stem; 3 x 1 layers of 2",
        partial(_image, 64), image_size=(64, 64), dims=[16, 16, 16], depths=(1, 1, 1), num_classes=CLASSES,
        channels=[8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 48],
    ),
    "T2TViT": _wild(
        "t2t", "T2TViT", 8, "two layers inside the patch embedding and 2 layers, each with 2", image_size=SIDE,
        num_classes=CLASSES, dim=16, depth=DEPTH, heads=2, mlp_dim=32, dim_head=8,
        t2t_layers=((3, 2), (3, 2), (3, 2)),
    ),
    "JumboViT": _wild(
        "jumbo_vit", "JumboViT", 5,
        "attn(x) + x, ff(x) + x, jumbo_ff(class) + class in 2 layers; the last ff(x) + x is not read", **_PATCHES,
        jumbo_cls_k=2,
    ),
    "LookViT": _wild(
        "look_vit", "LookViT", 10, "lookup, attn, mlp, highres attn, highres mlp in each of 2 layers",
        partial(_image, 48), dim=16, image_size=48, num_classes=CLASSES, depth=2, patch_size=16, heads=2, dim_head=8,
        highres_patch_size=12, cross_attn_heads=2, cross_attn_dim_head=8,
    ),
}  # fmt: skip
