"""Residual blocks of kornia's networks, read off their modules."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild

_PYRAMID = "BasicBlocks, 2 in each layer; lateral sums are fusions of two weighted operands, read further up too"


def _build(module: str, name: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = getattr(import_module(f"kornia.{module}"), name)(**options)
    return model


def _pyramid(name: str, widths: list[int]) -> nn.Module:
    config = {"initial_dim": 8, "block_dims": widths}
    return _build("feature.loftr.backbone.resnet_fpn", name, {"config": config})


def _image(channels: int = 3, side: int = 32) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, side, side),)


def _wild(
    module: str, name: str, blocks: int, reason: str, inputs: Callable[[], tuple[Tensor, ...]], **options: Any
) -> Wild:
    return Wild(partial(_build, f"models.{module}", name, options), inputs, blocks, reason)


_DENSE = "ResidualDenseBlocks and RRDBs: x5 0.2 + x, 3 + 1 in each of {}; feat + body_feat"
_NARROW: dict[str, Any] = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_grow_ch": 4}

MODELS: dict[str, Wild] = {
    "RRDBNet_x4": _wild("rrdbnet", "RRDBNet", 9, _DENSE.format(2), partial(_image, 3, 8), **_NARROW, num_block=2),
    "RRDBNet_x2": _wild(
        "rrdbnet", "RRDBNet", 5, _DENSE.format(1), partial(_image, 3, 16), **_NARROW, num_block=1, scale=2
    ),
    "VisionTransformer": _wild(
        "vit", "VisionTransformer", 4, "ResidualAdd, in place, twice in each of 2 layers", _image,
        image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2,
    ),
    "MobileViT_xxs": _wild(
        "vit_mobile", "MobileViT", 21, "MV2Blocks 0, 2 and 3; 2 + 4 + 3 layers of attn(x) + x, ff(x) + x",
        partial(_image, 3, 64), mode="xxs",
    ),
    "TinyViT": _wild(
        "tiny_vit", "TinyViT", 9, "1 MBConv; attention and mlp in 1 + 2 + 1 blocks", partial(_image, 3, 64),
        img_size=64, num_classes=5, embed_dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 2),
        window_sizes=(4, 4, 4, 2),
    ),
    "LoFTR_ResNetFPN_8_2": Wild(
        partial(_pyramid, "ResNetFPN_8_2", [8, 12, 16]), partial(_image, 1, 32), 6, f"{_PYRAMID}; 3 layers"
    ),
    "LoFTR_ResNetFPN_16_4": Wild(
        partial(_pyramid, "ResNetFPN_16_4", [8, 12, 16, 20]), partial(_image, 1, 32), 8, f"{_PYRAMID}; 4 layers"
    ),
}  # fmt: skip
