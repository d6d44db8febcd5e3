"""The command `resnet-paths`: blocks, plugins, and a whole analysis from images to a file with figures.

Thin over the library: it reads options, reports errors in one line each, and writes files.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import getdoc
from pathlib import Path
from typing import Any, get_args

import click
import matplotlib as mpl
import pluggy
import torch
import xarray as xr
from torch import nn

from resnet_paths_plugin import datasets, demo, plugins, report
from resnet_paths_plugin.analyzers.measures import Measures
from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.command import Command, warn
from resnet_paths_plugin.cli.images import ImageArray, LabelledImages, check_targets, read_images, targets_of
from resnet_paths_plugin.cli.outputs import check_writable, default_output, figure_path, report_path, save_figure
from resnet_paths_plugin.cli.preprocessing import InputBatches, preprocessing_for
from resnet_paths_plugin.cli.running import PartialRun, executor_for, run_options
from resnet_paths_plugin.cli.studies import STUDIES, Study, StudyOptions, studies_by
from resnet_paths_plugin.cli.terminal import echo
from resnet_paths_plugin.errors import FileError, InputError, ResnetPathsError
from resnet_paths_plugin.netcdf_files import check_opening
from resnet_paths_plugin.network import Optimization, Units, UnraveledNetwork
from resnet_paths_plugin.plotting.kinds import kind_of
from resnet_paths_plugin.unraveling import unravel
from resnet_paths_plugin.weights import load_weights

_EXAMPLES = """Examples:

\b
  resnet-paths analyze
  resnet-paths analyze timm/resnet18 --pretrained --images photos/
  resnet-paths analyze mymodels:resnet20 --weights resnet20.safetensors
      --images test.npz --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26
  resnet-paths blocks torchvision/resnet50
"""
_MODEL_HELP = """MODEL is one of

\b
  library/name     a model of a library that a plugin knows, such as
                   timm/resnet50 or torchvision/resnet50
  module:callable  MODULE is imported, with the current folder on the import
                   path, and CALLABLE is called without arguments to make a
                   torch.nn.Module. This runs that module's code, and it
                   is the only way to run code of your own from here.
