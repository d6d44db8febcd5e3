"""The subject of the benchmarks: ResNet-56 for 32x32 images, its speed independent of its weights."""

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, (width - width_in) // 2

    def forward(self, x):
        branch = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + branch)


class CifarResNet(nn.Module):
    """A ResNet of He et al. 2015 with `3 * depth` blocks and option-A shortcuts."""

    def __init__(self, depth):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        stages = [
            nn.Sequential(
                *(Block(before if at == 0 else width, width, stride if at == 0 else 1) for at in range(depth))
            )
            for before, width, stride in widths
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))

    def residual_blocks(self):
        return [*self.layer1, *self.layer2, *self.layer3]


def resnet(depth=9):
    torch.manual_seed(0)
    return CifarResNet(depth).eval().requires_grad_(requires_grad=False)


def trained(weights=None, depth=9):
    """Return a ResNet with weights of a file, or random ones: speed does not depend on them."""
    model = resnet(depth)
    if weights is not None:
        model.load_state_dict(safetensors.torch.load_file(weights), strict=False)
    return model


def pictures(count, file=None, size=32):
    """Return images from an npz file of uint8 `images` (N, H, W, C), normalised, or random ones."""
    if file is None:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    with np.load(file) as archive:
        images = torch.from_numpy(archive["images"][:count]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images - mean) / std).contiguous()
