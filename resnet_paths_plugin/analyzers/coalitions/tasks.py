"""What a task of a game does with some samples: run a group of coalitions, and measure their outputs by one measure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.analyzers.rewiring.measures import Measure, Measures
from resnet_paths_plugin.analyzers.rewiring.tasks import Substitution, as_numpy
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.execution.tasks import Arrays, Samples, slices
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.tasks import Readout

VALUE = "value"
"""Name of a task's only result."""


@dataclass(frozen=True, eq=False)
class CoalitionWork:
    """Run coalitions of blocks over samples and measure the outputs.

    Attributes:
        deleted: for each coalition the blocks whose branches are gone, `[m, n]`, those that begin alike next to one
            another.
        per_task: how many of them are run in a task.
        width: how many of them are run side by side in one batch.
        value: name of the measure.
        measures: the user's measures.
        offered: those of plugins that the user has none in place of.
        readout: how outputs and targets are read.
        substitution: what stands in for deleted branches.
    """

    deleted: NDArray[np.bool_]
    per_task: int
    width: int
    value: str
    measures: Mapping[str, Measure]
    offered: Mapping[str, Measure]
    readout: Readout
    substitution: Substitution

    @property
    def n_groups(self) -> int:
        """How many groups of coalitions there are."""
        return len(slices(len(self.deleted), self.per_task))

    def on(self, network: UnraveledNetwork) -> "_CoalitionJob":
        """Return what runs a group of coalitions."""
        return _CoalitionJob(self, network)


class _CoalitionJob:
    def __init__(self, work: CoalitionWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._measures = Measures(network, work.measures, work.offered, only=work.value, readout=work.readout)
        self._groups = slices(len(work.deleted), work.per_task)

    @torch.no_grad()
    def __call__(self, group: int, samples: Samples) -> Arrays:
        """Return the measure of a group of coalitions, `[coalition, sample]`, in the measure's dtype."""
        work, network, chunk = self._work, self._network, samples[0]
        intact = network.intact(*chunk.args) if self._measures.needs_intact else None
        reference = self._measures.of(intact, chunk) if self._measures.needs_intact else None
        schedules = work.substitution.of(network, schedules_of(work.deleted[self._groups[group]]), samples)
        rows: list[Tensor | None] = [None] * len(schedules)
        for place, outputs in network.outputs(schedules, chunk.args, perturbations_per_eval=work.width):
            rows[place] = self._measures.of(outputs, chunk, intact, reference)[work.value]
        return {VALUE: as_numpy(torch.stack([row for row in rows if row is not None]))}


def schedules_of(deleted: NDArray[np.bool_]) -> list[Schedule]:
    """Return the schedules that delete some blocks each, `[m, n]`."""
    n_blocks = deleted.shape[1]
    return [Schedule(n_blocks, dict.fromkeys(np.flatnonzero(row).tolist(), ())) for row in deleted]
