"""This package's own plugin: it describes and loads the networks that come with it, and offers its analyzers."""

from collections.abc import Mapping

from torch import nn

from resnet_paths_plugin import demo
from resnet_paths_plugin.analyzers.influence import BlockInfluence
from resnet_paths_plugin.analyzers.lesion import BlockLesion
from resnet_paths_plugin.analyzers.path_length import PathLengthGradient
from resnet_paths_plugin.analyzers.reordering import BlockReordering
from resnet_paths_plugin.analyzers.schedules import BlockSchedules
from resnet_paths_plugin.description import ModelDescription
from resnet_paths_plugin.hookspecs import hookimpl


@hookimpl
def resnet_paths_describe_model(model: nn.Module) -> ModelDescription | None:
    """Describe an embedded network."""
    return demo.describe(model)


@hookimpl
def resnet_paths_load_model(spec: str, pretrained: bool) -> nn.Module | None:
    """Build an embedded network by its name."""
    library, _, name = spec.partition("/")
    return demo.build_network(name, pretrained=pretrained) if library == demo.LIBRARY else None


@hookimpl
def resnet_paths_analyzers() -> Mapping[str, type]:
    """Offer this package's analyzers, by the names of their classes."""
    own = (BlockInfluence, BlockLesion, BlockReordering, BlockSchedules, PathLengthGradient)
    return {analyzer.__name__: analyzer for analyzer in own}
