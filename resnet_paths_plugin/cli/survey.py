"""The command `resnet-paths survey`: the same studies on many models, one file each, and a comparison of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import click
import matplotlib as mpl
import torch

from resnet_paths_plugin import report
from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.analysis import (
    analysis_of,
    batches_of,
    limited,
    options_of,
    warn_of_no_effect,
    warn_of_random_weights,
)
from resnet_paths_plugin.cli.command import Command
from resnet_paths_plugin.cli.comparing import tell_models
from resnet_paths_plugin.cli.drawn_figures import described, saved
from resnet_paths_plugin.cli.images import LabelledImages, read_images
from resnet_paths_plugin.cli.options import MODEL_HELP, figure_width_option, pretrained_option, quiet_option
from resnet_paths_plugin.cli.outputs import report_path
from resnet_paths_plugin.cli.running import (
    PartialRun,
    check_cluster_options,
    discard_partial,
    executor_for,
    run_options,
    set_threads,
)
from resnet_paths_plugin.cli.studies import STUDIES, studies_by
from resnet_paths_plugin.cli.study_options import StudyChoices, study_options
from resnet_paths_plugin.cli.survey_folder import Settings, SurveyFolder, digest_of
from resnet_paths_plugin.cli.terminal import echo, shows_progress
from resnet_paths_plugin.comparison.comparison import compare
from resnet_paths_plugin.errors import InputError, ModelNotFoundError, ResnetPathsError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.plotting.style import FigureWidth
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.report.figures import PictureFormat
from resnet_paths_plugin.results import datasets

COMPARISON = "comparison.nc"
"""Name of the comparison's file, which no model's file has."""
_MODELS_PER_POOL = 8
"""Models that worker processes study before others take their place, as each leaves a file as large as its weights."""


@click.command(cls=Command, epilog=MODEL_HELP, short_help="Run the studies on many models, and compare them.")
@click.argument("specs", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--models", "patterns", multiple=True, metavar="PATTERN",
    help="Study all models of this pattern as well, such as 'timm/resnet*', in quotes; with --pretrained only those "
    "that have weights. A dot asks for timm's weights one by one: 'timm/resnet50.*'. May be repeated.",
)  # fmt: skip
@study_options
@pretrained_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FOLDER", default=Path("survey"), show_default=True,
    help="Folder to write, a new one or that of the same command before.",
)  # fmt: skip
@click.option(
    "--figure-format", type=click.Choice([*get_args(PictureFormat), "none"]), default="png", show_default=True,
    help="Format of the comparison's figures; none writes no files, and the page has all.",
)  # fmt: skip
@figure_width_option
@run_options
@click.option("--progress/--no-progress", default=None, help="Show progress bars. [default: if run in a terminal]")
@quiet_option
def survey(
    specs: tuple[str, ...], patterns: tuple[str, ...], output: Path, *, choices: StudyChoices, pretrained: bool,
    figure_format: PictureFormat | Literal["none"],
    figure_width: FigureWidth | None, progress: bool | None,
    workers: int | None, threads: int | None, scheduler: str | None, wait_for_workers: bool,
) -> None:  # fmt: skip
    """Run the studies of `resnet-paths analyze` on each MODEL, with the same images and options, and compare them.

    Writes FOLDER with one netCDF file for each model, a comparison of all (comparison.nc), its page and its figures;
    `resnet-paths report FOLDER/MODEL.nc` makes a page of one model. The same command given again, after a crash or
    with more models, goes on from what is finished; with other settings it is refused. A model that fails is
    reported and left out, and the command ends with an error after all the others.
    """
    started = time.perf_counter()
    check_cluster_options(scheduler, workers, wait_for_workers=wait_for_workers)
    mpl.use("agg")
    if choices.images is None or choices.text is not None:
        raise InputError("a survey needs --images, an npz file or a folder with a folder per class, and no --text")
    manager = plugins.create_plugin_manager()
    chosen = _chosen(specs, patterns, lambda pattern: plugins.list_models(
        pattern, pretrained=pretrained, plugin_manager=manager
    ))  # fmt: skip
    _check_places(chosen, choices.images, output)
    device = models.check_device(choices.device)
    set_threads(threads, embedded=False)
    asked = choices.analyzers or choices.studies
    studies = studies_by(choices.analyzers, plugins.analyzers(manager), choices.studies) if asked else STUDIES
    warn_of_no_effect(studies, {"--workers": workers, "--scheduler": scheduler})
    output = output.absolute()  # as the code of a model may change the current folder
    images = limited(read_images(choices.images), choices)
    folder = SurveyFolder(output, _settings(choices, images, pretrained, map(str, plugins.listing(manager))))
    options = options_of(choices, embedded=False, show_progress=shows_progress(progress))

    def study(spec: str, executor: Any) -> None:
        torch.manual_seed(choices.seed)
        is_trained = pretrained and "/" in spec
        module = models.load(spec, is_trained, None, manager)
        warn_of_random_weights(spec, module, manager, seed=choices.seed, loaded=is_trained)
        module = module.to(device)
        description = plugins.describe(module, manager)
        batches = batches_of(module, images, description, choices)
        analysis = analysis_of(module, batches, studies, options, choices, manager)
        echo(analysis.described(choices.units))
        partial = PartialRun(folder.output(spec), analysis.groups, resume=True, again="the same command")
        with partial.kept():
            results = analysis.results(partial, executor, wait_for_workers=wait_for_workers, verify=choices.verify)
            datasets.save(datasets.build_tree(results), folder.output(spec))
            folder.finish(spec)
        partial.remove()

    with folder.held():
        failed = _each(chosen, folder, study, scheduler, workers)
        _compare([spec for spec in chosen if spec not in failed], folder, figure_format, figure_width)
        echo(f"{time.perf_counter() - started:.1f} s")
    if failed:
        raise ResnetPathsError(
            f"{len(failed)} of {len(chosen)} models failed and are left out: {', '.join(failed)}. The same command "
            "tries them again"
        )


def _chosen(specs: Sequence[str], patterns: Sequence[str], listed: Callable[[str], Sequence[str]]) -> list[str]:
    """Return the models that are named or match a pattern, each once.

    Raises:
        InputError: if there is none.
        ModelNotFoundError: if a pattern matches none.
    """
    found = dict.fromkeys(specs)
    for pattern in patterns:
        matching = listed(pattern)
        if not matching:
            raise ModelNotFoundError(
                f"no model matches {pattern!r}: a pattern is library/name with *, ? or [...], such as 'timm/resnet*'"
            )
        found |= dict.fromkeys(matching)
    if not found:
        raise InputError("there is nothing to study: name models, or give --models 'library/pattern*'")
    return list(found)


def _check_places(specs: Sequence[str], images: Path, output: Path) -> None:
    """Check that what is written lies apart from what is read.

    Raises:
        FileError: if it does not.
    """
    roles = FileRoles({"--images": images})
    for spec in specs:
        for file in models.files_of(spec):
            roles.reads("MODEL", file)
    roles.writes("the survey", output)


def _settings(choices: StudyChoices, images: LabelledImages, pretrained: bool, installed: Iterator[str]) -> Settings:
    """Return what decides results beside the models: options, images and versions."""
    options = {name: value for name, value in asdict(choices).items() if name != "images"}
    plain = {name: value if isinstance(value, int | float | None) else str(value) for name, value in options.items()}
    return {
        **plain,
        "pretrained": pretrained,
        "images": f"{len(images)} with fingerprint {digest_of(images)}",
        "torch": torch.__version__,
        "plugins": ", ".join(installed),
    }


def _each(
    specs: Sequence[str],
    folder: SurveyFolder,
    study: Callable[[str, Any], None],
    scheduler: str | None,
    workers: int | None,
) -> list[str]:
    """Study the models that are not done, one after the other, and return those that failed."""
    failed = []
    with ExitStack() as stack:
        executor, uses = None, 0
        for number, spec in enumerate(specs, 1):
            head = f"[{number}/{len(specs)}] {spec}"
            if folder.has(spec):
                discard_partial(folder.output(spec))  # of a run that was killed just before it would have
                echo(f"{head}: finished before")
                continue
            echo(f"{head}{': goes on' if folder.has_begun(spec) else ''}")
            if executor is None or uses == _MODELS_PER_POOL:
                stack.close()
                executor, uses = stack.enter_context(executor_for(scheduler, workers)), 0
            uses += 1
            try:
                study(spec, executor)
            except Exception as error:  # noqa: BLE001 - whatever a model does, the others are studied
                kind = "" if isinstance(error, ResnetPathsError) else f"{type(error).__name__}: "
                echo(f"Error: {spec} failed and is left out: {' '.join(f'{kind}{error}'.split())}", err=True)
                failed.append(spec)
                stack.close()  # as its workers may have ended
                executor = None
    return failed


def _compare(
    specs: Sequence[str],
    folder: SurveyFolder,
    figure_format: PictureFormat | Literal["none"],
    figure_width: FigureWidth | None,
) -> None:
    """Write the comparison of the models that are done, its page and figures."""
    if len(specs) < 2:
        echo(f"there is nothing to compare: {len(specs)} of the models is done")
        return
    libraries = {spec.partition("/")[0] for spec in specs}
    names = [spec.partition("/")[2] if len(libraries) == 1 and "/" in spec else spec for spec in specs]
    try:
        tree = compare({name: folder.output(spec) for name, spec in zip(names, specs, strict=True)})
    except InputError as error:
        echo(f"the models are not compared: {error}")
        return
    tell_models(tree)
    shown = report.figures(tree)
    for figure in shown:
        echo(described(figure))
    output = folder.path / COMPARISON
    written = [datasets.save(tree, output)]
    pngs = saved(shown, output, "w", written, figure_format, figure_width)
    written.append(report.write_report(tree, report_path(output), "w", pngs=pngs))
    echo(f"written: {', '.join(map(str, written))}")
