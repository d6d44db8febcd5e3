"""One pass of a model, or of a network in its place: outputs, and the gradients of an objective.

Whoever asks for it sees to the model's flags, buffers and generators (`undisturbed`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import ModelGradientError, ResnetPathsError
from resnet_paths_plugin.graph.export import gradients_at
from resnet_paths_plugin.graph.keywords import called

Call = Callable[..., Any]
"""A model or a network, called with the arguments that the model takes."""
Objective = Callable[[Any], Tensor]
"""The number that is differentiated, of the outputs of a call."""
Tap = int | nn.Parameter
"""Where a gradient is taken: at the argument with this place among the flattened ones, or at a parameter."""

_SEED = 20160527


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass with gradients recorded.

    Attributes:
        outputs: the tensors among the outputs.
        total: the objective.
        at: the tensor at each tap.
    """

    outputs: Sequence[Tensor]
    total: Tensor
    at: Mapping[Tap, Tensor]

    def gradients(
        self, name: str, parameters: Iterable[Tensor], scale: float = 1.0, *, again: bool = False
    ) -> dict[Tap, Tensor]:
        """Return the objective's gradient at each tap times a number, zeros where there is none.

        Args:
            name: of the model, for messages.
            parameters: the leaves beside the arguments that gradients may arrive at.
            scale: the number.
            again: whether they will be asked for once more.

        Raises:
            ModelGradientError: if the backward pass fails.
        """
        found: list[Tensor | None] = [None] * len(self.at)
        if self.total.requires_grad and self.at:
            try:
                seed = torch.full_like(self.total, scale)
                found = gradients_at([self.total], [*self.at.values()], [seed], parameters, again=again)
            except (ResnetPathsError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ModelGradientError(
                    f"{name} has no gradient, as its own backward pass fails ({type(error).__name__}: {error}). Where "
                    "it works in place on a value that the backward pass reads, write x = x + y for x += y there; "
                    "where a torch.autograd.Function raises, mend its backward; "
                    "torch.autograd.set_detect_anomaly(True) shows the line. Studies that take no gradient, such as "
                    "BlockLesion, run"
                ) from error
        return {
            tap: torch.zeros_like(leaf) if one is None else one.detach()
            for (tap, leaf), one in zip(self.at.items(), found, strict=True)
        }


def taps_among(args: tuple[Any, ...], parameters: Iterable[nn.Parameter]) -> list[Tap]:
    """Return where gradients are compared: at the floating-point arguments, at the parameters where there is none."""
    inputs: list[Tap] = [at for at, leaf in enumerate(pytree.tree_leaves(args)) if is_float(leaf)]
    return inputs or [one for one in parameters if one.requires_grad]


def passed(call: Call, args: tuple[Any, ...], taps: Iterable[Tap], objective: Objective) -> Pass:
    """Run a model or a network on copies of its arguments, with gradients recorded."""
    leaves, spec = pytree.tree_flatten(args)
    leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    at = {tap: leaves[tap].requires_grad_() if isinstance(tap, int) else tap for tap in taps}
    with torch.enable_grad():
        # Copies once more, as a model may work in place on its input.
        given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        outputs = called(call, pytree.tree_unflatten(given, spec))
        return Pass(tensors_of(outputs), objective(outputs), at)


def random_objective(outputs: Any) -> Tensor:
    """Return the outputs times fixed random numbers, summed."""
    generator = torch.Generator().manual_seed(_SEED)
    total = torch.zeros(())
    for leaf in tensors_of(outputs):
        if leaf.requires_grad:
            weights = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
            product = (leaf * weights).sum()
            total = total.to(product.device) + (product.real if product.is_complex() else product)
    return total


def seeded(call: Call, args: tuple[Any, ...]) -> Any:
    """Return what a call gives on copies of the arguments, with a fixed seed; within `undisturbed`."""
    with_fixed_seed()
    copies = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, args)
    return called(call, copies)


def with_fixed_seed() -> None:
    """Let torch draw the same from here on each time; within `undisturbed`."""
    torch.manual_seed(_SEED)


def tensors_of(outputs: Any) -> list[Tensor]:
    """Return the tensors among outputs."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def is_float(leaf: Any) -> bool:
    """Whether this is a tensor that a gradient can be taken at."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
