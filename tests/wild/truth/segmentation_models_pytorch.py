"""Residual blocks of segmentation-models-pytorch's models, read off encoders and decoders.

ResNet-18 as encoder has 8. Decoders that concatenate have none, lateral sums of pyramids are fusions of two weighted
operands, and sums of two gated copies are gates.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from wild.truth import Wild

SIDE = 64


def _build(name: str, encoder: str, options: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch

    make = getattr(segmentation_models_pytorch, name)
    model: nn.Module = make(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=2, **options)
    return model


def _wild(name: str, blocks: int, reason: str, encoder: str = "resnet18", **options: Any) -> Wild:
    build = partial(_build, name, encoder, options)
    return Wild(build, lambda: (torch.randn(2, 3, SIDE, SIDE),), blocks, reason)


MODELS: dict[str, Wild] = {
    "Unet": _wild("Unet", 8, "the encoder's 8", decoder_channels=(32, 16, 16, 8, 8)),
    "Unet_scse": _wild(
        "Unet", 8, "the encoder's 8; x cSE + x sSE are gates", decoder_channels=(64, 32, 32, 16, 16),
        decoder_attention_type="scse",
    ),
    "UnetPlusPlus": _wild("UnetPlusPlus", 8, "the encoder's 8", decoder_channels=(32, 16, 16, 8, 8)),
    "Linknet": _wild("Linknet", 12, "the encoder's 8; DecoderBlock: x + skip, an encoder's feature, 4 times"),
    "FPN": _wild("FPN", 8, "the encoder's 8", decoder_pyramid_channels=16, decoder_segmentation_channels=32),
    "PSPNet": _wild("PSPNet", 4, "the encoder's first 2 stages, its depth is 3"),
    "DeepLabV3": _wild("DeepLabV3", 8, "the encoder's 8", decoder_channels=16),
    "DeepLabV3Plus": _wild("DeepLabV3Plus", 8, "the encoder's 8", decoder_channels=16),
    "Segformer_mit_b0": _wild(
        "Segformer", 16, "attn and mlp in 4 stages of 2 layers", encoder="mit_b0", decoder_segmentation_channels=16
    ),
    "Unet_mobilenet_v2": _wild(
        "Unet", 10, "torchvision's mobilenet_v2", encoder="mobilenet_v2", decoder_channels=(32, 16, 16, 8, 8)
    ),
}  # fmt: skip
