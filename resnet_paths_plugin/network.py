"""UnraveledNetwork: a captured model with its residual blocks; one way in to everything that is studied on it."""

import difflib
import hashlib
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from numbers import Integral
from typing import Any, Literal, get_args

import pandas as pd
import pluggy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from resnet_paths_plugin import plugins
from resnet_paths_plugin.description import ModelDescription
from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program, Values
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError, UnknownBlockError
from resnet_paths_plugin.finding import find_blocks
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock, listed
from resnet_paths_plugin.graph.capture import CapturedGraph, exported
from resnet_paths_plugin.graph.export import eval_mode
from resnet_paths_plugin.graph.other_sums import other_sums
from resnet_paths_plugin.graph.rewrites import fold_batch_norms, with_channels_last
from resnet_paths_plugin.training import SamplingNetwork
from resnet_paths_plugin.views import NetworkView, RestrictedNetwork, ScheduledNetwork

Units = Literal["blocks", "layers"]
Optimization = Literal["fold_batch_norm", "channels_last", "compile"]
"""What makes a network's runs faster, with outputs that equal the model's within rounding."""

_REWRITES: Mapping[str, Callable[[CapturedGraph], None]] = {
    "fold_batch_norm": fold_batch_norms,
    "channels_last": with_channels_last,
}
_NOUNS: Mapping[Units, str] = {"blocks": "residual blocks", "layers": "layers that can be deleted"}


