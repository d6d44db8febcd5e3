"""PathStudy: which paths are asked for, and what walks over samples find of them."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin import paths
from resnet_paths_plugin.analyzers.gradients.first_samples import PathsOfFirstSamples
from resnet_paths_plugin.analyzers.gradients.grades import Grading
from resnet_paths_plugin.analyzers.gradients.objective_study import ObjectiveStudy
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.tasks import Estimator, PathWork
from resnet_paths_plugin.analyzers.study import Chunk, StudyResult
from resnet_paths_plugin.argument_sizes import check_count, shown
from resnet_paths_plugin.engine.keys import Edge, Lengths
from resnet_paths_plugin.engine.own_paths import PathDraws, has_own_paths
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.errors import IncompleteGradientWarning, InputError
from resnet_paths_plugin.execution import Arrays, Samples, StudyRun
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.derived import over_paths
from resnet_paths_plugin.results.variables import Entry

Array = NDArray[Any]

SHORT_FLOATS_ERROR = 5e-2
"""Completeness error that values in bfloat16 or float16 on the way may leave."""


_SUMMARY = (
    "Gradients of an objective, summed over samples, by the length of the paths along which they flow, with the "
    "activations of the intact network held fixed."
)


class PathStudy(ObjectiveStudy):
    """Gradients by path length: what is asked, with all that is drawn for it.

    Args:
        network: the network.
        n_inputs: how many of its arguments are inputs.
        estimators: which gradients.
        objective: what is differentiated.
        grading: how lengths are counted.
        max_length: longest length with a row of its own, on every axis; None for all.
        draws: sampled paths for each length, and walks with random signs.
        tap: the block at whose source gradients are taken; None for the inputs.
        keep_maps: whether to keep the gradients themselves.
        seed: seed of paths and signs.
        shared_paths: whether all samples share the sampled paths; they also do where a sum mixes the batch with
            another dimension.

    Raises:
        InputError: if no path leads to the tap, or an option does not fit.
    """

    name = "path_length"

    def __init__(
        self,
        network: UnraveledNetwork,
        *,
        n_inputs: int,
        estimators: tuple[Estimator, ...],
        objective: Objective,
        grading: Grading,
        max_length: int | None,
        draws: int,
        tap: ResidualBlock | None,
        keep_maps: bool,
        seed: int,
        shared_paths: bool = False,
    ) -> None:
        super().__init__(
            network,
            title=f"Path-length gradients of {network.name}",
            summary=_SUMMARY,
            seed=seed if {"sampled", "signs"} & set(estimators) else None,
        )
        network.require_paths()
        self.n_inputs, self.estimators, self.objective, self.grading = n_inputs, estimators, objective, grading
        self.max_length, self.draws, self.tap, self.keep_maps = max_length, draws, tap, keep_maps
        self.graph: PathGraph = self.network.path_graph(self.tap, self.n_inputs)
        _check_taps(self.network, self.graph, self.tap)
        counts = self.graph.counts(self.grading.grades)
        if not counts:
            raise InputError("no path leads from the output back to the tap")
        if self.max_length is not None:
            _whole("max_length", self.max_length)
        longest = tuple(max(length[axis] for length in counts) for axis in range(len(self.grading.axes)))
        limit = self.max_length
        self.limits: Lengths = longest if limit is None else tuple(min(limit, top) for top in longest)
        self.cut = self.limits != longest
        self.counts = {k: count for k, count in counts.items() if not _beyond(k, self.limits)}
        check_count(math.prod(limit + 1 for limit in self.limits), "the grade makes too many lengths of paths")
        if {"sampled", "signs"} & set(self.estimators):
            check_count(len(self.counts) * self.draws, f"draws={shown(self.draws)} asks for too many paths")
        self.grid: list[Lengths] = [
            tuple(int(k) for k in index) for index in np.ndindex(*(limit + 1 for limit in self.limits))
        ]
        if self.keep_maps and "exact" not in self.estimators:
            raise InputError("keep_maps keeps the exact gradients: add 'exact' to estimator")
        if self.keep_maps and (len(self.graph.taps) > 1 or self.network.program.batch_dim(self.graph.taps[0]) != 0):
            raise InputError("keep_maps needs a single input (or tap) whose first dimension is the batch")
        # One generator each, so that an estimator finds the same alone and beside others.
        sampling, signing = np.random.default_rng(_whole("seed", seed)).spawn(2)
        self.paths: list[tuple[Lengths, frozenset[Edge]]] = []
        self.signs: list[dict[Edge, int]] = []
        self.own_paths: PathDraws | None = None
        if "sampled" in self.estimators and not shared_paths and has_own_paths(self.graph):
            each = tuple(length for length in self.counts for _ in range(self.draws))
            self.own_paths = PathDraws(each, self.grading.grades, seed)
        elif "sampled" in self.estimators:
            self.paths = [
                (length, path)
                for length in self.counts
                for path in self.graph.sample(length, self.draws, self.grading.grades, sampling)
            ]
        if "signs" in self.estimators:
            self.signs = [self.graph.draw_signs(signing) for _ in range(self.draws)]

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:
        """Cut batches into the samples of tasks; where each has paths of its own, with their numbers."""
        first = 0
        for samples in super().chunks(batches, size):
            n = samples[0].size
            numbers = Batch((torch.arange(first, first + n),), None, n)
            yield samples if self.own_paths is None else (*samples, numbers)
            first += n

    @property
    def attrs(self) -> Mapping[str, object]:
        """Whether each sample has sampled paths of its own."""
        if "sampled" not in self.estimators:
            return {}
        return {"sampled_paths": "shared" if self.own_paths is None else "own"}

    @property
    def manifest(self) -> Mapping[str, object]:
        """All that a walk depends on."""
        return vars(self._work)

    def own_pass(self, chunk: Batch) -> PathsOfFirstSamples:
        """Return the walk over the first samples, to be compared with the model."""
        return PathsOfFirstSamples(self._work, self.network, chunk)

    def work(self, run: StudyRun) -> PathWork:  # noqa: ARG002 - nothing runs before
        """Return what walks over samples."""
        return self._work

    @cached_property
    def _work(self) -> PathWork:
        return PathWork(
            estimators=self.estimators,
            objective=self.objective,
            grades=self.grading.grades,
            limits=self.limits,
            cut=self.cut,
            grid=tuple(self.grid),
            log_counts=self.log_counts,
            tap=None if self.tap is None else self.tap.index,
            n_inputs=self.n_inputs,
            keep_maps=self.keep_maps,
            paths=tuple(self.paths),
            signs=tuple(self.signs),
            own_paths=self.own_paths,
        )

    @cached_property
    def log_counts(self) -> Array:
        """Decimal logarithm of the number of paths of each length in the grid."""
        return paths.log10_counts([self.counts.get(length, 0) for length in self.grid])

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the result of each chunk of samples; what holds for all samples holds for those up to there."""
        axes = self.grading.axes
        shape = tuple(limit + 1 for limit in self.limits)
        counts = [self.counts.get(length, 0) for length in self.grid]
        coords: dict[str, Entry] = {
            axis: (axis, np.arange(size), {"long_name": f"branches taken on a path: {axis}", "units": "1"})
            if axis != "path_length"
            else (axis, np.arange(size))
            for axis, size in zip(axes, shape, strict=True)
        }
        n_samples = 0
        warned = False
        sums: dict[str, Array] = {}
        for samples, (found,) in chunks:
            n_samples += samples[0].size
            warned = warned or self._warn_of_what_is_missing(found)
            for name, values in _totals(found).items():
                sums[name] = sums[name] + values if name in sums else values
            means = {name: total / n_samples for name, total in sums.items()}
            variables: dict[str, Entry] = {
                "path_count": (axes, _as_floats(counts).reshape(shape)),
                "log10_path_count": (axes, self.log_counts.reshape(shape)),
            }
            variables |= self._per_sample(found)
            totals: dict[str, Array] = {}
            totals |= {name: means[name].ravel() for name in ("gradient_norm", "gradient_share") if name in means}
            if "path_norm" in found:
                variables |= self._sampled_variables(found["path_norm"], means["path_norm"], totals)
                variables["n_samples"] = ((), n_samples)
            own = dict(coords)
            if len(axes) == 1 and totals and not self.cut:  # of a part, the interval would say something else
                ranges = {
                    name: paths.effective_range(
                        values, log10=name == "total_path_gradient", signed=name == "gradient_share"
                    )
                    for name, values in totals.items()
                }
                variables["effective_length_low"] = (("measure",), [low for low, _ in ranges.values()])
                variables["effective_length_high"] = (("measure",), [high for _, high in ranges.values()])
                own["measure"] = ("measure", list(totals))
            yield StudyResult(variables, own)

    def _warn_of_what_is_missing(self, found: Arrays) -> bool:
        """Warn where gradients are not finite, or those of all paths add up to something else than the ordinary one."""
        lost = _not_finite(found)
        if lost:
            warnings.warn(
                f"gradients of {self.network.name} are NaN or infinite {lost}: where they are, nothing shows whether "
                "the paths are complete. A square root or a logarithm at 0, or an overflow, makes them so (try "
                "model.double(), or torch.autograd.detect_anomaly on the model)",
                IncompleteGradientWarning,
                stacklevel=2,
            )
            return True
        worst = float(found.get("completeness_error", np.zeros(1)).max(initial=0))
        # Some models compute some steps in float32 whatever their dtype is.
        coarse = SHORT_FLOATS_ERROR if self.network.graph.has_short_floats else 0.0
        if worst <= max(10 * torch.finfo(self.network.dtype).eps ** 0.5, 1e-5, coarse):
            return False
        warnings.warn(
            f"the path gradients of {self.network.name} add up to its own gradient only within {worst:.1e} of it, "
            "relatively: its gradients may be steep or saturated so that rounding shows (try model.double()), or it "
            "computes something else with gradients than without. `completeness_error` has each sample's",
            IncompleteGradientWarning,
            stacklevel=2,
        )
        return True

    def _per_sample(self, found: Arrays) -> dict[str, Entry]:
        axes = self.grading.axes
        variables: dict[str, Entry] = {}
        for name in ("gradient_norm", "gradient_share", "path_gradient_rms"):
            if name in found:
                variables[name] = ((*axes, "sample"), found[name])
        for name in ("completeness_error", "tail_gradient_norm"):
            if name in found:
                variables[name] = (("sample",), found[name])
        if "gradient" in found:
            maps = found["gradient"]
            dims = [f"input_dim_{at}" for at in range(1, maps.ndim - len(axes))]
            if len(dims) == 3:
                dims = ["channel", "height", "width"]
            variables["gradient"] = ((*axes, "sample", *dims), maps)
            if "input" in found:
                variables["input"] = (("sample", *dims), found["input"])
        return variables

    def _sampled_variables(self, norms: Array, means: Array, totals: dict[str, Array]) -> dict[str, Entry]:
        """Return what sampled paths say: of the samples of a chunk, and of all up to there.

        Args:
            norms: of each path and sample of the chunk.
            means: of each path over all samples up to there.
            totals: takes what effective ranges are of.
        """
        axes = self.grading.axes
        shape = tuple(limit + 1 for limit in self.limits)
        found = over_paths(self._on_grid(means), self.log_counts)
        totals["total_path_gradient"] = found["log10_total_path_gradient"]
        drawn = self._on_grid(norms).reshape(*shape, self.draws, -1)
        variables: dict[str, Entry] = {name: (axes, values.reshape(shape)) for name, values in found.items()}
        return variables | {"path_gradient_norm_draws": ((*axes, "draw", "sample"), drawn), "n_draws": ((), self.draws)}

    def _on_grid(self, of_paths: Array) -> Array:
        """Return values of each path, `[paths, ...]`, by the place of its length in the grid, `[grid, draw, ...]`."""
        found = np.zeros((len(self.grid), self.draws, *of_paths.shape[1:]))
        place = {length: at for at, length in enumerate(self.grid)}
        found[[place[length] for length in self.counts]] = of_paths.reshape(-1, self.draws, *of_paths.shape[1:])
        return found