"""


def _numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
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


_weights_option = click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors",
    help="Weights to load; every name and shape must fit the model.",
)  # fmt: skip
_pretrained_option = click.option(
    "--pretrained", is_flag=True, help="Load the library's pretrained weights (may download them)."
)

_units_option = click.option(
    "--units", type=click.Choice(get_args(Units)), default="blocks", show_default=True,
    help="Residual blocks, or, of any network, the layers whose output has their input's shape.",
)  # fmt: skip


@click.group(
    "resnet-paths", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EXAMPLES
)
@click.version_option(package_name="resnet-paths-plugin", message="%(prog)s %(version)s")
def main() -> None:
    """Study residual networks as collections of paths, without changing them."""


@main.command(cls=Command, epilog=_MODEL_HELP, short_help="Print a model's residual blocks.")
@click.argument("model")
@click.option(
    "--input-shape", callback=_numbers(int), metavar="C,H,W",
    help="Shape of one input, for a model that no plugin describes.",
)  # fmt: skip
@click.option(
    "--other-sums", is_flag=True, help="Print also the sums that close no residual block, each with the reason."
)
@_units_option
@_pretrained_option
@_weights_option
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
    module = _load(model, pretrained, weights, manager)
    example = None
    if input_shape is not None:
        if min(input_shape) < 1:
            raise InputError(f"--input-shape must hold sizes of at least 1, not {input_shape}")
        example = torch.zeros((2, *input_shape), dtype=_dtype(module))
    else:
        description = plugins.describe(module, manager)
        if description is None or description.input_shape is None:
            raise InputError(f"the input shape of {model} is not known: give it, as in --input-shape 3,224,224")
    net = unravel(module, example, units=units, plugin_manager=manager)
    echo(net)
    if other_sums:
        table = net.other_sums()
        echo(f"\n{len(table)} other sums" + (f"\n{table.to_string(index=False)}" if len(table) else ""))


@main.command("plugins", cls=Command, short_help="List plugins and analyzers.")
def list_plugins() -> None:
    """List the plugins found here, with their hooks, and the analyzers offered."""
    manager = plugins.create_plugin_manager()
    for info in plugins.listing(manager):
        echo(f"{info}\n    module: {info.module}\n    hooks:  {', '.join(info.hooks) or 'none'}")
    echo("\nAnalyzers:")
    for name, analyzer in plugins.analyzers(manager).items():
        told = (getdoc(analyzer) or "").partition("\n")[0]
        echo(f"    {name} ({analyzer.__module__})" + (f": {told}" if told else ""))


@main.command(cls=Command, epilog=_MODEL_HELP, short_help="Run the studies; write a file and figures.")
@click.argument("model", required=False)
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
    help="Labelled images. An npz file holds 'images', uint8 of shape (N, H, W, C), and 'labels', integers "
    "of shape (N,). A folder holds one folder per class; these are numbered in the order of their names, or "
    "matched with the model's classes where all of them have such names.",
)  # fmt: skip
@_weights_option
@_pretrained_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.nc",
    help="File to write; report and figures come beside it. [default: named after the model, in the current folder]",
)  # fmt: skip
@click.option(
    "--analyzer", "analyzers", multiple=True, metavar="NAME",
    help="Run only this analyzer, one of those that `resnet-paths plugins` lists; may be repeated. "
    "[default: every study of this package]",
)  # fmt: skip
@_units_option
@click.option("--device", default="cpu", show_default=True, help="Device to run on, such as cuda.")
@click.option(
    "--optimize", multiple=True, type=click.Choice(sorted(get_args(Optimization))),
    help="Run faster, with outputs that differ in the last digits; may be repeated.",
)  # fmt: skip
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per forward pass. [default: what suits the cache]",
)
@click.option(
    "--mean", callback=_numbers(float), metavar="A,B,C",
    help="Mean of each channel, for channels scaled to 0..1. [default: the model's own]",
)  # fmt: skip
@click.option(
    "--std", callback=_numbers(float), metavar="A,B,C",
    help="Standard deviation of each channel, likewise. [default: the model's own]",
)  # fmt: skip
@click.option("--draws", type=click.IntRange(min=1), default=10, show_default=True,
              help="Random sets of blocks of each size, and random orders of each number of swaps.")  # fmt: skip
@click.option("--max-deleted", type=click.IntRange(min=1), default=20, show_default=True,
              help="Most blocks deleted at once; at most all of them.")  # fmt: skip
@click.option("--max-swaps", type=click.IntRange(min=0), default=10, show_default=True,
              help="Most swaps of two blocks in one order; 0 leaves reorderings out.")  # fmt: skip
@click.option("--path-images", type=click.IntRange(min=0), default=8, show_default=True,
              help="Images of the study of path lengths, from the first; 0 leaves it out.")  # fmt: skip
@click.option("--path-draws", type=click.IntRange(min=2), default=20, show_default=True,
              help="Sampled paths of each length.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of everything random, initial weights included.")  # fmt: skip
@run_options
@click.option("--progress/--no-progress", default=None, help="Show progress bars. [default: if run in a terminal]")
def analyze(
    model: str | None, images: Path | None, output: Path | None, *,
    weights: Path | None, pretrained: bool, analyzers: tuple[str, ...], units: Units, device: str,
    optimize: tuple[Optimization, ...],
    batch_size: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, draws: int,
    max_deleted: int, max_swaps: int, path_images: int, path_draws: int, seed: int, progress: bool | None,
    workers: int | None, scheduler: str | None, resume: bool,
) -> None:  # fmt: skip
    """Study a MODEL: lesions and reorderings of its residual blocks, and its gradients by path length.

    Deletes blocks one by one and in random sets, and lets them trade places, to see what becomes of the answers;
    compares the effect of deleting a block with what foretells it; and splits the input gradient by the length of the
    paths along which it flows: exactly, and by sampled paths as in the paper. Writes one netCDF file with a group per
    study, its figures (Figs. 3, 5, 6 and 7 of Veit et al. 2016, and more), and a report of all of it as one HTML page.
    Older files of these names are replaced. With --analyzer, only the studies of some analyzers are run, which may be a
    plugin's. Of layers (--units layers), which have no skips, only the lesions and
    reorderings are run. Without MODEL, studies the embedded network of 54 blocks, and
    without --images on the handwritten digits that were held out from its training; this downloads nothing.
    """
    started = time.perf_counter()
    mpl.use("agg")  # draws into files only, on a machine without a screen as well
    if images is None and model is not None:
        raise InputError("a MODEL needs --images: an npz file, or a folder with a folder per class")
    if output is not None:
        check_writable(output)
    target_device = models.check_device(device)
    manager = plugins.create_plugin_manager()
    studies = studies_by(analyzers, plugins.analyzers(manager)) if analyzers else STUDIES
    torch.manual_seed(seed)
    found = _held_out_digits() if images is None else read_images(images)
    module = _load(model or models.EMBEDDED, pretrained or model is None, weights, manager).to(target_device)
    if model and "/" in model and not pretrained and weights is None:
        warn(f"{model} has random weights: give --pretrained or --weights to study a trained network")
    description = plugins.describe(module, manager)
    if output is None:
        output = default_output(module, description)
        check_writable(output)
    preprocessing, resize = preprocessing_for(description, found, mean, std)
    targets = targets_of(found, description.class_names if description else None)
    batches = InputBatches(found, targets, preprocessing, resize=resize, batch_size=batch_size, dtype=_dtype(module))
    network = _unraveled(module, batches, units, optimize, manager)
    _check_classes(network, batches)
    noun = "residual blocks" if units == "blocks" else "layers that can be deleted"
    echo(f"{network.name}: {len(network.blocks)} {noun}, {len(found)} images of {found.origin}")
    options = StudyOptions(
        embedded=model is None and images is None and units == "blocks",
        draws=draws,
        max_deleted=max_deleted,
        max_swaps=max_swaps,
        path_images=path_images,
        path_draws=path_draws,
        seed=seed,
        internal_batch_size=batch_size,
        show_progress=sys.stderr.isatty() if progress is None else progress,
    )
    wanted = [study for study in studies if study.wanted(network, options)]
    if not wanted:
        raise InputError(f"{', '.join(analyzers)} finds nothing to study in {network.name} with these options")
    _warn_of_no_effect(wanted, {"--workers": workers, "--scheduler": scheduler, "--resume": resume})
    partial = PartialRun(output, [study.group for study in wanted], resume=resume)
    results: dict[str, xr.Dataset] = {}
    with partial.kept(), executor_for(scheduler, workers) as executor:
        for study in wanted:
            run = partial.options(study.group, executor)
            results[study.group] = study.run(network, batches, replace(options, run=run), results)
        tree = datasets.build_tree(results)
        written = [datasets.save(tree, output)]
    partial.remove()
    figures = report.figures(tree)
    for figure in figures:
        echo(_told(figure))
    for group, result in results.items():
        if kind_of(result) is None:
            echo(f"{group}: no figure fits it; the report lists what it holds")
    written += [save_figure(figure, figure_path(output, figure.name)) for figure in figures]
    written.append(report.write_report(tree, report_path(output)))
    echo(f"written: {', '.join(map(str, written))}")
    echo(f"{time.perf_counter() - started:.1f} s")


@main.command("report", cls=Command, short_help="Make the report of a file again.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.nc")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.html",
    help="Page to write. [default: beside FILE.nc, with its name]",
)  # fmt: skip
def make_report(file: Path, output: Path | None) -> None:
    """Make one self-contained HTML page from FILE.nc: what the model is, its blocks, every figure, the provenance."""
    mpl.use("agg")
    if file.is_file():
        check_opening(file)
    result = datasets.load(file)
    try:
        written = report.write_report(result, output or report_path(file))
    except (ResnetPathsError, MemoryError):
        raise
    except Exception as error:  # whatever comes up where the schema's names stand for other things
        raise FileError(
            f"{file} is not what save writes, so no report can be made of it ({type(error).__name__}: {error}): "
            "run the study again"
        ) from error
    echo(f"written: {written}")


def _load(spec: str, pretrained: bool, weights: Path | None, manager: pluggy.PluginManager) -> nn.Module:
    """Build the model and load its weights."""
    if pretrained and weights is not None and spec != models.EMBEDDED:
        raise InputError("give --pretrained or --weights, not both")
    model = models.build_model(spec, pretrained=pretrained, plugin_manager=manager)
    if weights is not None:
        load_weights(model, weights)
    return model


def _unraveled(
    model: nn.Module,
    batches: InputBatches,
    units: Units,
    optimize: Sequence[Optimization],
    manager: pluggy.PluginManager,
) -> UnraveledNetwork:
    """Unravel the model for the images that it is to be run on."""
    example, _ = next(iter(batches.head(2)))
    like = next(model.parameters(), example)
    network = unravel(model, example.to(like.device), units=units, optimize=optimize, plugin_manager=manager)
    network.require_blocks()
    return network


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that the model computes in: that of its first floating-point parameter."""
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)


