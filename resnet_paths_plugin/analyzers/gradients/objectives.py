"""The scalar whose gradient is taken: a sum over samples of one number each."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from captum._utils.common import _select_targets
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.outputs import form, objective_line
from resnet_paths_plugin.analyzers.rewiring.measures import copied
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.batches import Batch, Target
from resnet_paths_plugin.graph.export import undisturbed
from resnet_paths_plugin.network.model_pass import passed

Objective = Literal["score", "cross_entropy"] | Callable[[Any, Target], Tensor]
"""A name, or a function of the model's outputs and the batch's target: one number per sample, shape `[B]`."""

NO_DEPENDENCE = "the objective does not depend on the outputs: it has no gradient"


def per_sample(objective: Objective, outputs: Any, batch: Batch) -> Tensor:
    """Return the objective of each sample, shape `[B]`.

    Raises:
        InputError: if the objective does not fit the outputs and targets.
    """
    if callable(objective):
        values = objective(outputs, copied(batch.target))
        if not isinstance(values, Tensor) or values.shape != (batch.size,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"the objective must return a tensor of shape ({batch.size},), one per sample, not {got}")
        return values
    scores = batch.readout.scores_of(outputs)
    if scores is None:
        raise InputError(
            f"the outputs are no single tensor but {form(outputs, batch.size)}: pass objective=function(outputs, "
            f"target) -> (B,). For instance {objective_line(outputs)}"
        )
    labels = batch.labels()
    if objective == "score" and (labels is None or not batch.has_positions):
        return _score(scores, batch)
    if objective in {"score", "cross_entropy"}:
        if labels is None or batch.readout.n_classes(tuple(scores.shape[1:])) is None:
            raise InputError(
                "objective 'cross_entropy' needs outputs of shape (B, classes) and one label per sample, or a task "
                "with a label for each token or pixel, unravel(model, ..., task='next_token'), and the outputs are "
                f"{form(outputs, batch.size)}: objective='score' takes the number that the target picks"
            )
        where = batch.readout.positions(scores, labels)
        assert where.labels is not None  # noqa: S101 - there is a label for each
        if objective == "score":
            return where.pooled(where.scores.gather(-1, where.labels[..., None])[..., 0])
        return where.pooled(
            functional.cross_entropy(where.scores.flatten(0, 1), where.labels.flatten(), reduction="none").reshape(
                where.labels.shape
            )
        )
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
        raise InputError(NO_DEPENDENCE)
    found = torch.autograd.grad(total, [tracked[at] for at in places], allow_unused=True)
    return {at: gradient for at, gradient in zip(places, found, strict=True) if gradient is not None}


def summed(objective: Objective, outputs: Any, batch: Batch) -> Tensor:
    """Return an objective summed over samples, of a model's outputs with gradients recorded.

    Raises:
        InputError: if no gradient leads to it.
    """
    total = per_sample(objective, outputs, batch).sum()
    if not total.requires_grad:
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(outputs)):
            raise InputError(NO_DEPENDENCE)
        raise InputError(
            "the model's outputs have no gradient: on every way from the inputs it rounds, compares, takes an argmax, "
            "or detaches (no_grad, inference mode). Study lesions or reorderings, which need none, or a part of the "
            "model that ends before"
        )
    return total


def ordinary_gradient(model: nn.Module, objective: Objective, batch: Batch) -> list[Tensor | None]:
    """Return autograd's gradient of the summed objective at each input, from the user's own model in eval mode.

    Raises:
        ModelGradientError: if the model's backward pass fails.
        InputError: if no gradient leads to its outputs.
    """
    leaves = pytree.tree_leaves(batch.args)
    taps = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    with undisturbed(model):
        run = passed(model, batch.args, taps, lambda outputs: summed(objective, outputs, batch))
        # Within, as a checkpoint runs the model's code again.
        found = run.gradients(type(model).__name__, model.parameters())
    return [found.get(at) for at in range(len(leaves))]


def _score(outputs: Tensor, batch: Batch) -> Tensor:
    selected = outputs
    if batch.target is not None and batch.names_outputs:
        try:
            selected = _select_targets(outputs, batch.target)
        except AssertionError as error:  # by which Captum refuses a target
            raise InputError(
                f"target {batch.target!r} selects no number per sample from outputs {form(outputs, batch.size)}: "
                f"{error}"
            ) from error
    if selected.numel() != batch.size:
        raise InputError(
            "objective 'score' needs a target that selects one number per sample from outputs "
            f"{form(outputs, batch.size)}: an index, or a tuple of {outputs.ndim - 1}; or pass a function, "
            f"for instance {objective_line(outputs)}"
        )
    return selected.reshape(batch.size)
