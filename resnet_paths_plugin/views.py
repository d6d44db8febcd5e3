"""Views of an unraveled network: plain modules to call and to differentiate, for Captum and others.

They run a captured graph and have no submodules to hook.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.backward import BackwardWalk, bank_dtype
from resnet_paths_plugin.engine.routes import ByLength
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError, UnsupportedMethodError

if TYPE_CHECKING:
    from resnet_paths_plugin.network import UnraveledNetwork


class NetworkView(nn.Module):
    """A module that runs a captured graph instead of submodules.

    It computes in eval mode, but for a sampling network in training. Its parameters and buffers are the model's own;
    methods that hook or walk submodules are refused, since they would run and mean nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # A tuple, so that the user's model does not become a submodule whose flags and hooks this one could touch.
        self._model = (model,)
        self.training = False

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._model[0]

    def train(self, mode: bool = True) -> Self:  # noqa: D102 - as nn.Module
        if mode:
            raise UnsupportedMethodError(
                "an unraveled network always runs in eval mode: train the model itself, then unravel it or go on "
                "with this network, which reads the model's parameters each time it runs"
            )
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:  # noqa: D102
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: D102
        return self.model.named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - as nn.Module
        return self.model.state_dict(*args, **kwargs)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UnsupportedMethodError(
            f"{type(self).__name__} runs a captured graph and has no submodules to hook or walk, so a method that "
            "needs them (DeepLift, GuidedBackprop, LRP, layer methods, torch hooks) would run and mean nothing. Use a "
            "method that needs only the forward function or the input gradient, such as Saliency, "
            "IntegratedGradients or FeatureAblation; to change parameters, device or dtype, change the model and "
            "unravel it again"
        )

    def _refuse_copy(self, *_: Any) -> NoReturn:
        raise UnsupportedMethodError(
            f"{type(self).__name__} holds a captured graph, which cannot be copied or pickled: copy the model "
            "and unravel the copy"
        )

    apply = _refuse
    children = _refuse
    modules = _refuse
    named_modules = _refuse
    __deepcopy__ = _refuse_copy
    __reduce_ex__ = _refuse_copy
    named_children = _refuse
    _apply = _refuse
    load_state_dict = _refuse
    register_forward_hook = _refuse
    register_forward_pre_hook = _refuse
    register_full_backward_hook = _refuse
    register_full_backward_pre_hook = _refuse
    register_backward_hook = _refuse


class ScheduledNetwork(NetworkView):
    """A network under a schedule: the model's interface, other sums. Gradients flow as in any module."""

    def __init__(self, network: "UnraveledNetwork", schedule: Schedule) -> None:
        super().__init__(network.model)
        if schedule.n_blocks != len(network.blocks):
            raise InputError(
                f"the schedule is made for {schedule.n_blocks} blocks, and {network.name} has {len(network.blocks)}"
            )
        self._network = (network,)
        self.schedule = schedule

    def forward(self, *args: Any) -> Any:
        """Return the output under the schedule for the arguments that the model takes."""
        return next(self._network[0].outputs([self.schedule], args))[1]

    def __repr__(self) -> str:
        changed = [block.name for block in self._network[0].blocks if self.schedule.changes(block.index)]
        return f"{type(self).__name__}({self._network[0].name}, changed: {', '.join(changed) or 'nothing'})"


class RestrictedNetwork(NetworkView):
    """A network with its own outputs, whose input gradient is the sum over the paths of some lengths.

    Activations are those of the intact network; parameters get no gradient. Over all lengths the input gradient is
    the ordinary one.

    Args:
        network: the network.
        lengths: the path lengths, in blocks.
    """

    def __init__(self, network: "UnraveledNetwork", lengths: Sequence[int]) -> None:
        super().__init__(network.model)
        network.require_paths()
        known = network.path_counts()
        self._network = (network,)
        strange = [length for length in lengths if not _is_length(length, known)]
        if strange or not lengths:
            raise InputError(
                f"{network.name} has paths of length 0 to {len(known) - 1}, "
                f"and {f'none of length {strange}' if strange else 'no length was given'}"
            )
        self.lengths = tuple(sorted({int(length) for length in lengths}))
        everything = self.lengths == tuple(length for length, count in enumerate(known) if count)
        n = len(network.blocks)
        self._routing = ByLength([(0,)] * n) if everything else ByLength([(1,)] * n, (self.lengths[-1],), tail=False)
        self._keys = {(0,)} if everything else {(length,) for length in self.lengths}

    def forward(self, *args: Any) -> Any:
        """Return the model's output for the arguments that the model takes."""
        network = self._network[0]
        leaves, spec = pytree.tree_flatten(args)
        found = _Restriction.apply(self, spec, *leaves)
        return network.graph.unflatten(found)

    def pull_back(self, args: tuple[Any, ...], seeds: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the gradient along the paths, by position of the input, for the gradients at the output."""
        program = self._network[0].program
        inputs = dict(zip(program.inputs, pytree.tree_leaves(args), strict=True))
        graph = self._network[0].path_graph()
        walk = BackwardWalk(graph, inputs, program.parameters(), dtype=bank_dtype(self._network[0].dtype))
        # Zeros, not nothing, where only paths of other lengths lead: the output does depend on that input.
        gradients = {tap: torch.zeros_like(inputs[tap]) for tap in graph.taps}
        for tap, bank in walk.run(seeds, self._routing).items():
            chosen = bank.take(self._keys)
            if chosen is not None:
                gradients[tap] = chosen.rows.sum(0)
        return gradients

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._network[0].name}, lengths: {_ranges(self.lengths)})"


class _Restriction(torch.autograd.Function):
    """The network's outputs forward, the gradient along chosen paths backward."""

    @staticmethod
    def forward(ctx: Any, view: RestrictedNetwork, spec: pytree.TreeSpec, *leaves: Any) -> Any:
        ctx.view, ctx.spec = view, spec
        ctx.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[place] for place in ctx.places))
        network = view._network[0]  # noqa: SLF001 - this function is the view's own
        with torch.no_grad():
            outputs = network(*pytree.tree_unflatten(list(leaves), spec))
        return tuple(pytree.tree_leaves(outputs))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        view = ctx.view
        network = view._network[0]  # noqa: SLF001
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[place] = tensor
        args = pytree.tree_unflatten(leaves, ctx.spec)
        found = view.pull_back(args, network.program.at_outputs(dict(enumerate(gradients))))
        flat = [found.get(at) for at in network.program.inputs]
        return (
            None,
            None,
            *(None if g is None else g.to(leaf.dtype) for g, leaf in zip(flat, leaves, strict=True)),
        )


def _is_length(length: object, counts: Sequence[int]) -> bool:
    """Whether a path has this length."""
    if not isinstance(length, int | np.integer) or isinstance(length, bool):
        return False
    place = int(length)
    return 0 <= place < len(counts) and counts[place] > 0


def _ranges(lengths: Sequence[int]) -> str:
    """Write `0, 1, 2, 5` as `0-2, 5`."""
    parts: list[list[int]] = []
    for length in lengths:
        if parts and length == parts[-1][-1] + 1:
            parts[-1].append(length)
        else:
            parts.append([length])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
