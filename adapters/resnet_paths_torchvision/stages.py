"""Which stage of a torchvision model each module belongs to, read off the names and classes in use there.

A stage is what the family's paper calls one; an isotropic model has a single stage.
"""

import re
from collections.abc import Iterator

from torch import nn
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedResidualV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.video.mvit import MViT
from torchvision.models.vision_transformer import VisionTransformer

# ResNets of images and videos, alone or as a backbone; RegNets.
_NUMBERED = re.compile(r"(?:.+\.)?(?:layer|trunk_output\.block)(\d+)")


def stages(model: nn.Module) -> dict[str, int]:
    """Return the stage, from 0, of the modules that make up a model's stages; empty where none is known."""
    if isinstance(model, VisionTransformer):
        return {"encoder.layers": 0}
    if isinstance(model, MViT):
        return _halved(model)
    return _numbered(model) or _widths(model) or _containers(model)


def _halved(model: MViT) -> dict[str, int]:
    """Begin a stage at each block that pools its skip, where multiscale transformers halve the resolution."""
    stage = 0
    found = {}
    for name, block in model.blocks.named_children():
        stage += block.pool_skip is not None
        found[f"blocks.{name}"] = stage
    return found


def _numbered(model: nn.Module) -> dict[str, int]:
    numbers = {path: int(match[1]) for path, _ in model.named_modules() if (match := _NUMBERED.fullmatch(path))}
    ranks = {number: rank for rank, number in enumerate(sorted(set(numbers.values())))}
    return {path: ranks[number] for path, number in numbers.items()}


def _widths(model: nn.Module) -> dict[str, int]:
    """Begin a stage where the width of MobileNet blocks changes: a row of the table in their papers."""
    found: dict[str, int] = {}
    stage, width = -1, None
    for path, block in model.named_modules():
        if isinstance(block, (InvertedResidualV2, InvertedResidualV3)):
            stage += block.out_channels != width
            width = block.out_channels
            found[path] = stage
    return found


def _containers(model: nn.Module) -> dict[str, int]:
    """Number the containers of blocks; what lies between two of them downsamples for the second."""
    found: dict[str, int] = {}
    stage = -1
    between: list[str] = []
    for path, module in _series(model):
        between.append(path)
        if _is_stage(module):
            stage += 1
            found |= dict.fromkeys(between if stage else [path], stage)
            between = []
    return found


def _series(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of the containers in which torchvision keeps a trunk in order."""
    for name in ("features", "layers", "blocks"):
        for child, module in getattr(model, name, nn.Sequential()).named_children():
            yield f"{name}.{child}", module


def _is_stage(module: nn.Module) -> bool:
    if isinstance(module, MaxVitBlock):
        return True
    # Stems and downsampling layers are plain sequences too, but of layers, not of blocks.
    return type(module) is nn.Sequential and all(any(block.children()) for block in module)
