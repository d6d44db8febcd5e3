"""Limpet: residual networks whose blocks are run by their zone and go by names such as `mid.2`."""

from itertools import pairwise

import torch
from torch import Tensor, nn

ZONES = ("high", "mid", "low")
"""The zones of a shore, from dry to wet, and of a network, from input to output."""


class Zone(nn.Module):
    """Blocks of one width: to what flows through, each adds its branch times a gain that is learnt.

    The blocks have no module of their own, only their branches have.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(width) for _ in range(depth))
        self.gains = nn.Parameter(torch.ones(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`, `(B, width, H, W)`."""
        for index, branch in enumerate(self.branches):
            x = x + self.gains[index] * branch(x)
        return x


class Head(nn.Module):
    """Scores of the classes, then recalibrated: a small network corrects the scores by what they are themselves."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, n_classes)
        self.correction = nn.Sequential(nn.Linear(n_classes, 8), nn.ReLU(), nn.Linear(8, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `(B, n_classes)`, of features `(B, width, H, W)`."""
        scores: Tensor = self.scores(x.mean(dim=(2, 3)))
        corrected: Tensor = scores + self.correction(scores)
        return corrected


class Limpet(nn.Module):
    """A network of three zones, each half as large as the one before, and a head.

    Args:
        name: the model's name in this library.
        depth: blocks in each zone.
        n_classes: classes told apart.
        widths: channels of the zones.
    """

    def __init__(self, name: str, depth: int, n_classes: int = 4, widths: tuple[int, int, int] = (8, 12, 16)) -> None:
        super().__init__()
        self.name = name
        self.depth = depth
        stem = nn.Conv2d(3, widths[0], 3, padding=1)
        steps = [nn.Conv2d(narrow, wide, 2, stride=2) for narrow, wide in pairwise(widths)]
        self.entries = nn.ModuleList([stem, *steps])
        self.zones = nn.ModuleList(Zone(width, depth) for width in widths)
        self.head = Head(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `(B, n_classes)`, of pictures `(B, 3, H, W)`."""
        for entry, zone in zip(self.entries, self.zones, strict=True):
            x = zone(entry(x))
        logits: Tensor = self.head(x)
        return logits

    def block_names(self) -> dict[str, str]:
        """Return this library's name of each block, by the path of its branch: zone, and number from 1."""
        return {
            f"zones.{place}.branches.{index}": f"{zone}.{index + 1}"
            for place, zone in enumerate(ZONES)
            for index in range(self.depth)
        }


def _branch(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, 2 * width, 1),
        nn.ReLU(),
        nn.Conv2d(2 * width, width, 1),
    )
