"""The study of a game: one measure of a network under coalitions of its blocks, sample by sample."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.tasks import VALUE, CoalitionWork, schedules_of
from resnet_paths_plugin.analyzers.pass_sizes import schedules_side_by_side
from resnet_paths_plugin.analyzers.rewiring.conditions import Conditions
from resnet_paths_plugin.analyzers.rewiring.measures import Measures
from resnet_paths_plugin.analyzers.study import Chunk, Study, StudyResult
from resnet_paths_plugin.execution import RunOptions, Samples, StudyRun
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

PASSES_PER_TASK = 16
"""Forward passes that a task of coalitions costs at least: what it shares with no other task is little beside them."""


class CoalitionStudy(Study):
    """Run coalitions over samples and measure the outputs.

    Args:
        network: the network.
        deleted: for each coalition the blocks whose branches are gone, `[m, n]`, in any order.
        value: name of the measure.
        measures: the measures that it is one of.
        conditions: what stands in for deleted branches, prepared for all blocks or for none yet.
        width: coalitions side by side in a forward pass; None chooses.
        first_size: samples of the first batch.
        name: names the study and its files.
    """

    def __init__(
        self,
        network: UnraveledNetwork,
        deleted: NDArray[np.bool_],
        value: str,
        measures: Measures,
        conditions: Conditions,
        *,
        width: int | None = None,
        first_size: int = 1,
        name: str = "coalitions",
    ) -> None:
        super().__init__(network, title=f"Coalitions of blocks of {network.name}", summary=f"The {value} of each.")
        self.name = name
        self._deleted, self._value, self._measures = deleted, value, measures
        self._conditions, self._width, self._first_size = conditions, width, first_size
        self._order = network.prefix_order(schedules_of(deleted))

    @property
    def manifest(self) -> Mapping[str, object]:
        """The measures of plugins and of the user."""
        return {"measures": self._measures.user, "measures of plugins": self._measures.offered}

    def check(self, batch: Batch) -> None:
        """Check a batch's targets.

        Raises:
            InputError: if the measure needs others, or a target is out of range.
        """
        self._measures.check(batch)
        self._measures.check_value(self._value, batch)

    def sizes(self, samples: int, run: RunOptions | None) -> Mapping[str, int]:
        """Return how many samples and coalitions a task has, and how many of these share a batch."""
        width = self._width or schedules_side_by_side(self.network, run, min(samples, self._first_size))
        return {
            "samples": samples,
            "schedules side by side": width,
            "schedules": -(-PASSES_PER_TASK * len(self.network.blocks) // width) * width,
        }

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:
        """Cut batches into the samples of tasks, each with those whose branches stand in for deleted ones."""
        return self._conditions.chunks(batches, size)

    def work(self, run: StudyRun) -> CoalitionWork:
        """Return what runs the coalitions, those that begin alike next to one another."""
        return CoalitionWork(
            self._deleted[self._order],
            run.sizes["schedules"],
            run.sizes["schedules side by side"],
            self._value,
            self._measures.user,
            self._measures.offered,
            self.network.readout,
            self._conditions.substitution,
        )

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the measure of each chunk of samples, in the order of the coalitions."""
        back = np.argsort(self._order)
        for _, groups in chunks:
            found = np.concatenate([group[VALUE] for group in groups])[back]
            yield StudyResult({VALUE: (("coalition", "sample"), found)})
