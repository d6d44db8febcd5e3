"""CapturedNetwork: a captured model with its residual blocks; it runs them and counts their paths.

It does not compare itself with the model: `ModelCheck` does.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import pluggy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program, Values
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError
from resnet_paths_plugin.graph.block_names import NamedBlocks
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock, listed
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.export import batch_size, eval_mode
from resnet_paths_plugin.graph.free_batch import programs
from resnet_paths_plugin.graph.keywords import packed
from resnet_paths_plugin.graph.operators import has_gradient
from resnet_paths_plugin.graph.optimizations import fold_batch_norms, with_channels_last
from resnet_paths_plugin.graph.rejected_sums import other_sums
from resnet_paths_plugin.network.digests import graph_digest, weights_digest
from resnet_paths_plugin.network.grouping import find_blocks
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.tasks import Readout

Units = Literal["blocks", "layers"]
Optimization = Literal["fold_batch_norm", "channels_last", "compile"]
"""What makes a network's runs faster, with outputs that equal the model's within rounding."""

_REWRITES: Mapping[str, Callable[[CapturedGraph], None]] = {
    "fold_batch_norm": fold_batch_norms,
    "channels_last": with_channels_last,
}


class CapturedNetwork(NetworkView):
    """A model as a data-flow graph with residual blocks.

    Attributes:
        graph: the captured graph.
        blocks: the residual blocks in execution order.
        description: what plugins know of the model, or None.
        program: graph and blocks, ready to run in parts.
        plugin_names: the plugins that were asked, with their versions.
        units: what `blocks` are: residual `"blocks"`, or `"layers"` of any network.
        optimize: what was done to make runs faster, in alphabetical order.
        plugin_manager: the plugins that describe the model and detect its blocks; None for the installed ones.
        readout: how outputs and targets are read: the task, and which output is the scores.
    """

    def __init__(
        self,
        graph: CapturedGraph,
        blocks: Sequence[ResidualBlock],
        description: ModelDescription | None = None,
        plugin_names: Sequence[str] = (),
        *,
        units: Units = "blocks",
        optimize: Iterable[Optimization] = (),
        plugin_manager: pluggy.PluginManager | None = None,
        readout: Readout | None = None,
    ) -> None:
        super().__init__(graph.model)
        self.readout = readout or Readout()
        self.optimize = known_optimizations(optimize)
        for name in self.optimize:
            if name in _REWRITES:
                _REWRITES[name](graph)
        self.graph = graph
        self.blocks = tuple(blocks)
        self.description = description
        self.plugin_names = tuple(plugin_names)
        self.units = units
        self.plugin_manager = plugin_manager
        self.program = Program(graph, self.blocks)
        self._engine = ForwardEngine(self.program, compiled="compile" in self.optimize)
        self._path_graphs: dict[Hashable, PathGraph] = {}
        self._intact = Schedule.identity(self)
        self._named = NamedBlocks(self.name, self.blocks, layers=units == "layers")

    @property
    def name(self) -> str:
        """The architecture's name where a plugin knows it, else that of the model's class."""
        return self.description.architecture if self.description else type(self.model).__name__

    @property
    def device(self) -> torch.device:
        """The device that the network was captured on."""
        for node in (*self.graph.tensors, *self.graph.inputs):
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                return value.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter, buffer or input."""
        for node in (*self.graph.tensors, *self.graph.inputs):
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.dtype
        return torch.get_default_dtype()

    def intact(self, *args: Any, **keywords: Any) -> Any:
        """Return the output of the network under no schedule, without comparing it with the model."""
        return next(self.outputs([self._intact], packed(args, keywords)))[1]

    def outputs(
        self,
        schedules: Sequence[Schedule],
        args: tuple[Any, ...],
        *,
        perturbations_per_eval: int = 1,
        statistics: Mapping[int, Any] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield `(position in schedules, output)` for each schedule, in the order of completion.

        Schedules that begin alike share what they have in common, so n single lesions cost about n/2 forward passes.

        Args:
            schedules: schedules of this network.
            args: the arguments that the model takes, tensors with batch `B`.
            perturbations_per_eval: schedules run side by side in one larger batch, as in Captum.
            statistics: batch-norm statistics to use instead of the model's, from `engine.recalibration`.

        Raises:
            InputError: if the arguments do not fit what was captured.

        Examples:
            >>> single = [rpp.Schedule.lesion(net, block) for block in net.blocks]
            >>> found = dict(net.outputs(single, (images,)))
            >>> torch.equal(found[0], net.lesioned(net.blocks[0])(images))
            True
        """
        parameters = {**self.program.parameters(), **(statistics or {})}
        if self.graph.batch_symbol is None:
            perturbations_per_eval = 1  # the batch is frozen
        elif not self.graph.conditions.always:
            # A larger batch could be one for which the model does something else.
            perturbations_per_eval = self.graph.conditions.width(batch_size(args), perturbations_per_eval)
        runs = self._engine.run(schedules, self.inputs(args), parameters, perturbations_per_eval=perturbations_per_eval)
        for place, leaves in runs:
            yield place, self.graph.unflatten(leaves)

    @property
    def frozen_batch(self) -> int | None:
        """The only batch size that the model was captured for; None where the batch is free."""
        return self.graph.example_batch if self.graph.batch_symbol is None else None

    def samples_per_run(self, total: int, most: int) -> int:
        """Return how many of `total` samples to run at a time, at most `most`, so that the graph holds for each run.

        Where there is no such number, some run is refused, with the sizes that hold.
        """
        return self.graph.conditions.piece(total, most)

    def prefix_order(self, schedules: Sequence[Schedule]) -> list[int]:
        """Return the positions of schedules in an order in which those that begin alike follow one another."""
        return self._engine.prefix_order(schedules)

    def inputs(self, args: tuple[Any, ...]) -> Values:
        """Return the model's arguments by the position of the input that each is.

        Raises:
            InputError: if the arguments do not fit what was captured.
        """
        order = self.program.flow.order
        return {order[node]: value for node, value in self.graph.bind(args).items()}

    def random_inputs(self) -> tuple[Any, ...]:
        """Return arguments like those that were captured: normally distributed, the same each time; integers are 0."""
        generator = torch.Generator().manual_seed(0)

        def drawn(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            return torch.randn(leaf.shape, generator=generator).to(leaf)

        args: tuple[Any, ...] = pytree.tree_map(drawn, self.graph.example_inputs())
        return args

    def fits(self, args: tuple[Any, ...]) -> bool:
        """Whether the network was captured for arguments of this kind, and for the dtype that the model has now."""
        try:
            self.graph.bind(args)
        except InputError:
            return False
        return all(
            value.dtype == node.meta["val"].dtype
            for node, value in self.graph.live_tensors().items()
            if isinstance(value, Tensor) and isinstance(node.meta.get("val"), Tensor)
        )

    def block(self, block: BlockLike) -> ResidualBlock:
        """Return a block by name, index (from 0) or object.

        Raises:
            UnknownBlockError: if the network has no such block; the nearest names are given.

        Examples:
            >>> net.block("layer2.0") is net.block(2)
            True
        """
        return self._named.block(block)

    def select(self, blocks: BlockLike | Iterable[BlockLike]) -> tuple[ResidualBlock, ...]:
        """Return one or several blocks, each once, in execution order.

        A group stands for its blocks, and labels of a study, names joined by "+", for all that they name.

        Raises:
            UnknownBlockError: if a name is no block, group or label, or is a block's and another group's alike.

        Examples:
            >>> [block.index for block in net.select(["layer2.1", "layer1.0"])]
            [0, 3]
        """
        chosen = {block.index for named in listed(blocks) for block in self.blocks_of(named)}
        return tuple(self.blocks[index] for index in sorted(chosen))

    def blocks_of(self, block: BlockLike) -> list[ResidualBlock]:
        """Return the blocks that a name, a group or a label stands for.

        Raises:
            UnknownBlockError: if it stands for none, or is a block's name and another group's alike.
        """
        return self._named.blocks_of(block)

    def require_blocks(self) -> None:
        """Refuse a study of a network without residual blocks.

        Raises:
            NoResidualBlocksError: if there are none.
        """
        if not self.blocks and self.units == "layers":
            raise NoResidualBlocksError(
                f"{self.name} has no layer that can be deleted: no weighted operation in it has an output of its "
                "input's shape"
            )
        if not self.blocks:
            count = len(other_sums(self.graph, ()))
            hint = f" ({count} are listed with their reasons by net.other_sums())" if count else ""
            raise NoResidualBlocksError(
                f"{self.name} has no residual blocks: no sum that was read in it adds a value to what was computed "
                f"from that same value through weighted operations{hint}. Study a residual network, teach the "
                "detector with a plugin's 'resnet_paths_detect_blocks' hook, or delete layers: unravel(model, ..., "
                "units='layers')"
            )

    def require_paths(self) -> None:
        """Refuse a study of paths where there are none to tell apart.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks, or was unraveled into layers.
        """
        if self.units == "layers":
            raise NoResidualBlocksError(
                f"{self.name} was unraveled into layers, which have no skips and so no paths: unravel it with "
                "units='blocks'"
            )
        self.require_blocks()

    def find_blocks(self, graph: CapturedGraph) -> tuple[ResidualBlock, ...]:
        """Return the residual blocks of another capture of the model, found as this network's were."""
        return find_blocks(graph, self.description, self.plugin_manager)

    def exported(self) -> ExportedProgram:
        """Return the model exported as it was for this network, with the weights that it has now."""
        args = self.graph.example_inputs()
        with eval_mode(self.model):
            program = plugins.capture(self.model, args, self.plugin_manager)
        free = self.graph.batch_symbol is not None
        return program or next(programs(self.model, args, n_inputs=self.graph.n_inputs, free=free))

    def path_counts(self) -> list[int]:
        """Return how many paths of each length 0, 1, ... lead from the output to the inputs, exactly.

        They are counted on the graph; for a chain of n blocks, and only there, they are the binomials C(n, k).

        Examples:
            >>> net.path_counts() == rpp.paths.counts(6)
            True
        """
        if self.units == "layers":
            self.require_paths()
        counts = self.path_graph().counts([(1,)] * len(self.blocks))
        return [counts.get((length,), 0) for length in range(max(counts, default=(0,))[0] + 1)]

    def path_graph(self, tap: ResidualBlock | None = None, n_inputs: int | None = None) -> PathGraph:
        """Return the graph of paths that end at the source of a block, or at the inputs.

        Where some inputs hold floating-point values and others integers, paths end at the former.

        Args:
            tap: the block; None for the inputs.
            n_inputs: how many of the model's arguments are inputs, from the first; None for all.
        """
        inputs = self.program.inputs[:n_inputs]
        inputs = tuple(at for at in inputs if has_gradient(self.program.nodes[at])) or inputs
        taps = inputs if tap is None else (self.program.branches[tap.index].source,)
        return self.path_graph_to([at for at in taps if self.program.nodes[at] in self.program.flow.data])

    def longest_path(self, grades: Sequence[tuple[int, ...]] | None = None) -> int:
        """Return the length of the longest path to any input, integers included, over which no gradient is taken.

        Args:
            grades: for each block, what its branch adds to the length; None for 1.
        """
        nodes, data = self.program.nodes, self.program.flow.data
        graph = self.path_graph_to([at for at in self.program.inputs if nodes[at] in data])
        return max((length[0] for length in graph.counts(grades or [(1,)] * len(self.blocks))), default=0)

    def path_graph_to(
        self, taps: Sequence[int], *, parameters: Collection[int] = (), ends: Sequence[int] | None = None
    ) -> PathGraph:
        """Return the graph of paths between some values, made once.

        Args:
            taps: positions in the program at which paths end.
            parameters: positions of parameters, and of what is computed from them alone, where paths end as well.
            ends: positions from which paths lead back; None for the outputs.
        """
        key = tuple(taps), frozenset(parameters), None if ends is None else tuple(ends)
        if key not in self._path_graphs:
            self._path_graphs[key] = PathGraph(self.program, taps, parameters=parameters, ends=ends)
        return self._path_graphs[key]

    def weights_digest(self) -> str:
        """Return the SHA-256 of all parameters and buffers, their names, dtypes and shapes included.

        Examples:
            >>> net.weights_digest()[:7], len(net.weights_digest())
            ('sha256:', 71)
        """
        return weights_digest(self.model)

    def graph_digest(self) -> str:
        """Return the SHA-256 of the graph: its operators with their arguments and autocast, and its nested graphs."""
        return graph_digest(self.graph)


def known_optimizations(optimize: Iterable[Optimization]) -> tuple[Optimization, ...]:
    """Return optimizations in alphabetical order after checking that there are such.

    Raises:
        InputError: if there is no such optimization.
    """
    given = [optimize] if isinstance(optimize, str) or not isinstance(optimize, Iterable) else list(optimize)
    known: tuple[Optimization, ...] = get_args(Optimization)
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"optimize takes {', '.join(map(repr, known))}, not {', '.join(map(repr, unknown))}")
    return tuple(name for name in sorted(known) if name in given)
