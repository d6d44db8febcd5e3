"""What a study's schedules run under: what stands in for deleted branches, which batch-norm statistics hold."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.analyzers.rewiring.tasks import (
    Ablation,
    RecalibrationWork,
    Substitution,
    branches,
    deleted,
    laid_out,
)
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.engine.recalibration import Recalibration
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import Arrays, Samples, Stage, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

BatchNorm = Literal["frozen", "recalibrated"]
"""Which batch-norm statistics hold: the model's, or those that the changed network has on given data."""

REFERENCE_BATCH = 256
"""Most samples whose batch statistics are taken together."""


def beside_intact(batch_norm: BatchNorm) -> str:
    """Return the end of a summary: what the changed network stands beside, and which statistics hold."""
    return f"next to the intact network's (intact_...). Batch-norm statistics are {batch_norm}."


class Conditions:
    """What a study's schedules run under.

    Attributes:
        substitution: what stands in for deleted branches, once prepared.
        statistics: batch-norm statistics of each schedule, once prepared; None for the model's.

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
        self._recalibrated = batch_norm == "recalibrated"
        self._seed = seed
        self._batches, self._reference = batches, reference
        self.substitution = Substitution(ablation)
        self.statistics: list[Values] | None = None
        if self._recalibrated:
            if "fold_batch_norm" in network.optimize:
                raise InputError(
                    "batch_norm='recalibrated' needs every batch norm in its place: unravel the model without "
                    "optimize='fold_batch_norm'"
                )
            Recalibration(network.program)  # refuses a network without batch norms
        if ablation == "mean" or self._recalibrated:
            batches.check_again(reference)
        elif reference is not None:
            raise InputError(
                "a reference is for ablation='mean' and batch_norm='recalibrated', and neither was asked for: "
                "leave it out"
            )

    def prepare(self, schedules: Sequence[Schedule], run: StudyRun) -> None:
        """Go through the reference for what these schedules need."""
        if self._ablation == "mean":
            self.substitution = Substitution("mean", self._branch_means(deleted(schedules), run))
        if self._recalibrated:
            self.statistics = self._recalibration(tuple(schedules), run)

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:
        """Cut batches into chunks of at most `size` samples, each with what else it takes to run it."""
        donors = _Donors(self._seed)
        for batch in batches:
            yield from self._cut(batch, size, donors)

    def _at_once(self, batch: Batch) -> int:
        return self._network.graph.conditions.reached(batch.even_size(REFERENCE_BATCH))

    def _of_batch(self, batch: Batch, most: int) -> Iterator[Batch]:
        return batch.chunks(self._network.samples_per_run(batch.size, most))

    def _cut(self, batch: Batch, most: int, donors: "_Donors") -> Iterator[Samples]:
        chunks = self._of_batch(batch, most)
        if self._ablation != "resample":
            for chunk in chunks:
                yield (chunk,)
            return
        source, others = donors.of(batch)
        start = 0
        for chunk in chunks:
            yield chunk, source.take(others[start : start + chunk.size])
            start += chunk.size

    def _recalibration(self, schedules: tuple[Schedule, ...], run: StudyRun) -> list[Values]:
        """Return each schedule's statistics, averaged over the batches in which a norm ran."""
        sums: list[dict[int, tuple[Tensor, int]]] = [{} for _ in schedules]
        donors = _Donors(self._seed)
        batches = self._batches.again(self._reference)
        chunks = (chunk for batch in batches for chunk in self._cut(batch, self._at_once(batch), donors))
        work = RecalibrationWork(schedules, run.sizes["schedules"], self.substitution)
        dtypes = {at: value.dtype for at, value in self._network.program.parameters().items() if torch.is_tensor(value)}
        for _, groups in run.pieces(Stage("recalibration", work), chunks, batches.n_samples):
            for found in groups:
                for name, values in found.items():
                    if not name.isdecimal():
                        continue
                    at = int(name)
                    for place, value in zip(found[f"{name} schedules"], torch.from_numpy(values), strict=True):
                        total, count = sums[place].get(at, (0, 0))
                        sums[place][at] = total + value.to(dtypes[at]), count + 1
        return [{at: total / count for at, (total, count) in found.items()} for found in sums]

    def _branch_means(self, blocks: Sequence[int], run: StudyRun) -> dict[int, Tensor]:
        """Return the mean over the reference's samples of each branch at each position, with a batch of one."""
        batches = self._batches.again(self._reference)
        chunks = ((chunk,) for batch in batches for chunk in self._of_batch(batch, self._at_once(batch)))
        sums: dict[str, NDArray[Any]] = {}
        dtypes: dict[str, torch.dtype] = {}
        count = 0
        # Added in the order of the samples, whoever has been the first to come.
        for samples, (found,) in run.pieces(
            Stage("branch_means", BranchMeanWork(tuple(blocks))), chunks, batches.n_samples
        ):
            count += samples[0].size
            for block in map(str, blocks):
                sums[block] = sums[block] + found[block] if block in sums else found[block]
                dtypes[block] = getattr(torch, str(found[f"{block} dtype"]))
        means = {int(block): torch.from_numpy(total / count).to(dtypes[block]) for block, total in sums.items()}
        return {block: laid_out(self._network, block, mean) for block, mean in means.items()}


@dataclass(frozen=True, eq=False)
class BranchMeanWork:
    """Sum the values of branches of the intact network over samples.

    Attributes:
        blocks: indices of the blocks.
    """

    blocks: tuple[int, ...]

    @property
    def n_groups(self) -> int:
        """All branches share one pass."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_BranchMeanJob":
        """Return what sums the branches of a network."""
        return _BranchMeanJob(self, network)


class _BranchMeanJob:
    def __init__(self, work: BranchMeanWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network

    def __call__(self, _: int, samples: Samples) -> Arrays:
        """Return for each block the sum of its branch over the samples, `[1, *]` float64, and the branch's dtype."""
        found: dict[str, NDArray[Any]] = {}
        for block, values in branches(self._network, self._work.blocks, samples[0], "mean").items():
            found[f"{block}"] = values.double().sum(0, keepdim=True).cpu().numpy()
            found[f"{block} dtype"] = np.array(str(values.dtype).removeprefix("torch."))
        return found


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
