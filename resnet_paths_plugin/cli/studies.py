"""What `resnet-paths analyze` runs: its studies, each by one analyzer, each a group of the file.

The mathematics is in the analyzers; what the results look like and what they say is in `report`.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pluggy
import torch
import xarray as xr

from resnet_paths_plugin import demo
from resnet_paths_plugin.analyzers.coalitions.interaction import BlockInteraction
from resnet_paths_plugin.analyzers.coalitions.selection import BlockSelection
from resnet_paths_plugin.analyzers.gradients.contribution import BlockContribution
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence
from resnet_paths_plugin.analyzers.gradients.participation import PathParticipation
from resnet_paths_plugin.analyzers.gradients.path_length import PathLengthGradient
from resnet_paths_plugin.analyzers.rewiring.lesion import BlockLesion
from resnet_paths_plugin.analyzers.rewiring.reordering import BlockReordering
from resnet_paths_plugin.cli.preprocessing import InputBatches
from resnet_paths_plugin.cli.texts import TextBatches
from resnet_paths_plugin.errors import InputError, PluginError, ResnetPathsError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.network.levels import placements, swappable, units_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.network.unraveling import unravel
from resnet_paths_plugin.plotting.figure import Figure
from resnet_paths_plugin.plotting.registry import all_figures

_MAPS_SHOWN = 4
_LONGEST_MAP = 7
_MOST_SELECTED = 4
_RANDOM_OF_EACH_SIZE = 3
"""Random sets beside the chosen ones: the latency of each takes a second."""
_OPTIONS = ("internal_batch_size", "seed", "show_progress", "run")
"""Options that any analyzer gets whose `attribute` takes them."""
_SELF_AND_INPUTS = 2
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

Samples = InputBatches | TextBatches
"""What studies are run on."""

Results = Mapping[str, xr.Dataset]
"""The results of the studies before, by group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """What the user chose for all studies.

    Attributes:
        embedded: whether the embedded network is studied on the images that it comes with.
        draws: random lesions of each size, and random orders of each number of swaps.
        max_deleted: largest number of blocks that a random lesion deletes, at most n.
        max_swaps: largest number of swaps that make a random order.
        path_images: images whose gradients are split by path length, from the first.
        path_draws: sampled paths of each length.
        pair_images: images on which all pairs of blocks are deleted, from the first.
        search_images: images on which sets of blocks are searched and measured, from the first.
        analyzers: names of the analyzers that were asked for; empty for all.
        studies: names of the studies that were asked for, likewise.
        texts: whether the samples are texts.
        seed: seed of every random draw.
        internal_batch_size: samples per forward pass; None lets the analyzer choose.
        show_progress: whether to show progress bars.
        run: where to run a study, and where to keep what is finished.
    """

    embedded: bool = False
    draws: int = 10
    max_deleted: int = 20
    max_swaps: int = 10
    path_images: int = 8
    path_draws: int = 50
    pair_images: int = 8
    search_images: int = 64
    analyzers: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    texts: bool = False
    seed: int = 0
    internal_batch_size: int | None = None
    show_progress: bool = False
    run: RunOptions | None = None

    def names(self, group: str, analyzer: str) -> bool:
        """Whether a study was asked for by its own name or by its analyzer's."""
        return group in self.studies or analyzer in self.analyzers


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study, which becomes one group of the file.

    Attributes:
        group: name of its group.
        analyzer: name of the analyzer that runs it.
        run: computes its result, given those of the studies before.
        wanted: whether this network gets it.
        takes_run: whether it takes run options, and keeps what is finished.
    """

    group: str
    analyzer: str
    run: Callable[[UnraveledNetwork, Samples, StudyOptions, Results], xr.Dataset]
    wanted: Callable[[UnraveledNetwork, StudyOptions], bool] = lambda _network, _options: True
    takes_run: bool = True


def common_size(batches: Samples, cuts: Sequence[int]) -> int:
    """Return the largest number of images, at most a batch, that all images and each study's can be cut into.

    Args:
        batches: all images.
        cuts: how many images studies take, at most all; 0 for a study that is left out.
    """
    total = len(batches.targets)
    common = math.gcd(total, *(min(count, total) for count in cuts if count))
    return max(size for size in range(1, batches.batch_size + 1) if common % size == 0)


def images_taken(options: StudyOptions, total: int) -> tuple[int, ...]:
    """Return how many of all images each study takes at a time; 0 for one that is left out."""
    searched = min(options.search_images, total) if options.names("selection", "BlockSelection") else 0
    return (
        options.path_images,
        min(options.path_images, _MAPS_SHOWN),
        options.pair_images if options.names("interactions", "BlockInteraction") else 0,
        searched,
        searched // 2,  # half of them is held out
    )


def _attributed(analyzer: Any, images: Samples, options: StudyOptions, **arguments: Any) -> xr.Dataset:
    """Return what an analyzer computes, with those of the options of all studies that it takes."""
    taken = inspect.signature(analyzer.attribute).parameters
    common = {option: getattr(options, option) for option in _OPTIONS if option in taken}
    result: xr.Dataset = analyzer.attribute(images, **arguments, **common)
    return result


def _single_lesions(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    return _attributed(BlockLesion(network), images, options)


def _plain_single_lesions(_: UnraveledNetwork, images: Samples, options: StudyOptions, results: Results) -> xr.Dataset:
    """Delete each layer of the plain network that comes with the embedded one."""
    return _single_lesions(unravel(demo.load_plain_network(), units="layers"), images, options, results)


def _random_lesions(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    sizes = range(1, min(options.max_deleted, len(network.blocks)) + 1)
    return _attributed(BlockLesion(network), images, options, n_deleted=sizes, draws=options.draws)


def _reorderings(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    numbers = range(1, options.max_swaps + 1)
    return _attributed(BlockReordering(network), images, options, n_swaps=numbers, draws=options.draws)


def _may_be_reordered(network: UnraveledNetwork, options: StudyOptions) -> bool:
    fits = placements(network, units_of(network, "block"))
    return options.max_swaps > 0 and len(swappable(fits, np.arange(len(fits)))) > 0


def _influence(network: UnraveledNetwork, images: Samples, options: StudyOptions, results: Results) -> xr.Dataset:
    return _attributed(BlockInfluence(network), images, options, lesions=results.get("single_lesions"))


def _path_lengths(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    few = images.head(options.path_images)
    both = ("exact", "sampled")
    analyzer = PathLengthGradient(network)
    return _attributed(analyzer, few, options, estimator=both, draws=options.path_draws, tap=few.tap)


def _path_maps(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    few = images.head(min(options.path_images, _MAPS_SHOWN))
    return _attributed(PathLengthGradient(network), few, options, max_length=_LONGEST_MAP, keep_maps=True)


def _parameter_lengths(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    """Split the gradient that trains each block: of the cross-entropy."""
    few = images.head(options.path_images)
    return _attributed(PathLengthGradient(network), few, options, tap="parameters", objective="cross_entropy")


def _contributions(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    return _attributed(BlockContribution(network), images.head(options.path_images), options)


def _participation(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    return _attributed(PathParticipation(network), images.head(options.path_images), options)


def _interactions(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    return _attributed(
        BlockInteraction(network), images.head(options.pair_images), options, value="loss", per_sample=True
    )


def _selection(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
    sizes = range(1, min(_MOST_SELECTED, len(network.blocks) - 1) + 1)
    few = images.head(options.search_images)
    return _attributed(BlockSelection(network), few, options, k=sizes, n_random=_RANDOM_OF_EACH_SIZE)


def _wants_pairs(network: UnraveledNetwork, options: StudyOptions) -> bool:
    asked = options.embedded or options.names("interactions", "BlockInteraction")
    return asked and options.pair_images > 0 and len(network.blocks) > 1


def _wants_selection(network: UnraveledNetwork, options: StudyOptions) -> bool:
    asked = options.embedded or options.names("selection", "BlockSelection")
    return asked and options.search_images > 1 and _has_skips(network, options) and len(network.blocks) > 1


def _wants_blocks_on_paths(group: str, analyzer: str) -> Callable[[UnraveledNetwork, StudyOptions], bool]:
    """Return whether a study of what passes through blocks is wanted: of the embedded network, or where it is named."""
    return lambda network, options: (
        (options.embedded or options.names(group, analyzer)) and _wants_paths(network, options)
    )


def _has_skips(network: UnraveledNetwork, _: StudyOptions) -> bool:
    return network.units == "blocks"


def _wants_paths(network: UnraveledNetwork, options: StudyOptions) -> bool:
    return options.path_images > 0 and _has_skips(network, options)


def _wants_maps(network: UnraveledNetwork, options: StudyOptions) -> bool:
    return _wants_paths(network, options) and not options.texts


STUDIES: tuple[Study, ...] = (
    Study(group="single_lesions", analyzer="BlockLesion", run=_single_lesions),
    Study(
        group="plain_single_lesions",
        analyzer="BlockLesion",
        run=_plain_single_lesions,
        wanted=lambda _, options: options.embedded,
    ),
    Study(group="random_lesions", analyzer="BlockLesion", run=_random_lesions),
    Study(group="reorderings", analyzer="BlockReordering", run=_reorderings, wanted=_may_be_reordered),
    Study(group="influence", analyzer="BlockInfluence", run=_influence, wanted=_has_skips),
    Study(group="path_lengths", analyzer="PathLengthGradient", run=_path_lengths, wanted=_wants_paths),
    Study(group="path_maps", analyzer="PathLengthGradient", run=_path_maps, wanted=_wants_maps),
    Study(
        group="parameter_lengths",
        analyzer="PathLengthGradient",
        run=_parameter_lengths,
        wanted=_wants_blocks_on_paths("parameter_lengths", ""),  # too much memory for some, unless it is asked for
    ),
    Study(
        group="contributions",
        analyzer="BlockContribution",
        run=_contributions,
        wanted=_wants_blocks_on_paths("contributions", "BlockContribution"),
    ),
    Study(
        group="participation",
        analyzer="PathParticipation",
        run=_participation,
        wanted=_wants_blocks_on_paths("participation", "PathParticipation"),
    ),
    Study(group="interactions", analyzer="BlockInteraction", run=_interactions, wanted=_wants_pairs),
    Study(group="selection", analyzer="BlockSelection", run=_selection, wanted=_wants_selection),
)
"""The studies, in the order in which they are run."""


def studies_by(analyzers: Sequence[str], offered: Mapping[str, type], names: Sequence[str] = ()) -> tuple[Study, ...]:
    """Return the studies of some names, and those that some analyzers run: above, or else one by its own defaults.

    Args:
        analyzers: names of analyzers.
        offered: the analyzers there are, by name.
        names: names of studies.

    Raises:
        InputError: there is no such analyzer or study, or an analyzer needs more than inputs.
        PluginError: what a plugin offers is no analyzer, or cannot name a group of the file.
    """
    for name in analyzers:
        _check_known("analyzer", name, offered)
    for name in names:
        _check_known("study", name, [study.group for study in STUDIES])
    chosen = [study for study in STUDIES if study.analyzer in analyzers or study.group in names]
    known = {study.analyzer for study in STUDIES}
    return (*chosen, *(_study_of(name, offered[name]) for name in dict.fromkeys(analyzers) if name not in known))


def checked_figures(names: Sequence[str], plugin_manager: pluggy.PluginManager) -> tuple[Figure, ...]:
    """Return the figures that plugins offer, after checking before a long run that those of some names are among them.

    Raises:
        InputError: there is no such figure.
    """
    figures = all_figures(plugin_manager)
    for name in names:
        _check_known("figure", name, [figure.name for figure in figures])
    return figures


def _check_known(noun: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no {noun} {name!r}: {hint}Known here are {', '.join(sorted(known))}")


def _study_of(name: str, analyzer: type) -> Study:
    """Return the study that an analyzer runs by its defaults, in a group of its name."""
    attribute = getattr(analyzer, "attribute", None)
    if not callable(attribute):
        raise PluginError(f"analyzer {name!r} has no method 'attribute' to run: {analyzer!r}")
    if not name.isidentifier() or name in {study.group for study in STUDIES}:
        raise PluginError(f"analyzer {name!r} cannot name a group of the file: its plugin should give it another name")
    taken = inspect.signature(attribute).parameters
    needed = [one.name for one in taken.values() if one.default is one.empty and one.kind not in _VARIADIC]
    if len(needed) > _SELF_AND_INPUTS:
        raise InputError(
            f"analyzer {name!r} needs {', '.join(needed[_SELF_AND_INPUTS:])} and has no default for it: "
            "run it from Python"
        )

    def run(network: UnraveledNetwork, images: Samples, options: StudyOptions, _: Results) -> xr.Dataset:
        try:
            result = _attributed(analyzer(network), images, options)
        except (ResnetPathsError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise PluginError(f"analyzer {name!r} failed: {error!r}") from error
        if not isinstance(result, xr.Dataset):
            raise PluginError(f"analyzer {name!r} returned a {type(result).__name__}, not an xarray.Dataset")
        return result

    return Study(group=name, analyzer=name, run=run, takes_run="run" in taken)
