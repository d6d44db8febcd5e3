"""The scalar whose gradient is taken: a sum over samples of one number each."""

import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from captum._utils.common import _select_targets
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.batches import Batch, Target
from resnet_paths_plugin.analyzers.outputs import form, objective_line
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.export import eval_mode

Objective = Literal["score", "cross_entropy"] | Callable[[Any, Target], Tensor]
"""A name, or a function of the model's outputs and the batch's target: one number per sample, shape `[B]`."""


_ALONE = threading.Lock()


def per_sample(objective: Objective, outputs: Any, batch: Batch) -> Tensor:
    """Return the objective of each sample, shape `[B]`.

    Raises:
        InputError: if the objective does not fit the outputs and targets.
    """
    if callable(objective):
        values = objective(outputs, batch.target)
        if not isinstance(values, Tensor) or values.shape != (batch.size,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"the objective must return a tensor of shape ({batch.size},), one per sample, not {got}")
        return values
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the outputs are no single tensor but {form(outputs, batch.size)}: pass objective=function(outputs, "
            f"target) -> (B,). For instance {objective_line(outputs)}"
        )
    if objective == "score":
        return _score(outputs, batch)
    if objective == "cross_entropy":
        labels = batch.labels()
        if labels is None or outputs.ndim != 2:
            raise InputError("objective 'cross_entropy' needs outputs of shape (B, classes) and one label per sample")
        return functional.cross_entropy(outputs, labels.to(outputs.device), reduction="none")
    raise InputError(f"objective must be 'score', 'cross_entropy' or a function, not {objective!r}")


def output_gradients(objective: Objective, outputs: Any, batch: Batch, dtype: torch.dtype) -> Any:
    """Return the gradient of the summed objective at each leaf of the outputs, None where there is none."""
    leaves, spec = pytree.tree_flatten(outputs)
    tracked = [
        leaf.detach().to(dtype).requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        for leaf in leaves
    ]
    with torch.enable_grad():
        total = per_sample(objective, pytree.tree_unflatten(tracked, spec), batch).sum()
    places = [at for at, leaf in enumerate(tracked) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not total.requires_grad:
        raise InputError("the objective does not depend on the outputs: it has no gradient")
    found = torch.autograd.grad(total, [tracked[at] for at in places], allow_unused=True)
    return {at: gradient for at, gradient in zip(places, found, strict=True) if gradient is not None}


def ordinary_gradient(model: nn.Module, objective: Objective, batch: Batch) -> list[Tensor | None]:
    """Return autograd's gradient of the summed objective at each input, from the user's own model in eval mode."""
    leaves, spec = pytree.tree_flatten(batch.args)
    tracked = [
        leaf.detach().requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        for leaf in leaves
    ]
    # One thread at a time, as the model's flags are changed for the while.
    with _ALONE, eval_mode(model), torch.enable_grad():
        # Copies, as a model may work in place on its input.
        given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in tracked]
        outputs = model(*pytree.tree_unflatten(given, spec))
        total = per_sample(objective, outputs, batch).sum()
    places = [at for at, leaf in enumerate(tracked) if isinstance(leaf, Tensor) and leaf.requires_grad]
    found = dict(
        zip(places, torch.autograd.grad(total, [tracked[at] for at in places], allow_unused=True), strict=True)
    )
    return [found.get(at) for at in range(len(leaves))]


def _score(outputs: Tensor, batch: Batch) -> Tensor:
    selected = outputs
    if batch.target is not None and batch.names_outputs:
        selected = _select_targets(outputs, batch.target)
    if selected.numel() != batch.size:
        raise InputError(
            "objective 'score' needs a target that selects one number per sample from outputs "
            f"{form(outputs, batch.size)}: an index, or a tuple of {outputs.ndim - 1}; or pass a function, "
            f"for instance {objective_line(outputs)}"
        )
    return selected.reshape(batch.size)
