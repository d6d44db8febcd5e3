"""The command `resnet-paths prune`: a smaller network, from images to files that run elsewhere."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import matplotlib as mpl
import torch
import xarray as xr
from torch import Tensor

from resnet_paths_plugin import report
from resnet_paths_plugin.analyzers.coalitions.selection import BlockSelection
from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.command import Command, warn
from resnet_paths_plugin.cli.images import read_images, targets_of
from resnet_paths_plugin.cli.options import (
    MODEL_HELP,
    mode_of,
    no_clobber_option,
    normalisation_options,
    pretrained_option,
    quiet_option,
    weights_option,
)
from resnet_paths_plugin.cli.outputs import default_output, figure_path, partial_path, save_picture
from resnet_paths_plugin.cli.preprocessing import InputBatches, preprocessing_for
from resnet_paths_plugin.cli.prune_request import HELD_OUT, PruneRequest, SearchMethod, StandIn, chosen_place
from resnet_paths_plugin.cli.prune_sizes import fewest_fast_enough, most_deleted, sizes_for_latency, timed_again
from resnet_paths_plugin.cli.pruned_files import PrunedFiles, facts_of
from resnet_paths_plugin.cli.running import (
    PartialRun,
    check_cluster_options,
    executor_for,
    resume_option,
    run_options,
    set_threads,
)
from resnet_paths_plugin.cli.subject import check_classes, held_out_digits, unraveled
from resnet_paths_plugin.cli.terminal import echo, shows_progress
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.fingerprints import fingerprint
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.output_files import Mode, writable
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.model_description import Interpolation

_FIGURE = "selection"
_ABLATIONS = ("zero", "mean", "linear")
_STAND_INS = {"mean": "their means", "linear": "linear maps"}


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(part.strip() for part in value.split(",") if part.strip()) if value is not None else ()
    if value is not None and not names:
        raise click.BadParameter("it names no block: give names with commas between them, such as A,B")
    return names


@click.command(cls=Command, epilog=MODEL_HELP, short_help="Delete blocks; write the smaller network.")
@click.argument("model", required=False)
@click.option("--delete", type=click.IntRange(min=1), metavar="K", help="Search for the best K blocks to delete.")
@click.option("--blocks", callback=_names, metavar="A,B", help="Delete these blocks, by their names; no search.")
@click.option(
    "--keep-latency", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
    help="Search for sets of one block more each, until the network takes at most this share of the time, such as 0.7.",
)  # fmt: skip
@click.option("--method", "search", type=click.Choice(get_args(SearchMethod)), help="How to search. [default: greedy]")
@click.option("--keep", callback=_names, metavar="A,B", help="Blocks that are not deleted, by their names.")
@click.option("--halving", "rounds", type=click.IntRange(1, 8),
              help="Rounds of halving: 3 measures most sets on a quarter of the images. [default: 1]")  # fmt: skip
@click.option(
    "--ablation", type=click.Choice(_ABLATIONS), default="zero", show_default=True,
    help="What stands in for a deleted branch, in the search and in the files: nothing; its mean at each position; or "
    "a linear map over the channels of what it takes. Means and maps are fitted on the images that are searched on.",
)  # fmt: skip
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
    help="Labelled images, as `analyze` takes them: half of them, drawn at random, are held out from the search.",
)  # fmt: skip
@weights_option
@pretrained_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE.safetensors",
    help="Weights to write; the figure comes beside them. [default: named after the model, in the current folder]",
)  # fmt: skip
@click.option("--onnx", type=click.Path(path_type=Path), metavar="FILE.onnx", help="ONNX file to write.")
@click.option("--program", type=click.Path(path_type=Path), metavar="FILE.pt2", help="torch.export program to write.")
@no_clobber_option
@click.option("--device", default="cpu", show_default=True, help="Device to run on, such as cuda.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per forward pass. [default: suits the cache]")
@click.option(
    "--latency-batch-size", type=click.IntRange(min=1), default=1, show_default=True,
    help="Images of the forward pass that is timed.",
)  # fmt: skip
@normalisation_options
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Seed of everything random, initial weights included.")  # fmt: skip
@run_options
@resume_option
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Hold what was captured against the model itself.")  # fmt: skip
@click.option("--progress/--no-progress", default=None, help="Show progress bars. [default: if run in a terminal]")
@quiet_option
def prune(
    model: str | None, *, delete: int | None, blocks: tuple[str, ...], keep_latency: float | None,
    search: SearchMethod | None, keep: tuple[str, ...], rounds: int | None, ablation: StandIn, images: Path | None,
    weights: Path | None, pretrained: bool, output: Path | None, onnx: Path | None, program: Path | None,
    no_clobber: bool, device: str, batch_size: int | None, latency_batch_size: int,
    image_size: tuple[int, ...] | None, crop: float | None, interpolation: Interpolation | None,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, seed: int,
    workers: int | None, threads: int | None, scheduler: str | None, wait_for_workers: bool,
    resume: bool, verify: bool, progress: bool | None,
) -> None:  # fmt: skip
    """Delete residual blocks of a MODEL and write the smaller network.

    Searches for the blocks whose deletion raises the loss least, on half of the images, and reports the error on the
    other half; of --blocks on all images, where nothing is fitted to them. Writes the weights of the smaller network,
    with what it takes to build it again; a figure of effect against latency, with random sets and a ranking by
    influence; and, where asked for, the network as an ONNX file and as a program of torch.export. Older files of these
    names are replaced, unless --no-clobber is given. Without MODEL, prunes the embedded network of 54 blocks, and
    without --images on the handwritten digits that were held out from its training.
    """
    started = time.perf_counter()
    asked = PruneRequest(
        delete=delete, blocks=blocks, keep_latency=keep_latency, search=search, keep=keep, rounds=rounds,
        ablation=ablation, seed=seed,
    )  # fmt: skip
    asked.check()
    check_cluster_options(scheduler, workers, wait_for_workers=wait_for_workers)
    mpl.use("agg")
    if images is None and model is not None:
        raise InputError("a MODEL needs --images: an npz file, or a folder with a folder per class")
    roles, mode = FileRoles({"--images": images, "--weights": weights}), mode_of(no_clobber=no_clobber)
    for file in models.files_of(model or models.EMBEDDED):
        roles.reads("MODEL", file)
    here = Path.cwd()  # which the code of a model may change
    if output is not None:
        files = _files(here, output, onnx, program, roles, mode)
    target_device = models.check_device(device)
    set_threads(threads, embedded=model is None)
    manager = plugins.create_plugin_manager()
    torch.manual_seed(seed)
    found = held_out_digits() if images is None else read_images(images)
    module = models.load(model or models.EMBEDDED, pretrained or model is None, weights, manager).to(target_device)
    if model and "/" in model and not pretrained and weights is None:
        warn(f"{model} has random weights: give --pretrained or --weights to prune a trained network")
    description = plugins.describe(module, manager)
    if output is None:
        named = default_output(module, description).stem
        files = _files(here, Path(f"{named}-pruned.safetensors"), onnx, program, roles, mode)
    preprocessing, resize = preprocessing_for(
        description, found, mean, std, size=image_size, crop=crop, interpolation=interpolation
    )
    targets = targets_of(found, description.class_names if description else None)
    batches = InputBatches(
        found, targets, preprocessing, resize=resize, batch_size=batch_size, dtype=models.dtype_of(module)
    )
    # A frozen batch leaves samples to each round of the search and to those held out.
    network = unraveled(module, batches, (len(found) // 2**asked.halving,), "blocks", (), manager, verify=verify)
    check_classes(network, batches)
    asked.check_on(network, batches)
    echo(
        f"{network.name}: {len(network.blocks)} residual blocks, {len(found)} images of {found.origin}\n"
        f"{batches.described}"
    )
    partial = PartialRun(files.weights, [_FIGURE], resume=resume)
    with partial.kept(), executor_for(scheduler, workers) as executor:
        options = {
            "run": partial.options(_FIGURE, executor, wait_for_workers=wait_for_workers, verify=verify),
            "internal_batch_size": batch_size,
            "seed": seed,
            "show_progress": shows_progress(progress),
            "latency_batch_size": latency_batch_size,
        }
        ds, place = _chosen(network, batches, asked, options, partial)
        chosen = ds.isel(selection=place)
        names = ds["block"].values[chosen["deleted"].values].tolist()
        small = network.pruned(names, ablation=ablation, reference=asked.reference(network, batches), training=False)
        args = (_example(network, batches),)
        facts = facts_of(model or models.EMBEDDED, pretrained, weights, names, ablation)
        written = files.write(small, args, facts, mode)
    partial.remove()
    _tell(ds, chosen, names, ablation)
    (figure,) = (one for one in report.figures(ds, manager) if one.figure == _FIGURE)
    written.append(save_picture(figure.png(), figure_path(files.weights, _FIGURE), mode))
    echo(
        f"written: {', '.join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in written)}"
    )
    echo(f"{time.perf_counter() - started:.1f} s")


def _files(
    here: Path, output: Path, onnx: Path | None, program: Path | None, roles: FileRoles, mode: Mode
) -> PrunedFiles:
    """Return the files to write, after checking all that are written."""
    files = PrunedFiles(weights=here / output, onnx=onnx and here / onnx, program=program and here / program)
    files.check(roles, mode)
    figure = figure_path(files.weights, _FIGURE)
    writable(figure, mode)
    roles.writes("the figure", figure)
    roles.writes("the folder of finished tasks", partial_path(files.weights))
    return files


def _example(network: UnraveledNetwork, batches: InputBatches) -> Tensor:
    """Return a batch to export for: of the size that the network takes, else of two, which may then be any."""
    inputs, _ = next(iter(batches.head(network.frozen_batch or 2)))
    if network.frozen_batch is None and len(inputs) == 1:
        inputs = inputs.repeat(2, 1, 1, 1)  # from one sample, torch would take the batch for a constant
    return inputs.to(network.device)


def _chosen(
    network: UnraveledNetwork, batches: InputBatches, asked: PruneRequest, options: dict[str, Any], partial: PartialRun
) -> tuple[xr.Dataset, int]:
    """Return the selection, and the place in it of the set to delete."""
    if asked.blocks:
        gone = {block.name for block in network.select(asked.blocks)}
        kept = [block.name for block in network.blocks if block.name not in gone]
        given = {"k": len(gone), "method": "exhaustive", "keep": kept, "n_random": 0, "ablation": asked.ablation}
        if asked.is_fitted:
            return _selection(network, batches, options, holdout=HELD_OUT, **given), 0
        few = batches.head(min(len(batches.targets), batches.batch_size))
        return _selection(network, few, options, holdout=batches, **given), 0
    keep = [block.name for block in network.select(asked.keep)] if asked.keep else []
    search = {"method": asked.method, "keep": keep, "halving": asked.halving, "ablation": asked.ablation}
    if asked.keep_latency is not None:
        return _fast_enough(network, batches, partial, asked, options, search)
    ds = _selection(network, batches, options, k=asked.delete, **search)
    return ds, chosen_place(ds["method"].values, asked.method)


def _fast_enough(
    network: UnraveledNetwork,
    batches: InputBatches,
    partial: PartialRun,
    asked: PruneRequest,
    options: dict[str, Any],
    search: dict[str, Any],
) -> tuple[xr.Dataset, int]:
    """Return a selection, and the place in it of the smallest set that leaves at most a share of the time."""
    inputs, _ = next(iter(batches.head(network.frozen_batch or options["latency_batch_size"])))
    args = (inputs.to(network.device),)
    share, free = float(asked.keep_latency or 1), asked.free(network)
    work = fingerprint((share, *search.values(), len(inputs)))
    rounds = itertools.count()

    def searched(chosen: Callable[[], range]) -> tuple[range, xr.Dataset]:
        place = next(rounds)
        sizes = partial.sizes(place, work, chosen)
        run = partial.options_like(options["run"], f"{_FIGURE}_{place}") if place else options["run"]
        for size in sizes:
            asked.check_size(network, size)
        ds = _selection(network, batches, {**options, "run": run}, k=list(sizes), **search)
        chosen_place(ds["method"].values, asked.method)
        return sizes, ds

    ds, place = fewest_fast_enough(
        searched,
        lambda: sizes_for_latency(network, args, share, free),
        most_deleted(network, free),
        search["method"],
        share,
    )
    ds = timed_again(network, args, ds, place)
    left = float(ds["latency"][place]) / float(ds["intact_latency"])
    if left > share:
        warn(f"timed again, the network takes {left:.0%} of the time, and not {share:.0%}: times vary on this machine")
    return ds, place


def _selection(network: UnraveledNetwork, batches: InputBatches, options: dict[str, Any], **search: Any) -> xr.Dataset:
    result: xr.Dataset = BlockSelection(network).attribute(batches, **search, **options)
    return result


def _tell(ds: xr.Dataset, chosen: xr.Dataset, names: Sequence[str], ablation: StandIn) -> None:
    """Print the table of what is smaller, and what the deletion does to the error."""
    n_blocks = ds.sizes["block"]
    rows = [("", "before", "after", "")]
    for name, label, form in (
        ("parameters", "parameters", "{:,.0f}"),
        ("multiply_adds", "multiply-adds", "{:,.0f}"),
        ("latency", "latency (ms)", "{:.2f}"),
    ):
        factor = 1e3 if name == "latency" else 1
        before, after = float(ds[f"intact_{name}"]), float(chosen[name])
        rows.append((label, form.format(factor * before), form.format(factor * after), f"{after / before:.1%}"))
    rows.insert(1, ("blocks", str(n_blocks), str(n_blocks - len(names)), f"{1 - len(names) / n_blocks:.1%}"))
    rows.append((
        "error", f"{float(ds['intact_held_out_error']):.2%}", f"{float(chosen['held_out_error']):.2%}", "",
    ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        echo("  ".join(cells).rstrip())
    if ablation != "zero":
        echo(f"in their place: {_STAND_INS[ablation]}, fitted on {int(ds['n_searched_samples'])} images searched on")
    if "explained_variance" in ds:
        shares = ds["explained_variance"].sel(block=list(names)).values
        echo(f"variance that the maps explain: {', '.join(f'{share:.0%}' for share in shares)}")
    how = ds["latency"].attrs
    echo(
        f"deleted: {', '.join(names)}\n"
        f"error on {int(ds['n_held_out_samples'])} images that were not searched on; latency of a batch of "
        f"{how['batch_size']} on {how['device']}, {how['threads']} threads"
    )
