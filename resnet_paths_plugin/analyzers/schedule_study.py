"""The study that lesions, reorderings and schedules share: run schedules over batches, measure, build a Dataset."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
import xarray as xr
from captum.attr import PerturbationAttribution
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from resnet_paths_plugin import attributes, datasets
from resnet_paths_plugin.analyzers.batches import Batch, Batches
from resnet_paths_plugin.analyzers.conditions import Conditions
from resnet_paths_plugin.analyzers.measures import Measure, Measures
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning
from resnet_paths_plugin.network import UnraveledNetwork, unravel

CACHE_BYTES = 4 * 2**20
"""Size that the largest value of a chunk should have on a CPU; larger ones leave the cache."""

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
        show_progress: whether to show a progress bar.

    Raises:
        InputError: if inputs, targets or measures do not fit the network.
    """
    datasets.check_names(measures or ())
    measured = Measures(network, measures)
    size = positive("internal_batch_size", internal_batch_size) or chunk_size(network)
    width = positive("perturbations_per_eval", perturbations_per_eval) or 1
    measured.check(batches.first)
    conditions.prepare(study.schedules, show_progress=show_progress)
    pieces: list[dict[str, np.ndarray[Any, Any]]] = []
    with (
        torch.no_grad(),
        tqdm(total=batches.n_samples, disable=not show_progress, unit="sample", desc=study.dim) as progress,
    ):
        for batch in batches:
            measured.check(batch)
            for chunk, schedules in conditions.chunks(batch.to(network.device), study.schedules, size):
                pieces.append(_run_chunk(network, conditions.outputs(schedules, chunk, width), chunk, measured))
                progress.update(chunk.size)
    names = set(pieces[0])
    if any(set(piece) != names for piece in pieces):
        raise InputError("some batches have targets and others have none: give all batches targets, or none")
    values = {name: np.concatenate([piece[name] for piece in pieces], axis=-1) for name in pieces[0]}
    return _dataset(network, study, values, {**attrs, **_classes(network, measured)})


def chunk_size(network: UnraveledNetwork) -> int:
    """Return the number of samples per forward pass whose values suit the cache."""
    if network.device.type != "cpu":
        return 256
    return int(np.clip(CACHE_BYTES // network.program.bytes_per_sample(), 8, 256))


def _run_chunk(
    network: UnraveledNetwork, runs: Iterator[tuple[int, Any]], chunk: Batch, measures: Measures
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the measures of one chunk: `[schedule, sample]`, and of the intact network `intact_...` as `[sample]`."""
    intact = network(*chunk.args)
    reference = measures.of(intact, chunk)
    _warn_if_not_finite(network, intact)
    rows: dict[int, dict[str, Tensor]] = {}
    for place, outputs in runs:
        rows[place] = measures.of(outputs, chunk)
        measures.against(outputs, rows[place], intact, reference)
    found = {name: _numpy(torch.stack([rows[place][name] for place in sorted(rows)])) for name in rows[0]}
    found |= {f"intact_{name}": _numpy(values) for name, values in reference.items()}
    labels = chunk.labels() if measures.n_classes is not None else None
    return found if labels is None else found | {"label": _numpy(labels)}


def _dataset(
    network: UnraveledNetwork,
    study: ScheduleStudy,
    values: Mapping[str, np.ndarray[Any, Any]],
    attrs: Mapping[str, object],
) -> xr.Dataset:
    variables: dict[str, datasets.Entry] = dict(study.variables)
    for name, array in values.items():
        variables[name] = ((study.dim, "sample") if array.ndim == 2 else ("sample",), array)
    if "correct" in values:
        variables["error"] = ((study.dim,), 1 - values["correct"].mean(axis=-1))
        variables["intact_error"] = ((), 1 - values["intact_correct"].mean())
    coords = {study.dim: (study.dim, list(study.labels)), **datasets.block_coords(network.blocks)}
    return datasets.build(variables, coords=coords, attrs=attrs)


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
        device=network.device,
        dtype=network.dtype,
        seed=seed,
        arguments=arguments,
    )
    return {**facts, "units": network.units}


def _numpy(values: Tensor) -> np.ndarray[Any, Any]:
    if values.dtype in {torch.float16, torch.bfloat16}:
        values = values.float()
    array: np.ndarray[Any, Any] = values.cpu().numpy()
    return array


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


def _warn_if_not_finite(network: UnraveledNetwork, outputs: Any) -> None:
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        warnings.warn(
            f"the intact {network.name} returns NaN or infinity: check its weights and inputs; measures of such "
            "outputs mean little",
            NonFiniteOutputWarning,
            stacklevel=2,
        )
