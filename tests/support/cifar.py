"""Networks that others trained on CIFAR-10, with its first 1,000 test images; they are no part of this repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
needs_cifar = pytest.mark.skipif(
    not (DATA / "test1000.npz").exists(),
    reason="the trained CIFAR-10 networks are not here: put them into ../shared/data/cifar10",
)


class BasicBlock(nn.Module):
    """He et al. 2015, with the shortcut of option A."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.stride = stride
        self.new = out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return (x + y).relu()


class CifarResNet(nn.Module):
    def __init__(self, depth):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            others = (BasicBlock(widths[stage], widths[stage], 1) for _ in range(n - 1))
            setattr(self, f"layer{stage}", nn.Sequential(first, *others))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def trained(depth):
    model = CifarResNet(depth)
    model.load_state_dict(load_file(DATA / f"resnet{depth}.safetensors"))
    return model.eval()


def images_and_labels():
    """Return the normalised test images, `[1000, 3, 32, 32]`, and their labels."""
    with np.load(DATA / "test1000.npz") as file:
        images, labels = file["images"], file["labels"]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels)
