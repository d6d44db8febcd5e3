"""Why a network and its model may differ, found out where it can be and listed where not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.export import backward_nodes, batch_size, is_custom, undisturbed
from resnet_paths_plugin.graph.free_batch import resized
from resnet_paths_plugin.graph.silent_writes import silent_writes
from resnet_paths_plugin.graph.structure import Structure
from resnet_paths_plugin.network.captured_network import CapturedNetwork

_OFF = "verify=False, of unravel or of RunOptions for one study, turns this check off"


@dataclass(eq=False)
class Findings:
    """What is known of a network that may differ from its model.

    Attributes:
        network: the network.
        args: the arguments that both were run on.
        captured: what the model was made of when it was captured.
        backward: names of custom backward functions that autograd has met in the model.
        autograd_agrees: whether autograd takes the model's gradients through the network.
    """

    network: CapturedNetwork
    args: tuple[Any, ...]
    captured: Structure
    backward: list[str] = field(default_factory=list)
    autograd_agrees: bool = False

    @cached_property
    def changes(self) -> list[str]:
        """How the model has changed since it was captured, in words."""
        return Structure.of(self.network.model).changes_since(self.captured)

    def note_backward(self, outputs: Iterable[Tensor]) -> None:
        """Note the custom backward functions and tensor hooks that lead to some outputs."""
        self.backward = sorted({type(node).__name__ for node in backward_nodes(outputs) if is_custom(node)})

    def silent_writes(self) -> list[str]:
        """Return where the model writes in place without gradients."""
        with undisturbed(self.network.model):
            try:
                return silent_writes(self.network.model, self.args)
            except Exception:  # noqa: BLE001 - whatever a user's model raises; only words are at stake
                return []

    def is_random(self) -> bool:
        """Whether two runs of the model differ."""
        one, other = (self._outputs(self.network.model, self.args) for _ in range(2))
        return _differ(one, other)

    def depends_on_batch(self) -> bool:
        """Whether network and model agree on as many samples as were captured, made of those at hand."""
        wanted = batch_size(self.network.graph.example_inputs())
        if wanted == batch_size(self.args):
            return False
        args = resized(self.args, wanted, self.network.graph.apart)
        try:
            return not _differ(self._outputs(self.network.model, args), self._outputs(self.network.intact, args))
        except Exception:  # noqa: BLE001 - whatever a user's model raises on another batch
            return False

    def _outputs(self, call: Any, args: tuple[Any, ...]) -> list[Any]:
        given = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, args)
        # Within an `undisturbed` of its own, so that each run begins with the same state; the seed goes on.
        with undisturbed(self.network.model):
            torch.seed()
            return pytree.tree_leaves(call(*given))


def explained(findings: Findings, what: str, error: Sequence[float] | None) -> str:
    """Say how large a difference is, what it may come from, and what to do.

    Args:
        findings: what is known.
        what: what differs: `"outputs"` or `"gradients"`.
        error: relative differences; None where the forms differ.
    """
    name = findings.network.name
    size = "their forms differ" if error is None else f"relative difference {max(error, default=0.0):.2g}"
    batch = batch_size(findings.args)
    reason = _reason(findings, what)
    return f"the network's {what} are not those of {name} as it is now ({size}, {batch} samples): {reason}"


def _reason(findings: Findings, what: str) -> str:
    if findings.changes:
        return f"the model was changed since it was unraveled: {'; '.join(findings.changes)}. Unravel it again. {_OFF}"
    if what == "gradients":
        return _of_gradients(findings)
    if findings.is_random():
        return (
            "the model is random: two runs of it in eval mode differ, by numbers that it does not draw from torch in "
            f"its operators. Make it draw nothing in eval mode, then unravel it again. {_OFF}"
        )
    if findings.depends_on_batch():
        wanted = batch_size(findings.network.graph.example_inputs())
        return (
            f"it does something else for {batch_size(findings.args)} samples than for {wanted}, with which it was "
            "captured, and there the two agree. Unravel it with a batch of the size that is studied, or write the "
            f"model for any batch size. {_OFF}"
        )
    return (
        "its modules are those that were captured, so a value that the capture took as fixed may have changed (an "
        "attribute that is a list, an object or a tensor, a flag outside the model), or it does something else for "
        f"these values (a branch on data) or this batch size. Unravel it again on these inputs, and compare. {_OFF}"
    )


def _of_gradients(findings: Findings) -> str:
    if findings.autograd_agrees:
        alone = (
            "Of one sample at a time autograd may be wrong: torch's backward pass of a batch norm in eval mode is, for "
            "one image whose gradient lies in memory channel by channel (seen in 2.14). Try internal_batch_size=2. "
            if batch_size(findings.args) == 1
            else ""
        )
        return (
            "outputs are equal, and so are gradients where autograd takes them through the network, so the mistake is "
            f"in how this package takes them along paths. {alone}Please report it, with the model or the operators "
            f"that are special in it; studies that take no gradient are not concerned. {_OFF}"
        )
    writes = findings.silent_writes()
    if writes:
        return (
            "outputs are equal, so the model has a backward of its own: it writes in place where no gradients are "
            f"recorded, and autograd takes the gradient of values that are gone: {'; '.join(writes)}. Make a new value "
            "there (y = x.clamp(max=1), or y = x + (x.clamp(max=1) - x).detach() for the gradient of x), or run "
            f"studies that take no gradient. {_OFF}"
        )
    own = f" (autograd meets {', '.join(findings.backward)})" if findings.backward else ""
    return (
        f"outputs are equal, so the model has a backward of its own{own}: a torch.autograd.Function, a hook on a "
        "tensor or on the backward pass, a gradient that is reversed or scaled. A captured graph has the operators of "
        "the forward pass and their own derivatives only. Write it with operators that have this gradient (x + "
        f"(f(x) - x).detach() for a straight-through one), or run studies that take no gradient. {_OFF}"
    )


def _differ(one: Sequence[Any], other: Sequence[Any]) -> bool:
    tensors = [[leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (one, other)]
    return len(tensors[0]) != len(tensors[1]) or any(
        a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-7, equal_nan=True)
        for a, b in zip(*tensors, strict=True)
    )
