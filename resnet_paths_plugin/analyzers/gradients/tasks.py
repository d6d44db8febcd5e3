"""What a task of a study of path gradients does with some samples: walks by each estimator."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.gradients.objectives import (
    Objective,
    ordinary_gradient,
    per_sample,
)
from resnet_paths_plugin.analyzers.gradients.walks import products, walk_of
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.keys import TAIL, Edge, Lengths
from resnet_paths_plugin.engine.own_paths import PathDraws
from resnet_paths_plugin.engine.random_states import States, generator_states, replayed
from resnet_paths_plugin.engine.routing import AlongPaths, ByLength, WithSigns
from resnet_paths_plugin.execution import Arrays, Samples
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.model_pass import Tap
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Estimator = Literal["exact", "sampled", "signs"]
ESTIMATORS: tuple[Estimator, ...] = ("exact", "sampled", "signs")

_MOST_SCALES = 4
"""Walks of one draw of signs, each scaled anew, until no row is lost."""
PATHS_PER_WALK = 128
"""Sampled paths that go through the network side by side."""


@dataclass(frozen=True, eq=False)
class PathWork:
    """Split gradients by path length.

    Attributes:
        estimators: what is estimated.
        objective: what is differentiated.
        grades: for each block, what its branch adds to the length on each axis.
        limits: longest length with a row of its own on each axis.
        cut: whether there are longer paths.
        grid: all lengths up to the limits.
        log_counts: decimal logarithm of the number of paths of each length in the grid.
        tap: index of the block whose source gradients are taken at; None for the inputs.
        n_inputs: how many of the model's arguments are inputs.
        keep_maps: whether to keep the gradients themselves.
        paths: the paths that were drawn, and their lengths.
        signs: the random signs that were drawn.
        own_paths: paths to draw for each sample; None where all go along `paths`.
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
    own_paths: PathDraws | None = None

    @classmethod
    def of_all_paths(
        cls, network: UnraveledNetwork, objective: Objective, n_inputs: int, *, inside: bool
    ) -> "PathWork":
        """Return work that takes all paths in one row, for a comparison with the ordinary gradient.

        Args:
            network: the network.
            objective: what is differentiated.
            n_inputs: how many of the network's arguments are inputs.
            inside: whether to take gradients at the source of the first block, as inputs are integers.
        """
        return cls(
            estimators=(),
            objective=objective,
            grades=tuple((0,) for _ in network.blocks),
            limits=(0,),
            cut=False,
            grid=((0,),),
            log_counts=np.zeros(1),
            tap=0 if inside else None,
            n_inputs=n_inputs,
            keep_maps=False,
            paths=(),
            signs=(),
        )

    @property
    def n_groups(self) -> int:
        """All estimators share one forward pass."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_PathJob":
        """Return what walks the paths of a network."""
        return _PathJob(self, network)

    def with_check(self, network: UnraveledNetwork, samples: Samples) -> Samples:
        """Return the samples with the ordinary gradient of the user's own model, which the sum of all is compared with.

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
        numbers = reference.pop(0).args[0].tolist() if self._work.own_paths is not None else range(chunk.size)
        kept: Arrays | None = self._network.check.take(self._work, (chunk.args, chunk.target))
        if kept is not None:
            return kept
        states = generator_states()
        walked = self.walked(chunk, numbers)
        ordinary = self._ordinary(chunk, reference, states) if walked.exact is not None else {}
        return self.estimates(walked, ordinary)

    def walked(self, chunk: Batch, numbers: Sequence[int]) -> "_Walked":
        """Return the forward pass of some samples, and where it is asked for the exact gradients by length.

        Args:
            chunk: the samples.
            numbers: their numbers among all samples.
        """
        walk, seeds = walk_of(self._network, self._graph, self._work.objective, chunk)
        lengths = ByLength(self._work.grades, self._work.limits, tail=True)
        exact = walk.gradients(seeds, lengths) if "exact" in self._work.estimators else None
        return _Walked(chunk, numbers, walk, seeds, exact)

    def estimates(self, walked: "_Walked", ordinary: dict[int, Tensor]) -> Arrays:
        """Return what the estimators find, the exact ones beside the ordinary gradient at each tap."""
        found: dict[str, NDArray[Any]] = {}
        if walked.exact is not None:
            found |= self._exact(walked.chunk, walked.exact, ordinary)
        if "sampled" in self._work.estimators:
            own = self._work.own_paths
            found |= self._sampled_apart(walked, own) if own is not None else self._sampled(walked)
        if "signs" in self._work.estimators:
            found |= self._signed(walked.walk, walked.seeds, walked.chunk)
        return found

    def totals(self, walked: "_Walked") -> dict[int, Tensor]:
        """Return the gradient of all paths together at each tap, of the walk by length or else of one in one row."""
        banks = walked.exact
        if banks is None:
            banks = walked.walk.gradients(walked.seeds, ByLength([(0,)] * len(self._network.blocks)))
        inputs = self._inputs(walked.chunk)
        return {
            tap: banks[tap].rows.sum(0) if tap in banks else torch.zeros_like(inputs[tap]) for tap in self._graph.taps
        }

    def _inputs(self, chunk: Batch) -> dict[int, Any]:
        return self._network.inputs(chunk.args)

    def _exact(self, chunk: Batch, banks: dict[int, Bank], reference: dict[int, Tensor]) -> Arrays:
        grid = self._work.grid
        found: dict[str, NDArray[Any]] = {}
        found["gradient_norm"] = self._norms(banks, grid, chunk.size).reshape(self._shape(chunk))
        if self._work.cut:
            found["tail_gradient_norm"] = self._norms(banks, [TAIL], chunk.size)[0]
        missing = square = torch.zeros(chunk.size, dtype=torch.float64)
        along = torch.zeros(len(grid), chunk.size, dtype=torch.float64)
        for tap in self._graph.taps:
            gradient, dim = reference[tap], self._batch_dim(tap) or 0
            total = banks[tap].rows.sum(0) if tap in banks else torch.zeros_like(gradient)
            missing = missing + _squares(total - gradient.to(total.dtype), dim)
            square = square + _squares(gradient, dim)
            if tap in banks:
                rows = _rows(banks[tap], grid, gradient)
                along += products(rows.double(), gradient[None].double(), dim)[:, :, 0].T
        found["gradient_share"] = (along / square).reshape(self._shape(chunk)).numpy()
        error = (missing / square).sqrt()
        found["completeness_error"] = torch.where((missing == 0) & (square == 0), 0.0, error).numpy()
        if self._work.keep_maps:
            tap = self._graph.taps[0]
            maps = _rows(banks.get(tap), grid, reference[tap]).float().cpu().numpy()
            found["gradient"] = maps.reshape(self._shape(chunk) + maps.shape[2:])
            if self._work.tap is None:
                at = self._network.program.inputs.index(tap)
                found["input"] = pytree.tree_leaves(chunk.args)[at].float().cpu().numpy()
        return found

    def _sampled(self, walked: "_Walked") -> Arrays:
        walk, seeds, chunk = walked.walk, walked.seeds, walked.chunk
        norms: list[NDArray[Any]] = []
        for start in range(0, len(self._work.paths), PATHS_PER_WALK):
            part = self._work.paths[start : start + PATHS_PER_WALK]
            routing = AlongPaths([path for _, path in part])
            keys = [(row,) for row in range(len(part))]
            scaled = self._norms(walk.gradients(seeds, routing), keys, chunk.size)
            norms.append(np.ldexp(scaled, np.array(routing.exponents())[:, None]))
        return {"path_norm": np.concatenate(norms)}

    def _sampled_apart(self, walked: "_Walked", draws: PathDraws) -> Arrays:
        """Return the norms of paths that each sample has of its own."""
        norms: list[NDArray[Any]] = []
        for start in draws.starts:
            routing = draws.drawn(self._graph, start, walked.numbers)
            squares = np.zeros(routing.ways[None].shape)
            for tap, bank in walked.walk.gradients(walked.seeds, routing).items():
                dim = 1 + (self._batch_dim(tap) or 0)
                squares += routing.at_tap(tap, bank, _squares(bank.rows, dim, rows=True))
            norms.append(np.ldexp(np.sqrt(squares), routing.exponents()))
        return {"path_norm": np.concatenate(norms)}

    def _signed(self, walk: BackwardWalk, seeds: dict[int, Tensor], chunk: Batch) -> Arrays:
        log_counts = self._work.log_counts[:, None]
        exponent = 0
        logs = []
        for signs in self._work.signs:
            norms, exponent = self._signed_norms(walk, seeds, chunk, signs, exponent)
            with np.errstate(divide="ignore"):
                logs.append(np.log10(norms) - exponent * np.log10(2) * self._steps[:, None])
        # In logarithms, since counts of deep networks, and squares of gradients, are beyond the range of floats.
        top = np.max(logs, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.log10(np.mean(100.0 ** (logs - np.where(np.isneginf(top), 0.0, top)), axis=0)) + 2 * top
            rms = 10 ** ((mean - log_counts) / 2)
        nothing = np.isneginf(log_counts) | np.isneginf(top)
        return {"path_gradient_rms": np.where(nothing, 0.0, rms).reshape(self._shape(chunk))}

    def _signed_norms(
        self, walk: BackwardWalk, seeds: dict[int, Tensor], chunk: Batch, signs: dict[Edge, int], exponent: int
    ) -> tuple[NDArray[Any], int]:
        """Return the norms of one draw, times two to the power of the exponent for each unit of length, and that one.

        Where a norm is lost to the range of the rows' dtype, the exponent is chosen anew from those that are not.
        """
        lengths = ByLength(self._work.grades, self._work.limits, tail=False)
        smallest = torch.finfo(walk.dtype).tiny * 1e6
        for _ in range(_MOST_SCALES):
            norms = self._norms(walk.gradients(seeds, WithSigns(lengths, signs, exponent)), self._work.grid, chunk.size)
            lost = (norms < smallest) & ~np.isneginf(self._work.log_counts[:, None])
            known = ~(norms < smallest).any(axis=1) & np.isfinite(norms).all(axis=1)
            if not lost.any() or len(set(self._steps[known])) < 2:
                break
            slope = np.polyfit(self._steps[known], np.log2(norms[known]).mean(axis=1), 1)[0]
            if round(slope) == 0:
                break
            exponent -= round(slope)
        return norms, exponent

    @property
    def _steps(self) -> NDArray[Any]:
        """Length of each row of the grid, over all axes."""
        return np.array([sum(length) for length in self._work.grid])

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

    def _ordinary(self, chunk: Batch, reference: Sequence[Batch], states: States) -> dict[int, Tensor]:
        """Return the ordinary gradient at each tap: at the inputs from the user's own model.

        Args:
            chunk: the samples.
            reference: what the user's model says of them, where it is not the one at hand.
            states: of the generators before the walk, from which a model that draws at random draws the same.
        """
        program = self._network.program
        found: dict[int, Tensor | None]
        if self._work.tap is not None:
            with replayed(states):
                return self.inside(chunk, ())[0]
        if reference:
            found = dict(zip(program.inputs, reference[0].args, strict=True))
        else:
            with replayed(states):
                gradients = ordinary_gradient(self._network.model, self._work.objective, chunk)
            found = dict(zip(program.inputs, gradients, strict=True))
        inputs = self._inputs(chunk)
        return {
            tap: gradient if (gradient := found[tap]) is not None else torch.zeros_like(inputs[tap])
            for tap in self._graph.taps
        }

    def at_inputs(self, theirs: Mapping[Tap, Tensor]) -> dict[int, Tensor]:
        """Return the model's gradients, by place of the argument, by the tap that each argument is."""
        inputs = self._network.program.inputs
        return {tap: theirs[inputs.index(tap)] for tap in self._graph.taps}

    def inside(self, chunk: Batch, others: Iterable[Tap]) -> tuple[dict[int, Tensor], dict[Tap, Tensor]]:
        """Return autograd's gradients at the tap inside the graph, and at others, from one plain run of all operators.

        Args:
            chunk: the samples.
            others: arguments and parameters to take the gradient at too.
        """
        program, tap, inputs = self._network.program, self._graph.taps[0], self._inputs(chunk)
        tracked: dict[Tap, Tensor] = {}
        for other in others:
            tracked[other] = (
                other if isinstance(other, nn.Parameter) else inputs[program.inputs[other]].detach().clone()
            )
            if isinstance(other, int):
                inputs[program.inputs[other]] = tracked[other].requires_grad_()
        with torch.enable_grad():
            static = program.prepare(program.parameters(), inputs)
            values = dict(inputs)
            for at in (*program.inputs, *program.dynamic):
                if at not in values:
                    values[at] = program.operators[at](static, values)
                if at == tap and not (tracked and values[at].requires_grad):
                    values[at] = values[at].detach().requires_grad_()
            leaves = program.output_leaves(static, values)
            total = per_sample(self._work.objective, self._network.graph.unflatten(leaves), chunk).sum()
        places = [values[tap], *tracked.values()]
        gradient, *rest = torch.autograd.grad(total, places, allow_unused=True)
        whole = [
            torch.zeros_like(place) if one is None else one
            for place, one in zip(places, (gradient, *rest), strict=True)
        ]
        return {tap: whole[0]}, dict(zip(tracked, whole[1:], strict=True))

    def _shape(self, chunk: Batch) -> tuple[int, ...]:
        return (*(limit + 1 for limit in self._work.limits), chunk.size)

    def _batch_dim(self, tap: int) -> int | None:
        return self._network.program.batch_dim(tap)


@dataclass(frozen=True, eq=False)
class _Walked:
    """A forward pass that can be walked back.

    Attributes:
        chunk: the samples.
        numbers: their numbers among all samples.
        walk: the walk.
        seeds: the objective's gradient at the output.
        exact: the gradients by length at each tap, where they are asked for.
    """

    chunk: Batch
    numbers: Sequence[int]
    walk: BackwardWalk
    seeds: dict[int, Tensor]
    exact: dict[int, Bank] | None


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
