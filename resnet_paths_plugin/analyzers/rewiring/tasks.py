"""What a task of a study over schedules does with some samples: run a group of schedules, and measure their outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.rewiring.measures import Measure, Measures
from resnet_paths_plugin.engine.activations import ActivationEngine, BlockActivation
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.engine.recalibration import Recalibration
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.execution.tasks import Arrays, Samples, slices
from resnet_paths_plugin.network.model_check import OUTPUTS
from resnet_paths_plugin.network.stand_ins import StandIns, check_seen, laid_out
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.tasks import Readout

Ablation = Literal["zero", "mean", "resample", "linear"]
"""What stands in for a deleted branch: nothing, its mean over samples, its value on another sample, or the nearest
affine map of its source."""

IS_FINITE = "intact outputs are finite"
"""Name of a result that is no measure, and cannot be a user's."""


@dataclass(frozen=True, eq=False)
class Substitution:
    """What stands in for deleted branches.

    Attributes:
        ablation: the kind of it.
        fitted: with `"mean"` and `"linear"`, what was fitted on the reference.
    """

    ablation: Ablation = "zero"
    fitted: StandIns = field(default_factory=StandIns)

    def of(self, network: UnraveledNetwork, schedules: Sequence[Schedule], samples: Samples) -> list[Schedule]:
        """Return schedules that add what stands in for the branches that they delete.

        Args:
            network: the network.
            schedules: the schedules.
            samples: the samples that are run, and with `"resample"` behind them those whose branches are taken.
        """
        fitted = self.fitted.to(network.device)
        constants = fitted.constants
        if self.ablation == "resample":
            values = branches(network, deleted(schedules), samples[1])
            constants = {block: laid_out(network, block, value) for block, value in values.items()}
        return [schedule.substituted(constants, fitted.linear) for schedule in schedules]


@dataclass(frozen=True, eq=False)
class ScheduleWork:
    """Run schedules over samples and measure the outputs.

    Attributes:
        schedules: the schedules, those that begin alike next to one another.
        per_task: how many of them are run in a task.
        width: how many of them are run side by side in one batch.
        measures: the user's measures.
        offered: those of plugins that the user has none in place of.
        readout: how outputs and targets are read.
        substitution: what stands in for deleted branches.
        statistics: for each schedule the batch-norm statistics that it runs with; None for the model's.
    """

    schedules: tuple[Schedule, ...]
    per_task: int
    width: int
    measures: Mapping[str, Measure]
    offered: Mapping[str, Measure]
    readout: Readout
    substitution: Substitution
    statistics: Sequence[Values] | None

    @property
    def n_groups(self) -> int:
        """How many groups of schedules there are."""
        return len(slices(len(self.schedules), self.per_task))

    def on(self, network: UnraveledNetwork) -> "_ScheduleJob":
        """Return what runs a group of schedules."""
        return _ScheduleJob(self, network)


class _ScheduleJob:
    def __init__(self, work: ScheduleWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._measures = Measures(network, work.measures, work.offered, readout=work.readout)
        self._groups = slices(len(work.schedules), work.per_task)

    @torch.no_grad()
    def __call__(self, group: int, samples: Samples) -> Arrays:
        """Return the measures of a group, `[schedule, sample]`, and with the first one the intact network's."""
        chunk = samples[0]
        intact = self._network.check.take(OUTPUTS, chunk.args) if group == 0 else None
        if intact is None:
            intact = self._network.intact(*chunk.args)
        reference = self._measures.of(intact, chunk)
        rows: dict[int, dict[str, Tensor]] = {}
        for place, outputs in self._outputs(self._groups[group], samples):
            rows[place] = self._measures.of(outputs, chunk, intact, reference)
        found = {name: as_numpy(torch.stack([rows[place][name] for place in sorted(rows)])) for name in rows[0]}
        if group:
            return found
        found |= {f"intact_{name}": as_numpy(values) for name, values in reference.items()}
        labels = chunk.labels() if self._measures.n_classes is not None else None
        if labels is not None:
            found["label"] = as_numpy(labels)
        if chunk.has_positions:
            found["n_tokens"] = as_numpy(chunk.readout.counted(chunk.target))
        return found | {IS_FINITE: np.array(_finite(intact))}

    def _outputs(self, group: slice, samples: Samples) -> Any:
        """Yield `(place in the group, output)` for each schedule, in the order of completion."""
        work, network, args = self._work, self._network, samples[0].args
        schedules = work.substitution.of(network, work.schedules[group], samples)
        if work.statistics is None:
            yield from network.outputs(schedules, args, perturbations_per_eval=work.width)
            return
        for place, (schedule, statistics) in enumerate(zip(schedules, work.statistics[group], strict=True)):
            moved = {at: value.to(network.device) for at, value in statistics.items()}
            for _, output in network.outputs([schedule], args, statistics=moved):
                yield place, output


@dataclass(frozen=True, eq=False)
class RecalibrationWork:
    """Run schedules with the statistics of the batch in their batch norms, and return these.

    Attributes:
        schedules: the schedules.
        per_task: how many of them are run in a task.
        substitution: what stands in for deleted branches.
    """

    schedules: tuple[Schedule, ...]
    per_task: int
    substitution: Substitution

    @property
    def n_groups(self) -> int:
        """How many groups of schedules there are."""
        return len(slices(len(self.schedules), self.per_task))

    def on(self, network: UnraveledNetwork) -> "_RecalibrationJob":
        """Return what runs a group of schedules."""
        return _RecalibrationJob(self, network)


class _RecalibrationJob:
    def __init__(self, work: RecalibrationWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._recalibration = Recalibration(network.program)
        self._groups = slices(len(work.schedules), work.per_task)

    def __call__(self, group: int, samples: Samples) -> Arrays:
        """Return for each statistic its values by schedule, and which schedules these are: not all run every norm."""
        chosen = self._groups[group]
        schedules = self._work.substitution.of(self._network, self._work.schedules[chosen], samples)
        inputs = self._network.inputs(samples[0].args)
        found: dict[int, dict[int, NDArray[Any]]] = {}
        for place, schedule in enumerate(schedules, chosen.start):
            for at, value in self._recalibration.statistics(schedule, inputs).items():
                found.setdefault(at, {})[place] = as_numpy(value)
        return {f"{at}": np.stack(list(values.values())) for at, values in found.items()} | {
            f"{at} schedules": np.array(list(values)) for at, values in found.items()
        }


def deleted(schedules: Sequence[Schedule]) -> list[int]:
    """Return the blocks that some schedule deletes."""
    return sorted({block for schedule in schedules for block in schedule.deleted})


def branches(network: UnraveledNetwork, blocks: Sequence[int], batch: Batch) -> dict[int, Tensor]:
    """Return the values of some branches in the intact network by the block's index, `[B, *]`.

    Raises:
        InputError: if samples do not have a dimension of their own at a block's sum.
    """
    found: dict[int, Tensor] = {}

    def keep(state: BlockActivation) -> None:
        if state.block.index in blocks:
            found[state.block.index] = state.branch

    ActivationEngine(network.program).run(network.inputs(batch.args), network.program.parameters(), keep)
    check_seen(network, blocks, found, "resample")
    return found


def as_numpy(values: Tensor) -> NDArray[Any]:
    """Return values as an array; float16 and bfloat16 become float32."""
    if values.dtype in {torch.float16, torch.bfloat16}:
        values = values.float()
    array: NDArray[Any] = values.cpu().numpy()
    return array


def _finite(outputs: Any) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
