"""What a study's schedules run under: what stands in for deleted branches, which batch-norm statistics hold."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from resnet_paths_plugin.analyzers.batches import Batch, Batches
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.engine.recalibration import Recalibration
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.engine.states import BlockState, StatesEngine
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
        self._states = StatesEngine(network.program)
        self._seed = seed
        self._donors = _Donors(seed)
        self._means: dict[int, Tensor] = {}
        self._statistics: list[Values] = []
        self._batches, self._reference = batches, reference
        if ablation == "mean" or self._recalibration is not None:
            batches.check_again(reference)
        elif reference is not None:
            raise InputError(
                "a reference is for ablation='mean' and batch_norm='recalibrated', and neither was asked for: "
                "leave it out"
            )

    def prepare(self, schedules: Sequence[Schedule], *, show_progress: bool = False) -> None:
        """Go through the reference for what these schedules need."""
        if self._ablation == "mean":
            self._means = self._branch_means(_deleted(schedules))
        if self._recalibration is not None:
            self._statistics = self._recalibrated(self._recalibration, schedules, show_progress=show_progress)

    def chunks(
        self, batch: Batch, schedules: Sequence[Schedule], size: int
    ) -> Iterator[tuple[Batch, Sequence[Schedule]]]:
        """Cut a batch into pieces of at most `size` samples, each with the schedules as they are for it."""
        yield from self._substituted(batch, batch.chunks(size), schedules, self._donors)

    def outputs(self, schedules: Sequence[Schedule], chunk: Batch, width: int) -> Iterator[tuple[int, Any]]:
        """Yield `(position in schedules, output)` for each schedule, in the order of completion."""
        if self._recalibration is None:
            yield from self._network.outputs(schedules, chunk.args, perturbations_per_eval=width)
            return
        for place, (schedule, statistics) in enumerate(zip(schedules, self._statistics, strict=True)):
            for _, output in self._network.outputs([schedule], chunk.args, statistics=statistics):
                yield place, output

    def _substituted(
        self, batch: Batch, chunks: Iterator[Batch], schedules: Sequence[Schedule], donors: "_Donors"
    ) -> Iterator[tuple[Batch, Sequence[Schedule]]]:
        """Yield each chunk of a batch with the schedules that add what stands in for deleted branches."""
        if self._ablation != "resample":
            substituted = [schedule.substituted(self._means) for schedule in schedules]
            for chunk in chunks:
                yield chunk, substituted
            return
        blocks = _deleted(schedules)
        source, others = donors.of(batch)
        start = 0
        for chunk in chunks:
            other = source.take(others[start : start + chunk.size])
            start += chunk.size
            constants = {block: self._laid_out(block, v) for block, v in self._branches(blocks, other).items()}
            yield chunk, [schedule.substituted(constants) for schedule in schedules]

    def _recalibrated(
        self, recalibration: Recalibration, schedules: Sequence[Schedule], *, show_progress: bool
    ) -> list[Values]:
        """Return each schedule's statistics, averaged over the batches in which a norm ran."""
        sums: list[dict[int, tuple[Tensor, int]]] = [{} for _ in schedules]
        donors = _Donors(self._seed)
        batches = self._batches.again(self._reference)
        with tqdm(total=batches.n_samples, disable=not show_progress, unit="sample", desc="recalibration") as progress:
            for batch in batches:
                moved = batch.to(self._network.device)
                for chunk, changed in self._substituted(moved, moved.evenly(REFERENCE_BATCH), schedules, donors):
                    inputs = self._network.inputs(chunk.args)
                    for found, schedule in zip(sums, changed, strict=True):
                        for at, value in recalibration.statistics(schedule, inputs).items():
                            total, count = found.get(at, (0, 0))
                            found[at] = total + value, count + 1
                    progress.update(chunk.size)
        return [{at: total / count for at, (total, count) in found.items()} for found in sums]

    def _branch_means(self, blocks: Sequence[int]) -> dict[int, Tensor]:
        """Return the mean over the reference's samples of each branch at each position, with a batch of one."""
        sums: dict[int, Tensor] = {}
        dtypes: dict[int, torch.dtype] = {}
        count = 0
        for batch in self._batches.again(self._reference):
            for chunk in batch.to(self._network.device).evenly(REFERENCE_BATCH):
                count += chunk.size
                for block, values in self._branches(blocks, chunk).items():
                    dtypes[block] = values.dtype
                    total = values.double().sum(0, keepdim=True)
                    sums[block] = sums[block] + total if block in sums else total
        return {block: self._laid_out(block, (total / count).to(dtypes[block])) for block, total in sums.items()}

    def _branches(self, blocks: Sequence[int], batch: Batch) -> dict[int, Tensor]:
        """Return the values of some branches in the intact network by the block's index, `[B, *]`."""
        found: dict[int, Tensor] = {}

        def keep(state: BlockState) -> None:
            if state.block.index in blocks:
                found[state.block.index] = state.branch

        self._states.run(self._network.inputs(batch.args), self._network.program.parameters(), keep)
        for block in blocks:
            if block not in found:
                raise InputError(
                    f"ablation={self._ablation!r} needs samples along a dimension of their own at every sum, and at "
                    f"that of {self._network.blocks[block].name!r} they are mixed with another"
                )
        return found

    def _laid_out(self, block: int, values: Tensor) -> Tensor:
        """Return values `[B, *]` in the layout of the block's sum."""
        program = self._network.program
        dim = program.batch_dim(program.sums[program.branches[block].sum].root)
        return values if dim is None else values.movedim(0, dim)


class _Donors:
    """Chooses for each sample of a batch another one, at random and each once.

    A batch of a single sample, such as the last one of a loader, gets one of the batch before.
    """

    def __init__(self, seed: int) -> None:
        # A stream of its own beside that of random lesions.
        self._draws = np.random.default_rng([seed, 1])
        self._before: Batch | None = None

    def of(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return the batch to take from, and the index in it for each sample.

        Raises:
            InputError: if there is no other sample.
        """
        before, self._before = self._before, batch
        if batch.size == 1:
            if before is None:
                raise InputError(
                    "ablation='resample' takes a branch's value on another sample: give two samples or more"
                )
            return before, torch.tensor([int(self._draws.integers(before.size))])
        order = self._draws.permutation(batch.size)
        found = np.empty(batch.size, dtype=np.int64)
        found[order] = np.roll(order, 1)
        return batch, torch.from_numpy(found)


def _deleted(schedules: Sequence[Schedule]) -> list[int]:
    """Return the blocks that some schedule deletes."""
    return sorted({block for schedule in schedules for block in schedule.deleted})
