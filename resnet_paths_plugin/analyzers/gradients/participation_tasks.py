"""What a task of a study of participation does with some samples: a bank of gradients back, a bank of tangents on."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from captum.attr._utils.approximation_methods import approximation_parameters
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.walks import Seeds, products, walk_of
from resnet_paths_plugin.engine.backward import BackwardWalk, Watch
from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.forward_walk import ForwardWalk
from resnet_paths_plugin.engine.keys import TAIL
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.random_states import generator_states, replayed
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import Arrays, Samples
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ParticipationWork:
    """What of the gradients by length goes through each block.

    Attributes:
        objective: what is differentiated.
        n_inputs: how many of the network's arguments are inputs.
        n_lengths: how many path lengths have a row of their own, from 0.
        cut: whether there are longer paths.
        direction: `"input"` or `"gradient"`.
        baselines: what directions begin at, one for each input, and the line that activations are averaged along;
            None for no line.
        steps: the points on the line, from 0 at the baseline to 1 at the input, and the weight of each.
        between: indices of the blocks between whose sums the paths lie; None for all paths.
    """

    objective: Objective
    n_inputs: int
    n_lengths: int
    cut: bool
    direction: str
    baselines: tuple[Any, ...] | None
    steps: tuple[tuple[float, float], ...]
    between: tuple[int, int] | None

    @property
    def n_groups(self) -> int:
        """Two walks serve all blocks."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_ParticipationJob":
        """Return what measures the participation of a network's blocks."""
        return _ParticipationJob(self, network)


