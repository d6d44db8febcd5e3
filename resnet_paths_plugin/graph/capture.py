"""A model becomes a functional data-flow graph: `torch.export`, in-place operators made functional.

The graph reads the model's own parameters and buffers each time it is bound; it never copies them, and only batch norms
that were captured in training mode change any: their own statistics.
"""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import CaptureError, InputError, StochasticModelWarning
from resnet_paths_plugin.graph.functional import functional_program
from resnet_paths_plugin.graph.operators import draws_at_random
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
        for node, path in self.tensors.items():
            owner_path, _, attribute = path.rpartition(".")
            owner = modules.get(owner_path)
            if owner is None:
                owner = modules[owner_path] = self.model.get_submodule(owner_path)
            # Looked up in the registries, since a getattr may run the user's code.
            held: dict[str, Any] = {**owner._buffers, **owner._parameters}  # noqa: SLF001 - see above
            tensor = held.get(attribute)
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
        return bound

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
    if program is None:
        program = _export(model, widened(example_inputs), training=training)
    if training:
        written = written_counters(program)
        draw_functionally(program.graph)
        program = functional_program(program)
        return replace(_graph_of(model, program), counters=counters(program, written))
    program = functional_program(program)
    if any(draws_at_random(node) for node in program.graph.nodes):
        warnings.warn(
            f"{type(model).__name__} draws random numbers in eval mode, as in a dropout that is always on: each run "
            "differs, and studies that compare runs mean little",
            StochasticModelWarning,
            stacklevel=3,
        )
    return _graph_of(model, program)


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


def batch_size(args: tuple[Any, ...]) -> int:
    """Return `B`, the first dimension of the first tensor among the arguments.

    Raises:
        InputError: if there is no tensor with a batch dimension, or the batch is empty.
    """
    for leaf in pytree.tree_leaves(args):
        if isinstance(leaf, Tensor) and leaf.ndim:
            if leaf.shape[0] == 0:
                raise InputError("the batch is empty: pass at least one sample")
            return int(leaf.shape[0])
    raise InputError("inputs must hold at least one tensor whose first dimension is the batch")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Clear the training flag of every module, and put each module's attributes back as they were.

    The flags are set directly, as a model's own `train` may do more than set flags; what a forward pass stores on its
    module is gone afterwards.
    """
    with _kept_attributes(model):
        for module in model.modules():
            module.training = False
        yield


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Set the modules' flags for training, and put each module's attributes back as they were.

    A model that is in training mode stays as it is, so that parts of it may be in eval mode (frozen batch norms).
    Otherwise the flags are those that its own `train` sets, which may leave parts in eval mode as well.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with _kept_attributes(model):
        try:
            if not model.training:
                model.train()
            yield
        finally:
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    """Put each module's attributes back as they were."""
    kept = [
        (held, dict(held))
        for module in model.modules()
        for held in (vars(module), module._parameters, module._buffers, module._modules)  # noqa: SLF001 - torch's registries
    ]
    try:
        yield
    finally:
        for held, before in kept:
            held.clear()
            held.update(before)


def _export(model: nn.Module, example_inputs: tuple[Any, ...], *, training: bool = False) -> ExportedProgram:
    batch = batch_size(example_inputs)

    def dynamic(leaf: Any) -> dict[int, Any] | None:
        if isinstance(leaf, Tensor):
            return {0: torch.export.Dim.AUTO} if leaf.ndim and leaf.shape[0] == batch else {}
        return None

    shapes = pytree.tree_map(dynamic, example_inputs)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]  # torch's
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.MultiheadAttention has no gradient; it is switched off while tracing.
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        with (
            training_mode(model) if training else eval_mode(model),
            _kept_generators(),
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            # What the model stores on itself is put back, so there is nothing to warn of.
            warnings.filterwarnings("ignore", message="The tensor attribute", category=UserWarning)
            if training:
                check_momentum(model)
            return torch.export.export(model, example_inputs, dynamic_shapes=shapes, strict=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {_first_line(error)}. "
            "Check that the example inputs fit the model (its forward runs on them), or write a plugin whose "
            "'resnet_paths_capture' hook exports a form of the model without the operation in question"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(value=fastpath)


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


@contextmanager
def _kept_generators() -> Iterator[None]:
    """Leave the generators of Python and numpy, which a model may draw from, as they were."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is what a model draws from
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
