"""The plugin for tidepool: tells resnet_paths_plugin what its models are; brings an analyzer, a figure and a measure.

Tidepool's models need neither `resnet_paths_capture` nor `resnet_paths_detect_blocks`: torch.export follows them, and
the blocks are where the data flow says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

import resnet_paths_plugin as rpp
import tidepool
from tidepool_resnet_paths.figures import RedundancyMap
from tidepool_resnet_paths.measures import score_margin
from tidepool_resnet_paths.redundancy import BlockRedundancy


@rpp.hookimpl
def resnet_paths_describe_model(model: nn.Module) -> rpp.ModelDescription | None:
    """Describe a Limpet; the head, which owns a sum as well, counts to the last zone."""
    if not isinstance(model, tidepool.Limpet):
        return None
    n_classes = model.head.scores.out_features
    return rpp.ModelDescription(
        library="tidepool",
        library_version=tidepool.__version__,
        architecture=model.name,
        input_shape=tidepool.PICTURE_SHAPE,
        preprocessing=rpp.Preprocessing(size=tidepool.PICTURE_SHAPE[1:], mean=tidepool.MEAN, std=tidepool.STD),
        class_names=tidepool.CLASS_NAMES if n_classes == len(tidepool.CLASS_NAMES) else None,
        stages={"zones.0": 0, "zones.1": 1, "zones.2": 2, "head": 2},
    )


@rpp.hookimpl
def resnet_paths_load_model(spec: str, pretrained: bool) -> nn.Module | None:
    """Build `tidepool/NAME`, where NAME is one of `tidepool.list_models()`."""
    library, _, name = spec.partition("/")
    if library != "tidepool":
        return None
    try:
        return tidepool.create_model(name, pretrained=pretrained)
    except LookupError as error:
        raise rpp.ModelNotFoundError(str(error)) from error


@rpp.hookimpl
def resnet_paths_list_models(pretrained: bool) -> Sequence[str]:
    """List `tidepool/NAME` for each Limpet."""
    return [f"tidepool/{name}" for name in tidepool.list_models(pretrained=pretrained)]


@rpp.hookimpl
def resnet_paths_review_blocks(
    model: nn.Module, blocks: tuple[rpp.ResidualBlock, ...]
) -> Sequence[rpp.ResidualBlock] | None:
    """Name the blocks as tidepool does, `mid.2`, grouped by zone; the head's recalibration is no block of a Limpet."""
    if not isinstance(model, tidepool.Limpet):
        return None
    names = model.block_names()
    return [
        replace(block, name=names[block.name], group=names[block.name].partition(".")[0])
        if block.name in names
        else block
        for block in blocks
        if block.module != "head"
    ]


@rpp.hookimpl
def resnet_paths_analyzers() -> Mapping[str, type]:
    """Offer the analyzer that this plugin brings along; it works on any model."""
    return {"BlockRedundancy": BlockRedundancy}


@rpp.hookimpl
def resnet_paths_figures() -> Sequence[rpp.Figure]:
    """Offer the figure of the analyzer's result."""
    return [RedundancyMap()]


@rpp.hookimpl
def resnet_paths_measures(model: nn.Module) -> Mapping[str, Callable[[Any, Any], Tensor]] | None:
    """Offer a measure of a Limpet's outputs, for every study of lesions, reorderings and schedules."""
    return {"score_margin": score_margin} if isinstance(model, tidepool.Limpet) else None
