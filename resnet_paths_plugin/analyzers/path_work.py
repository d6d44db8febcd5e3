"""What a unit of a study of path gradients does with some samples: walks by each estimator."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.analyzers.batches import Batch
from resnet_paths_plugin.analyzers.objectives import (
    Objective,
    ordinary_gradient,
    output_gradients,
    per_sample,
)
from resnet_paths_plugin.analyzers.running import Arrays, Samples
from resnet_paths_plugin.engine.backward import BackwardWalk, bank_dtype
from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.routes import TAIL, AlongPaths, ByLength, Edge, Lengths, WithSigns
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network import UnraveledNetwork

Estimator = Literal["exact", "sampled", "signs"]
ESTIMATORS: tuple[Estimator, ...] = ("exact", "sampled", "signs")

PATHS_PER_WALK = 128
"""Sampled paths that go through the network side by side."""


@dataclass(frozen=True, eq=False)
class PathWork:
    """Split gradients by path length.

    Attributes:
        estimators: what is estimated.
        objective: what is differentiated.
        grades: for each block, what its branch adds to the length on each axis.
        limits: longest length told apart on each axis.
        cut: whether there are longer paths.
        grid: all lengths up to the limits.
        log_counts: decimal logarithm of the number of paths of each length in the grid.
        tap: index of the block whose source gradients are taken at; None for the inputs.
        n_inputs: how many of the model's arguments are inputs.
        keep_maps: whether to keep the gradients themselves.
        paths: the paths that were drawn, and their lengths.
        signs: the random signs that were drawn.
    """

    estimators: tuple[Estimator, ...]
    objective: Objective
    grades: tuple[Lengths, ...]
    limits: Lengths
    cut: bool
    grid: tuple[Lengths, ...]
    log_counts: NDArray[Any]
    tap: int | None
    n_inputs: int
    keep_maps: bool
    paths: tuple[tuple[Lengths, frozenset[Edge]], ...]
    signs: tuple[dict[Edge, int], ...]

    @property
    def n_groups(self) -> int:
        """All estimators share one forward pass."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_PathJob":
        """Return what walks the paths of a network."""
        return _PathJob(self, network)

    def with_check(self, network: UnraveledNetwork, samples: Samples) -> Samples:
        """Return the samples with the ordinary gradient of the user's own model, which the sum of all is held against.

        Inside the network it is the graph's own, which a job computes for itself.
        """
        if "exact" not in self.estimators or self.tap is not None:
            return samples
        chunk = samples[0].to(network.device)
        try:
            gradients = ordinary_gradient(network.model, self.objective, chunk)
        except RuntimeError:
            self.on(network)(0, (chunk,))  # says what does not fit, as a run here would
            raise
        return *samples, Batch(tuple(gradients), None, chunk.size)