class _ParticipationJob:
    def __init__(self, work: ParticipationWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        limits = (work.n_lengths - 1,) if work.cut else None
        grades = [(1,)] * len(network.blocks)
        self._lengths = ByLength(grades, limits, tail=False)
        # The ordinary gradient is that of longer paths, too.
        self._back = ByLength(grades, limits, tail=work.direction == "gradient")

    def __call__(self, _: int, samples: Samples) -> Arrays:
        """Return the participation of all blocks for some samples, `[n, K + 1, B]`, and `<G_k, u>`, `[K + 1, B]`."""
        (chunk,) = samples
        through: Array | float = 0.0
        along: Array | float = 0.0
        for point, weight in self._work.steps:
            at_point, one = self._at(chunk, point)
            through, along = through + weight * at_point, along + weight * one
        length = np.arange(self._work.n_lengths)[:, None]
        through, along = np.asarray(through), np.asarray(along)
        missing = np.abs(through.sum(axis=0) - length * along)
        size = np.abs(through).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.where((missing == 0) & (size == 0), 0.0, missing / size)
        return {"participation": through, "directional_derivative": along, "completeness_error": error}

    def _at(self, chunk: Batch, point: float) -> tuple[Array, Array]:
        """Return both with the activations at a point of the line from the baseline to the input."""
        moved, directions = self._on_line(chunk, point)
        graph, walk, seeds = self._walk(moved)
        watch = _Gradients()
        banks = walk.gradients(seeds, self._back, watch)
        chosen = {tap: self._direction(tap, walk, banks, directions) for tap in graph.taps}
        given = {tap: u for tap, u in chosen.items() if u is not None}
        forward = ForwardWalk(walk.forward_pass, walk.bank_bytes)
        counted = _Counted(self._network, watch.banks, self._work.n_lengths, chunk.size)
        forward.run(given, self._lengths, counted.at_branch, by_rules=watch.by_rules)
        if watch.by_rules and not counted.is_finite:  # slopes of 0 times tangents that are infinite
            counted = _Counted(self._network, watch.banks, self._work.n_lengths, chunk.size)
            forward.run(given, self._lengths, counted.at_branch, by_rules=False)
        along = np.zeros((self._work.n_lengths, chunk.size))
        for tap, bank in banks.items():
            u, dim = chosen[tap], self._network.program.batch_dim(tap)
            if u is not None:
                # Added up in float64, as most of the terms cancel.
                rows, one = (some.cpu().double() for some in (bank.rows, u[None]))
                found = products(rows, one, dim or 0)[:, :, 0].numpy()
                for key, row in zip(bank.keys, found.T, strict=True):
                    if key != TAIL:
                        along[int(key[0])] += row
        return counted.found, along

    def _on_line(self, chunk: Batch, point: float) -> tuple[Batch, dict[int, Tensor]]:
        """Return the samples moved towards the baseline, and the direction at each input."""
        program, work = self._network.program, self._work
        if work.baselines is None:
            return chunk, {}
        leaves, spec = pytree.tree_flatten(chunk.args)
        directions = {}
        for place, baseline in enumerate(work.baselines):
            value = leaves[place]
            if isinstance(value, Tensor) and value.is_floating_point():
                start = torch.as_tensor(baseline, dtype=value.dtype, device=value.device).expand_as(value)
                directions[program.inputs[place]] = value - start
                leaves[place] = start + point * (value - start)
        return replace(chunk, args=pytree.tree_unflatten(leaves, spec)), directions

    def _walk(self, chunk: Batch) -> tuple[PathGraph, BackwardWalk, Seeds]:
        """Return the graph of paths, a forward pass, and where the walk back starts."""
        network, work = self._network, self._work
        if work.between is None:
            graph = network.path_graph(None, work.n_inputs)
            walk, seeds = walk_of(network, graph, work.objective, chunk, keep=graph.taps)
            return graph, walk, seeds
        early, late = (network.program.sums[network.program.branches[at].sum].root for at in work.between)
        behind = network.path_graph_to([late])
        states = generator_states()
        first, seeds = walk_of(network, behind, work.objective, chunk)
        banks = first.gradients(seeds, ByLength([(0,)] * len(network.blocks)))
        graph = network.path_graph_to([early], ends=[late])
        with replayed(states):  # a model that draws at random draws the same
            walk, _ = walk_of(network, graph, work.objective, chunk, keep=[early], seeded=False)
        return graph, walk, {late: banks[late].rows[0]} if late in banks else {}

    def _direction(
        self, tap: int, walk: BackwardWalk, banks: dict[int, Bank], directions: dict[int, Tensor]
    ) -> Tensor | None:
        if self._work.direction == "gradient":
            return banks[tap].rows.sum(0) if tap in banks else None
        return directions[tap] if directions else walk.forward_pass.kept[tap]


class _Gradients(Watch):
    """Keeps the gradients at each branch.

    Attributes:
        banks: those at each block's branch, in pieces with other rows each.
        by_rules: whether own rules have served; they are not used where rows are infinite or NaN.
    """

    def __init__(self) -> None:
        self.banks: dict[int, list[Bank]] = {}
        self.by_rules = True

    def is_finite(self) -> bool:
        """Whether all of them are."""
        return all(bool(bank.rows.isfinite().all()) for banks in self.banks.values() for bank in banks)

    def clear(self) -> None:
        """Forget them."""
        self.banks, self.by_rules = {}, False

    def at_branch(self, block: int, bank: Bank) -> None:
        """Keep those at a branch."""
        self.banks.setdefault(block, []).append(bank)


class _Counted:
    """Multiplies the tangents at each branch with the gradients there, and adds up by the length of the whole path.

    Attributes:
        found: the participation, `[n, K + 1, B]`.
    """

    def __init__(self, network: UnraveledNetwork, banks: dict[int, list[Bank]], n_lengths: int, size: int) -> None:
        self._program, self._banks = network.program, banks
        self.found = np.zeros((len(network.blocks), n_lengths, size))
        self._unknown: set[int] = set()

    @property
    def is_finite(self) -> bool:
        """Whether all that can be known is."""
        known = [block for block in range(len(self.found)) if block not in self._unknown]
        return bool(np.isfinite(self.found[known]).all())

    def at_branch(self, block: int, tangents: Bank) -> None:
        """Count what goes through a block."""
        if block not in self._banks:
            return
        dim = self._program.batch_dim(self._program.branches[block].value)
        if dim is None:
            self.found[block] = np.nan
            self._unknown.add(block)
            return
        for gradients in self._banks[block]:
            found = products(gradients.rows, tangents.rows.to(gradients.rows), dim).numpy()
            for place, behind in enumerate(gradients.keys):
                for other, before in enumerate(tangents.keys) if behind != TAIL else ():
                    length = int(behind[0]) + int(before[0]) + 1
                    if length < self.found.shape[1]:
                        self.found[block, length] += found[:, place, other]


def line(n_steps: int, method: str) -> tuple[tuple[float, float], ...]:
    """Return points on the line from 0 to 1 with weights that sum to 1, as Captum's integrated gradients has them.

    Args:
        n_steps: number of points.
        method: `"gausslegendre"`, or one of Captum's sums.
    """
    try:
        step_sizes, alphas = approximation_parameters(method)
    except ValueError as error:
        raise InputError(f"method {method!r} chooses no points: {error}") from error
    try:
        weights, points = step_sizes(n_steps), alphas(n_steps)
    except AssertionError as error:
        raise InputError(f"method {method!r} does not work with n_steps={n_steps}: {error}") from error
    return tuple(zip(points, weights, strict=True))
