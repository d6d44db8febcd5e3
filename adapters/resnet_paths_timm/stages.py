"""Which stage of a timm model each module belongs to, read off the names and containers that timm uses.

A stage is what the family's paper calls one; an isotropic model has a single stage.
"""

import re
from collections.abc import Mapping, Sequence

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList)

# Stages that carry a number in their name, such as `layer1`, `stages.0`, `body.layer2` or `s3`. The `layer0`
# of SENets is the stem.
_NUMBERED = re.compile(
    r"(?:(?:body|encoder|model|patch_embed\.backbone)\.)?"
    r"(?:layer(?!0)|layers[._]|levels?[._]?|serial_blocks|stages?[._]?|s|transformers[._])(\d+)"
)

# Containers whose children may be stages, or blocks of one or several stages.
_SERIES = ("blocks", "encoder.blocks", "model.blocks", "network", "features")

# What follows the stages above and is a stage of its own.
_LATER = ("blocks_token_only", "cls_attn_blocks", "post_network", "parallel_blocks")

# Families whose names follow no such rule; the stages are those of their papers.
_PARTICULAR: Mapping[str, Sequence[str]] = {
    "DPN": (r"features\.conv2_\d+", r"features\.conv3_\d+", r"features\.conv4_\d+", r"features\.conv5_\d+"),
    "InceptionResnetV2": (r"repeat", r"repeat_1", r"repeat_2|block8"),
    "Xception": (r"block[1-3]", r"block([4-9]|10|11)", r"block12"),
}


def stages(model: nn.Module) -> dict[str, int]:
    """Return the stage, from 0, of the modules that make up a model's stages; empty where none is known."""
    patterns = _PARTICULAR.get(type(model).__name__)
    if patterns:
        return {
            path: stage
            for stage, pattern in enumerate(patterns)
            for path, _ in model.named_modules()
            if re.fullmatch(pattern, path)
        }
    groups = _numbered(model)
    for path in _SERIES:
        series = _submodule(model, path)
        if isinstance(series, _CONTAINERS):
            groups += _series(path, series, _reductions(model, path))
    groups += [[path] for path in _LATER if _submodule(model, path) is not None]
    return {path: stage for stage, group in enumerate(groups) for path in group}


def _numbered(model: nn.Module) -> list[list[str]]:
    numbers = {path: int(match[1]) for path, _ in model.named_modules() if (match := _NUMBERED.fullmatch(path))}
    return [[path] for path in sorted(numbers, key=numbers.__getitem__)]


def _series(path: str, series: nn.Module, reductions: Mapping[str, int]) -> list[list[str]]:
    """Cut a container into stages: children that are containers are one each, blocks belong to one or a few.

    Args:
        path: path of the container.
        series: the container.
        reductions: how far the resolution is reduced at those of its children where timm taps features.

    Returns:
        The module paths of each stage.
    """
    children = dict(series.named_children())
    isotropic = len(reductions) > 1 and len(set(reductions.values())) == 1
    if not isotropic and all(isinstance(child, _CONTAINERS) for child in children.values()):
        return [[f"{path}.{child}"] for child in children]
    if len(set(reductions.values())) <= 1:
        return [[path]]
    stages: list[list[str]] = [[]]
    for child in children:
        stages[-1].append(f"{path}.{child}")
        if child in reductions:  # timm taps the last child of each stage
            stages.append([])
    rest = stages.pop()
    stages[-1] += rest
    return stages


def _reductions(model: nn.Module, path: str) -> dict[str, int]:
    """Return the reduction of resolution at the children of a container where timm taps features."""
    tap = re.compile(rf"(?:.+\.)?{path.rpartition('.')[2]}\.(\w+)(?:\..+)?")
    taps = getattr(model, "feature_info", None) or ()
    return {match[1]: info["reduction"] for info in taps if (match := tap.fullmatch(info["module"]))}


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
