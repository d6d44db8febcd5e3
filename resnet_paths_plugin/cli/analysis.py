"""Analysis: the studies of one model, from labelled images or texts to one result, whatever command asks for them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pluggy
import xarray as xr
from torch import nn

from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.command import warn
from resnet_paths_plugin.cli.image_selection import ImageSelection
from resnet_paths_plugin.cli.images import LabelledImages, read_images, targets_of
from resnet_paths_plugin.cli.preprocessing import InputBatches, preprocessing_for
from resnet_paths_plugin.cli.running import PartialRun, threads_said
from resnet_paths_plugin.cli.studies import Samples, Study, StudyOptions, images_taken
from resnet_paths_plugin.cli.study_extent import extent_of
from resnet_paths_plugin.cli.study_options import StudyChoices
from resnet_paths_plugin.cli.subject import check_classes, held_out_digits, unraveled
from resnet_paths_plugin.cli.terminal import echo
from resnet_paths_plugin.cli.texts import TextBatches, Texts, as_bytes, read_texts
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network.captured_network import Units
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.plugins.model_description import ModelDescription

_NOUNS: Mapping[Units, str] = {"blocks": "residual blocks", "layers": "layers that can be deleted"}


def limited(images: LabelledImages, choices: StudyChoices) -> LabelledImages:
    """Return the images that are studied."""
    return images if choices.limit is None else ImageSelection(images, choices.limit, choices.seed)


def read_samples(choices: StudyChoices) -> LabelledImages | Texts:
    """Read the texts or images that are asked for; without any, return the digits that were held out from training."""
    if choices.text is not None:
        return read_texts(choices.text)
    return limited(held_out_digits() if choices.images is None else read_images(choices.images), choices)


def batches_of(
    module: nn.Module, samples: LabelledImages | Texts, description: ModelDescription | None, choices: StudyChoices
) -> Samples:
    """Return images or texts as the model takes them.

    Raises:
        InputError: if it is not known how, or they do not fit the model.
    """
    if isinstance(samples, Texts):
        return _sequences_of(samples, description, choices)
    return _images_of(module, samples, description, choices)


def _sequences_of(texts: Texts, description: ModelDescription | None, choices: StudyChoices) -> TextBatches:
    """Return the sequences of texts that are studied, by the model's tokenizer or else their bytes."""
    tokenize = description.tokenize if description else None
    return TextBatches(
        texts,
        tokenize or as_bytes,
        choices.tokens,
        limit=choices.limit,
        seed=choices.seed,
        batch_size=choices.batch_size,
        **({} if tokenize else {"origin": "each byte a token"}),
    )


def _images_of(
    module: nn.Module, images: LabelledImages, description: ModelDescription | None, choices: StudyChoices
) -> InputBatches:
    """Return images as the model takes them."""
    preprocessing, resize = preprocessing_for(
        description, images, choices.mean, choices.std,
        size=choices.image_size, crop=choices.crop, interpolation=choices.interpolation,
    )  # fmt: skip
    targets = targets_of(images, description.class_names if description else None)
    return InputBatches(
        images, targets, preprocessing, resize=resize, batch_size=choices.batch_size, dtype=models.dtype_of(module)
    )