class UnraveledNetwork(NetworkView):
    """A model as a data-flow graph with residual blocks; called, it returns the model's own outputs.

    Made by `unravel`. Outputs equal those of the model in eval mode, bit for bit on a CPU unless it is optimized.

    Attributes:
        graph: the captured graph.
        blocks: the residual blocks in execution order.
        description: what plugins know of the model, or None.
        program: graph and blocks, ready to run in parts.
        plugin_names: the plugins that were asked, with their versions.
        units: what `blocks` are: residual `"blocks"`, or `"layers"` of any network.
        optimize: what was done to make runs faster, in alphabetical order.
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
    ) -> None:
        super().__init__(graph.model)
        self.optimize = known_optimizations(optimize)
        for name in self.optimize:
            if name in _REWRITES:
                _REWRITES[name](graph)
        self.graph = graph
        self.blocks = tuple(blocks)
        self.description = description
        self.plugin_names = tuple(plugin_names)
        self.units = units
        self._plugin_manager = plugin_manager
        self.program = Program(graph, self.blocks)
        self._engine = ForwardEngine(self.program, compiled="compile" in self.optimize)
        self._path_graphs: dict[tuple[int, ...], PathGraph] = {}
        self._intact = Schedule.identity(self)
        self._by_name = {block.name: block for block in self.blocks}

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

    def forward(self, *args: Any) -> Any:
        """Return the model's output for the arguments that the model takes."""
        return next(self.outputs([self._intact], args))[1]

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
        """
        parameters = {**self.program.parameters(), **(statistics or {})}
        if self.graph.batch_range != (1, None):
            perturbations_per_eval = 1  # a larger batch could be one for which the model does something else
        runs = self._engine.run(schedules, self.inputs(args), parameters, perturbations_per_eval=perturbations_per_eval)
        for place, leaves in runs:
            yield place, self.graph.unflatten(leaves)

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
        """
        if isinstance(block, ResidualBlock):
            block = block.name
        if isinstance(block, str):
            if block in self._by_name:
                return self._by_name[block]
            noun = "layer" if self.units == "layers" else "block"
            raise UnknownBlockError(f"{self.name} has no {noun} {block!r}. {self._known(block)}")
        if not isinstance(block, Integral) or isinstance(block, bool):
            raise UnknownBlockError(f"a block is given by name, index or object, not by {block!r}")
        if not -len(self.blocks) <= block < len(self.blocks):
            raise UnknownBlockError(f"{self.name} has no block {block}: its {len(self.blocks)} blocks count from 0")
        return self.blocks[int(block)]

    def select(self, blocks: BlockLike | Iterable[BlockLike]) -> tuple[ResidualBlock, ...]:
        """Return one or several blocks, each once, in execution order."""
        chosen = {self.block(block).index for block in listed(blocks)}
        return tuple(self.blocks[index] for index in sorted(chosen))

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
            raise NoResidualBlocksError(
                f"{self.name} has no residual blocks: no sum in it adds a value to what was computed from that same "
                "value through weighted operations. Study a residual network, teach the detector with a plugin's "
                "'resnet_paths_detect_blocks' hook, or delete layers: unravel(model, ..., units='layers')"
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

    def lesioned(self, blocks: BlockLike | Iterable[BlockLike]) -> "ScheduledNetwork":
        """Return the network without the branches of some blocks, as a module.

        Raises:
            UnknownBlockError: if the network does not have one of the blocks.
        """
        return self.scheduled(Schedule.lesion(self, blocks))

    def scheduled(self, schedule: Schedule) -> "ScheduledNetwork":
        """Return the network under a schedule, as a module."""
        return ScheduledNetwork(self, schedule)

    def restricted(self, lengths: int | Iterable[int]) -> RestrictedNetwork:
        """Return the network with its own outputs, whose input gradient flows only along paths of some lengths.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if no path has one of the lengths.
        """
        return RestrictedNetwork(self, list(lengths) if isinstance(lengths, Iterable) else [lengths])

    def sampling(
        self,
        n_active: int | None = None,
        *,
        survival: float | Sequence[float] | None = None,
        include_projections: bool = False,
        scale_in_eval: bool = True,
        generator: torch.Generator | None = None,
    ) -> SamplingNetwork:
        """Return the model as a module for training, in which each batch runs a random subset of the blocks.

        The model is captured again, in training mode; nothing of it is changed. See `SamplingNetwork`.

        Args:
            n_active: run exactly so many of the sampled blocks (Veit et al. 2016, Sec. 5).
            survival: stochastic depth (Huang et al. 2016): each sampled block runs with a probability of its own. A
                number is that of the last one, to which the probabilities fall linearly; a sequence has one each.
            include_projections: whether blocks whose skip is a projection are sampled too; they always run if not.
            scale_in_eval: whether to multiply branches in eval mode by the probability that they ran in training.
            generator: draws the subsets, on the CPU; None draws from torch's global one.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if a number does not fit, or not exactly one of `n_active` and `survival` is given.
            CaptureError: if the model cannot be captured in training mode.
        """
        return SamplingNetwork(
            self,
            n_active,
            survival=survival,
            include_projections=include_projections,
            scale_in_eval=scale_in_eval,
            generator=generator,
        )

    def find_blocks(self, graph: CapturedGraph) -> tuple[ResidualBlock, ...]:
        """Return the residual blocks of another capture of the model, found as this network's were."""
        return find_blocks(graph, self.description, self._plugin_manager)

    def exported(self) -> ExportedProgram:
        """Return the model exported as it was for this network, with the weights that it has now."""
        args = self.graph.example_inputs()
        with eval_mode(self.model):
            program = plugins.capture(self.model, args, self._plugin_manager)
        return program or exported(self.model, args)

    def path_counts(self) -> list[int]:
        """Return how many paths of each length 0, 1, ... lead from the output to the inputs, exactly.

        They are counted on the graph; for a chain of n blocks, and only there, they are the binomials C(n, k).
        """
        if self.units == "layers":
            self.require_paths()
        counts = self.path_graph().counts([(1,)] * len(self.blocks))
        return [counts.get((length,), 0) for length in range(max(counts, default=(0,))[0] + 1)]

    def path_graph(self, tap: ResidualBlock | None = None, n_inputs: int | None = None) -> PathGraph:
        """Return the graph of paths that end at the source of a block, or at the inputs.

        Args:
            tap: the block; None for the inputs.
            n_inputs: how many of the model's arguments are inputs, from the first; None for all.
        """
        inputs = self.program.inputs[:n_inputs]
        taps = inputs if tap is None else (self.program.branches[tap.index].source,)
        if taps not in self._path_graphs:
            carried = [at for at in taps if self.program.nodes[at] in self.program.flow.data]
            self._path_graphs[taps] = PathGraph(self.program, carried)
        return self._path_graphs[taps]

    def table(self) -> pd.DataFrame:
        """Return the blocks' facts, one row per block."""
        columns = {
            "name": "block", "stage": "stage", "skip_kind": "skip", "branch_type": "branch", "depth": "depth",
            "source_shape": "source", "sum_shape": "sum", "group": "group",
        }  # fmt: skip
        rows = [{title: getattr(block, fact) for fact, title in columns.items()} for block in self.blocks]
        for row in rows:
            row["source"], row["sum"] = (" x ".join(map(str, row[column])) for column in ("source", "sum"))
        return pd.DataFrame(rows, columns=list(columns.values()))

    def other_sums(self) -> pd.DataFrame:
        """Return the sums that close no residual block, one row each: `module`, `sum` (the graph value) and `reason`.

        They are told so that no count has to be believed: position embeddings and attention masks, lateral sums of
        feature pyramids, sums over parts of a tensor, skips that pass an operator which is no affine map.

        Raises:
            InputError: if the network was unraveled into layers.
        """
        if self.units == "layers":
            raise InputError(f"{self.name} was unraveled into layers: ask for its sums with units='blocks'")
        rows = [asdict(other) for other in other_sums(self.graph, self.blocks)]
        return pd.DataFrame(rows, columns=["module", "sum", "reason"])

    def weights_digest(self) -> str:
        """Return the SHA-256 of all parameters and buffers, their names, dtypes and shapes included."""
        digest = hashlib.sha256()
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        for name, tensor in sorted(named, key=lambda item: item[0]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            if not tensor.is_meta:
                data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(data.numpy().tobytes())
        return f"sha256:{digest.hexdigest()}"

    def graph_digest(self) -> str:
        """Return the SHA-256 of the graph: its operators with their arguments, in order, those of nested graphs too."""
        text = str(self.graph.graph)
        # Of a nested graph, such as the body of a `no_grad` region, it holds a name only, one that each export chooses.
        nested = [(node, value) for node, value in self.graph.constants.items() if isinstance(value, fx.GraphModule)]
        for place, (node, value) in enumerate(nested):
            for name in {node.name, str(node.target)}:
                text = re.sub(rf"\b{re.escape(name)}\b", f"nested_graph_{place}", text)
            inner = [part for part in value.modules() if isinstance(part, fx.GraphModule)]
            text = "\n".join([text, *(str(part.graph) for part in inner)])
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def __repr__(self) -> str:
        table = self.table().to_string(index_names=False) if self.blocks else f"(no {_NOUNS[self.units]})"
        return f"{self._headline()}\n{table}"

    def _repr_html_(self) -> str:
        table = self.table().to_html(border=0, escape=True) if self.blocks else f"<p>no {_NOUNS[self.units]}</p>"
        return f"<p><b>{html.escape(self._headline())}</b></p>{table}"

    def _headline(self) -> str:
        kinds = pd.Series([block.skip_kind for block in self.blocks], dtype=str).value_counts(sort=False)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        library = f" ({self.description.library})" if self.description else ""
        skips = f", skips: {counts}" if counts and self.units == "blocks" else ""
        optimized = f", optimized: {', '.join(self.optimize)}" if self.optimize else ""
        return f"{self.name}{library}: {len(self.blocks)} {_NOUNS[self.units]}{skips}{optimized}"

    def _known(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._by_name, n=3)
        if close:
            return f"Did you mean {', '.join(map(repr, close))}?"
        names = ", ".join(map(repr, list(self._by_name)[:4]))
        return (
            f"Its {len(self.blocks)} blocks are named {names}, ..."
            if self.blocks
            else f"It has no {_NOUNS[self.units]}"
        )


def known_optimizations(optimize: Iterable[Optimization]) -> tuple[Optimization, ...]:
    """Return optimizations in alphabetical order after checking that there are such.

    Raises:
        InputError: if there is no such optimization.
    """
    given = {optimize} if isinstance(optimize, str) else set(optimize)
    known: tuple[Optimization, ...] = get_args(Optimization)
    if unknown := given - set(known):
        raise InputError(f"optimize takes {', '.join(map(repr, known))}, not {', '.join(map(repr, sorted(unknown)))}")
    return tuple(name for name in sorted(known) if name in given)