def _totals(found: Arrays) -> dict[str, Array]:
    """Return what is averaged over samples, summed over those of a chunk."""
    names = ("path_norm", "gradient_norm", "gradient_share")
    return {name: found[name].sum(axis=-1) for name in names if name in found}


def _check_taps(network: UnraveledNetwork, graph: PathGraph, tap: ResidualBlock | None) -> None:
    for at in graph.taps:
        value = network.program.nodes[at].meta["val"]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError(
                "a gradient needs floating-point values, and an input holds integers (such as token ids): "
                "take tap='stem' or a block; what is no input, such as a mask, goes into additional_forward_args"
            )
        if network.program.batch_dim(at) is None and network.graph.batch_symbol is None:
            raise InputError(
                f"{f'the source of {tap.name!r}' if tap else 'an input'} has no dimension that is known to be the "
                f"batch, as the model's Python froze the batch size at {network.graph.example_batch}: unravel it "
                "with a batch size that no other dimension has, or write it for any batch size "
                "(x.shape[0] instead of len(x) or int(...))"
            )
        if network.program.batch_dim(at) is None:
            raise InputError(
                f"{f'the source of {tap.name!r}' if tap else 'an input'} has no dimension that is the batch: "
                "take another tap"
            )


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise InputError(f"{name} must be a whole number from 0, not {value!r}")
    return int(value)


def _beyond(length: Lengths, limits: Lengths) -> bool:
    return any(k > limit for k, limit in zip(length, limits, strict=True))


def _as_floats(counts: Sequence[int]) -> Array:
    """Return counts as float64, infinite where they are beyond its range."""
    return np.array([float(count) if count.bit_length() < 1024 else np.inf for count in counts])


def _not_finite(found: Arrays) -> str:
    """Say of how many samples gradients are not finite; empty where all are."""
    samples = [found[name] for name in ("gradient_norm", "tail_gradient_norm", "path_gradient_rms") if name in found]
    lost = [~np.isfinite(values).reshape(-1, values.shape[-1]).all(axis=0) for values in samples]
    if "completeness_error" in found:
        lost.append(np.isnan(found["completeness_error"]))
    if any(one.any() for one in lost):
        return f"for {np.logical_or.reduce(lost).sum()} of {lost[0].size} samples"
    return "" if np.isfinite(found.get("path_norm", np.zeros(1))).all() else "for some samples"
