"""Residual blocks of efficientnet-pytorch's models, read off `MBConvBlock.forward` and the table of stages.

A stage of `r` repeats has `r - 1` with stride 1 and equal width; no first one has both.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from wild.truth import Wild

SIDE = 64


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name(name, image_size=SIDE, num_classes=5, **options)
    return model


def _wild(name: str, blocks: int, repeats: str, channels: int = 3, **options: Any) -> Wild:
    if channels != 3:
        options = {**options, "in_channels": channels}
    build = partial(_build, f"efficientnet-{name}", options)
    return Wild(build, lambda: (torch.randn(2, channels, SIDE, SIDE),), blocks, f"repeats {repeats}, less one each")


MODELS: dict[str, Wild] = {
    "b0": _wild("b0", 9, "1 2 2 3 3 4 1"),
    "b0_grey": _wild("b0", 9, "1 2 2 3 3 4 1", channels=1),
    "b0_without_top": _wild("b0", 9, "1 2 2 3 3 4 1", include_top=False),
    "b1": _wild("b1", 16, "2 3 3 4 4 5 2"),
    "b2": _wild("b2", 16, "2 3 3 4 4 5 2"),
    "b3": _wild("b3", 19, "2 3 3 5 5 6 2"),
}
