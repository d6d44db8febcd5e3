"""Views of an unraveled network: plain modules to call and to differentiate, for Captum and others.

They run a captured graph and have no submodules to hook.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.backward import BackwardWalk, bank_dtype
from resnet_paths_plugin.engine.random_states import generator_states, replayed
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.keywords import packed
from resnet_paths_plugin.graph.operators import draws_at_random, has_gradient
from resnet_paths_plugin.graph.process_state import autocast_as, autocast_now
from resnet_paths_plugin.network.captured_network import CapturedNetwork
from resnet_paths_plugin.network.chosen_lengths import ChosenLengths
from resnet_paths_plugin.network.model_check import ModelCheck
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.network.pruning import PrunedNetwork
from resnet_paths_plugin.network.training_program import training_program
from resnet_paths_plugin.process_lock import alone


class ScheduledNetwork(NetworkView):
    """A network under a schedule: the model's interface, other sums. Gradients flow as in any module."""

    def __init__(self, network: CapturedNetwork, check: ModelCheck, schedule: Schedule) -> None:
        super().__init__(network.model)
        if not isinstance(schedule, Schedule):
            raise InputError(f"a schedule is made by Schedule.order or Schedule.lesion, say, not {schedule!r}")
        if schedule.n_blocks != len(network.blocks):
            raise InputError(
                f"the schedule is made for {schedule.n_blocks} blocks, and {network.name} has {len(network.blocks)}"
            )
        self._network = (network,)
        self._check = check
        self.schedule = schedule

    @property
    def network(self) -> CapturedNetwork:
        """The network that this is a view of."""
        return self._network[0]

    def forward(self, *args: Any) -> Any:
        """Return the output under the schedule for the arguments that the model takes."""
        args = self._network[0].graph.arranged(args)
        self._check.view(args)
        return self._check.watched(args, next(self._network[0].outputs([self.schedule], args))[1])

    def to_module(self, *, share_parameters: bool = False, training: bool = True) -> PrunedNetwork:
        """Return the network under its schedule as a module of its own: see `PrunedNetwork`.

        Args:
            share_parameters: whether parameters and buffers are the model's own, and no copies.
            training: whether it can be trained; the model is then captured again, in training mode.

        Raises:
            CaptureError: if the model cannot be captured in training mode.
            CaptureMismatchError: if the graph, with all blocks, has other outputs or gradients than the model has now,
                on random inputs, in one of the modes.
        """
        network = self._network[0]
        with torch.inference_mode(mode=False):  # whose tensors could not be trained
            everything, args = Schedule.identity(network), network.random_inputs()
            self._check.rewritten(PrunedNetwork(network, everything, share_parameters=True), args)
            program = training_program(network) if training else None
            if program is not None:
                intact = PrunedNetwork(network, everything, program, share_parameters=True)
                with torch.enable_grad():
                    self._check.sampling(intact.trained, program.graph, args, None)
            return PrunedNetwork(network, self.schedule, program, share_parameters=share_parameters)

    def __repr__(self) -> str:
        changed = [block.name for block in self._network[0].blocks if self.schedule.changes(block.index)]
        return f"{type(self).__name__}({self._network[0].name}, changed: {', '.join(changed) or 'nothing'})"


