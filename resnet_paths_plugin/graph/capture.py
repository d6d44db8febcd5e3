"""A model becomes a functional data-flow graph: `torch.export`, in-place operators made functional.

The graph reads the model's own parameters and buffers each time it is bound; it never copies them, and only batch norms
that were captured in training mode change any: their own statistics.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import CaptureError, CaptureMismatchError, InputError, StochasticModelWarning
from resnet_paths_plugin.graph.batch_conditions import BatchConditions, batch_conditions, one_sample, parameter_names
from resnet_paths_plugin.graph.batch_norm_buffers import counters, draw_functionally, written_counters
from resnet_paths_plugin.graph.batch_trial import holds_for
from resnet_paths_plugin.graph.code_location import CodeLocation
from resnet_paths_plugin.graph.export import batch_size
from resnet_paths_plugin.graph.export_errors import check_tensors, where_batch_is_asked_for
from resnet_paths_plugin.graph.free_batch import programs, resized
from resnet_paths_plugin.graph.frozen_batch import batch_dims
from resnet_paths_plugin.graph.functionalize import functional_program
from resnet_paths_plugin.graph.input_checks import check_batch, check_input
from resnet_paths_plugin.graph.keywords import packed, rearranged, signature_of, split
from resnet_paths_plugin.graph.operators import draws_at_random
from resnet_paths_plugin.graph.tracing import outside_inference_mode
from resnet_paths_plugin.process_lock import alone

_SHORT_FLOATS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A functional data-flow graph of a model in eval or training mode, and how its inputs are bound.

    Attributes:
        model: the user's model, whose tensors the graph reads.
        graph: nodes in execution order: placeholders, operators and one output.
        tensors: path in the model of each placeholder that is a parameter or buffer.
        constants: value of each placeholder that is neither input, parameter nor buffer.
        inputs: placeholders of the user's inputs, flattened, in order.
        in_spec: tree structure of the user's arguments: those by position, and those by name.
        outputs: the output's leaves: nodes, or constants as they are.
        out_spec: tree structure of the model's output.
        counters: in training mode, the placeholder of the counter that each batch norm counts its batches on; whoever
            runs the batch norm increments it.
        conditions: which batch sizes the graph holds for.
        batch_location: where the model asks for its batch size, if only some hold and the place was found.
        n_inputs: how many of the inputs, from the first, were taken to share the batch; None for all.
    """

    model: nn.Module
    graph: fx.Graph
    tensors: dict[fx.Node, str]
    constants: dict[fx.Node, Any]
    inputs: tuple[fx.Node, ...]
    in_spec: pytree.TreeSpec
    outputs: tuple[Any, ...]
    out_spec: pytree.TreeSpec
    _exported_state: dict[str, Tensor] = field(repr=False)
    counters: dict[fx.Node, fx.Node] = field(default_factory=dict)
    conditions: BatchConditions = field(default_factory=BatchConditions)
    batch_location: CodeLocation | None = None
    n_inputs: int | None = None

    @property
    def batch_symbol(self) -> Any:
        """The symbol that stands for the batch size `B` in shapes, or None where the batch is frozen."""
        for node in self.inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
                expression = value.shape[0].node.expr
                return None if expression.is_number else expression
        return None

    def apart(self, position: int) -> bool:
        """Whether the first dimension of an input is no batch: the model never shows that it is that of the others."""
        value, symbol = self.inputs[position].meta.get("val"), self.batch_symbol
        if not isinstance(value, Tensor) or not value.ndim:
            return False
        if symbol is None:
            return self.n_inputs is not None and position >= self.n_inputs
        size = value.shape[0]
        return not isinstance(size, torch.SymInt) or size.node.expr != symbol

    @cached_property
    def has_short_floats(self) -> bool:
        """Whether a value on the way is bfloat16 or float16, as under autocast, so that gradients are coarse."""
        values = (node.meta.get("val") for node in self.graph.nodes)
        return any(isinstance(value, Tensor) and value.dtype in _SHORT_FLOATS for value in values)

    @property
    def example_batch(self) -> int:
        """The batch size that the graph was traced with."""
        for node in self.inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim:
                size = value.shape[0]
                hint = size.node.hint if isinstance(size, torch.SymInt) else size
                return 2 if hint is None else int(hint)
        return 1

    def samples_first(self, node: fx.Node, value: Tensor) -> Tensor | None:
        """Return a value of the graph as `[B, *]`; None where the batch is mixed with another dimension."""
        dim = self.batch_dim(node)
        if dim is None:
            return value[None] if self.is_single else None
        return value.movedim(dim, 0)

    @property
    def is_single(self) -> bool:
        """Whether the graph is for one sample alone, so that every value is that sample's."""
        return self.batch_symbol is None and self.example_batch == 1

    def batch_dim(self, node: fx.Node) -> int | None:
        """Return the dimension of a value that is the batch; None where there is none or it is mixed with another."""
        value, symbol = node.meta["val"], self.batch_symbol
        if not isinstance(value, Tensor):
            return None
        if symbol is None:
            return self._frozen_dim(node, value)
        depends = [
            dim
            for dim, size in enumerate(value.shape)
            if isinstance(size, torch.SymInt) and symbol in size.node.expr.free_symbols
        ]
        size = value.shape[depends[0]] if len(depends) == 1 else None
        return depends[0] if isinstance(size, torch.SymInt) and size.node.expr == symbol else None

    def _frozen_dim(self, node: fx.Node, value: Tensor) -> int | None:
        """Return the dimension that is as large as the frozen batch and that the samples lie along."""
        dims = [dim for dim, size in enumerate(value.shape) if size == self.example_batch]
        if dims[:1] == [0] and node in self.inputs:
            return 0
        if self.is_single:
            return dims[0] if dims else None  # of one sample, any dimension of size 1 serves
        if not dims:
            return None
        return self._dims_by_data.get(node, dims[0] if len(dims) == 1 else None)

    @cached_property
    def _dims_by_data(self) -> dict[fx.Node, int | None]:
        """What data tell of the dimensions of a frozen batch."""
        placeholders = dict(zip(self.inputs, pytree.tree_leaves(self.example_inputs()), strict=True))
        return batch_dims(
            self.graph, self.inputs[: self.n_inputs], {**placeholders, **self.live_tensors()}, self.example_batch
        )

    def sample_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of one sample of a node's value: without the batch, for a batch of one."""
        symbol = self.batch_symbol
        if symbol is None:
            sizes, batch = [int(size) for size in node.meta["val"].shape], self.batch_dim(node)
            return tuple(size for dim, size in enumerate(sizes) if dim != batch)
        shape: list[int] = []
        dropped = False
        for size in node.meta["val"].shape:
            expression = size.node.expr if isinstance(size, torch.SymInt) else None
            if expression is None:
                shape.append(int(size))
            elif expression == symbol and not dropped:
                dropped = True
            else:
                shape.append(one_sample(expression, symbol, self.example_batch))
        return tuple(shape)

    def live_tensors(self) -> dict[fx.Node, Any]:
        """Return the value of every placeholder that is no input, as the model holds it now."""
        with alone():  # a capture of the model elsewhere puts other tensors in their place
            return self._live_tensors()

    def _live_tensors(self) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = dict(self.constants)
        modules: dict[str, nn.Module] = {"": self.model}

        def module(path: str) -> nn.Module:
            found = modules.get(path)
            if found is None:
                parent, _, name = path.rpartition(".")
                # Looked up in the registries, since a getattr may run the user's code, and takes its time.
                held = _entry(module(parent)._modules, name)  # noqa: SLF001 - see above
                found = modules[path] = self._submodule(path) if held is None else held
            return found

        for node, path in self.tensors.items():
            owner_path, _, attribute = path.rpartition(".")
            owner = module(owner_path)
            tensor: Tensor | None = _entry(owner._parameters, attribute)  # noqa: SLF001 - see above
            if tensor is None:
                tensor = _entry(owner._buffers, attribute)  # noqa: SLF001 - see above
            values[node] = self._exported_state[path] if tensor is None else tensor
        return values

    def _submodule(self, path: str) -> nn.Module:
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            raise CaptureMismatchError(
                f"{type(self.model).__name__} was changed since it was unraveled: its module {path!r} is gone. Unravel "
                "it again"
            ) from error

    def arranged(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return arguments in the form that was captured: by position or by name, with the flags that were fixed.

        Raises:
            InputError: if they are others than those that were captured.
        """
        if self._spec_of(args) == self.in_spec:
            return args
        try:
            signature = signature_of(self.model)
        except ValueError:
            return args
        return rearranged(signature, args, self.captured_args())

    def bind(self, args: tuple[Any, ...]) -> dict[fx.Node, Any]:
        """Match arguments with the input placeholders.

        Raises:
            InputError: if number, structure, dtype or a shape differs from what was captured.
        """
        if not torch.is_inference_mode_enabled():
            args = outside_inference_mode(args)
        args = self.arranged(args)
        leaves = pytree.tree_leaves(args)
        if self._spec_of(args) != self.in_spec:
            raise InputError(
                f"the network was captured with {self.in_spec.num_leaves} input(s) and got {len(leaves)}, "
                "or differently nested ones: pass the same arguments as in example_inputs"
            )
        bound: dict[fx.Node, Any] = {}
        samples: dict[Any, tuple[int, int]] = {}
        for position, (node, leaf) in enumerate(zip(self.inputs, leaves, strict=True)):
            expected = node.meta.get("val")
            if isinstance(expected, Tensor):
                check_input(position, expected, leaf)
                check_batch(position, expected, leaf, samples)
            elif isinstance(leaf, Tensor) or leaf != expected:
                raise InputError(
                    f"input {position} was {expected!r} when the network was captured and is {leaf!r} now: "
                    "arguments that are no tensors are fixed by the capture; unravel the model again"
                )
            bound[node] = leaf
        self._check_sizes(samples)
        return bound

    def _check_sizes(self, samples: Mapping[Any, tuple[int, int]]) -> None:
        """Refuse a batch of a size for which the model does something else than was captured."""
        sizes = {symbol: size for symbol, (_, size) in samples.items()}
        first = next(iter(samples.values()), (0, self.example_batch))
        position, size = samples.get(self.batch_symbol, first)
        if self.conditions.holds(size, sizes):
            return
        if self.conditions.holds(size):
            raise InputError(
                f"arguments beside the batch have first dimensions of {', '.join(map(str, sizes.values()))}, for which "
                "the model does something else than was captured: unravel it again with example_inputs of these shapes"
            )
        place = f" ({self.batch_location})" if self.batch_location else ""
        raise InputError(
            f"input {position} has {size} samples, and what was captured holds for {self.conditions.described()} only, "
            f"as what the model does depends on its batch size{place}: pass batches of such sizes (internal_batch_size "
            "cuts larger ones, drop_last=True of a DataLoader leaves a smaller last one out), write the model for any "
            "batch size, or unravel it again with a batch of this size"
        )

    def example_inputs(self) -> tuple[Any, ...]:
        """Return arguments like those that were captured, all zeros, to capture the model again."""

        def like(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = [int(size.node.hint if isinstance(size, torch.SymInt) else size) for size in value.shape]
            return torch.zeros(shape, dtype=value.dtype, device=value.device)

        return pytree.tree_map(like, self.captured_args())  # type: ignore[no-any-return]  # a tuple, as it is given

    def captured_args(self) -> tuple[Any, ...]:
        """Return the arguments that were captured, tensors as the graph has them: without values."""
        args, keywords = pytree.tree_unflatten([node.meta.get("val") for node in self.inputs], self.in_spec)
        return packed(tuple(args), keywords)

    @staticmethod
    def _spec_of(args: tuple[Any, ...]) -> pytree.TreeSpec:
        return pytree.tree_structure(split(args))

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return output leaves in the structure of the model's output."""
        return pytree.tree_unflatten(list(leaves), self.out_spec)


def capture(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    program: ExportedProgram | None = None,
    *,
    training: bool = False,
    n_inputs: int | None = None,
    verify: bool = True,
    free: bool = True,
) -> CapturedGraph:
    """Capture a model in eval mode, or in training mode, as a functional graph with a dynamic batch.

    Args:
        model: the model; its flags, parameters, buffers and the random number generators are left as they are.
        example_inputs: the arguments of one call, those by name as `Keywords`. Tensors whose first dimension equals
            that of the first tensor share its batch `B`; see `programs` for what is tried so that it stays free.
        program: an exported program to use instead of exporting here (from a plugin's `capture` hook).
        training: whether to capture in training mode (see `training_mode`): batch norms then move the model's running
            statistics each time the graph runs.
        n_inputs: how many of the arguments' leaves, from the first, share the batch whatever the model does with
            them; the others share it only where the model shows that they do. None for all.
        verify: whether to find out, by running the model on one sample, that the graph holds for a batch of one.
        free: whether to try for a free batch; if not, the graph is for the batch of the example alone.

    Raises:
        CaptureError: if `torch.export` cannot follow the model, or if in training mode the model writes to more of
            its parameters and buffers than the statistics of batch norms.
    """
    check_tensors(model)
    if program is not None:
        return _captured(model, example_inputs, program, training=training, n_inputs=n_inputs, verify=verify)
    for made in programs(model, example_inputs, training=training, n_inputs=n_inputs, free=free):
        graph = _captured(model, example_inputs, made, training=training, n_inputs=n_inputs, verify=verify)
        if graph.conditions.holds(batch_size(example_inputs)):
            break
    if graph.conditions.always:
        return graph
    place = where_batch_is_asked_for(model, resized(example_inputs, graph.example_batch), training=training)
    return replace(graph, batch_location=place)


def _captured(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    program: ExportedProgram,
    *,
    training: bool,
    n_inputs: int | None,
    verify: bool,
) -> CapturedGraph:
    conditions = batch_conditions(program, parameter_names(model))
    written = written_counters(program) if training else None
    if training:
        draw_functionally(program.graph)
    program = functional_program(program, training=training)
    if not training and any(draws_at_random(node) for node in program.graph.nodes):
        warnings.warn(
            f"{type(model).__name__} draws random numbers in eval mode, as in a dropout that is always on: each run "
            "differs, and studies that compare runs mean little",
            StochasticModelWarning,
            stacklevel=4,
        )
    graph = replace(_graph_of(model, program), conditions=conditions, n_inputs=n_inputs)
    if verify and example_inputs and not training and graph.batch_symbol is not None:
        graph = _tried(graph, example_inputs)
    return graph if written is None else replace(graph, counters=counters(program, written))


def _tried(graph: CapturedGraph, example_inputs: tuple[Any, ...]) -> CapturedGraph:
    """Return the graph with what samples showed: one, as many as in the example, and what torch may have ruled out."""
    if any(draws_at_random(node) for node in graph.graph.nodes):
        return graph
    batch, tensors, conditions = batch_size(example_inputs), graph.live_tensors(), graph.conditions
    for size in {*conditions.doubtful, *({batch} - {graph.example_batch})}:
        args = resized(example_inputs, size, graph.apart)
        held = holds_for(graph.model, args, graph.graph, graph.inputs, tensors, graph.outputs)
        if held is not None:
            conditions = replace(conditions, shown={**conditions.shown, size: held})
    return replace(graph, conditions=conditions)


def _graph_of(model: nn.Module, program: ExportedProgram) -> CapturedGraph:
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    tensors: dict[fx.Node, str] = {}
    constants: dict[fx.Node, Any] = {}
    inputs: list[fx.Node] = []
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensors[node] = str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[node] = program.constants[str(spec.target)]
        elif spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument):
                node.meta["val"] = spec.arg.value
            inputs.append(node)
        else:
            raise CaptureError(
                f"the captured graph of {type(model).__name__} takes a {spec.kind.name.lower()} "
                f"({spec.arg.name}), which is not supported"
            )
    for node in program.graph.nodes:
        if node.op == "get_attr":  # a nested graph, such as a branch of torch.cond
            constants[node] = getattr(program.graph_module, str(node.target))
    leaves = next(node for node in program.graph.nodes if node.op == "output").args[0]
    outputs = tuple(
        leaf for leaf, spec in zip(leaves, signature.output_specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT
    )
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    assert in_spec is not None and out_spec is not None  # noqa: S101, PT018 - torch sets both at export
    state = {**program.state_dict, **{k: v for k, v in program.constants.items() if isinstance(v, Tensor)}}
    return CapturedGraph(model, program.graph, tensors, constants, tuple(inputs), in_spec, outputs, out_spec, state)


def _entry(registry: Mapping[str, Any], name: str) -> Any:
    """Return what a module's registry holds, None where there is nothing; scripted modules' have no `get`."""
    return registry[name] if name in registry else None  # noqa: SIM401 - see above