def _held_out_digits() -> LabelledImages:
    images, labels = demo.load_digit_images()
    return ImageArray("the held-out digits", images, labels, demo.CLASS_NAMES)


def _check_classes(network: UnraveledNetwork, batches: InputBatches) -> None:
    """Check all labels against the network's outputs before the long run."""
    images = batches.images
    n_classes = Measures(network, None).n_classes
    if n_classes is None:  # Measures has refused such a network
        raise InputError(f"{network.name} does not tell classes apart")
    check_targets(images, batches.targets, n_classes)
    if images.classes and len(images.classes) != n_classes and batches.targets is images.labels:
        warn(
            f"{images.origin} has {len(images.classes)} classes and the model {n_classes}: they are taken "
            f"for its first ones, in this order: {', '.join(images.classes[:3])}, ..."
        )


def _warn_of_no_effect(studies: Sequence[Study], options: Mapping[str, object]) -> None:
    """Warn of analyzers that cannot be told where to run, where the user has said so."""
    given = ", ".join(option for option, value in options.items() if value)
    for study in studies:
        if given and not study.takes_run:
            warn(
                f"{given} has no effect on analyzer {study.analyzer!r}, whose 'attribute' takes no 'run': it runs in "
                "this process, from its beginning"
            )


def _told(figure: report.ReportFigure) -> str:
    """Return a figure's title and what there is to see in it, for a terminal."""
    # Terminals that are no UTF-8 do not have the minus sign.
    sentence = figure.sentence.replace("\N{MINUS SIGN}", "-")
    return f"{figure.title}\n{click.wrap_text(sentence, 100, '    ', '    ')}"