def options_of(choices: StudyChoices, *, embedded: bool, show_progress: bool) -> StudyOptions:
    """Return the options of all studies.

    Args:
        choices: what the user chose.
        embedded: whether the embedded network is studied on the images that it comes with.
        show_progress: whether to show progress bars.
    """
    return StudyOptions(
        embedded=embedded and choices.units == "blocks",
        draws=choices.draws,
        max_deleted=choices.max_deleted,
        max_swaps=choices.max_swaps,
        path_images=choices.path_images,
        path_draws=choices.path_draws,
        pair_images=choices.pair_images,
        search_images=choices.search_images,
        analyzers=choices.analyzers,
        studies=choices.studies,
        texts=choices.text is not None,
        seed=choices.seed,
        internal_batch_size=choices.batch_size,
        show_progress=show_progress,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """A network, its images, and the studies that it is to undergo.

    Attributes:
        network: the network, captured for the images.
        batches: the images or texts as the network takes them.
        studies: the studies, at least one.
        options: what all studies are told.
    """

    network: UnraveledNetwork
    batches: Samples
    studies: tuple[Study, ...]
    options: StudyOptions

    @property
    def groups(self) -> list[str]:
        """The groups of the result, one for each study."""
        return [study.group for study in self.studies]

    def described(self, units: Units) -> str:
        """Return what is studied, and what is done to the samples, in two lines."""
        network = self.network
        return (
            f"{network.name}: {len(network.blocks)} {_NOUNS[units]}, {self.batches.counted}, {threads_said()}\n"
            f"{self.batches.described}"
        )

    def results(
        self, partial: PartialRun, executor: Any, *, wait_for_workers: bool, verify: bool
    ) -> dict[str, xr.Dataset]:
        """Run the studies, say of each how much it was, and return their results by group.

        Args:
            partial: keeps what is finished.
            executor: runs the tasks; None for this process.
            wait_for_workers: as of `RunOptions`.
            verify: as there.
        """
        run_of = functools.partial(partial.options, executor=executor, wait_for_workers=wait_for_workers, verify=verify)
        results: dict[str, xr.Dataset] = {}
        for study in self.studies:
            options = replace(self.options, run=run_of(study.group))
            results[study.group] = study.run(self.network, self.batches, options, results)
            echo(extent_of(study.group, results[study.group]))
        return results


def analysis_of(
    module: nn.Module,
    batches: Samples,
    studies: Sequence[Study],
    options: StudyOptions,
    choices: StudyChoices,
    manager: pluggy.PluginManager,
) -> Analysis:
    """Capture a model for its samples, check their labels, and return it with those of the studies that it can undergo.

    Args:
        module: the model, on its device.
        batches: the images or texts that are studied.
        studies: the studies that are asked for.
        options: what all studies are told.
        choices: what the user chose.
        manager: the plugin manager.

    Raises:
        InputError: if none of the studies can be run on this model, or samples and model do not fit each other.
    """
    taken = images_taken(options, len(batches.targets))
    network = unraveled(
        module, batches, taken, choices.units, choices.optimize, manager, verify=choices.verify,
        task=choices.task,
    )  # fmt: skip
    check_classes(network, batches)
    wanted = tuple(study for study in studies if study.wanted(network, options))
    if not wanted:
        asked = ", ".join((*choices.analyzers, *choices.studies)) or "the command"
        raise InputError(f"{asked} finds nothing to study in {network.name} with these options")
    return Analysis(network=network, batches=batches, studies=wanted, options=options)


def warn_of_no_effect(studies: Sequence[Study], options: Mapping[str, object]) -> None:
    """Warn of analyzers that take no run options, where the user gave some."""
    given = ", ".join(option for option, value in options.items() if value)
    for study in studies:
        if given and not study.takes_run:
            warn(
                f"{given} has no effect on analyzer {study.analyzer!r}, whose 'attribute' takes no 'run': it runs in "
                "this process, from its beginning"
            )


def warn_of_random_weights(
    spec: str, module: nn.Module, manager: pluggy.PluginManager, *, seed: int, loaded: bool
) -> None:
    """Warn of a model that is not trained.

    Args:
        spec: the model as it was named.
        module: the model.
        manager: the plugin manager.
        seed: the seed with which it was made.
        loaded: whether it has the library's weights, or those of a file.
    """
    if loaded:
        return
    if "/" in spec:
        warn(f"{spec} has random weights: give --pretrained or --weights to study a trained network")
    elif models.draws_weights(spec, module, seed, manager):
        warn(
            f"{spec} has random weights, others with another --seed: give --weights, or let the callable load them, to "
            "study a trained network"
        )
