"""The residual blocks of a captured graph: detected, staged and reviewed, by plugins where they know better."""

from collections.abc import Sequence
from dataclasses import replace

import pluggy

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.detection import detect_blocks
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.model_description import ModelDescription


def find_blocks(
    graph: CapturedGraph,
    description: ModelDescription | None = None,
    plugin_manager: pluggy.PluginManager | None = None,
) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks of a captured graph, as plugins detect and review them; None asks the installed."""
    blocks = plugins.detect_blocks(graph.model, graph, plugin_manager)
    if blocks is None:
        blocks = detect_blocks(graph)
    return plugins.review_blocks(graph.model, with_stages(blocks, description), plugin_manager)


def with_stages(blocks: Sequence[ResidualBlock], description: ModelDescription | None) -> tuple[ResidualBlock, ...]:
    """Number the stages as the model's library does, where it places every block."""
    stages = [description.stage_of(block.module) if description else None for block in blocks]
    if None in stages:
        return tuple(blocks)
    return tuple(replace(block, stage=stage) for block, stage in zip(blocks, stages, strict=True))
