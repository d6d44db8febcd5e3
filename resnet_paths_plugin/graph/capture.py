"""A model becomes a functional data-flow graph: `torch.export`, in-place operators made functional.

The graph reads the model's own parameters and buffers each time it is bound; it never copies them, and only batch norms
that were captured in training mode change any: their own statistics.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import CaptureError, InputError, StochasticModelWarning
from resnet_paths_plugin.graph.export import batch_size, export, training_mode
from resnet_paths_plugin.graph.failure import explained, where_batch_is_asked_for
from resnet_paths_plugin.graph.functional import functional_program
from resnet_paths_plugin.graph.operators import draws_at_random
from resnet_paths_plugin.graph.place import Place
from resnet_paths_plugin.graph.statistics import check_momentum, counters, draw_functionally, written_counters


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A functional data-flow graph of a model in eval or training mode, and how its inputs are bound.

    Attributes:
        model: the user's model, whose tensors the graph reads.
        graph: nodes in execution order: placeholders, operators and one output.
        tensors: path in the model of each placeholder that is a parameter or buffer.
        constants: value of each placeholder that is neither input, parameter nor buffer.
        inputs: placeholders of the user's inputs, flattened, in order.
        in_spec: tree structure of the user's positional arguments.
        outputs: the output's leaves: nodes, or constants as they are.
        out_spec: tree structure of the model's output.
        counters: in training mode, the placeholder of the counter that each batch norm counts its batches on; whoever
            runs the batch norm counts it up.
        batch_range: smallest and largest batch that the graph holds for; None where there is no largest.
        batch_place: where the model asks for its batch size, if only some hold and the place was found.
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
    batch_range: tuple[int, int | None] = (1, None)
    batch_place: Place | None = None

    @property
    def batch_symbol(self) -> Any:
        """The symbol that stands for the batch size `B` in shapes, or None where the batch is frozen."""
        for node in self.inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
                return value.shape[0].node.expr
        return None

    def sample_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of one sample of a node's value: without the batch, for a batch of one."""
        symbol = self.batch_symbol
        shape: list[int] = []
        dropped = False
        for size in node.meta["val"].shape:
            expression = size.node.expr if isinstance(size, torch.SymInt) else None
            if expression is None:
                shape.append(int(size))
            elif expression == symbol and not dropped:
                dropped = True
            else:
                shape.append(int(expression.subs(dict.fromkeys(expression.free_symbols, 1))))
        return tuple(shape)

    def live_tensors(self) -> dict[fx.Node, Any]:
        """Return the value of every placeholder that is no input, as the model holds it now."""
        values: dict[fx.Node, Any] = dict(self.constants)
        modules: dict[str, nn.Module] = {"": self.model}

        def module(path: str) -> nn.Module:
            found = modules.get(path)
            if found is None:
                parent, _, name = path.rpartition(".")
                # Looked up in the registries, since a getattr may run the user's code, and takes its time.
                held = module(parent)._modules.get(name)  # noqa: SLF001 - see above
                found = modules[path] = self.model.get_submodule(path) if held is None else held
            return found

        for node, path in self.tensors.items():
            owner_path, _, attribute = path.rpartition(".")
            owner = module(owner_path)
            tensor: Tensor | None = owner._parameters.get(attribute)  # noqa: SLF001 - see above
            if tensor is None:
                tensor = owner._buffers.get(attribute)  # noqa: SLF001 - see above
            values[node] = self._exported_state[path] if tensor is None else tensor
        return values

    def bind(self, args: tuple[Any, ...]) -> dict[fx.Node, Any]:
        """Match positional arguments with the input placeholders.

        Raises:
            InputError: if number, structure, dtype or a shape differs from what was captured.
        """
        leaves, spec = pytree.tree_flatten((args, {}))
        if spec != self.in_spec:
            raise InputError(
                f"the network was captured with {self.in_spec.num_leaves} input(s) and got {len(leaves)}, "
                "or differently nested ones: pass the same arguments as in example_inputs"
            )
        bound: dict[fx.Node, Any] = {}
        samples: dict[Any, tuple[int, int]] = {}
        for position, (node, leaf) in enumerate(zip(self.inputs, leaves, strict=True)):
            expected = node.meta.get("val")
            if isinstance(expected, Tensor):
                _check_input(position, expected, leaf)
                _check_batch(position, expected, leaf, samples)
            elif isinstance(leaf, Tensor) or leaf != expected:
                raise InputError(
                    f"input {position} was {expected!r} when the network was captured and is {leaf!r} now: "
                    "arguments that are no tensors are fixed by the capture; unravel the model again"
                )
            bound[node] = leaf
        for position, size in samples.values():
            self._check_range(position, size)
        return bound

    def _check_range(self, position: int, size: int) -> None:
        """Refuse a batch of a size for which the model does something else than was captured."""
        least, most = self.batch_range
        if least <= size and (most is None or size <= most):
            return
        held = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        place = f" ({self.batch_place})" if self.batch_place else ""
        raise InputError(
            f"input {position} has {size} samples, and what was captured holds for {held} only, as what the model does "
            f"depends on its batch size{place}: pass batches of such sizes (internal_batch_size cuts larger ones), "
            "write the model for any batch size, or unravel it again with a batch of this size"
        )

    def example_inputs(self) -> tuple[Any, ...]:
        """Return arguments like those that were captured, all zeros, to capture the model again."""

        def like(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = [int(size.node.hint if isinstance(size, torch.SymInt) else size) for size in value.shape]
            return torch.zeros(shape, dtype=value.dtype, device=value.device)

        args, _ = pytree.tree_unflatten([like(node.meta.get("val")) for node in self.inputs], self.in_spec)
        return tuple(args)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return output leaves in the structure of the model's output."""
        return pytree.tree_unflatten(list(leaves), self.out_spec)


def capture(
    model: nn.Module, example_inputs: tuple[Any, ...], program: ExportedProgram | None = None, *, training: bool = False
) -> CapturedGraph:
    """Capture a model in eval mode, or in training mode, as a functional graph with a dynamic batch.

    Args:
        model: the model; its flags, parameters, buffers and the random number generators are left as they are.
        example_inputs: positional arguments of one call. Tensors whose first dimension equals that of the first
            tensor share its batch `B`; a batch of one is widened to two, since export would freeze it.
        program: an exported program to use instead of exporting here (from a plugin's `capture` hook).
        training: whether to capture in training mode (see `training_mode`): batch norms then move the model's running
            statistics each time the graph runs.

    Raises:
        CaptureError: if `torch.export` cannot follow the model, or if in training mode the model writes to more of
            its parameters and buffers than the statistics of batch norms.
    """
    exported = program is None
    if program is None:
        program = _export(model, widened(example_inputs), training=training)
    sizes = _batch_range(program)
    written = written_counters(program) if training else None
    if training:
        draw_functionally(program.graph)
    program = functional_program(program)
    if not training and any(draws_at_random(node) for node in program.graph.nodes):
        warnings.warn(
            f"{type(model).__name__} draws random numbers in eval mode, as in a dropout that is always on: each run "
            "differs, and studies that compare runs mean little",
            StochasticModelWarning,
            stacklevel=3,
        )
    place = None
    if exported and sizes != (1, None):
        place = where_batch_is_asked_for(model, widened(example_inputs), training=training)
    graph = replace(_graph_of(model, program), batch_range=sizes, batch_place=place)
    return graph if written is None else replace(graph, counters=counters(program, written))


def widened(example_inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs with a batch of one repeated to two; other batches as they are."""
    batch = batch_size(example_inputs)
    if batch != 1:
        return example_inputs

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 1:
            return torch.cat([leaf, leaf])
        return leaf

    return tuple(pytree.tree_map(widen, example_inputs))


def _export(model: nn.Module, example_inputs: tuple[Any, ...], *, training: bool = False) -> ExportedProgram:
    if training:
        with training_mode(model):
            check_momentum(model)
    try:
        return export(model, example_inputs, training=training)
    except Exception as error:
        raise CaptureError(explained(error, model, example_inputs, training=training)) from error


def exported(model: nn.Module, example_inputs: tuple[Any, ...]) -> ExportedProgram:
    """Export a model in eval mode with a dynamic batch, leaving it as it is.

    Raises:
        CaptureError: if `torch.export` cannot follow the model.
    """
    return _export(model, widened(example_inputs))


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
        if node.op == "get_attr":  # a nested graph, such as the body of a no_grad region
            constants[node] = getattr(program.graph_module, str(node.target))
    leaves = next(node for node in program.graph.nodes if node.op == "output").args[0]
    outputs = tuple(
        leaf for leaf, spec in zip(leaves, signature.output_specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT
    )
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    assert in_spec is not None and out_spec is not None  # noqa: S101, PT018 - torch sets both at export
    state = {**program.state_dict, **{k: v for k, v in program.constants.items() if isinstance(v, Tensor)}}
    return CapturedGraph(model, program.graph, tensors, constants, tuple(inputs), in_spec, outputs, out_spec, state)


def _batch_range(program: ExportedProgram) -> tuple[int, int | None]:
    """Return the smallest and the largest batch that a program holds for, None where there is no largest.

    Export takes any dynamic size to be 2 or more, and what it captures then holds for 1 too.
    """
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in names or not isinstance(value, Tensor) or not value.ndim:
            continue
        if isinstance(size := value.shape[0], torch.SymInt):
            expression = size.node.expr
            if expression.is_number:
                return int(expression), int(expression)
            known = program.range_constraints.get(expression)
            if known is not None:
                least, most = (int(end) if end.is_Integer else None for end in (known.lower, known.upper))
                return (1 if least is None or least <= 2 else least), most
    return 1, None


def _check_input(position: int, expected: Tensor, given: Any) -> None:
    if not isinstance(given, Tensor):
        raise InputError(f"input {position} must be a tensor, not {type(given).__name__}")
    fits = given.ndim == expected.ndim and all(
        isinstance(want, torch.SymInt) or want == got for want, got in zip(expected.shape, given.shape, strict=True)
    )
    if not fits:
        want = ", ".join("B" if isinstance(size, torch.SymInt) else str(size) for size in expected.shape)
        raise InputError(
            f"input {position} has shape {tuple(given.shape)}; the network was captured for ({want}): "
            "resize the input, or unravel the model again with example_inputs of this shape"
        )
    if given.dtype != expected.dtype:
        raise InputError(
            f"input {position} is {given.dtype}; the network was captured with {expected.dtype}: convert it"
        )
    if given.device.type != expected.device.type:
        raise InputError(
            f"input {position} is on {given.device}; the network was captured on {expected.device}: move it, or "
            "unravel the model again where it is now"
        )


def _check_batch(position: int, expected: Tensor, given: Tensor, samples: dict[Any, tuple[int, int]]) -> None:
    """Check that inputs that shared their batch when they were captured still do; `samples` collects the sizes."""
    if not given.ndim or not isinstance(expected.shape[0], torch.SymInt):
        return
    first, size = samples.setdefault(expected.shape[0].node.expr, (position, given.shape[0]))
    if given.shape[0] != size:
        raise InputError(
            f"input {position} has {given.shape[0]} samples and input {first} has {size}: "
            "all inputs of a batch need as many"
        )
