"""What a task of a study of parameters does with a batch: walks back to the parameters, summed over its samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.analyzers.gradients.objectives import Objective, per_sample
from resnet_paths_plugin.analyzers.gradients.walks import walk_of
from resnet_paths_plugin.engine.backward import bank_dtype
from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.keys import TAIL, Lengths
from resnet_paths_plugin.engine.parameter_flow import ParameterBanks, ParameterFlow
from resnet_paths_plugin.engine.random_states import generator_states, replayed
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.execution import Arrays, Samples
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Array = NDArray[np.float64]
ROWS, KEYS, ORDINARY, NORMS, SHARES = "rows", "keys", "ordinary", "norms", "shares"
"""Names of a task's results, before the number of the part: see `ParameterWork`."""


@dataclass(frozen=True, eq=False)
class ParameterWork:
    """Gradients at parameters by path length.

    A task returns, for the part with number p of `ParameterFlow.parts`, `rows p` `[R, P]`, the gradients at its `P`
    parameters, one after another, `keys p` `[R]`, the length of each row (-1: all longer ones), and `ordinary p` `[P]`,
    autograd's; for single samples `norms p` and `shares p` `[K + 1, B]`.

    Attributes:
        objective: what is differentiated.
        grades: for each block, what its branch adds to the length.
        limits: the longest length with a row of its own; None for all.
        n_lengths: how many lengths there are, from 0.
        samples_per_walk: how many samples are walked at a time.
        per_sample: whether to measure single samples as well.
    """

    objective: Objective
    grades: tuple[Lengths, ...]
    limits: Lengths | None
    n_lengths: int
    samples_per_walk: int
    per_sample: bool

    @property
    def n_groups(self) -> int:
        """One walk serves all parameters."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_ParameterJob":
        """Return what walks to the parameters of a network."""
        return _ParameterJob(self, network)


class _ParameterJob:
    def __init__(self, work: ParameterWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._flow = ParameterFlow(network.program)
        self._graph = network.path_graph_to(
            [at for at in network.program.inputs if network.program.nodes[at] in network.program.flow.data],
            parameters=self._flow.derived,
        )

    def __call__(self, _: int, samples: Samples) -> Arrays:
        """Return the gradients at each part's parameters, summed over some samples."""
        (chunk,) = samples
        total: dict[str, dict[str, Bank]] = {}
        ordinary: dict[str, Tensor] = {}
        singles: list[dict[str, dict[str, Bank]]] = []
        for some in self._walked_together(chunk):
            states = generator_states()
            found = self._gradients(some)
            if self._work.per_sample:
                singles.append(found)
            for part, banks in found.items():
                for path, bank in banks.items():
                    known = total.setdefault(part, {})
                    known[path] = _sum(known[path], bank) if path in known else bank
            with replayed(states):  # a model that draws at random draws the same
                own = self._ordinary(some)
            for path, gradient in own.items():
                ordinary[path] = ordinary[path] + gradient if path in ordinary else gradient
        return self._arrays(total, ordinary) | self._of_singles(singles)

    def _walked_together(self, chunk: Batch) -> Iterator[Batch]:
        size = 1 if self._work.per_sample else self._work.samples_per_walk
        return iter(chunk.chunks(self._network.samples_per_run(chunk.size, size)))

    def _gradients(self, chunk: Batch) -> dict[str, dict[str, Bank]]:
        walk, seeds = walk_of(self._network, self._graph, self._work.objective, chunk, anywhere=True)
        watch = ParameterBanks(self._flow, walk.forward_pass.static, walk.dtype)
        walk.gradients(seeds, ByLength(self._work.grades, self._work.limits), watch)
        return watch.gradients()

    def _ordinary(self, chunk: Batch) -> dict[str, Tensor]:
        """Return autograd's gradient at each parameter, from one plain run of all operators."""
        program, network = self._network.program, self._network
        held = program.parameters()
        leaves = {at: held[at].detach().clone().requires_grad_() for at in self._flow.parameters.values()}
        inputs = network.inputs(chunk.args)
        with torch.enable_grad():
            static = program.prepare({**held, **leaves}, inputs)
            values = dict(inputs)
            for at in program.dynamic:
                values[at] = program.operators[at](static, values)
            outputs = program.output_leaves(static, values)
            total = per_sample(self._work.objective, network.graph.unflatten(outputs), chunk).sum()
        found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
        by_place = dict(zip(leaves, found, strict=True))
        return {
            path: torch.zeros_like(leaves[at]) if (gradient := by_place[at]) is None else gradient
            for path, at in self._flow.parameters.items()
        }

    def _arrays(
        self, total: Mapping[str, Mapping[str, Bank]], ordinary: Mapping[str, Tensor]
    ) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for number, part in enumerate(self._flow.parts):
            banks = total.get(part, {})
            found[f"{KEYS} {number}"], found[f"{ROWS} {number}"] = self._joined(part, banks)
            # What other parts that read the same parameters have found is theirs.
            own = []
            for path in self._flow.parameters_of(part):
                gradient = ordinary[path]
                for other, others in total.items():
                    if other != part and path in others:
                        gradient = gradient - others[path].rows.sum(0).to(gradient)
                own.append(_real(gradient).flatten())
            found[f"{ORDINARY} {number}"] = torch.cat(own).cpu().numpy() if own else np.zeros(0)
        return found

    def _of_singles(self, singles: list[dict[str, dict[str, Bank]]]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        if not singles:
            return found
        for number, part in enumerate(self._flow.parts):
            each = [measured(*self._joined(part, one.get(part, {})), self._work.n_lengths) for one in singles]
            found[f"{NORMS} {number}"] = np.stack([norms for norms, *_ in each], axis=-1)
            found[f"{SHARES} {number}"] = np.stack([shares for _, shares, _ in each], axis=-1)
        return found

    def _joined(self, part: str, banks: Mapping[str, Bank]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Return the lengths and the rows of all parameters of a part, one after another, zeros where none arrived."""
        keys = sorted({-1 if key == TAIL else int(key[0]) for bank in banks.values() for key in bank.keys})
        places = {key: at for at, key in enumerate(keys)}
        held = self._network.program.parameters()
        parts = []
        for path in self._flow.parameters_of(part):
            size = _real(held[self._flow.parameters[path]]).numel()
            rows = torch.zeros((len(keys), size), dtype=bank_dtype(self._network.dtype), device=self._network.device)
            if path in banks:
                bank = banks[path]
                at = torch.tensor([places[-1 if key == TAIL else int(key[0])] for key in bank.keys], device=rows.device)
                rows.index_add_(0, at, _real(bank.rows).reshape(len(bank.keys), -1).to(rows))
            parts.append(rows)
        whole = torch.cat(parts, dim=1).cpu().numpy() if parts else np.zeros((len(keys), 0))
        return np.array(keys, dtype=np.int64), whole


def _sum(one: Bank, other: Bank) -> Bank:
    keys = tuple(dict.fromkeys((*one.keys, *other.keys)))
    rows = one.rows.new_zeros((len(keys), *one.rows.shape[1:]))
    for bank in (one, other):
        rows.index_add_(0, torch.tensor([keys.index(key) for key in bank.keys], device=rows.device), bank.rows)
    return Bank(keys, rows)


def _real(values: Tensor) -> Tensor:
    """Return complex numbers as pairs of real ones."""
    return torch.view_as_real(values) if values.is_complex() else values


def measured(keys: NDArray[np.int64], rows: NDArray[np.floating], n_lengths: int) -> tuple[Array, Array, float]:
    """Return the norm and the share of each length `[K + 1]`, and the norm of all longer ones together.

    Args:
        keys: length of each row; -1 for all longer ones.
        rows: gradients, `[R, P]`.
        n_lengths: how many lengths there are.
    """
    norms, shares, tail = np.zeros(n_lengths), np.zeros(n_lengths), 0.0
    exact = rows.astype(np.float64)
    whole = exact.sum(axis=0)
    square = float(whole @ whole)
    for key, row in zip(keys.tolist(), exact, strict=True):
        if key < 0:
            tail = float(np.linalg.norm(row))
        else:
            norms[key] = np.linalg.norm(row)
            shares[key] = row @ whole / square if square else np.nan
    return norms, shares, tail
