"""What it costs to run a module: parameters, multiply-adds of a sample, and measured time."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.graph.export import batch_size
from resnet_paths_plugin.graph.keywords import called
from resnet_paths_plugin.network.captured_network import CapturedNetwork
from resnet_paths_plugin.network.pruning import PrunedNetwork

_ROUNDS = 5
"""Times that each module is measured, in turn with the others, so that a slow moment of the machine hits all alike."""
_SECONDS = 0.03
"""Least time of a measurement; the median of all of them counts."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What it costs to run a module.

    Attributes:
        parameters: numbers in its parameters, each counted once.
        multiply_adds: multiplications with an addition that convolutions, matrix products and attention do for one
            sample: half of the operations that `torch.utils.flop_counter` counts.
    """

    parameters: int
    multiply_adds: int


def costs_of(module: nn.Module, args: tuple[Any, ...]) -> Costs:
    """Return what it costs to run a module.

    Args:
        module: the module, in eval mode.
        args: arguments that it takes, tensors with batch `B`.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        called(module, args)
    return Costs(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=round(counter.get_total_flops() / 2 / batch_size(args)),
    )


def latencies(modules: Sequence[nn.Module], args: tuple[Any, ...]) -> list[float]:
    """Return the time of one forward pass of each module in seconds: the median of measurements that take turns.

    Measured with the threads that torch has now; what runs on a GPU is waited for.

    Args:
        modules: the modules, in eval mode.
        args: arguments that all of them take.
    """
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it looks for compilers, and says so where there is CUDA and no GPU
    try:
        from torch.utils.benchmark import Measurement, Timer  # noqa: PLC0415 - only where latency is measured
    finally:
        logger.setLevel(level)

    timers = [
        Timer(
            "called(module, args)",
            globals={"called": called, "module": module, "args": args},
            num_threads=torch.get_num_threads(),
        )
        for module in modules
    ]
    with torch.no_grad():
        rounds = [[timer.blocked_autorange(min_run_time=_SECONDS) for timer in timers] for _ in range(_ROUNDS)]
    return [float(Measurement.merge(found)[0].median) for found in zip(*rounds, strict=True)]


def measured_module(network: CapturedNetwork, schedule: Schedule, device: torch.device | None = None) -> nn.Module:
    """Return a network under a schedule as a module whose costs are those of the pruned network.

    Args:
        network: the network.
        schedule: the schedule.
        device: the device that it is to run on; None leaves it where the model is, with whose parameters it runs.

    Raises:
        ResnetPathsError: if the network cannot be made a module of its own.
    """
    moves = device is not None and device != network.device
    with torch.inference_mode(mode=False):
        module = PrunedNetwork(network, schedule, share_parameters=not moves)
        return module.to(device) if moves else module


def on_device(args: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """Return arguments with their tensors on a device."""
    moved: tuple[Any, ...] = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, args)
    return moved
