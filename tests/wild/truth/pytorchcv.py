"""Residual blocks of pytorchcv's models, read off their units and the table of layers."""

from functools import partial
from importlib import import_module

import torch
from torch import nn

from wild.truth import Wild


def _build(module: str, name: str, side: int) -> nn.Module:
    model: nn.Module = getattr(import_module(f"pytorchcv.models.{module}"), name)(in_size=(side, side), num_classes=10)
    return model


def _wild(module: str, name: str, blocks: int, reason: str) -> Wild:
    side = 32 if module.endswith("_cifar") else 224
    return Wild(partial(_build, module, name, side), lambda: (torch.randn(2, 3, side, side),), blocks, reason)


MODELS: dict[str, Wild] = {
    "resnet18_wd4": _wild("resnet", "resnet18_wd4", 8, "ResUnits: 4 stages of 2"),
    "preresnet10": _wild("preresnet", "preresnet10", 4, "PreResUnits: 4 stages of 1"),
    "seresnet10": _wild("seresnet", "seresnet10", 4, "SEResUnits: 4 stages of 1"),
    "mobilenetv2_wd4": _wild(
        "mobilenetv2", "mobilenetv2_wd4", 10, "1 2 3 4 3 3 1 units, those with stride 1 and equal width"
    ),
    "igcv3_wd4": _wild("igcv3", "igcv3_wd4", 25, "1 4 6 8 6 6 1 units, those with stride 1 and equal width"),
    "shufflenet_g1_wd4": _wild("shufflenet", "shufflenet_g1_wd4", 13, "4 8 4 units, the first of each is concatenated"),
    "densenet40_k12_bc_cifar10": _wild("densenet_cifar", "densenet40_k12_bc_cifar10", 0, "units are concatenated"),
    "resnet20_cifar10": _wild("resnet_cifar", "resnet20_cifar10", 9, "3 stages of 3"),
}
