"""BlockInteraction: whether deleting two blocks does more than deleting each alone adds up to."""

from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from captum.log import log_usage

from resnet_paths_plugin import Schedule, datasets
from resnet_paths_plugin.analyzers.batches import Batches, Target
from resnet_paths_plugin.analyzers.conditions import Conditions
from resnet_paths_plugin.analyzers.schedule_study import (
    ScheduleAnalyzer,
    ScheduleStudy,
    network_for,
    run_study,
    study_attrs,
)
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network import UnraveledNetwork

Effect = Literal["loss", "target_score"]


class BlockInteraction(ScheduleAnalyzer):
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
    ) -> xr.Dataset:
        """Delete every block alone and every two together, n (n + 1) / 2 lesions in all, and compare the effects.

        With `E_i` the rise of the loss when block `i` is deleted, and `E_ij` when both are, the interaction is
        `E_ij - E_i - E_j`. Above 0, each block makes up for the loss of the other; below 0, the second deletion
        destroys what the first has destroyed already; at 0, the two work independently of each other.

        Args:
            inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches.
            target: the label of each sample, as in Captum.
            additional_forward_args: further arguments of the model, after the inputs.
            effect: the measure whose rise is the effect, `"loss"` or `"target_score"`.
            internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
            show_progress: whether to show a progress bar.

        Returns:
            A Dataset with dims `block`, `other_block` and `sample`, float64: `deletion_effect` (block, sample), and
            `interaction` (block, other_block, sample), the same both ways round and NaN for a block with itself.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if inputs, targets or options do not fit.
        """
        batches = Batches(inputs, target, additional_forward_args)
        self._network = network = network_for(self.forward_func, self._network, batches)
        if effect not in get_args(Effect):
            raise InputError(f"effect must be 'loss' or 'target_score', not {effect!r}")
        if batches.first.target is None:
            raise InputError("interactions are those of effects on the labels: pass target, or batches with targets")
        attrs = study_attrs(
            network,
            analyzer=type(self).__name__,
            title=f"Interaction of the blocks of {network.name}",
            summary="How much more deleting two blocks together does than deleting each alone adds up to.",
            seed=None,
            arguments={
                "inputs": inputs, "target": target, "additional_forward_args": additional_forward_args,
                "effect": effect, "internal_batch_size": internal_batch_size,
            },
        )  # fmt: skip
        alone = [(block.index,) for block in network.blocks]
        together = list(combinations(range(len(network.blocks)), 2))
        deleted = run_study(
            network,
            _lesions(network, [*alone, *together]),
            batches,
            attrs,
            conditions=Conditions(network, batches),
            measures=None,
            internal_batch_size=internal_batch_size,
            perturbations_per_eval=None,
            show_progress=show_progress,
        )
        rise = deleted[effect].astype(float) - deleted[f"intact_{effect}"].astype(float)
        return _dataset(network, rise.transpose("lesion", "sample").values, together, deleted)


def _lesions(network: UnraveledNetwork, lesions: list[tuple[int, ...]]) -> ScheduleStudy:
    return ScheduleStudy(
        dim="lesion",
        labels=["+".join(network.blocks[index].name for index in lesion) for lesion in lesions],
        schedules=[Schedule.lesion(network, lesion) for lesion in lesions],
    )


def _dataset(
    network: UnraveledNetwork, rise: np.ndarray[Any, Any], together: list[tuple[int, int]], deleted: xr.Dataset
) -> xr.Dataset:
    """Return the result, from the rises of the lesions of one block and then of those of two."""
    n_blocks = len(network.blocks)
    alone, pairs = rise[:n_blocks], rise[n_blocks:]
    interaction = np.full((n_blocks, *alone.shape), np.nan)
    for (one, other), effect in zip(together, pairs, strict=True):
        interaction[one, other] = interaction[other, one] = effect - alone[one] - alone[other]
    measure = deleted.attrs["argument_effect"]
    units = deleted[measure].attrs["units"]
    blocks = datasets.block_coords(network.blocks)
    return datasets.build(
        {
            "deletion_effect": (
                ("block", "sample"),
                alone,
                {"long_name": f"rise of {measure} when the block is deleted", "units": units},
            ),
            "interaction": (
                ("block", "other_block", "sample"),
                interaction,
                {"long_name": f"rise of {measure} by deleting both, less those by deleting each", "units": units},
            ),
        },
        coords={**blocks, "other_block": ("other_block", [block.name for block in network.blocks])},
        attrs=deleted.attrs,
    )
