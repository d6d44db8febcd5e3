"""Residual blocks of lightly's ResNets, read off `BasicBlock` and `Bottleneck`."""

from functools import partial
from typing import Any

import torch
from torch import nn

from wild.truth import Wild


def _build(options: dict[str, Any]) -> nn.Module:
    from lightly.models import ResNetGenerator

    model: nn.Module = ResNetGenerator(num_classes=5, **options)
    return model


def _wild(name: str, blocks: int, reason: str, **options: Any) -> Wild:
    return Wild(partial(_build, {"name": name, **options}), lambda: (torch.randn(2, 3, 32, 32),), blocks, reason)


MODELS: dict[str, Wild] = {
    "resnet-9": _wild("resnet-9", 4, "out += shortcut(x), 4 stages of 1", width=0.25),
    "resnet-18": _wild("resnet-18", 8, "out += shortcut(x), 4 stages of 2", width=0.25),
    "resnet-18_split": _wild("resnet-18", 8, "the same; SplitBatchNorm", width=0.125, num_splits=2),
    "resnet-50": _wild("resnet-50", 16, "out += shortcut(x), 3 + 4 + 6 + 3", width=0.125),
}
