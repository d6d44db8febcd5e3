"""The command `resnet-paths analyze`: a whole analysis, from images to a file with figures."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import click
import matplotlib as mpl
import torch
import xarray as xr

from resnet_paths_plugin import report
from resnet_paths_plugin.argument_sizes import MOST
from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.command import Command, warn
from resnet_paths_plugin.cli.drawn_figures import described, saved
from resnet_paths_plugin.cli.image_selection import ImageSelection
from resnet_paths_plugin.cli.images import LabelledImages, read_images, targets_of
from resnet_paths_plugin.cli.options import (
    MODEL_HELP,
    mode_of,
    no_clobber_option,
    normalisation_options,
    pretrained_option,
    quiet_option,
    units_option,
    weights_option,
)
from resnet_paths_plugin.cli.outputs import (
    check_outputs,
    default_output,
    report_path,
)
from resnet_paths_plugin.cli.preprocessing import InputBatches, preprocessing_for
from resnet_paths_plugin.cli.running import (
    PartialRun,
    check_cluster_options,
    executor_for,
    run_options,
    set_threads,
    threads_said,
)
from resnet_paths_plugin.cli.studies import STUDIES, Study, StudyOptions, checked_figures, images_taken, studies_by
from resnet_paths_plugin.cli.study_extent import extent_of
from resnet_paths_plugin.cli.subject import check_classes, held_out_digits, unraveled
from resnet_paths_plugin.cli.terminal import echo, shows_progress
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.network.captured_network import Optimization, Units
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.plotting.registry import fitting
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.model_description import Interpolation
from resnet_paths_plugin.report.figures import PictureFormat
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.derived import refreshed

_NOUNS: Mapping[Units, str] = {"blocks": "residual blocks", "layers": "layers that can be deleted"}


@click.command(cls=Command, epilog=MODEL_HELP, short_help="Run the studies; write a file and figures.")
@click.argument("model", required=False)
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
    help="Labelled images. An npz file holds 'images', uint8 of shape (N, H, W, C), and 'labels', integers "
    "of shape (N,). A folder holds one folder per class; these are numbered in the order of their names, or "
    "matched with the model's classes where all of them have such names.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N",
              help="Study only N of the images, drawn at random by --seed, with classes in the shares that all images "
              "have. [default: all]")  # fmt: skip
@weights_option
@pretrained_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.nc",
    help="File to write; report and figures come beside it. [default: named after the model, in the current folder]",
)  # fmt: skip
@click.option(
    "--analyzer", "analyzers", multiple=True, metavar="NAME",
    help="Run only this analyzer, one of those that `resnet-paths plugins` lists; may be repeated. "
    "[default: every study of this package]",
)  # fmt: skip
@click.option(
    "--figures", "figure_names", multiple=True, metavar="NAME",
    help="Write only this figure, one of those that `resnet-paths plugins` lists; may be repeated. The report has all. "
    "[default: every figure that fits]",
)  # fmt: skip
@click.option(
    "--figure-format", type=click.Choice([*get_args(PictureFormat), "none"]), default="png", show_default=True,
    help="Format of the figures' files; none writes no files, and the report has all.",
)  # fmt: skip
@no_clobber_option
@units_option
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
@normalisation_options
@click.option("--draws", type=click.IntRange(1, MOST), default=10, show_default=True,
              help="Random sets of blocks of each size, and random orders of each number of swaps.")  # fmt: skip
@click.option("--max-deleted", type=click.IntRange(min=1), default=20, show_default=True,
              help="Most blocks deleted at once; at most all of them.")  # fmt: skip
@click.option("--max-swaps", type=click.IntRange(0, MOST), default=10, show_default=True,
              help="Most swaps of two blocks in one order; 0 leaves reorderings out.")  # fmt: skip
@click.option("--path-images", type=click.IntRange(min=0), default=8, show_default=True,
              help="Images of the study of path lengths, from the first; 0 leaves it out.")  # fmt: skip
@click.option("--path-draws", type=click.IntRange(2, MOST), default=20, show_default=True,
              help="Sampled paths of each length.")  # fmt: skip
@click.option("--pair-images", type=click.IntRange(min=0), default=8, show_default=True,
              help="Images of the study of all pairs of blocks, from the first; 0 leaves it out. It is run for the "
              "embedded network, and for others with --analyzer BlockInteraction.")  # fmt: skip
@click.option("--search-images", type=click.IntRange(min=0), default=64, show_default=True,
              help="Images on which the best sets of blocks to delete are searched and measured, half of them each, "
              "from the first; 0 leaves it out. It is run for the embedded network, and for others with --analyzer "
              "BlockSelection.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Seed of everything random, initial weights included.")  # fmt: skip
@run_options
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Hold what was captured against the model itself, at the first images of each study.")  # fmt: skip
@click.option("--progress/--no-progress", default=None, help="Show progress bars. [default: if run in a terminal]")
@quiet_option
def analyze(
    model: str | None, images: Path | None, output: Path | None, *, limit: int | None,
    weights: Path | None, pretrained: bool, analyzers: tuple[str, ...], figure_names: tuple[str, ...],
    figure_format: PictureFormat | Literal["none"], units: Units,
    device: str, optimize: tuple[Optimization, ...],
    batch_size: int | None, image_size: tuple[int, ...] | None, crop: float | None,
    interpolation: Interpolation | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, draws: int,
    max_deleted: int, max_swaps: int, path_images: int, path_draws: int, pair_images: int, search_images: int,
    seed: int, progress: bool | None,
    workers: int | None, threads: int | None, scheduler: str | None, wait_for_workers: bool, resume: bool, verify: bool,
    no_clobber: bool,
) -> None:  # fmt: skip
    """Study a MODEL: lesions and reorderings of its residual blocks, and its gradients by path length.

    Deletes blocks one by one and in random sets, and swaps them, to measure the effect on the outputs;
    compares the effect of deleting a block with what predicts it; and splits the input gradient by the length of the
    paths along which it flows: exactly, and by sampled paths as in the paper. Of the embedded network it also deletes
    all pairs of blocks, and searches the sets whose deletion matters least. Writes one netCDF file with a group per
    study, its figures (Figs. 3, 5, 6 and 7 of Veit et al. 2016, and more), and a report of all of it as one HTML page.
    Older files of these names are replaced, unless --no-clobber is given. With --analyzer, only the studies of some
    analyzers are run, which may be a plugin's. Of layers (--units layers), which have no skips, only the lesions and
    reorderings are run. Without MODEL, studies the embedded network of 54 blocks, and
    without --images on the handwritten digits that were held out from its training; this downloads nothing.
    """
    started = time.perf_counter()
    check_cluster_options(scheduler, workers, wait_for_workers=wait_for_workers)
    mpl.use("agg")  # draws into files only, on a machine without a screen as well
    if images is None and model is not None:
        raise InputError("a MODEL needs --images: an npz file, or a folder with a folder per class")
    roles, mode = FileRoles({"--images": images, "--weights": weights}), mode_of(no_clobber=no_clobber)
    for file in models.files_of(model or models.EMBEDDED):
        roles.reads("MODEL", file)
    if output is not None:
        check_outputs(output, roles, mode, figure_format)
    here = Path.cwd()  # which the code of a model may change
    target_device = models.check_device(device)
    set_threads(threads, embedded=model is None)
    manager = plugins.create_plugin_manager()
    studies = studies_by(analyzers, plugins.analyzers(manager)) if analyzers else STUDIES
    known_figures = checked_figures(figure_names, manager)
    torch.manual_seed(seed)
    output = output and here / output
    found = _limited(held_out_digits() if images is None else read_images(images), limit, seed)
    module = models.load(model or models.EMBEDDED, pretrained or model is None, weights, manager).to(target_device)
    if model and "/" in model and not pretrained and weights is None:
        warn(f"{model} has random weights: give --pretrained or --weights to study a trained network")
    description = plugins.describe(module, manager)
    if output is None:
        output = here / default_output(module, description)
        check_outputs(output, roles, mode, figure_format)
    preprocessing, resize = preprocessing_for(
        description, found, mean, std, size=image_size, crop=crop, interpolation=interpolation
    )
    targets = targets_of(found, description.class_names if description else None)
    batches = InputBatches(
        found, targets, preprocessing, resize=resize, batch_size=batch_size, dtype=models.dtype_of(module)
    )
    options = StudyOptions(
        embedded=model is None and images is None and units == "blocks",
        draws=draws,
        max_deleted=max_deleted,
        max_swaps=max_swaps,
        path_images=path_images,
        path_draws=path_draws,
        pair_images=pair_images,
        search_images=search_images,
        analyzers=analyzers,
        seed=seed,
        internal_batch_size=batch_size,
        show_progress=shows_progress(progress),
    )
    network = unraveled(module, batches, images_taken(options, len(found)), units, optimize, manager, verify=verify)
    check_classes(network, batches)
    echo(
        f"{network.name}: {len(network.blocks)} {_NOUNS[units]}, {len(found)} images of {found.origin}, "
        f"{threads_said()}\n{batches.described}"
    )
    wanted = [study for study in studies if study.wanted(network, options)]
    if not wanted:
        raise InputError(f"{', '.join(analyzers)} finds nothing to study in {network.name} with these options")
    _warn_of_no_effect(wanted, {"--workers": workers, "--scheduler": scheduler, "--resume": resume})
    partial = PartialRun(output, [study.group for study in wanted], resume=resume)
    with partial.kept(), executor_for(scheduler, workers) as executor:
        run_of = functools.partial(partial.options, executor=executor, wait_for_workers=wait_for_workers, verify=verify)
        results = _results(wanted, network, batches, options, run_of)
        tree = datasets.build_tree(results)
        written = [datasets.save(tree, output, mode)]
    partial.remove()
    shown = [one for one in report.figures(tree, manager) if not figure_names or one.figure in figure_names]
    _tell(shown, [group for group, result in results.items() if not fitting(refreshed(result), known_figures)])
    pngs = saved(shown, output, mode, written, figure_format)
    written.append(report.write_report(tree, report_path(output), mode, manager, pngs))
    echo(f"written: {', '.join(_shown(path, here) for path in written)}")
    echo(f"{time.perf_counter() - started:.1f} s")


def _limited(images: LabelledImages, limit: int | None, seed: int) -> LabelledImages:
    """Return the images that are studied."""
    return images if limit is None else ImageSelection(images, limit, seed)


def _results(
    studies: Sequence[Study],
    network: UnraveledNetwork,
    batches: InputBatches,
    options: StudyOptions,
    run_of: Callable[[str], RunOptions],
) -> dict[str, xr.Dataset]:
    """Run the studies, and say of each how much it was."""
    results: dict[str, xr.Dataset] = {}
    for study in studies:
        results[study.group] = study.run(network, batches, replace(options, run=run_of(study.group)), results)
        echo(extent_of(study.group, results[study.group]))
    return results


def _shown(path: Path, folder: Path) -> str:
    """Return a file's name as it is seen from a folder."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _warn_of_no_effect(studies: Sequence[Study], options: Mapping[str, object]) -> None:
    """Warn of analyzers that take no run options, where the user gave some."""
    given = ", ".join(option for option, value in options.items() if value)
    for study in studies:
        if given and not study.takes_run:
            warn(
                f"{given} has no effect on analyzer {study.analyzer!r}, whose 'attribute' takes no 'run': it runs in "
                "this process, from its beginning"
            )


def _tell(figures: Sequence[report.ReportFigure], undrawn: Sequence[str]) -> None:
    """Print what there is to see in each figure, and which results have none."""
    for figure in figures:
        echo(described(figure))
    for group in undrawn:
        echo(f"{group}: no figure fits it; the report lists what it holds")
