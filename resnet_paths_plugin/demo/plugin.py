"""The plugin for the networks that come with this package: it describes and loads them."""

from torch import nn

from resnet_paths_plugin import demo
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
