"""What a study's schedules run under: what stands in for deleted branches, which batch-norm statistics hold."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from resnet_paths_plugin.analyzers.rewiring.tasks import (
    Ablation,
    RecalibrationWork,
    Substitution,
    deleted,
)
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.engine.recalibration import Recalibration
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import Arrays, Samples, Stage, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.network.stand_ins import Fitted, StandIns, check_ablation, check_ridge, fitted, layout, moments
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.variables import Entry

BatchNorm = Literal["frozen", "recalibrated"]
"""Which batch-norm statistics hold: the model's, or those that the changed network has on given data."""

REFERENCE_BATCH = 256
"""Most samples whose batch statistics are taken together."""
_FITS: Mapping[Fitted, str] = {"mean": "branch_means", "linear": "linear_fits"}
"""The stages in which stand-ins are fitted."""


def beside_intact(batch_norm: BatchNorm) -> str:
    """Return the end of a summary: what the changed network stands beside, and which statistics hold."""
    return f"next to the intact network's (intact_...). Batch-norm statistics are {batch_norm}."


class Conditions:
    """What a study's schedules run under.

    Attributes:
        substitution: what stands in for deleted branches, once prepared.
        ridge: the ridge parameter of linear maps.
        statistics: batch-norm statistics of each schedule, once prepared; None for the model's.

    Args:
        network: the network.
        batches: the study's inputs, read again here where a reference is needed and none is given.
        ablation: what stands in for a deleted branch.
        batch_norm: which batch-norm statistics hold.
        reference: data for branch means, linear maps and recalibrated statistics, as an analyzer takes inputs; None
            takes the study's own.
        seed: seed of the choice of other samples.
        ridge: of linear maps, the ridge parameter relative to the mean variance of the source's channels; None for
            1e-6.

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
        ridge: float | None = None,
    ) -> None:
        check_ablation(network, ablation, get_args(Ablation), ridge)
        if batch_norm not in get_args(BatchNorm):
            raise InputError(
                f"batch_norm must be one of {', '.join(map(repr, get_args(BatchNorm)))}, not {batch_norm!r}"
            )
        self._network = network
        self._ablation = ablation
        self._recalibrated = batch_norm == "recalibrated"
        self._seed = seed
        self._batches, self._reference = batches, reference
        self.ridge = check_ridge(ridge)
        self.substitution = Substitution(ablation)
        self.statistics: list[Values] | None = None
        if self._recalibrated:
            if "fold_batch_norm" in network.optimize:
                raise InputError(
                    "batch_norm='recalibrated' needs every batch norm in its place: unravel the model without "
                    "optimize='fold_batch_norm'"
                )
            Recalibration(network.program)  # refuses a network without batch norms
        if ablation in get_args(Fitted) or self._recalibrated:
            batches.check_again(reference)
        elif reference is not None:
            raise InputError(
                "a reference is for ablation='mean' or 'linear' and batch_norm='recalibrated', and none of these was "
                "asked for: leave it out"
            )

    @property
    def attrs(self) -> Mapping[str, object]:
        """Attributes of the result: the ridge parameter of linear maps."""
        return {"ridge": self.ridge} if self._ablation == "linear" else {}

    @property
    def variables(self) -> Mapping[str, Entry]:
        """Variables of the result, once prepared: how well linear maps fit, NaN for blocks that have none."""
        if self._ablation != "linear":
            return {}
        explained = self.substitution.fitted.explained
        shares = [explained.get(block.index, np.nan) for block in self._network.blocks]
        return {"explained_variance": (("block",), np.array(shares))}

    def prepare(self, schedules: Sequence[Schedule], run: StudyRun) -> None:
        """Go through the reference for what these schedules need."""
        if self._ablation == "mean" or self._ablation == "linear":  # noqa: PLR1714 - mypy narrows no `in`
            fit = self._fitted(self._ablation, tuple(deleted(schedules)), run)
            self.substitution = Substitution(self._ablation, fit)
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

    def _fitted(self, kind: Fitted, blocks: tuple[int, ...], run: StudyRun) -> StandIns:
        """Fit what stands in for some branches, in one pass over the reference."""
        if kind == "linear":
            for block in blocks:
                layout(self._network, block)  # refuses before anything is run
        batches = self._batches.again(self._reference)
        chunks = ((chunk,) for batch in batches for chunk in self._of_batch(batch, self._at_once(batch)))
        stage = Stage(_FITS[kind], StandInWork(kind, blocks))
        # Added in the order of the samples, whoever has been the first to come.
        found = (arrays for _, (arrays,) in run.pieces(stage, chunks, batches.n_samples))
        return fitted(self._network, blocks, kind, found, self.ridge)


@dataclass(frozen=True, eq=False)
class StandInWork:
    """Take from samples what it takes to fit stand-ins for branches.

    Attributes:
        kind: what is fitted.
        blocks: indices of the blocks.
    """

    kind: Fitted
    blocks: tuple[int, ...]

    @property
    def n_groups(self) -> int:
        """All branches share one pass."""
        return 1

    def on(self, network: UnraveledNetwork) -> Callable[[int, Samples], Arrays]:
        """Return what takes the moments of the branches of a network."""
        return lambda _, samples: moments(network, self.blocks, self.kind, samples[0].args)


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
