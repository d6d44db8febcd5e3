"""The study that lesions, reorderings and schedules share: run schedules over batches, measure, build a Dataset."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
import xarray as xr
from captum.attr import PerturbationAttribution
from numpy.typing import NDArray
from torch import nn

from resnet_paths_plugin import attributes, datasets
from resnet_paths_plugin.analyzers.batches import Batch, Batches
from resnet_paths_plugin.analyzers.conditions import Conditions
from resnet_paths_plugin.analyzers.measures import Measure, Measures
from resnet_paths_plugin.analyzers.running import Arrays, RunOptions, Stage, StudyRun
from resnet_paths_plugin.analyzers.schedule_work import IS_FINITE, ScheduleWork
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning
from resnet_paths_plugin.network import UnraveledNetwork
from resnet_paths_plugin.unraveling import unravel

CACHE_BYTES = 4 * 2**20
"""Size that the largest value of a chunk should have on a CPU; larger ones leave the cache."""

SCHEDULES_PER_UNIT = 32
"""Schedules in one unit of work: as many as make the intact pass that each unit begins with cheap."""

SAMPLES_ON_DEVICE = 256
"""Samples in a forward pass on other devices than a CPU, those of schedules side by side together."""

MOST_CLASS_NAMES = 200
"""Longer lists of class names are not stored with a result."""


@dataclass(frozen=True, eq=False, slots=True)
class ScheduleStudy:
    """Which schedules a study compares with the intact network, and how they are labelled.

    Attributes:
        dim: name of the study's dimension, such as `"lesion"`.
        labels: one label per schedule.
        schedules: the schedules.
        variables: what else is known of each schedule: dims and values by name.
    """

    dim: str
    labels: Sequence[str]
    schedules: Sequence[Schedule]
    variables: Mapping[str, datasets.Entry] = field(default_factory=dict)


class ScheduleAnalyzer(PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Base of the analyzers that change a network's schedule and measure what becomes of its outputs.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._network = model if isinstance(model, UnraveledNetwork) else None


def network_for(model: nn.Module, network: UnraveledNetwork | None, batches: Batches) -> UnraveledNetwork:
    """Return the network of an analyzer, captured from the first batch where this has not been done yet.

    Raises:
        NoResidualBlocksError: if it has no residual blocks.
    """
    if network is not None and network is not model and not network.fits(batches.first.to(network.device).args):
        network = None  # the module has another dtype by now, or gets inputs of another shape
    if network is None:
        like = next(model.parameters(), None)
        first = batches.first if like is None else batches.first.to(like.device)
        network = unravel(model, first.args)
    network.require_blocks()
    return network


def run_study(
    network: UnraveledNetwork,
    study: ScheduleStudy,
    batches: Batches,
    attrs: Mapping[str, object],
    *,
    conditions: Conditions,
    measures: Mapping[str, Measure] | None,
    internal_batch_size: int | None,
    perturbations_per_eval: int | None,
    run: RunOptions | None = None,
    show_progress: bool,
) -> xr.Dataset:
    """Run every schedule over every batch and return the measures, dims `(study.dim, sample)`.

    Args:
        network: the network.
        study: the schedules and their labels.
        batches: inputs and targets, read once.
        attrs: global attributes of the result.
        conditions: what the schedules run under.
        measures: the user's measures.
        internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
        perturbations_per_eval: schedules per forward pass; None chooses.
        run: where to run it; None runs it here.
        show_progress: whether to show a progress bar.

    Raises:
        InputError: if inputs, targets or measures do not fit the network.
        CheckpointError: if there is a checkpoint of another study.
    """
    datasets.check_names(measures or ())
    measured = Measures(network, measures)
    samples = positive("internal_batch_size", internal_batch_size) or chunk_size(network, run)
    width = positive("perturbations_per_eval", perturbations_per_eval) or schedules_side_by_side(
        network, run, min(samples, batches.first.size)
    )
    sizes = {
        "samples": samples,
        "schedules side by side": width,
        # Where schedules share a batch, how many of them decides how numbers are rounded.
        "schedules": max(1, SCHEDULES_PER_UNIT // width) * width,
    }
    measured.check(batches.first)
    attrs = {**attrs, **_classes(network, measured)}
    order = network.prefix_order(study.schedules)
    schedules = tuple(study.schedules[place] for place in order)
    facts = {"schedules": study.schedules, "measures": measured.user}
    with StudyRun(network, run, attrs, facts=facts, sizes=sizes, show_progress=show_progress) as study_run:
        conditions.prepare(schedules, study_run)
        work = ScheduleWork(
            schedules,
            study_run.sizes["schedules"],
            study_run.sizes["schedules side by side"],
            measured.user,
            conditions.substitution,
            conditions.statistics,
        )
        pieces = study_run.pieces(
            Stage(study.dim, work),
            conditions.pieces(_checked(batches, measured), study_run.sizes["samples"]),
            batches.n_samples,
        )
        back = np.argsort(order)
        return study_run.gather(_datasets(network, study, (_merged(groups, back) for _, groups in pieces), attrs))


def _checked(batches: Batches, measured: Measures) -> Iterator[Batch]:
    for batch in batches:
        measured.check(batch)
        yield batch


def chunk_size(network: UnraveledNetwork, run: RunOptions | None = None) -> int:
    """Return the number of samples per forward pass whose values suit the cache."""
    if device_of(network, run).type != "cpu":
        return SAMPLES_ON_DEVICE
    return int(np.clip(CACHE_BYTES // network.program.bytes_per_sample(), 8, 256))


def schedules_side_by_side(network: UnraveledNetwork, run: RunOptions | None, samples: int) -> int:
    """Return the number of schedules per forward pass.

    One on a CPU, where more were measured to be slower unless a batch has fewer than some four samples, and where
    results then do not depend on the number; elsewhere as many as fill a pass. It is a rule and no timing, so that the
    same call rounds alike every time, whoever runs it.

    Args:
        network: the network.
        run: where it runs.
        samples: samples per forward pass of one schedule.
    """
    return 1 if device_of(network, run).type == "cpu" else max(1, SAMPLES_ON_DEVICE // samples)


def device_of(network: UnraveledNetwork, run: RunOptions | None) -> torch.device:
    """Return the device that a network runs on."""
    asked = RunOptions.of(run).device
    return network.device if asked is None else torch.device(asked)


def _merged(groups: Sequence[Arrays], back: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """Return the results of all groups together, with the schedules in the order of the study."""
    return {
        name: np.concatenate([group[name] for group in groups])[back] if array.ndim == 2 else array
        for name, array in groups[0].items()
    }


def _datasets(
    network: UnraveledNetwork,
    study: ScheduleStudy,
    pieces: Iterable[dict[str, NDArray[Any]]],
    attrs: Mapping[str, object],
) -> Iterator[xr.Dataset]:
    """Yield the result of each piece of samples; what is said of all samples holds for those up to there."""
    n_samples = 0
    correct: NDArray[Any] | int = 0
    intact_correct = 0
    warned = False
    for values in pieces:
        if not values.pop(IS_FINITE) and not warned:
            warned = True
            _warn_not_finite(network)
        variables: dict[str, datasets.Entry] = dict(study.variables)
        for name, array in values.items():
            variables[name] = ((study.dim, "sample") if array.ndim == 2 else ("sample",), array)
        if "correct" in values:
            n_samples += values["correct"].shape[-1]
            correct = correct + values["correct"].sum(axis=-1)
            intact_correct += int(values["intact_correct"].sum())
            variables["error"] = ((study.dim,), 1 - correct / n_samples)
            variables["intact_error"] = ((), 1 - intact_correct / n_samples)
        coords = {study.dim: (study.dim, list(study.labels)), **datasets.block_coords(network.blocks)}
        yield datasets.build(variables, coords=coords, attrs=attrs)


def _classes(network: UnraveledNetwork, measured: Measures) -> dict[str, object]:
    """Say how many classes the outputs tell apart, and what they are called where this is known and not too long."""
    if measured.n_classes is None:
        return {}
    names = network.description.class_names if network.description else None
    told = names is not None and len(names) == measured.n_classes <= MOST_CLASS_NAMES
    return {"n_classes": measured.n_classes} | ({"class_names": list(names or ())} if told else {})


def study_attrs(
    network: UnraveledNetwork,
    *,
    analyzer: str,
    title: str,
    summary: str,
    seed: int | None,
    arguments: Mapping[str, Any],
    run: RunOptions | None = None,
) -> dict[str, Any]:
    """Return the provenance of a study of this network."""
    facts = attributes.provenance(
        title=title,
        summary=summary,
        analyzer=analyzer,
        model_class=type(network.model),
        description=network.description,
        weights_digest=network.weights_digest(),
        plugins=network.plugin_names,
        device=device_of(network, run),
        dtype=network.dtype,
        seed=seed,
        arguments=arguments,
    )
    optimized = {"optimize": ", ".join(network.optimize)} if network.optimize else {}
    return {**facts, "units": network.units, **optimized}


def positive(name: str, value: int | None) -> int | None:
    """Return a positive integer or None as it is; refuse anything else."""
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer or None, not {value!r}")
    return int(value)


def draws_of(draws: int, seed: int) -> int:
    """Return a number of random draws after checking it and the seed.

    Raises:
        InputError: if the number is no positive integer, or the seed no integer of 0 or more.
    """
    for name, value, least in (("draws", draws, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least else "an integer of at least 0"
            raise InputError(f"{name} must be {kind}, not {value!r}")
    return int(draws)


def _warn_not_finite(network: UnraveledNetwork) -> None:
    warnings.warn(
        f"the intact {network.name} returns NaN or infinity: check its weights and inputs; measures of such "
        "outputs mean little",
        NonFiniteOutputWarning,
        stacklevel=2,
    )
