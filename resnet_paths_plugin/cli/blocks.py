"""The command `resnet-paths blocks`: a model's residual blocks as a table."""

from pathlib import Path

import click
import torch

from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.command import Command
from resnet_paths_plugin.cli.options import MODEL_HELP, numbers, pretrained_option, units_option, weights_option
from resnet_paths_plugin.cli.terminal import echo
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network.captured_network import Units
from resnet_paths_plugin.network.unraveling import unravel
from resnet_paths_plugin.plugins import manager as plugins


@click.command(cls=Command, epilog=MODEL_HELP, short_help="Print a model's residual blocks.")
@click.argument("model")
@click.option(
    "--input-shape", callback=numbers(int), metavar="C,H,W",
    help="Shape of one input, for a model that no plugin describes.",
)  # fmt: skip
@click.option(
    "--other-sums", is_flag=True, help="Print also the sums that close no residual block, each with the reason."
)
@units_option
@pretrained_option
@weights_option
def blocks(
    model: str,
    input_shape: tuple[int, ...] | None,
    *,
    other_sums: bool,
    units: Units,
    pretrained: bool,
    weights: Path | None,
) -> None:
    """Print the table of a MODEL's residual blocks, or of its layers."""
    manager = plugins.create_plugin_manager()
    module = models.load(model, pretrained, weights, manager)
    example = None
    if input_shape is not None:
        if min(input_shape) < 1:
            raise InputError(f"--input-shape must hold sizes of at least 1, not {input_shape}")
        try:
            example = torch.zeros((2, *input_shape), dtype=models.dtype_of(module))
        except (RuntimeError, TypeError) as error:
            raise InputError(
                "--input-shape is of an input that does not fit into memory: give smaller sizes"
            ) from error
    else:
        description = plugins.describe(module, manager)
        if description is None or description.input_shape is None:
            raise InputError(f"the input shape of {model} is not known: give it, as in --input-shape 3,224,224")
    net = unravel(module, example, units=units, plugin_manager=manager)
    echo(net)
    if other_sums:
        table = net.other_sums()
        echo(f"\n{len(table)} other sums" + (f"\n{table.to_string(index=False)}" if len(table) else ""))
