"""This package as a plugin like any other: its networks, generic detector, analyzers and figures."""

from collections.abc import Mapping, Sequence

from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.analyzers.base import Analyzer
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.detection import detect_blocks
from resnet_paths_plugin.plotting.figure import Figure
from resnet_paths_plugin.plotting.registry import FIGURES
from resnet_paths_plugin.plugins.hookspecs import hookimpl
from resnet_paths_plugin.plugins.model_description import ModelDescription


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
def resnet_paths_list_models() -> Sequence[str]:
    """List the embedded networks."""
    return [f"{demo.LIBRARY}/{name}" for name in demo.ARCHITECTURES]


@hookimpl
def resnet_paths_analyzers() -> Mapping[str, type]:
    """Offer this package's analyzers, which are those among its public names."""
    public = {name: getattr(rpp, name) for name in dir(rpp)}
    return {
        name: value
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, Analyzer) and value is not Analyzer
    }


@hookimpl
def resnet_paths_figures() -> Sequence[Figure]:
    """Offer this package's figures."""
    return FIGURES


@hookimpl(trylast=True)
def resnet_paths_detect_blocks(graph: CapturedGraph) -> Sequence[ResidualBlock]:
    """Find the residual blocks of any model by its data flow."""
    return detect_blocks(graph)
