"""ModelSide: what the model itself gives on some samples, and how far its own rounding moves that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import CaptureMismatchError, ResnetPathsError
from resnet_paths_plugin.graph.export import undisturbed
from resnet_paths_plugin.network.mismatch import Findings
from resnet_paths_plugin.network.model_pass import (
    Objective,
    Pass,
    Tap,
    is_float,
    passed,
    random_objective,
    seeded,
    taps_among,
    tensors_of,
    with_fixed_seed,
)

_SCALES = tuple(1 + k / 8 for k in range(8))
"""Scales of the objective: gradients are as many times as large, and each rounds otherwise."""
_SEED = 7


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the model.

    Attributes:
        outputs: the tensors among its outputs.
        gradients: the objective's gradient by tap; empty where there is no objective.
    """

    outputs: Sequence[Tensor]
    gradients: Mapping[Tap, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class ModelSide:
    """The model's side of a check; it is left as it was.

    Attributes:
        model: the model.
        name: its name.
        args: the arguments.
        objective: what is differentiated; None where no gradient is taken.
        draws: whether it draws random numbers, which are then the same each time.
        unit: the unit of rounding of the coarsest values on the way.
        findings: takes note of the custom backward functions that autograd meets.
    """

    model: nn.Module
    name: str
    args: tuple[Any, ...]
    objective: Objective | None
    draws: bool
    unit: float
    findings: Findings

    @cached_property
    def found(self) -> Evaluation:
        """What the model gives: by one forward pass, and one backward pass where there is an objective.

        Raises:
            CaptureMismatchError: if its forward pass fails.
            ModelGradientError: if its backward pass fails.
        """
        return self._evaluated(self.args, self.objective)

    @cached_property
    def without_gradients(self) -> Sequence[Tensor]:
        """The tensors among its outputs where no gradients are recorded."""
        return self.found.outputs if self.objective is None else self._evaluated(self.args, None).outputs

    @cached_property
    def moved(self) -> Evaluation:
        """What the model gives for inputs that are moved by no more than the values on the way are rounded."""
        generator = torch.Generator().manual_seed(_SEED)

        def moved(leaf: Any) -> Any:
            if not is_float(leaf):
                return leaf
            steps = torch.randint(-1, 2, leaf.shape, generator=generator).to(leaf.device)
            return (leaf.to(torch.promote_types(leaf.dtype, torch.float64)) * (1 + self.unit * steps)).to(leaf.dtype)

        return self._evaluated(pytree.tree_map(moved, self.args), self.objective)

    @cached_property
    def averaged(self) -> dict[Tap, tuple[Tensor, float]]:
        """The gradient at each tap as the mean of several right evaluations, and their relative standard deviation.

        A backward pass is linear, so the gradients of an objective times some numbers, divided by these, differ by
        rounding alone; their mean has less of it than each.
        """
        with undisturbed(self.model):
            run = self._run_with_gradients(self.args, self.objective or random_objective)
            parameters = list(self.model.parameters())
            each = [
                {
                    tap: found.double() / scale
                    for tap, found in run.gradients(self.name, parameters, scale, again=True).items()
                }
                for scale in _SCALES
            ]
        found: dict[Tap, tuple[Tensor, float]] = {}
        for tap in run.at:
            all_of_it = torch.stack([one[tap] for one in each])
            mean = all_of_it.mean(0)
            spread = (all_of_it - mean).square().sum().div(len(each) - 1).sqrt() / mean.norm()
            found[tap] = mean, spread.item()
        return found

    def _evaluated(self, args: tuple[Any, ...], objective: Objective | None) -> Evaluation:
        model = self.model
        with undisturbed(model):
            if objective is None:
                return Evaluation([leaf.clone() for leaf in tensors_of(self._run(lambda: seeded(model, args)))])
            run = self._run_with_gradients(args, objective)
            self.findings.note_backward([run.total])
            gradients = run.gradients(self.name, model.parameters())
            return Evaluation([leaf.detach().clone() for leaf in run.outputs], gradients)

    def _run_with_gradients(self, args: tuple[Any, ...], objective: Objective) -> Pass:
        if self.draws:
            with_fixed_seed()
        model = self.model
        # What the objective raises is its own.
        return passed(
            lambda *given, **named: self._run(lambda: model(*given, **named)),
            args,
            taps_among(args, model.parameters()),
            objective,
        )

    def _run(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except (ResnetPathsError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise CaptureMismatchError(
                f"{self.name} itself fails on this batch, so that the network cannot be compared with it "
                f"({type(error).__name__}: {error}). Pass what the model takes; verify=False turns this check off"
            ) from error
