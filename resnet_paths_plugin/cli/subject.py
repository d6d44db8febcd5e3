"""What a command studies: the network of a model, captured for the images that it runs on."""

from collections.abc import Sequence

import pluggy
import torch
from torch import nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin import demo
from resnet_paths_plugin.analyzers.outputs import outputs_of
from resnet_paths_plugin.analyzers.rewiring.measures import Measures
from resnet_paths_plugin.cli.command import warn
from resnet_paths_plugin.cli.images import ImageArray, LabelledImages, check_targets
from resnet_paths_plugin.cli.preprocessing import InputBatches
from resnet_paths_plugin.cli.studies import common_size
from resnet_paths_plugin.cli.texts import TextBatches
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network.captured_network import Optimization, Units
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.network.unraveling import unravel


def held_out_digits() -> LabelledImages:
    """Return the images that come with the embedded networks."""
    images, labels = demo.load_digit_images()
    return ImageArray("the held-out digits", images, labels, demo.CLASS_NAMES)


def unraveled(
    model: nn.Module,
    batches: InputBatches | TextBatches,
    cuts: Sequence[int],
    units: Units,
    optimize: Sequence[Optimization],
    manager: pluggy.PluginManager,
    *,
    verify: bool,
    task: str | None = None,
) -> UnraveledNetwork:
    """Unravel the model for the images that it runs on; where it freezes the batch, for a size that divides them all.

    Args:
        model: the model.
        batches: all images; where the batch is frozen, their batch size becomes a multiple of it.
        cuts: further numbers of images that a frozen batch must divide, beside that of all.
        units: as of `unravel`.
        optimize: as of `unravel`.
        manager: the plugin manager.
        verify: as of `unravel`.
        task: as of `unravel`.
    """

    def captured(count: int) -> UnraveledNetwork:
        example, _ = next(iter(batches.head(count)))
        device = next((one.device for one in model.parameters()), torch.device("cpu"))
        args = pytree.tree_map(lambda leaf: leaf.to(device), example)
        return unravel(model, args, units=units, optimize=optimize, plugin_manager=manager, verify=verify, task=task)

    network = captured(2)
    network.require_blocks()
    if network.frozen_batch:
        size = common_size(batches, cuts)
        batches.batch_size -= batches.batch_size % size
        network = captured(size)
    if not verify:
        warn("--no-verify: nothing shows whether what was captured is the model; the results say verified = no")
    return network


def check_classes(network: UnraveledNetwork, batches: InputBatches | TextBatches) -> None:
    """Check all labels against the network's outputs before the long run."""
    if isinstance(batches, TextBatches):
        readout = network.readout
        n_tokens = readout.n_classes(readout.sizes_of(outputs_of(network)))
        if n_tokens is None or readout.task is None or readout.task.name != "next_token":
            raise InputError(
                f"{network.name} is no model that predicts the next token, which --text is for: study it from Python"
            )
        batches.check(n_tokens)
        return
    images = batches.images
    measures = Measures(network, None)
    n_classes = measures.n_classes
    if n_classes is None:
        measures.refuse()
    check_targets(images, batches.targets, n_classes)
    if images.classes and len(images.classes) != n_classes and batches.targets is images.labels:
        warn(
            f"{images.origin} has {len(images.classes)} classes and the model {n_classes}: they count as "
            f"the model's first ones, in this order: {', '.join(images.classes[:3])}, ..."
        )
