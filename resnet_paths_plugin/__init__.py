"""Residual networks as collections of paths: lesions, reorderings and path gradients of any model, unmodified."""

from resnet_paths_plugin import hookspecs, paths, plotting, schedules
from resnet_paths_plugin.analyzers.influence import BlockInfluence
from resnet_paths_plugin.analyzers.lesion import BlockLesion
from resnet_paths_plugin.analyzers.path_length import PathLengthGradient
from resnet_paths_plugin.analyzers.reordering import BlockReordering
from resnet_paths_plugin.analyzers.running import RunOptions
from resnet_paths_plugin.analyzers.schedules import BlockSchedules
from resnet_paths_plugin.datasets import load, save
from resnet_paths_plugin.description import ModelDescription, Preprocessing
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import CheckpointError, ModelNotFoundError, ResnetPathsError, WorkerLostError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.hookspecs import hookimpl
from resnet_paths_plugin.network import UnraveledNetwork
from resnet_paths_plugin.plugins import PluginWarning, create_plugin_manager, load_model
from resnet_paths_plugin.unraveling import unravel

__all__ = [
    "BlockInfluence",
    "BlockLesion",
    "BlockReordering",
    "BlockSchedules",
    "CheckpointError",
    "ModelDescription",
    "ModelNotFoundError",
    "PathLengthGradient",
    "PluginWarning",
    "Preprocessing",
    "ResidualBlock",
    "ResnetPathsError",
    "RunOptions",
    "Schedule",
    "UnraveledNetwork",
    "WorkerLostError",
    "create_plugin_manager",
    "hookimpl",
    "hookspecs",
    "load",
    "load_model",
    "paths",
    "plotting",
    "save",
    "schedules",
    "unravel",
]
