"""SelectedCosts: what the networks of a selection cost, each made as small as it gets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet_paths_plugin.analyzers.coalitions.search_plan import SearchPlan
from resnet_paths_plugin.analyzers.coalitions.set_space import Sets, keys
from resnet_paths_plugin.analyzers.coalitions.tasks import schedules_of
from resnet_paths_plugin.analyzers.rewiring.tasks import Substitution
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import ResnetPathsError
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.costs import costs_of, latencies, measured_module, on_device
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Variable = tuple[Any, dict[str, object]]
"""Values and attributes."""


class SelectedCosts:
    """Measures parameters, multiply-adds and latency of networks without sets of blocks.

    Args:
        network: the network.
        plan: the plan.
        first: the first batch.
        substitution: what stands in for deleted branches.
        device: the device to run on; None for the model's.
    """

    def __init__(
        self, network: UnraveledNetwork, plan: SearchPlan, first: Batch, substitution: Substitution, device: object
    ) -> None:
        self._network, self._plan, self._substitution = network, plan, substitution
        self._device = network.device if device is None else torch.device(str(device))
        size = network.frozen_batch or network.samples_per_run(first.size, min(first.size, plan.latency_batch_size))
        chunk = next(first.chunks(size))
        self._chunk = chunk
        self._args = on_device(chunk.args, self._device)

    def variables(self, sets: Sets) -> dict[str, tuple[dict[bytes, Any], Any, dict[str, object]]]:
        """Return each cost of each set by the set's key, the intact network's, and attributes."""
        rows = np.concatenate([np.zeros_like(sets[:1]), sets])
        modules, is_pruned = self._modules(schedules_of(self._plan.blocks(rows)))
        found = [costs_of(module, self._args) for module in modules]
        counts = [one.parameters for one in found] if is_pruned else [self._model_parameters()] * len(found)
        of: dict[str, object] = {"of": "the pruned network" if is_pruned else "the model under lesions"}
        costs: dict[str, tuple[list[Any], dict[str, object]]] = {
            "parameters": (counts, of),
            "multiply_adds": ([one.multiply_adds for one in found], of),
        }
        if self._plan.latency:
            how = {
                **of,
                "device": str(self._device),
                "batch_size": self._chunk.size,
                "threads": torch.get_num_threads(),
            }
            costs["latency"] = (latencies(modules, self._args), how)
        names = keys(sets)
        return {
            name: (dict(zip(names, values[1:], strict=True)), values[0], attrs)
            for name, (values, attrs) in costs.items()
        }

    def _model_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._network.model.parameters())

    def _modules(self, schedules: Sequence[Schedule]) -> tuple[list[nn.Module], bool]:
        """Return modules to measure, and whether they are networks of their own; else they are views of the model."""
        whole = self._substitution.of(self._network, schedules, (self._chunk,))
        try:
            return [measured_module(self._network, schedule, self._device) for schedule in whole], True
        except ResnetPathsError:
            return [self._network.scheduled(schedule) for schedule in whole], False