class _PathJob:
    def __init__(self, work: PathWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._graph = network.path_graph(None if work.tap is None else network.blocks[work.tap], work.n_inputs)

    def __call__(self, _: int, samples: Samples) -> Arrays:
        """Return what the estimators find for some samples."""
        chunk, *reference = samples
        program = self._network.program
        dtype = bank_dtype(self._network.dtype)
        order = program.flow.order
        inputs = {order[node]: value for node, value in self._network.graph.bind(chunk.args).items()}
        walk = BackwardWalk(self._graph, inputs, program.parameters(), dtype=dtype)
        leaves = output_gradients(self._work.objective, self._network.graph.unflatten(walk.outputs), chunk, dtype)
        seeds = program.at_outputs(leaves)
        if not any(self._graph.read_by(at) for at in seeds):
            raise InputError("no gradient reaches the tap: the objective does not depend on it")
        lengths = ByLength(self._work.grades, self._work.limits, tail=True)
        found: dict[str, NDArray[Any]] = {}
        if "exact" in self._work.estimators:
            found |= self._exact(chunk, walk.run(seeds, lengths), self._ordinary(chunk, reference))
        if "sampled" in self._work.estimators:
            found |= self._sampled(walk, seeds, chunk)
        if "signs" in self._work.estimators:
            found |= self._signed(walk, seeds, chunk)
        return found

    def _exact(self, chunk: Batch, banks: dict[int, Bank], reference: dict[int, Tensor]) -> Arrays:
        grid = self._work.grid
        found: dict[str, NDArray[Any]] = {}
        found["gradient_norm"] = self._norms(banks, grid, chunk.size).reshape(self._shape(chunk))
        if self._work.cut:
            found["tail_gradient_norm"] = self._norms(banks, [TAIL], chunk.size)[0]
        missing = square = torch.zeros(chunk.size, dtype=torch.float64)
        for tap in self._graph.taps:
            gradient = reference[tap]
            total = banks[tap].rows.sum(0) if tap in banks else torch.zeros_like(gradient)
            missing = missing + _squares(total - gradient.to(total.dtype), self._batch_dim(tap))
            square = square + _squares(gradient, self._batch_dim(tap))
        error = (missing / square).sqrt()
        found["completeness_error"] = torch.where((missing == 0) & (square == 0), 0.0, error).numpy()
        if self._work.keep_maps:
            tap = self._graph.taps[0]
            maps = _rows(banks.get(tap), grid, reference[tap]).float().cpu().numpy()
            found["gradient"] = maps.reshape(self._shape(chunk) + maps.shape[2:])
            if self._work.tap is None:
                found["input"] = chunk.args[0].float().cpu().numpy()
        return found

    def _sampled(self, walk: BackwardWalk, seeds: dict[int, Tensor], chunk: Batch) -> Arrays:
        norms: list[NDArray[Any]] = []
        for start in range(0, len(self._work.paths), PATHS_PER_WALK):
            part = self._work.paths[start : start + PATHS_PER_WALK]
            routing = AlongPaths([path for _, path in part])
            keys = [(row,) for row in range(len(part))]
            scaled = self._norms(walk.run(seeds, routing), keys, chunk.size)
            norms.append(np.ldexp(scaled, np.array(routing.exponents())[:, None]))
        # Only their mean over samples is asked for.
        return {"path_norm_total": np.concatenate(norms).sum(axis=-1)}

    def _signed(self, walk: BackwardWalk, seeds: dict[int, Tensor], chunk: Batch) -> Arrays:
        lengths = ByLength(self._work.grades, self._work.limits, tail=False)
        squares = [
            self._norms(walk.run(seeds, WithSigns(lengths, signs)), self._work.grid, chunk.size) ** 2
            for signs in self._work.signs
        ]
        log_counts = self._work.log_counts[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            # In logarithms, since counts of deep networks are beyond the range of floats.
            rms = 10 ** ((np.log10(np.mean(squares, axis=0)) - log_counts) / 2)
        return {"path_gradient_rms": np.where(np.isneginf(log_counts), 0.0, rms).reshape(self._shape(chunk))}

    def _norms(self, banks: dict[int, Bank], keys: Sequence[Any], size: int) -> NDArray[Any]:
        """Return the Euclidean norm of each row and sample over all taps, shape `[R, B]` float64."""
        squares: Tensor | None = None
        for tap, bank in banks.items():
            rows = _squares(_rows(bank, keys, bank.rows[0]), 1 + (self._batch_dim(tap) or 0), rows=True)
            squares = rows if squares is None else squares + rows
        if squares is None:  # none of these paths carries a gradient
            return np.zeros((len(keys), size))
        result: NDArray[Any] = squares.sqrt().numpy()
        return result

    def _ordinary(self, chunk: Batch, reference: Sequence[Batch]) -> dict[int, Tensor]:
        """Return the ordinary gradient at each tap: at the inputs from the user's own model.

        Args:
            chunk: the samples.
            reference: what the user's model says of them, where it is not the one at hand.
        """
        program = self._network.program
        found: dict[int, Tensor | None]
        if self._work.tap is not None:
            found = {self._graph.taps[0]: self._gradient_inside(chunk)}
        elif reference:
            found = dict(zip(program.inputs, reference[0].args, strict=True))
        else:
            gradients = ordinary_gradient(self._network.model, self._work.objective, chunk)
            found = dict(zip(program.inputs, gradients, strict=True))
        inputs = self._network.graph.bind(chunk.args)
        return {
            tap: gradient if (gradient := found[tap]) is not None else torch.zeros_like(inputs[program.nodes[tap]])
            for tap in self._graph.taps
        }

    def _gradient_inside(self, chunk: Batch) -> Tensor:
        """Return autograd's gradient at a value inside the graph, from one plain run of all its operators."""
        program, tap = self._network.program, self._graph.taps[0]
        inputs = {program.flow.order[node]: value for node, value in self._network.graph.bind(chunk.args).items()}
        with torch.enable_grad():
            static = program.prepare(program.parameters(), inputs)
            values = dict(inputs)
            for at in (*program.inputs, *program.dynamic):
                if at not in values:
                    values[at] = program.operators[at](static, values)
                if at == tap:
                    values[at] = values[at].detach().requires_grad_()
            leaves = [values.get(at, static.get(at)) if at is not None else None for at in program.outputs]
            total = per_sample(self._work.objective, self._network.graph.unflatten(leaves), chunk).sum()
            (gradient,) = torch.autograd.grad(total, [values[tap]])
            return gradient

    def _shape(self, chunk: Batch) -> tuple[int, ...]:
        return (*(limit + 1 for limit in self._work.limits), chunk.size)

    def _batch_dim(self, tap: int) -> int | None:
        return self._network.program.batch_dim(tap)


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
