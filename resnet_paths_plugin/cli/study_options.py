"""Options of the commands that run studies: what is studied, on which images, and how much of it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from resnet_paths_plugin.argument_sizes import MOST
from resnet_paths_plugin.cli.options import normalisation_options, units_option
from resnet_paths_plugin.network.captured_network import Optimization, Units
from resnet_paths_plugin.plugins.model_description import Interpolation


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyChoices:
    """The values of these options, by their names.

    Attributes:
        images: file or folder of labelled images; None where none is given.
        text: file or folder of texts; None where none is given.
        tokens: tokens of a sequence that texts are cut into.
        task: name of what the model is for; None for what its description says.
        limit: how many of the images or sequences to study; None for all.
        analyzers: names of the analyzers that are asked for.
        studies: names of the studies that are asked for.
        units: what is deleted.
        device: name of the device.
        optimize: optimizations of the network.
        batch_size: images per forward pass; None lets the analyzers choose.
        image_size: height and width to resize to, or one number for both; None for the model's own.
        crop: share of the resized image that is kept; None for the model's own.
        interpolation: filter to resize with; None for the model's own.
        mean: mean of each channel; None for the model's own.
        std: standard deviation of each channel; None for the model's own.
        draws: as of `StudyOptions`, with those that follow.
        max_deleted: as there.
        max_swaps: as there.
        path_images: as there.
        path_draws: as there.
        pair_images: as there.
        search_images: as there.
        seed: seed of everything random.
        verify: whether to compare the network with the model.
    """

    images: Path | None
    text: Path | None
    tokens: int
    task: str | None
    limit: int | None
    analyzers: tuple[str, ...]
    studies: tuple[str, ...]
    units: Units
    device: str
    optimize: tuple[Optimization, ...]
    batch_size: int | None
    image_size: tuple[int, ...] | None
    crop: float | None
    interpolation: Interpolation | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    draws: int
    max_deleted: int
    max_swaps: int
    path_images: int
    path_draws: int
    pair_images: int
    search_images: int
    seed: int
    verify: bool


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which takes their values as `choices`."""

    @functools.wraps(command)
    def packed(*args: Any, **given: Any) -> Any:
        own = {name: given.pop(name) for name in StudyChoices.__dataclass_fields__}
        return command(*args, choices=StudyChoices(**own), **given)

    for option in reversed(_OPTIONS):
        packed = option(packed)
    return packed


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--images", type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
        help="Labelled images. An npz file holds 'images', uint8 of shape (N, H, W, C), and 'labels', integers "
        "of shape (N,), perhaps 'classes' and 'names', texts. A folder holds one folder per class; these are numbered "
        "in the order of their names, or matched with the model's classes where all of them have such names.",
    ),
    click.option(
        "--text", type=click.Path(path_type=Path), metavar="FILE|DIR",
        help="Texts for a language model, in UTF-8: a file, a .jsonl file whose objects have a key 'text', or a folder "
        "of such. Each is cut into sequences of --tokens tokens.",
    ),
    click.option("--tokens", type=click.IntRange(2, MOST), default=128, show_default=True,
                 help="With --text: tokens of a sequence; the last one of a text is filled up."),
    click.option(
        "--task", metavar="NAME",
        help="What the model is for, such as next_token or segmentation, which says how its outputs are measured. "
        "[default: what its library says, or else classification]",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N",
                 help="Study only N of the images, drawn at random by --seed, with classes in the shares that all "
                 "images have, or of the sequences of texts. [default: all]"),
    click.option(
        "--studies", multiple=True, metavar="NAME",
        help="Run only this study, such as single_lesions or path_lengths, named as its group of the file; may be "
        "repeated. [default: all; of other networks than the embedded one not interactions, selection, "
        "parameter_lengths, contributions and participation]",
    ),
    click.option(
        "--analyzer", "analyzers", multiple=True, metavar="NAME",
        help="Run only the studies of this analyzer, one of those that `resnet-paths plugins` lists; may be repeated. "
        "[default: every study of this package]",
    ),
    units_option,
    click.option("--device", default="cpu", show_default=True, help="Device to run on, such as cuda."),
    click.option(
        "--optimize", multiple=True, type=click.Choice(sorted(get_args(Optimization))),
        help="Run faster, with outputs that differ in the last digits; may be repeated.",
    ),
    click.option("--batch-size", type=click.IntRange(min=1),
                 help="Images per forward pass. [default: what suits the cache]"),
    normalisation_options,
    click.option("--draws", type=click.IntRange(1, MOST), default=10, show_default=True,
                 help="Random sets of blocks of each size, and random orders of each number of swaps."),
    click.option("--max-deleted", type=click.IntRange(min=1), default=20, show_default=True,
                 help="Most blocks deleted at once; at most all of them."),
    click.option("--max-swaps", type=click.IntRange(0, MOST), default=10, show_default=True,
                 help="Most swaps of two blocks in one order; 0 leaves reorderings out."),
    click.option("--path-images", type=click.IntRange(min=0), default=8, show_default=True,
                 help="Images of the studies of paths, from the first; 0 leaves them out."),
    click.option("--path-draws", type=click.IntRange(2, MOST), default=50, show_default=True,
                 help="Sampled paths of each length."),
    click.option("--pair-images", type=click.IntRange(min=0), default=8, show_default=True,
                 help="Images of the study of all pairs of blocks, from the first; 0 leaves it out. It is run for the "
                 "embedded network, and for others with --studies interactions."),
    click.option("--search-images", type=click.IntRange(min=0), default=64, show_default=True,
                 help="Images on which the best sets of blocks to delete are searched and measured, half of them each, "
                 "from the first; 0 leaves it out. It is run for the embedded network, and for others with --studies "
                 "selection."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
                 help="Seed of everything random, initial weights included."),
    click.option("--verify/--no-verify", default=True, show_default=True,
                 help="Hold what was captured against the model itself, at the first images of each study."),
)  # fmt: skip
