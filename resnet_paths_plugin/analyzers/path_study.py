"""PathStudy: walks over chunks of samples by each estimator, and the Dataset of what they find."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin import datasets, paths
from resnet_paths_plugin.analyzers.batches import Batch, check_target
from resnet_paths_plugin.analyzers.grades import Grading
from resnet_paths_plugin.analyzers.objectives import (
    Objective,
    ordinary_gradient,
    output_gradients,
    per_sample,
)
from resnet_paths_plugin.engine.backward import BackwardWalk, Bank, bank_dtype
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.routes import TAIL, AlongPaths, ByLength, Edge, Lengths, WithSigns
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.network import UnraveledNetwork

Estimator = Literal["exact", "sampled", "signs"]
ESTIMATORS: tuple[Estimator, ...] = ("exact", "sampled", "signs")
Array = NDArray[Any]

PATHS_PER_WALK = 128
"""Sampled paths that go through the network side by side."""


@dataclass(eq=False)
class PathStudy:
    """One study: what is asked, and what has been found for each chunk of samples."""

    network: UnraveledNetwork
    estimators: tuple[Estimator, ...]
    objective: Objective
    grading: Grading
    max_length: int | None
    draws: int
    tap: ResidualBlock | None
    n_inputs: int
    keep_maps: bool
    seed: int
    found: dict[str, list[Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
        self.grid: list[Lengths] = [
            tuple(int(k) for k in index) for index in np.ndindex(*(limit + 1 for limit in self.limits))
        ]
        if self.keep_maps and "exact" not in self.estimators:
            raise InputError("keep_maps keeps the exact gradients: add 'exact' to estimator")
        if self.keep_maps and (len(self.graph.taps) > 1 or self._batch_dim(self.graph.taps[0]) != 0):
            raise InputError("keep_maps needs a single input (or tap) whose first dimension is the batch")
        # One generator each, so that an estimator finds the same alone and beside others.
        sampling, signing = np.random.default_rng(_whole("seed", self.seed)).spawn(2)
        self.paths: list[tuple[Lengths, frozenset[Edge]]] = []
        self.signs: list[dict[Edge, int]] = []
        if "sampled" in self.estimators:
            self.paths = [
                (length, path)
                for length in self.counts
                for path in self.graph.sample(length, self.draws, self.grading.grades, sampling)
            ]
        if "signs" in self.estimators:
            self.signs = [self.graph.draw_signs(signing) for _ in range(self.draws)]

    def check(self, batch: Batch) -> None:
        """Check a batch's target against the outputs before anything is run."""
        if callable(self.objective) and not batch.names_outputs:
            return  # the objective knows what to make of it
        leaves = [getattr(leaf, "meta", {}).get("val") for leaf in self.network.graph.outputs]
        if len(leaves) == 1 and isinstance(leaves[0], Tensor) and leaves[0].ndim == 2:
            check_target(batch, int(leaves[0].shape[1]))

    def add(self, chunk: Batch) -> None:
        """Run the estimators on some samples."""
        program = self.network.program
        dtype = bank_dtype(self.network.dtype)
        order = program.flow.order
        inputs = {order[node]: value for node, value in self.network.graph.bind(chunk.args).items()}
        walk = BackwardWalk(self.graph, inputs, program.parameters(), dtype=dtype)
        leaves = output_gradients(self.objective, self.network.graph.unflatten(walk.outputs), chunk, dtype)
        seeds = program.at_outputs(leaves)
        if not any(self.graph.read_by(at) for at in seeds):
            raise InputError("no gradient reaches the tap: the objective does not depend on it")
        lengths = ByLength(self.grading.grades, self.limits, tail=True)
        if "exact" in self.estimators:
            self._exact(chunk, walk.run(seeds, lengths))
        if "sampled" in self.estimators:
            self._sampled(walk, seeds, chunk)
        if "signs" in self.estimators:
            self._signed(walk, seeds, chunk)

    def _exact(self, chunk: Batch, banks: dict[int, Bank]) -> None:
        self._keep("gradient_norm", self._norms(banks, self.grid, chunk.size).reshape(self._shape(chunk)))
        if self.cut:
            self._keep("tail_gradient_norm", self._norms(banks, [TAIL], chunk.size)[0])
        reference = self._ordinary(chunk)
        missing = square = torch.zeros(chunk.size, dtype=torch.float64)
        for tap in self.graph.taps:
            gradient = reference[tap]
            total = banks[tap].rows.sum(0) if tap in banks else torch.zeros_like(gradient)
            missing = missing + _squares(total - gradient.to(total.dtype), self._batch_dim(tap))
            square = square + _squares(gradient, self._batch_dim(tap))
        error = (missing / square).sqrt()
        self._keep("completeness_error", torch.where((missing == 0) & (square == 0), 0.0, error).numpy())
        if self.keep_maps:
            tap = self.graph.taps[0]
            maps = _rows(banks.get(tap), self.grid, reference[tap]).float().cpu().numpy()
            self._keep("gradient", maps.reshape(self._shape(chunk) + maps.shape[2:]))
            if self.tap is None:
                self._keep("input", chunk.args[0].float().cpu().numpy())

    def _sampled(self, walk: BackwardWalk, seeds: dict[int, Tensor], chunk: Batch) -> None:
        norms: list[Array] = []
        for start in range(0, len(self.paths), PATHS_PER_WALK):
            part = self.paths[start : start + PATHS_PER_WALK]
            routing = AlongPaths([path for _, path in part])
            keys = [(row,) for row in range(len(part))]
            scaled = self._norms(walk.run(seeds, routing), keys, chunk.size)
            norms.append(np.ldexp(scaled, [[routing.exponents.get(key, 0)] for key in keys]))
        self._keep("path_norms", np.concatenate(norms))

    def _signed(self, walk: BackwardWalk, seeds: dict[int, Tensor], chunk: Batch) -> None:
        lengths = ByLength(self.grading.grades, self.limits, tail=False)
        squares = [
            self._norms(walk.run(seeds, WithSigns(lengths, signs)), self.grid, chunk.size) ** 2 for signs in self.signs
        ]
        log_counts = paths.log10_counts([self.counts.get(length, 0) for length in self.grid])[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            # In logarithms, since counts of deep networks are beyond the range of floats.
            rms = 10 ** ((np.log10(np.mean(squares, axis=0)) - log_counts) / 2)
        self._keep("path_gradient_rms", np.where(np.isneginf(log_counts), 0.0, rms).reshape(self._shape(chunk)))

    def _norms(self, banks: dict[int, Bank], keys: Sequence[Any], size: int) -> Array:
        """Return the Euclidean norm of each row and sample over all taps, shape `[R, B]` float64."""
        squares: Tensor | None = None
        for tap, bank in banks.items():
            rows = _squares(_rows(bank, keys, bank.rows[0]), 1 + (self._batch_dim(tap) or 0), rows=True)
            squares = rows if squares is None else squares + rows
        if squares is None:  # none of these paths carries a gradient
            return np.zeros((len(keys), size))
        result: Array = squares.sqrt().numpy()
        return result

    def _ordinary(self, chunk: Batch) -> dict[int, Tensor]:
        """Return the ordinary gradient at each tap: at the inputs from the user's own model."""
        program = self.network.program
        if self.tap is None:
            found = dict(zip(program.inputs, ordinary_gradient(self.network.model, self.objective, chunk), strict=True))
        else:
            found = {self.graph.taps[0]: self._gradient_inside(chunk)}
        inputs = self.network.graph.bind(chunk.args)
        return {
            tap: gradient if (gradient := found[tap]) is not None else torch.zeros_like(inputs[program.nodes[tap]])
            for tap in self.graph.taps
        }

    def _gradient_inside(self, chunk: Batch) -> Tensor:
        """Return autograd's gradient at a value inside the graph, from one plain run of all its operators."""
        program, tap = self.network.program, self.graph.taps[0]
        inputs = {program.flow.order[node]: value for node, value in self.network.graph.bind(chunk.args).items()}
        with torch.enable_grad():
            static = program.prepare(program.parameters(), inputs)
            values = dict(inputs)
            for at in (*program.inputs, *program.dynamic):
                if at not in values:
                    values[at] = program.operators[at](static, values)
                if at == tap:
                    values[at] = values[at].detach().requires_grad_()
            leaves = [values.get(at, static.get(at)) if at is not None else None for at in program.outputs]
            total = per_sample(self.objective, self.network.graph.unflatten(leaves), chunk).sum()
            (gradient,) = torch.autograd.grad(total, [values[tap]])
            return gradient

    def dataset(self, attrs: dict[str, Any]) -> xr.Dataset:
        """Return what has been found for all samples."""
        axes = self.grading.axes
        shape = tuple(limit + 1 for limit in self.limits)
        counts = [self.counts.get(length, 0) for length in self.grid]
        log_counts = paths.log10_counts(counts)
        variables: dict[str, datasets.Entry] = {
            "path_count": (axes, _as_floats(counts).reshape(shape)),
            "log10_path_count": (axes, log_counts.reshape(shape)),
        }
        for name in ("gradient_norm", "path_gradient_rms"):
            if name in self.found:
                variables[name] = ((*axes, "sample"), np.concatenate(self.found[name], axis=-1))
        for name in ("completeness_error", "tail_gradient_norm"):
            if name in self.found:
                variables[name] = (("sample",), np.concatenate(self.found[name]))
        variables |= self._maps()
        totals: dict[str, Array] = {}
        if "gradient_norm" in self.found:
            totals["gradient_norm"] = variables["gradient_norm"][1].mean(axis=-1).ravel()  # type: ignore[union-attr]  # an array, set above
        if "path_norms" in self.found:
            variables |= self._sampled_variables(log_counts, totals)
        if len(axes) == 1 and totals and not self.cut:  # of a part, the interval would say something else
            ranges = {
                name: paths.effective_range(values, log10=name == "total_path_gradient")
                for name, values in totals.items()
            }
            variables["effective_length_low"] = (("measure",), [low for low, _ in ranges.values()])
            variables["effective_length_high"] = (("measure",), [high for _, high in ranges.values()])
        coords: dict[str, datasets.Entry] = {
            axis: (axis, np.arange(size), {"long_name": f"branches taken on a path: {axis}", "units": "1"})
            if axis != "path_length"
            else (axis, np.arange(size))
            for axis, size in zip(axes, shape, strict=True)
        }
        if "effective_length_low" in variables:
            coords["measure"] = ("measure", list(totals))
        return datasets.build(variables, coords=coords | datasets.block_coords(self.network.blocks), attrs=attrs)

    def _maps(self) -> dict[str, datasets.Entry]:
        if "gradient" not in self.found:
            return {}
        axes = self.grading.axes
        maps = np.concatenate(self.found["gradient"], axis=len(axes))
        dims = [f"input_dim_{at}" for at in range(1, maps.ndim - len(axes))]
        if len(dims) == 3:
            dims = ["channel", "height", "width"]
        found: dict[str, datasets.Entry] = {"gradient": ((*axes, "sample", *dims), maps)}
        if "input" in self.found:
            found["input"] = (("sample", *dims), np.concatenate(self.found["input"]))
        return found

    def _sampled_variables(self, log_counts: Array, totals: dict[str, Array]) -> dict[str, datasets.Entry]:
        axes = self.grading.axes
        shape = tuple(limit + 1 for limit in self.limits)
        per_path = np.concatenate(self.found["path_norms"], axis=-1).mean(axis=-1)
        mean, stderr = np.zeros(len(self.grid)), np.zeros(len(self.grid))
        place = {length: at for at, length in enumerate(self.grid)}
        for at, length in enumerate(self.counts):
            drawn = per_path[at * self.draws : (at + 1) * self.draws]
            mean[place[length]] = drawn.mean()
            stderr[place[length]] = drawn.std(ddof=1) / np.sqrt(self.draws) if self.draws > 1 else np.nan
        with np.errstate(divide="ignore", over="ignore"):
            log_totals = log_counts + np.log10(mean)
            total = 10.0**log_totals
        totals["total_path_gradient"] = log_totals
        return {
            "path_gradient_norm": (axes, mean.reshape(shape)),
            "path_gradient_norm_stderr": (axes, stderr.reshape(shape)),
            "total_path_gradient": (axes, total.reshape(shape)),
            "log10_total_path_gradient": (axes, log_totals.reshape(shape)),
            "n_draws": ((), self.draws),
        }

    def _keep(self, name: str, values: Array) -> None:
        self.found.setdefault(name, []).append(values)

    def _shape(self, chunk: Batch) -> tuple[int, ...]:
        return (*(limit + 1 for limit in self.limits), chunk.size)

    def _batch_dim(self, tap: int) -> int | None:
        return self.network.program.batch_dim(tap)


def _check_taps(network: UnraveledNetwork, graph: PathGraph, tap: ResidualBlock | None) -> None:
    for at in graph.taps:
        value = network.program.nodes[at].meta["val"]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError(
                "a gradient needs floating-point values, and an input holds integers (such as token ids): "
                "take tap='stem' or a block; what is no input, such as a mask, goes into additional_forward_args"
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


def _rows(bank: Bank | None, keys: Iterable[Any], like: Tensor) -> Tensor:
    """Return the rows with some keys, in their order, zeros where there is none; shape `[R, *value]`."""
    place = {} if bank is None else {key: at for at, key in enumerate(bank.keys)}
    zero = torch.zeros_like(like)
    return torch.stack([bank.rows[place[key]] if bank is not None and key in place else zero for key in keys])


def _squares(values: Tensor, batch_dim: int | None, *, rows: bool = False) -> Tensor:
    """Sum squares over all dimensions but the batch (and the rows), float64 on the CPU."""
    kept = {batch_dim, 0} if rows else {batch_dim}
    dims = tuple(dim for dim in range(values.ndim) if dim not in kept)
    squares = values.double().square()
    return (squares.sum(dims) if dims else squares).cpu()


def _as_floats(counts: Sequence[int]) -> Array:
    """Return counts as float64, infinite where they are beyond its range."""
    return np.array([float(count) if count.bit_length() < 1024 else np.inf for count in counts])
