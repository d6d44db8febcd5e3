"""What a study's schedules run under: what stands in for deleted branches, which batch-norm statistics hold."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from resnet_paths_plugin.analyzers.batches import Batch, Batches
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.engine.recalibration import Recalibration
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network import UnraveledNetwork

Ablation = Literal["zero", "mean", "resample"]
"""What stands in for a deleted branch: nothing, its mean over samples, or its value on another sample."""

BatchNorm = Literal["frozen", "recalibrated"]
"""Which batch-norm statistics hold: the model's, or those that the changed network has on given data."""

REFERENCE_BATCH = 256
"""Most samples whose batch statistics are taken together."""


class Conditions:
    """What a study's schedules run under.

    Args:
        network: the network.
        batches: the study's inputs, read again here where a reference is needed and none is given.
        ablation: what stands in for a deleted branch.
        batch_norm: which batch-norm statistics hold.
        reference: data for branch means and recalibrated statistics, as an analyzer takes inputs; None takes the
            study's own.
        seed: seed of the choice of other samples.

    Raises:
        InputError: if an option is not known or does not fit the network, or the inputs can be read once only.
    """

    def __init__(
        self,
        network: UnraveledNetwork,
        batches: Batches,
        *,
        ablation: Ablation = "zero",
        batch_norm: BatchNorm = "frozen",
        reference: Any = None,
        seed: int = 0,
    ) -> None:
        for name, value, known in (("ablation", ablation, Ablation), ("batch_norm", batch_norm, BatchNorm)):
            if value not in get_args(known):
                raise InputError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}, not {value!r}")
        if ablation != "zero" and network.units == "layers":
            raise InputError(
                f"ablation={ablation!r} replaces the branch beside a skip, and layers have none: leave ablation='zero'"
            )
        self._network = network
        self._ablation = ablation
        self._recalibration = Recalibration(network.program) if batch_norm == "recalibrated" else None
        self._seed = seed
        self._donor_draws = np.random.default_rng(seed)
        self._means: dict[int, Tensor] = {}
        self._statistics: list[Values | None] = []
        self._batches, self._reference = batches, reference
        if ablation == "mean" or self._recalibration is not None:
            batches.again(reference)  # refuses before the long run what cannot be read

    def prepare(self, schedules: Sequence[Schedule]) -> None:
        """Go through the reference for what these schedules need."""
        self._statistics = [None] * len(schedules)
        if self._ablation == "mean":
            deleted = sorted({block for schedule in schedules for block in schedule.deleted})
            self._means = self._branch_means(deleted)
        if self._recalibration is not None:
            for place, schedule in enumerate(schedules):
                self._statistics[place] = self._recalibration.statistics(self._reference_runs(schedule))

    def chunks(
        self, batch: Batch, schedules: Sequence[Schedule], size: int
    ) -> Iterator[tuple[Batch, Sequence[Schedule]]]:
        """Cut a batch into pieces of at most `size` samples, each with the schedules as they are for it."""
        yield from self._chunks(batch, schedules, size, self._donor_draws)

    def outputs(self, schedules: Sequence[Schedule], chunk: Batch, width: int) -> Iterator[tuple[int, Any]]:
        """Yield `(position in schedules, output)` for each schedule, in the order of completion."""
        if self._recalibration is None:
            yield from self._network.outputs(schedules, chunk.args, perturbations_per_eval=width)
            return
        for place, (schedule, statistics) in enumerate(zip(schedules, self._statistics, strict=True)):
            for _, output in self._network.outputs([schedule], chunk.args, statistics=statistics):
                yield place, output

    def _chunks(
        self, batch: Batch, schedules: Sequence[Schedule], size: int, draws: np.random.Generator
    ) -> Iterator[tuple[Batch, Sequence[Schedule]]]:
        if self._ablation == "resample":
            blocks = sorted({block for schedule in schedules for block in schedule.deleted})
            donors = batch.take(_others(batch.size, draws))
            for chunk, other in zip(batch.chunks(size), donors.chunks(size), strict=True):
                constants = self._network.branches(blocks, other.args)
                yield chunk, [schedule.substituted(constants) for schedule in schedules]
            return
        substituted = [schedule.substituted(self._means) for schedule in schedules]
        for chunk in batch.chunks(size):
            yield chunk, substituted

    def _reference_runs(self, schedule: Schedule) -> Iterator[tuple[Schedule, Values]]:
        """Yield the schedule and the inputs for every batch of the reference."""
        draws = np.random.default_rng(self._seed)
        for batch in self._batches.again(self._reference):
            moved = batch.to(self._network.device)
            for chunk, (changed,) in self._chunks(moved, [schedule], REFERENCE_BATCH, draws):
                yield changed, self._network.inputs(chunk.args)

    def _branch_means(self, blocks: Sequence[int]) -> dict[int, Tensor]:
        """Return the mean over the reference's samples of each branch at each position, with a batch of one."""
        program = self._network.program
        sums: dict[int, Tensor] = {}
        count = 0
        for batch in self._batches.again(self._reference):
            for chunk in batch.to(self._network.device).chunks(REFERENCE_BATCH):
                count += chunk.size
                for block, values in self._network.branches(blocks, chunk.args).items():
                    dim = program.batch_dim(program.sums[program.branches[block].sum].root)
                    if dim is None:
                        raise InputError(
                            f"ablation='mean' needs samples along a dimension of its own at every sum, and at that of "
                            f"{self._network.blocks[block].name!r} they are mixed with another"
                        )
                    total = values.double().sum(dim, keepdim=True)
                    sums[block] = sums[block] + total if block in sums else total
        dtypes = {block: program.sums[program.branches[block].sum].dtype for block in sums}
        return {block: (total / count).to(dtypes[block]) for block, total in sums.items()}


def _others(size: int, draws: np.random.Generator) -> Tensor:
    """Return for each sample another one, drawn at random; each is drawn once.

    Raises:
        InputError: if there is no other one.
    """
    if size < 2:
        raise InputError("ablation='resample' takes a branch's value on another sample: give batches of two or more")
    order = draws.permutation(size)
    found = np.empty(size, dtype=np.int64)
    found[order] = np.roll(order, 1)
    return torch.from_numpy(found)