class RestrictedNetwork(NetworkView):
    """A network with its own outputs, whose input gradient is the sum over the paths of some lengths.

    Activations are those of the intact network; parameters get no gradient. Over all lengths the input gradient is
    the ordinary one.

    Args:
        network: the network.
        check: compares it with its model at the first call.
        lengths: the path lengths, in blocks.
    """

    def __init__(self, network: CapturedNetwork, check: ModelCheck, lengths: Sequence[int]) -> None:
        super().__init__(network.model)
        network.require_paths()
        if not any(has_gradient(network.program.nodes[at]) for at in network.program.inputs):
            raise InputError(
                f"all inputs of {network.name} hold integers, such as tokens, which have no gradient: give parameters "
                "one, restricted(lengths, parameters=True), or unravel the model with floating-point inputs, such as "
                "embeddings (inputs_embeds=...)"
            )
        known = [length for length, count in enumerate(network.path_counts()) if count]
        self._network = (network,)
        self._check = check
        self._chosen = ChosenLengths(network.name, len(network.blocks), lengths, known)
        self.lengths = self._chosen.lengths

    @property
    def network(self) -> CapturedNetwork:
        """The network that this is a view of."""
        return self._network[0]

    def forward(self, *args: Any) -> Any:
        """Return the model's output for the arguments that the model takes."""
        args = self._network[0].graph.arranged(args)
        self._check.view(args, self._along_all)
        return self._run(args, whole=False)

    def _along_all(self, *args: Any, **keywords: Any) -> Any:
        """Return the output; its gradient is that along the paths of all lengths, by the same walk."""
        return self._run(packed(args, keywords), whole=True)

    def _run(self, args: tuple[Any, ...], *, whole: bool) -> Any:
        leaves, spec = pytree.tree_flatten(args)
        return self._network[0].graph.unflatten(_Restriction.apply(self, whole, spec, *leaves))

    def pull_back(self, args: tuple[Any, ...], seeds: dict[int, Tensor], *, whole: bool = False) -> dict[int, Tensor]:
        """Return the gradient along the paths, by position of the input, for the gradients at the output.

        Args:
            args: the arguments of the call.
            seeds: the gradients at the output.
            whole: whether to take the paths of all lengths.
        """
        program = self._network[0].program
        inputs = dict(zip(program.inputs, pytree.tree_leaves(args), strict=True))
        graph = self._network[0].path_graph()
        walk = BackwardWalk(graph, inputs, program.parameters(), dtype=bank_dtype(self._network[0].dtype))
        chosen = self._chosen
        # Zeros, not nothing, where only paths of other lengths lead: the output does depend on that input.
        gradients = {tap: torch.zeros_like(inputs[tap]) for tap in graph.taps}
        for tap, bank in walk.gradients(seeds, chosen.whole if whole else chosen.routing).items():
            gradients[tap] = bank.rows.sum(0) if whole else chosen.total(bank, gradients[tap])
        return gradients

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._network[0].name}, lengths: {self._chosen})"


class _Restriction(torch.autograd.Function):
    """The network's outputs forward, the gradient along chosen paths backward."""

    @staticmethod
    def forward(ctx: Any, view: RestrictedNetwork, whole: bool, spec: pytree.TreeSpec, *leaves: Any) -> Any:
        ctx.view, ctx.whole, ctx.spec = view, whole, spec
        ctx.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[place] for place in ctx.places))
        network = view._network[0]  # noqa: SLF001 - this function is the view's own
        ctx.draws = any(map(draws_at_random, network.graph.graph.nodes))
        # With gradients dropout draws another mask than without; what is replayed is drawn by one thread at a time.
        with torch.set_grad_enabled(ctx.draws), alone() if ctx.draws else nullcontext():
            ctx.states, ctx.autocast = generator_states(), autocast_now()
            outputs = network.intact(*pytree.tree_unflatten(list(leaves), spec))
        return tuple(pytree.tree_leaves(pytree.tree_map(_detached, outputs)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        view = ctx.view
        network = view._network[0]  # noqa: SLF001
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[place] = tensor
        args = pytree.tree_unflatten(leaves, ctx.spec)
        # What is drawn at random is what was drawn forward.
        with replayed(ctx.states) if ctx.draws else nullcontext(), autocast_as(ctx.autocast):
            seeds = network.program.at_outputs(dict(enumerate(gradients)))
            found = view.pull_back(args, seeds, whole=ctx.whole)
        flat = [found.get(at) for at in network.program.inputs]
        return (
            None,
            None,
            None,
            *(None if g is None else g.to(leaf.dtype) for g, leaf in zip(flat, leaves, strict=True)),
        )


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
