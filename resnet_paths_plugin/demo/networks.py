"""The two embedded networks for 8x8 grey digits: a 110-layer pre-activation residual network and a plain one.

Architectures only: weights are loaded by `resnet_paths_plugin.demo`, and trained by `examples/train_demo.py`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

RESNET = "digits_resnet110"
PLAIN = "digits_plain15"
N_CLASSES = 10


class PreActivationBlock(nn.Module):
    """Residual block `y = s(x) + f(x)`, whose branch `f` is norm, ReLU, 3x3 convolution, twice.

    The skip `s` is the identity. Where the block changes the resolution it is option A of He et al.: every
    second position, and zeros for the new channels.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, Fig. 1b; option A is from
    "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)

    def skip(self, x: Tensor) -> Tensor:
        """Return `s(x)`, shape `(B, out_channels, H / stride, W / stride)`."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.new_channels))

    def branch(self, x: Tensor) -> Tensor:
        """Return `f(x)`, shape `(B, out_channels, H / stride, W / stride)`."""
        hidden = self.conv1(torch.relu(self.norm1(x)))
        out: Tensor = self.conv2(torch.relu(self.norm2(hidden)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of skip and branch for `x` of shape `(B, in_channels, H, W)`."""
        skip = self.skip(x)
        branch = self.branch(x)
        return skip + branch


class DigitsResNet(nn.Module):
    """Pre-activation residual network of three stages; by default 54 blocks, 110 weighted layers.

    The stages work at 8x8, 4x4 and 2x2 positions. The skip of the first block of the second and of the third
    stage is a projection, every other skip the identity.
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
        x = torch.relu(self.norm(x)).mean(dim=(2, 3))
        logits: Tensor = self.classifier(x)
        return logits


class ConvolutionLayer(nn.Module):
    """A layer without skip: 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shape `(B, out_channels, H / stride, W / stride)`."""
        return torch.relu(self.norm(self.conv(x)))


class DigitsPlainNet(nn.Module):
    """Plain network of 15 weighted layers: 14 convolutions in three stages, and a classifier.

    Every convolution but the first of each stage keeps the shape of its input, so 11 layers can be replaced
    by the identity: the counterpart of VGG in Fig. 3 of the paper.
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
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = MappingProxyType({RESNET: DigitsResNet, PLAIN: DigitsPlainNet})


def _stage(
    make_block: Callable[[int, int, int], nn.Module],
    n_blocks: int,
    in_channels: int,
    width: int,
    *,
    stride: int,
) -> nn.Sequential:
    """Chain `n_blocks` blocks of one width, of which the first changes channels and resolution."""
    first = make_block(in_channels, width, stride)
    return nn.Sequential(first, *(make_block(width, width, 1) for _ in range(n_blocks - 1)))
