"""Residual blocks of MONAI's networks, read off their modules."""

from functools import partial
from typing import Any

import torch
from torch import nn

from wild.truth import Wild

SIDE = 32


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    from monai.networks import nets

    model: nn.Module = getattr(nets, name)(**options)
    return model


def _wild(name: str, blocks: int, reason: str, dims: int = 2, side: int = SIDE, **options: Any) -> Wild:
    build = partial(_build, name, {"spatial_dims": dims, **options})
    return Wild(build, lambda: (torch.randn(2, 1, *[side] * dims),), blocks, reason)


_RESNET: dict[str, Any] = {
    "layers": [1, 1, 1, 1], "block_inplanes": [8, 16, 16, 32], "n_input_channels": 1, "num_classes": 5
}  # fmt: skip
_SEGMENTS: dict[str, Any] = {"in_channels": 1, "out_channels": 2}

MODELS: dict[str, Wild] = {
    "ResNet_basic_3d": _wild("ResNet", 4, "4 stages of 1", 3, 16, block="basic", **_RESNET),
    "ResNet_bottleneck": _wild("ResNet", 4, "4 stages of 1", block="bottleneck", **_RESNET),
    "ResNet_shortcut_a": _wild(
        "ResNet", 4, "4 stages of 1, skips pooled and padded with zeros", block="basic", shortcut_type="A", **_RESNET
    ),
    "SegResNet": _wild(
        "SegResNet", 15, "ResBlocks: 1 + 2 + 2 + 4 down, 3 up; up(x) + down_x of the same size, 3", init_filters=8,
        **_SEGMENTS,
    ),
    "UNet_residual_units": _wild(
        "UNet", 5, "ResidualUnits: 2 down, the bottom, 2 up; skips of a strided or a 1x1 convolution where needed",
        channels=(8, 16, 32), strides=(2, 2), num_res_units=2, **_SEGMENTS,
    ),
    "UNet_plain": _wild(
        "UNet", 0, "features are concatenated", channels=(8, 16, 32), strides=(2, 2), **_SEGMENTS
    ),
    "BasicUNet": _wild("BasicUNet", 0, "features are concatenated", features=(8, 8, 16, 16, 32, 8), **_SEGMENTS),
    "AttentionUnet": _wild(
        "AttentionUnet", 0, "g1 + x1 fuses two weighted operands", channels=(8, 16, 32), strides=(2, 2), **_SEGMENTS
    ),
    "HighResNet": _wild("HighResNet", 9, "HighResBlocks: 3 of 3 sizes of dilation", **_SEGMENTS),
    "VNet": _wild(
        "VNet", 9, "add(out, x16) where the input's channel is repeated, 4 down onto `down`, 4 up onto `xcat`",
        **_SEGMENTS,
    ),
    "ViT": _wild(
        "ViT", 4, "attn and mlp in each of 2 layers", in_channels=1, img_size=(SIDE, SIDE), patch_size=(8, 8),
        hidden_size=16, mlp_dim=32, num_layers=2, num_heads=2, classification=True, num_classes=5,
    ),
    "DynUNet_residual": _wild(
        # Read again after the comparison: 3 had taken skips with an instance norm for affine ones.
        "DynUNet",
        0,
        "UnetResBlocks (input, 1 down, bottom), whose skips have an instance norm: not affine", kernel_size=[3, 3, 3],
        strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32], res_block=True, **_SEGMENTS,
    ),
    "SwinUNETR": _wild(
        # Read again after the comparison: 26 had taken skips with an instance norm for affine ones.
        "SwinUNETR",
        20,
        "4 stages of 2 layers of 2; the 4 UnetResBlocks of equal width, as an instance norm in a skip is not affine",
        side=64,
        feature_size=12, num_heads=(1, 2, 2, 2), **_SEGMENTS,
    ),
}  # fmt: skip
