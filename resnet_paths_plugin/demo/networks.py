"""The two embedded networks for 8x8 grey digits: a 110-layer pre-activation residual network and a plain one.

Architectures only: weights are loaded by `resnet_paths_plugin.demo`, and trained by `examples/train_demo.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

RESNET = "digits_resnet110"
PLAIN = "digits_plain15"
N_CLASSES = 10


class PreActivationBlock(nn.Module):
    """Residual block `y = s(x) + f(x)`, where `f` is norm, ReLU, 3x3 convolution, twice.

    The skip `s` is the identity, or a strided 1x1 convolution where the block changes the resolution.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, Fig. 1b.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.projection = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def branch(self, x: Tensor) -> Tensor:
        """Return `f(x)`, shape `(B, out_channels, H / stride, W / stride)`."""
        x = self.conv1(torch.relu(self.norm1(x)))
        x = self.conv2(torch.relu(self.norm2(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of skip and branch for `x` of shape `(B, in_channels, H, W)`."""
        skip = x if self.projection is None else self.projection(x)
        branch = self.branch(x)
        return skip + branch


class DigitsResNet(nn.Module):
    """Pre-activation residual network of `3 * blocks_per_stage` blocks; by default 54 blocks, 110 weighted layers.

    The stages work at 8x8, 4x4 and 2x2 positions. Two blocks, the first of the second and of the third stage,
    have a projection as skip; all others have the identity.
    """

    def __init__(self, blocks_per_stage: int = 18, widths: tuple[int, int, int] = (8, 16, 32)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.layer1 = _stage(PreActivationBlock, blocks_per_stage, widths[0], widths[0], stride=1)
        self.layer2 = _stage(PreActivationBlock, blocks_per_stage, widths[0], widths[1], stride=2)
        self.layer3 = _stage(PreActivationBlock, blocks_per_stage, widths[1], widths[2], stride=2)
        self.norm = nn.BatchNorm2d(widths[2])
        self.classifier = nn.Linear(widths[2], N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape `(B, 10)`, of images of shape `(B, 1, 8, 8)`."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        x = torch.relu(self.norm(x))
        return self.classifier(x.mean(dim=(2, 3)))


class ConvolutionLayer(nn.Module):
    """A layer without skip: 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape `(B, out_channels, H / stride, W / stride)` for `x` of shape `(B, in_channels, H, W)`."""
        return torch.relu(self.norm(self.conv(x)))


class DigitsPlainNet(nn.Module):
    """Plain network of 15 weighted layers: 14 convolutions in three stages of one width each, and a classifier.

    Every layer but the first of each stage keeps the shape of its input, so it can be deleted
    (replaced by the identity): the counterpart of VGG in Fig. 3 of the paper.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 24, 32)) -> None:
        super().__init__()
        self.layer1 = _stage(ConvolutionLayer, 5, 1, widths[0], stride=1)
        self.layer2 = _stage(ConvolutionLayer, 5, widths[0], widths[1], stride=2)
        self.layer3 = _stage(ConvolutionLayer, 4, widths[1], widths[2], stride=2)
        self.classifier = nn.Linear(widths[2], N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape `(B, 10)`, of images of shape `(B, 1, 8, 8)`."""
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.classifier(x.mean(dim=(2, 3)))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {RESNET: DigitsResNet, PLAIN: DigitsPlainNet}


def _stage(
    block: Callable[[int, int, int], nn.Module], count: int, in_channels: int, width: int, *, stride: int
) -> nn.Sequential:
    """Chain `count` blocks of one width, of which the first changes channels and resolution."""
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1)))
