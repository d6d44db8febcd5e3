"""Options and arguments that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from resnet_paths_plugin.cli.terminal import QUIET
from resnet_paths_plugin.files.output_files import Mode
from resnet_paths_plugin.network.captured_network import Units
from resnet_paths_plugin.plotting.style import FigureWidth
from resnet_paths_plugin.plugins.model_description import Interpolation

Function = TypeVar("Function", bound=Callable[..., Any])

MODEL_HELP = """MODEL is one of

\b
  library/name     a model of a library that a plugin knows, such as
                   timm/resnet50 or torchvision/resnet50
  module:callable  MODULE is imported, with the current folder on the import
                   path, and CALLABLE is called without arguments to make a
                   torch.nn.Module. This runs that module's code, and it
                   is the only way to run code of your own from here.
"""


def numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that reads numbers with commas between them."""

    def read(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError as error:
            noun = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{value!r} should be {noun} with commas between them") from error

    return read


weights_option = click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors",
    help="Weights to load; every name and shape must fit the model.",
)  # fmt: skip
pretrained_option = click.option(
    "--pretrained", is_flag=True, help="Load the library's pretrained weights (may download them)."
)


def _be_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[QUIET] = value


quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_be_quiet, help="Print errors and warnings only."
)


def normalisation_options(command: Function) -> Function:
    """Add what images are brought to, where it is not what the model's library says."""
    for option in reversed(_NORMALISATION):
        command = option(command)
    return command


_NORMALISATION = (
    click.option(
        "--image-size", callback=numbers(int), metavar="H[,W]",
        help="Resize images to this size. [default: the model's own]",
    ),
    click.option(
        "--crop", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
        help="Share of the resized image that the central crop keeps. [default: the model's own]",
    ),
    click.option(
        "--interpolation", type=click.Choice(get_args(Interpolation)),
        help="Filter to resize with. [default: the model's own]",
    ),
    click.option(
        "--mean", callback=numbers(float), metavar="A,B,C",
        help="Mean of each channel, for channels scaled to 0..1. [default: the model's own]",
    ),
    click.option(
        "--std", callback=numbers(float), metavar="A,B,C",
        help="Standard deviation of each channel, likewise. [default: the model's own]",
    ),
)  # fmt: skip

figure_width_option = click.option(
    "--figure-width", type=click.Choice(get_args(FigureWidth)),
    help="Width of the figures' files: a paper's one column (89 mm) or two (183 mm), with text of 7 or 8 points. "
    "[default: for the screen]",
)  # fmt: skip

no_clobber_option = click.option("--no-clobber", is_flag=True, help="Refuse to replace files that exist already.")

units_option = click.option(
    "--units", type=click.Choice(get_args(Units)), default="blocks", show_default=True,
    help="Residual blocks, or, of any network, the layers whose output has their input's shape.",
)  # fmt: skip


def mode_of(*, no_clobber: bool) -> Mode:
    """Return how files are opened: whether one that exists is replaced."""
    return "x" if no_clobber else "w"
