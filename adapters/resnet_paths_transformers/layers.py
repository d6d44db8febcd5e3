"""Where the layers of a model are, and its towers: read off its lists of modules."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_OF_STAGE = re.compile(r"(?:.+_)?(?:blocks?|layers?)")
"""What the list of layers is called in a module that is a stage of several."""
_STEM = re.compile(
    r"(?:.+\.)?(?:feature_extractor|feature_projection|embeddings?|patch_embed\w*|\w*norm\w*|parametrizations)(?:\.|$)"
)
"""Lists of modules that are no layers: what comes before the first layer, norms, and how weights are computed."""


@dataclass(frozen=True)
class _Series:
    """A list of modules that is in no other one.

    Attributes:
        owner: path of the module that has it.
        parts: path of each module of the list, with the paths of the layers in it where it is a stage of several.
    """

    owner: str
    parts: dict[str, list[str]]

    @property
    def is_hierarchical(self) -> bool:
        """Whether its modules are stages, not layers."""
        return all(self.parts.values())

    def modules(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield all modules in it."""
        for path in self.parts:
            yield from model.get_submodule(path).modules()


def layers(model: nn.Module) -> list[str]:
    """Return the paths of the modules that are layers, such as `model.layers.3` or `encoder.layers.0.blocks.1`."""
    return [path for series in _all_series(model) for part, own in series.parts.items() for path in own or [part]]


def stages(model: nn.Module) -> dict[str, int]:
    """Return the stage, from 0, of the modules that make up a model's stages; empty for a model of one stage.

    The stages of a hierarchical model are those that it has as modules. Where there are several towers (an encoder and
    a decoder, the parts for text and for images), each other one is a stage, in the order of their definition.
    """
    series = list(_all_series(model))
    groups: list[str] = []
    for tower, own in _towers(series).items():
        hierarchical = next((one for one in own if one.is_hierarchical), None)
        groups += list(hierarchical.parts) if hierarchical else [tower]
    if len(groups) == 1 and any(isinstance(module, nn.Conv2d) for one in series for module in one.modules(model)):
        return {}  # its resolution may change from layer to layer
    return {path: stage for stage, path in enumerate(groups)}


def _towers(series: Sequence[_Series]) -> dict[str, list[_Series]]:
    """Return the lists of each part of a model that none of its modules is shared by, by the part's path."""
    owners = [one.owner.split(".") if one.owner else [] for one in series]
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*owners, strict=False)))
    towers: dict[str, list[_Series]] = {}
    for one, owner in zip(series, owners, strict=True):
        towers.setdefault(".".join(owner[: shared + 1]), []).append(one)
    return towers


def _all_series(model: nn.Module) -> Iterator[_Series]:
    """Yield the outermost lists of modules that may be layers."""
    seen: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or _STEM.match(path):
            continue
        if not len(module) or path.startswith(tuple(seen)):
            continue
        seen.append(f"{path}.")
        parts = {f"{path}.{name}": _inside(f"{path}.{name}", part) for name, part in module.named_children()}
        yield _Series(path.rpartition(".")[0], parts)


def _inside(path: str, stage: nn.Module) -> list[str]:
    """Return the paths of the layers of a stage; none where the module is a layer.

    The list in a layer that keeps its attention and its MLP in one, as T5's does, has each class once.
    """
    if isinstance(stage, _CONTAINERS):
        lists = [(path, stage)]
    else:
        named = ((name, child) for name, child in stage.named_children() if _OF_STAGE.fullmatch(name))
        lists = [(f"{path}.{name}", child) for name, child in named if isinstance(child, _CONTAINERS)]
    for place, found in lists:
        kinds = Counter(type(one) for one in found)
        if len(found) == 1 or len(kinds) < len(found):
            return [f"{place}.{name}" for name, _ in found.named_children()]
    return []
