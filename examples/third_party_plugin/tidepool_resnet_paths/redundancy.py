"""BlockRedundancy: how much more deleting two blocks does than deleting each alone adds up to."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from captum.attr import PerturbationAttribution
from captum.log import log_usage

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers import Batch, Batches, Chunk, NamedSchedules, ScheduleStudy, Target

Effect = Literal["loss", "target_score"]
UNITS = {"loss": "nat", "target_score": "1"}


class BlockRedundancy(rpp.Analyzer, PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Say which blocks stand in for each other, and which work only together.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.
    """

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        effect: Effect = "loss",
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        run: rpp.RunOptions | None = None,
    ) -> xr.Dataset:
        """Delete every block alone and every two together, n (n + 1) / 2 lesions in all, and compare the effects.

        With `E_i` the rise of the loss when block `i` is deleted, and `E_ij` when both are, their redundancy is
        `E_ij - E_i - E_j`. Above 0, each block makes up for the loss of the other; below 0, the second deletion
        destroys what the first has destroyed already; at 0, the two work independently of each other.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: the label of each sample, as in Captum.
            additional_forward_args: further arguments of the model, after the inputs.
            effect: the measure whose rise is the effect, `"loss"` or `"target_score"`.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            show_progress: whether to show a progress bar.
            run: where to run it, and where to keep what is finished; None runs it here.

        Returns:
            A Dataset with dims `block`, `other_block` and `sample`, float64: `deletion_effect` (block, sample), and
            `redundancy` (block, other_block, sample), the same both ways round and NaN for a block with itself.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets or options do not fit.
        """
        arguments = dict(locals())
        if effect not in get_args(Effect):
            raise rpp.errors.InputError(f"effect must be 'loss' or 'target_score', not {effect!r}")
        return self.run_study(partial(RedundancyStudy, effect=effect), arguments)


class RedundancyStudy(ScheduleStudy):
    """The lesions of every block and of every two, and what their effects say of each other.

    Args:
        network: the network.
        batches: inputs and targets.
        effect: the measure whose rise is the effect.
    """

    def __init__(self, network: rpp.UnraveledNetwork, batches: Batches, *, effect: Effect) -> None:
        self.effect = effect
        self.pairs = list(combinations(range(len(network.blocks)), 2))
        lesions = [*((block.index,) for block in network.blocks), *self.pairs]
        super().__init__(
            network,
            batches,
            NamedSchedules(
                dim="lesion",
                labels=["+".join(network.blocks[index].name for index in lesion) for lesion in lesions],
                schedules=[rpp.Schedule.lesion(network, lesion) for lesion in lesions],
            ),
            title=f"Redundancy of the blocks of {network.name}",
            summary="How much more deleting two blocks together does than deleting each alone adds up to.",
        )

    def check(self, batch: Batch) -> None:
        """Check that a batch has labels of the outputs."""
        if batch.target is None:
            raise rpp.errors.InputError(
                "redundancies are those of effects on the labels: pass target, or batches with targets"
            )
        super().check(batch)

    def results(self, chunks: Iterable[Chunk]) -> Iterator[rpp.StudyResult]:
        """Yield the redundancies on each chunk of samples."""
        blocks = self.network.blocks
        for deleted in super().results(chunks):
            measured, intact = (deleted.variables[name][1] for name in (self.effect, f"intact_{self.effect}"))
            rise = np.asarray(measured, dtype=float) - np.asarray(intact, dtype=float)
            alone, both = rise[: len(blocks)], rise[len(blocks) :]
            redundancy = np.full((len(blocks), *alone.shape), np.nan)
            for (one, other), effect in zip(self.pairs, both, strict=True):
                redundancy[one, other] = redundancy[other, one] = effect - alone[one] - alone[other]
            yield rpp.StudyResult(
                {
                    "deletion_effect": (("block", "sample"), alone, self._described("when the block is deleted")),
                    "redundancy": (
                        ("block", "other_block", "sample"),
                        redundancy,
                        self._described("by deleting both, less those by deleting each"),
                    ),
                },
                {"other_block": ("other_block", [block.name for block in blocks])},
            )

    def _described(self, when: str) -> dict[str, object]:
        return {"long_name": f"rise of {self.effect} {when}", "units": UNITS[self.effect]}
