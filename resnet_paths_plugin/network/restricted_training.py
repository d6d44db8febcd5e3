"""Training along paths of some lengths: a module whose loss has the gradient of these paths only, parameters included.

It trains nothing itself: optimizer, loss and loop are the user's.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.backward import BackwardWalk, bank_dtype
from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.engine.parameter_flow import ParameterBanks, ParameterFlow
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import UnsupportedMethodError
from resnet_paths_plugin.graph.keywords import packed
from resnet_paths_plugin.graph.operators import has_gradient, moves_statistics
from resnet_paths_plugin.graph.structure import Structure
from resnet_paths_plugin.network.captured_network import CapturedNetwork
from resnet_paths_plugin.network.chosen_lengths import ChosenLengths
from resnet_paths_plugin.network.model_check import ModelCheck
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.network.training_program import BatchCounters, training_program


class RestrictedTrainingNetwork(NetworkView):
    """A model that a loss trains along paths of some lengths only; made by `net.restricted(..., parameters=True)`.

    Outputs are the model's. The gradient that arrives at a parameter is the sum over the paths from the output to it
    that take so many branches, its own block's included; parameters in front of the blocks, behind them and in skips
    have no branch of their own. Inputs get theirs as from `net.restricted(lengths)`. A parameter that only paths of
    other lengths lead to has a gradient of zeros. Over all lengths this is ordinary training: autograd takes the
    gradient then, with the operators of the model, so that each step is the model's bit for bit on a CPU.

    Parameters and buffers are the model's own, so that an optimizer takes them from either, and the model is what is
    saved. It starts in the mode that the model is in; `train` and `eval` switch this module and leave the model's
    flags alone. In training mode batch norms take the statistics of the batch, and move the running ones and count
    once in each call; dropout and stochastic depth draw once, the backward pass the same as the forward pass. What
    they do was fixed when the module first was in training mode, as `SamplingNetwork` says of its own.

    Gradients are constants: a second derivative is refused. For one thread in training mode; for any number in eval
    mode.

    Attributes:
        lengths: the path lengths.
    """

    def __init__(self, network: CapturedNetwork, check: ModelCheck, lengths: Sequence[object]) -> None:
        super().__init__(network.model)
        network.require_paths()
        # A path to a parameter may end before one to an input has taken all of its branches.
        known = range(network.longest_path() + 1)
        self._network = (network,)
        self._check = check
        self._chosen = ChosenLengths(network.name, len(network.blocks), lengths, known)
        self.lengths = self._chosen.lengths
        self._runs: dict[bool, _Runs] = {False: _Runs(network.program)}
        self._checked: dict[bool, Structure | None] = {}
        self.train(network.model.training)

    @property
    def network(self) -> CapturedNetwork:
        """The network that this is a view of."""
        return self._network[0]

    def train(self, mode: bool = True) -> Self:
        """Run in training mode, which is captured the first time, or in eval mode; the model's flags stay as they are.

        Raises:
            CaptureError: if the model cannot be captured in training mode.
        """
        if not isinstance(mode, bool):
            raise ValueError(f"training mode is expected to be boolean, not {mode!r}")  # noqa: TRY004 - as nn.Module
        if mode and True not in self._runs:
            self._runs[True] = _Runs(training_program(self._network[0]))
        self.training = mode
        return self

    def forward(self, *args: Any) -> Any:
        """Return the model's output for the arguments that it takes, tensors with batch `B`.

        Raises:
            InputError: if the arguments do not fit what was captured; nothing is drawn or moved then.
            CaptureMismatchError: at the first call, if outputs or gradients of all paths are not the model's.
        """
        training, graph = self.training, self._runs[self.training].program.graph
        args = graph.arranged(args)
        graph.bind(args)  # says what does not fit
        if not training:
            self._check.view(args, self._along_all)
        before = self._checked.get(training)
        self._checked[training] = self._check.sampling(self._along_all, graph, args, before, training=training)
        return self._run(args, whole=False)

    def _along_all(self, *args: Any, **keywords: Any) -> Any:
        """Return the output; its gradient is that along the paths of all lengths, by the same walk."""
        return self._run(packed(args, keywords), whole=True)

    def _run(self, args: tuple[Any, ...], *, whole: bool) -> Any:
        runs = self._runs[self.training]
        leaves = pytree.tree_leaves(args)
        trained = {path: one for path, one in runs.parameters().items() if one.requires_grad}
        tracked = [one for one in (*leaves, *trained.values()) if isinstance(one, Tensor) and one.requires_grad]
        if not (tracked and torch.is_grad_enabled()) or (self._chosen.everything and not whole):
            return runs.by_autograd(leaves)
        given = _Given(runs, self._chosen, bank_dtype(self._network[0].dtype), len(leaves), tuple(trained), whole)
        return runs.program.graph.unflatten(_Restriction.apply(given, *leaves, *trained.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._network[0].name}, lengths: {self._chosen})"


class _Runs:
    """Runs of a program in one mode, which count batches where that is training mode."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._engine = ForwardEngine(program)
        self._intact = Schedule(len(program.blocks))
        self._counters = BatchCounters(program)
        self._graphs: dict[tuple[str, ...], tuple[ParameterFlow, PathGraph]] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the floating-point parameters that the graph reads, by path, as the model holds them now."""
        held = self.program.graph.live_tensors()
        found = ((path, held[node]) for node, path in self.program.graph.tensors.items())
        return {path: one for path, one in found if isinstance(one, nn.Parameter) and one.is_floating_point()}

    def versions(self) -> dict[str, tuple[Tensor, int]]:
        """Return the model's tensors that the graph reads, by path, each with the count of its changes.

        Statistics that norms move themselves, and do not read, are left out.
        """
        moved = {
            buffer for node in self.program.graph.graph.nodes if moves_statistics(node) for buffer in node.args[3:5]
        } | set(self.program.graph.counters.values())
        held = self.program.graph.live_tensors()
        return {
            path: (held[node], held[node]._version)  # noqa: SLF001 - autograd's own counter
            for node, path in self.program.graph.tensors.items()
            if node not in moved and isinstance(held[node], Tensor) and not held[node].is_inference()
        }

    def by_autograd(self, leaves: Sequence[Any]) -> Any:
        """Return the output for the leaves of the arguments, through which gradients go as autograd takes them."""
        parameters = self.program.parameters()
        inputs = dict(zip(self.program.inputs, leaves, strict=True))
        _, found = next(self._engine.run([self._intact], inputs, parameters))
        self._count(parameters)
        return self.program.graph.unflatten(found)

    def walk(self, leaves: Sequence[Any], trained: tuple[str, ...], dtype: torch.dtype) -> BackwardWalk:
        """Run forward once, for walks back to the inputs and some parameters."""
        parameters = self.program.parameters()
        inputs = dict(zip(self.program.inputs, leaves, strict=True))
        walk = BackwardWalk(self.graph(trained)[1], inputs, parameters, dtype=dtype)
        self._count(parameters)
        return walk

    def graph(self, trained: tuple[str, ...]) -> tuple[ParameterFlow, PathGraph]:
        """Return the paths that end at some parameters, by path in the model, and at the inputs."""
        if trained not in self._graphs:
            flow = ParameterFlow(self.program, trained)
            nodes = self.program.nodes
            # Integers too: what reads them has parameters, such as an embedding.
            carried = [at for at in self.program.inputs if nodes[at] in self.program.flow.data]
            self._graphs[trained] = flow, PathGraph(self.program, carried, parameters=flow.derived)
        return self._graphs[trained]

    def _count(self, parameters: dict[int, Any]) -> None:
        self._counters.count(self._engine.analysis.of(self._intact).needed, parameters)


class _Totals(ParameterBanks):
    """Collects the gradients at parameters along all chosen paths together."""

    def __init__(self, flow: ParameterFlow, walk: BackwardWalk, keys: Iterable[Any]) -> None:
        super().__init__(flow, walk.forward_pass.static, walk.dtype)
        self.summed = frozenset(keys)

    def by_path(self) -> dict[str, Tensor]:
        """Return the gradient at each parameter that a chosen path leads to."""
        found: dict[str, Tensor] = {}
        for banks in self.gradients().values():
            for path, bank in banks.items():
                found[path] = found[path] + bank.rows[0] if path in found else bank.rows[0]
        return found


class _Given:
    """What one call of the view hands to its backward pass.

    Attributes:
        n_leaves: how many leaves the arguments have.
        trained: paths of the parameters, which follow the leaves of the arguments.
        whole: whether to take the paths of all lengths.
    """

    def __init__(
        self,
        runs: _Runs,
        chosen: ChosenLengths,
        dtype: torch.dtype,
        n_leaves: int,
        trained: tuple[str, ...],
        whole: bool,
    ) -> None:
        self._runs, self._chosen, self._dtype = runs, chosen, dtype
        self.n_leaves, self.trained, self.whole = n_leaves, trained, whole
        self._walks: list[BackwardWalk] = []
        self._versions: dict[str, tuple[Tensor, int]] = {}

    def outputs(self, leaves: Sequence[Any]) -> list[Any]:
        """Run forward; return the leaves of the output."""
        self._walks.append(self._runs.walk(leaves, self.trained, self._dtype))
        self._versions = self._runs.versions()
        return self._walks[0].outputs

    def _check_versions(self) -> None:
        """Refuse a backward pass after what it reads was changed in place, as autograd does.

        Raises:
            RuntimeError: if a tensor of the model was changed since the forward pass.
        """
        for path, (tensor, version) in self._versions.items():
            if tensor._version != version:  # noqa: SLF001 - autograd's own counter
                raise RuntimeError(
                    f"{path!r} was changed in place between the forward pass and its backward pass, which reads it: "
                    "run the backward pass first, or the forward pass again"
                )

    def release(self) -> None:
        """Release the forward pass, as autograd does with what it has saved."""
        self._walks.clear()

    def gradients(self, seeds: Sequence[Any], leaves: Sequence[Any], parameters: Sequence[Tensor]) -> list[Any]:
        """Return the gradients at the leaves of the arguments, then at the parameters; None where there is none."""
        program, walk, chosen = self._runs.program, self._walks[0], self._chosen
        self._check_versions()
        flow, graph = self._runs.graph(self.trained)
        totals = _Totals(flow, walk, chosen.all_keys if self.whole else chosen.keys)
        routing = chosen.whole if self.whole else chosen.routing
        banks = walk.gradients(program.at_outputs(dict(enumerate(seeds))), routing, totals)
        at_inputs = dict(zip(program.inputs, leaves, strict=True))
        # Zeros, not nothing, where only paths of other lengths lead: the output does depend on that input.
        taps = [tap for tap in graph.taps if has_gradient(program.nodes[tap])]
        found: dict[int, Tensor] = {tap: torch.zeros_like(at_inputs[tap]) for tap in taps}
        for tap, bank in banks.items():
            if tap not in found:
                continue
            found[tap] = bank.rows.sum(0) if self.whole else chosen.total(bank, found[tap])
        at_parameters = totals.by_path()
        used = set(flow.used)
        rest = [
            at_parameters[path] if path in at_parameters else torch.zeros_like(one) if path in used else None
            for path, one in zip(self.trained, parameters, strict=True)
        ]
        whole = [*(found.get(at) for at in program.inputs), *rest]
        return [None if g is None else g.to(one.dtype) for g, one in zip(whole, (*leaves, *parameters), strict=True)]


class _Restriction(torch.autograd.Function):
    """The model's outputs forward; the gradients along chosen paths backward, at inputs and parameters."""

    @staticmethod
    def forward(ctx: Any, given: _Given, *leaves: Any) -> Any:
        ctx.given = given
        ctx.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[place] for place in ctx.places))
        outputs = given.outputs(leaves[: given.n_leaves])
        return tuple(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise UnsupportedMethodError(
                "gradients along paths of some lengths cannot be differentiated again (create_graph=True, as for a "
                "penalty on the gradient): take them over all lengths, or from the model"
            )
        given = ctx.given
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):  # refused where one was changed since
            leaves[place] = tensor
        found = given.gradients(gradients, leaves[: given.n_leaves], leaves[given.n_leaves :])
        if not torch._C._autograd._get_current_graph_task_keep_graph():  # noqa: SLF001 - nothing public says so
            given.release()
        return None, *found
