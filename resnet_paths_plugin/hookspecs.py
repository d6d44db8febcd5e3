"""The hooks that a plugin may implement, under their public name.

`help(rpp.hookspecs.resnet_paths_describe_model)` says when that hook is called and what it returns. The others are
`resnet_paths_load_model`, `resnet_paths_capture`, `resnet_paths_detect_blocks`, `resnet_paths_review_blocks`,
`resnet_paths_analyzers`, `resnet_paths_figures`, `resnet_paths_list_models` and `resnet_paths_measures`.

Examples:
    >>> import dataclasses
    >>> class Renaming:
    ...     @rpp.hookimpl
    ...     def resnet_paths_review_blocks(self, model, blocks):
    ...         return [dataclasses.replace(block, name=f"block {block.index}") for block in blocks]
    >>> manager = rpp.create_plugin_manager()
    >>> _ = manager.register(Renaming())
    >>> rpp.unravel(model, images, plugin_manager=manager).blocks[0].name
    'block 0'
"""

from resnet_paths_plugin.plugins.hookspecs import (
    hookimpl,
    resnet_paths_analyzers,
    resnet_paths_capture,
    resnet_paths_describe_model,
    resnet_paths_detect_blocks,
    resnet_paths_figures,
    resnet_paths_list_models,
    resnet_paths_load_model,
    resnet_paths_measures,
    resnet_paths_review_blocks,
)

__all__ = [
    "hookimpl",
    "resnet_paths_analyzers",
    "resnet_paths_capture",
    "resnet_paths_describe_model",
    "resnet_paths_detect_blocks",
    "resnet_paths_figures",
    "resnet_paths_list_models",
    "resnet_paths_load_model",
    "resnet_paths_measures",
    "resnet_paths_review_blocks",
]
