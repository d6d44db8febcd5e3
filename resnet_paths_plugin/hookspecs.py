"""The hooks that a plugin may implement, under their public name.

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

from resnet_paths_plugin.plugins.hookspecs import *
from resnet_paths_plugin.plugins.hookspecs import hookimpl as hookimpl
