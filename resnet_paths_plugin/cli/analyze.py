"""The command `resnet-paths analyze`: a whole analysis, from images to a file with figures."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import click
import matplotlib as mpl
import torch

from resnet_paths_plugin import report
from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.analysis import (
    analysis_of,
    batches_of,
    options_of,
    read_samples,
    warn_of_no_effect,
    warn_of_random_weights,
)
from resnet_paths_plugin.cli.command import Command
from resnet_paths_plugin.cli.drawn_figures import described, saved
from resnet_paths_plugin.cli.options import (
    MODEL_HELP,
    figure_width_option,
    mode_of,
    no_clobber_option,
    pretrained_option,
    quiet_option,
    weights_option,
)
from resnet_paths_plugin.cli.outputs import check_outputs, default_output, report_path
from resnet_paths_plugin.cli.running import (
    PartialRun,
    check_cluster_options,
    executor_for,
    resume_option,
    run_options,
    set_threads,
)
from resnet_paths_plugin.cli.studies import STUDIES, checked_figures, studies_by
from resnet_paths_plugin.cli.study_options import StudyChoices, study_options
from resnet_paths_plugin.cli.terminal import echo, shows_progress
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.plotting.registry import fitting
from resnet_paths_plugin.plotting.style import FigureWidth
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.report.figures import PictureFormat
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.derived import refreshed


@click.command(cls=Command, epilog=MODEL_HELP, short_help="Run the studies; write a file and figures.")
@click.argument("model", required=False)
@study_options
@weights_option
@pretrained_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.nc",
    help="File to write; report and figures come beside it. [default: named after the model, in the current folder]",
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
@figure_width_option
@no_clobber_option
@run_options
@resume_option
@click.option("--progress/--no-progress", default=None, help="Show progress bars. [default: if run in a terminal]")
@quiet_option
def analyze(
    model: str | None, output: Path | None, *, choices: StudyChoices, weights: Path | None, pretrained: bool,
    figure_names: tuple[str, ...], figure_format: PictureFormat | Literal["none"],
    figure_width: FigureWidth | None, progress: bool | None,
    workers: int | None, threads: int | None, scheduler: str | None, wait_for_workers: bool, resume: bool,
    no_clobber: bool,
) -> None:  # fmt: skip
    """Study a MODEL: lesions and reorderings of its residual blocks, and its gradients by path length.

    Deletes blocks one by one and in random sets, and swaps them, to measure the effect on the outputs;
    compares the effect of deleting a block with what predicts it; and splits the input gradient by the length of the
    paths along which it flows: exactly, and by sampled paths as in the paper. Of the embedded network it also deletes
    all pairs of blocks, and searches the sets whose deletion matters least. Writes one netCDF file with a group per
    study, its figures (Figs. 3, 5, 6 and 7 of Veit et al. 2016, and more), and a report of all of it as one HTML page.
    Older files of these names are replaced, unless --no-clobber is given. With --studies or --analyzer only some
    studies are run, also those of a plugin's analyzer. Of layers (--units layers), which have no skips, only the
    lesions and reorderings are run. Without MODEL, studies the embedded network of 54 blocks, and without --images on
    the handwritten digits that were held out from its training; this downloads nothing.
    """
    started = time.perf_counter()
    check_cluster_options(scheduler, workers, wait_for_workers=wait_for_workers)
    mpl.use("agg")  # draws into files only, on a machine without a screen as well
    _check_samples(model, choices)
    roles = FileRoles({"--images": choices.images, "--text": choices.text, "--weights": weights})
    mode = mode_of(no_clobber=no_clobber)
    for file in models.files_of(model or models.EMBEDDED):
        roles.reads("MODEL", file)
    if output is not None:
        check_outputs(output, roles, mode, figure_format)
    here = Path.cwd()  # which the code of a model may change
    target_device = models.check_device(choices.device)
    set_threads(threads, embedded=model is None)
    manager = plugins.create_plugin_manager()
    asked = choices.analyzers or choices.studies
    studies = studies_by(choices.analyzers, plugins.analyzers(manager), choices.studies) if asked else STUDIES
    known_figures = checked_figures(figure_names, manager)
    torch.manual_seed(choices.seed)
    output = output and here / output
    samples = read_samples(choices)
    module = models.load(model or models.EMBEDDED, pretrained or model is None, weights, manager)
    loaded = pretrained or model is None or weights is not None
    warn_of_random_weights(model or models.EMBEDDED, module, manager, seed=choices.seed, loaded=loaded)
    module = module.to(target_device)
    description = plugins.describe(module, manager)
    if output is None:
        output = here / default_output(module, description)
        check_outputs(output, roles, mode, figure_format)
    embedded, shows = model is None and choices.images is None, shows_progress(progress)
    options = options_of(choices, embedded=embedded, show_progress=shows)
    batches = batches_of(module, samples, description, choices)
    analysis = analysis_of(module, batches, studies, options, choices, manager)
    echo(analysis.described(choices.units))
    warn_of_no_effect(analysis.studies, {"--workers": workers, "--scheduler": scheduler, "--resume": resume})
    partial = PartialRun(output, analysis.groups, resume=resume)
    with partial.kept(), executor_for(scheduler, workers) as executor:
        results = analysis.results(partial, executor, wait_for_workers=wait_for_workers, verify=choices.verify)
        tree = datasets.build_tree(results)
        written = [datasets.save(tree, output, mode)]
    partial.remove()
    shown = [one for one in report.figures(tree, manager) if not figure_names or one.figure in figure_names]
    _tell(shown, [group for group, result in results.items() if not fitting(refreshed(result), known_figures)])
    pngs = saved(shown, output, mode, written, figure_format, figure_width)
    written.append(report.write_report(tree, report_path(output), mode, manager, pngs))
    echo(f"written: {', '.join(_shown(path, here) for path in written)}")
    echo(f"{time.perf_counter() - started:.1f} s")


def _check_samples(model: str | None, choices: StudyChoices) -> None:
    """Check that the model has samples of one kind."""
    if model is not None and choices.images is None and choices.text is None:
        raise InputError(
            "a MODEL needs --images, an npz file or a folder with a folder per class, or --text, for a language model"
        )
    if choices.text is not None and (model is None or choices.images is not None):
        raise InputError("--text needs a MODEL, a language model, and no --images")


def _shown(path: Path, folder: Path) -> str:
    """Return a file's name as it is seen from a folder."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _tell(figures: Sequence[report.ReportFigure], undrawn: Sequence[str]) -> None:
    """Print what there is to see in each figure, and which results have none."""
    for figure in figures:
        echo(described(figure))
    for group in undrawn:
        echo(f"{group}: no figure fits it; the report lists what it holds")
