"""`torch.export` of a model as it stands; the model and the random number generators are left as they were.

Knows nothing of graphs, and does not explain failures.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.bystanders import others_wait
from resnet_paths_plugin.graph.keywords import named_arguments, signature_of, split
from resnet_paths_plugin.graph.process_state import kept_generators, set_aside, without_fast_path, write_error
from resnet_paths_plugin.graph.traced_modes import noted_modes
from resnet_paths_plugin.graph.tracing import followed, outside_inference_mode
from resnet_paths_plugin.process_lock import alone

SHAPES_LOGGER = "torch.fx.experimental.symbolic_shapes"
"""Where torch logs what it assumes of shapes while tracing."""
_CONTAINERS = (list, dict, set, OrderedDict)
_EXPORT_LOGGER = "torch._export.non_strict_utils"


def export(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    training: bool = False,
    strict: bool = False,
    n_inputs: int | None = None,
    free: bool = True,
) -> ExportedProgram:
    """Trace a model with a dynamic batch.

    Args:
        model: the model.
        example_inputs: the arguments of one call, those by name as `Keywords`. Tensors whose first dimension equals
            that of the first tensor share its batch `B`.
        training: whether to trace in training mode (see `training_mode`).
        strict: whether torch reads the model's bytecode instead of running it, which keeps the batch free where
            `len(x)` or `int(...)` would freeze it.
        n_inputs: how many of the arguments' leaves, from the first, share the batch whatever the model does with
            them; the others share it only where the model shows that they do. None for all.
        free: whether the batch is dynamic; the size of the example is all that holds if not.

    Raises:
        Exception: whatever the model or torch raises.
    """
    batch, example_inputs = batch_size(example_inputs), outside_inference_mode(example_inputs)

    def dynamic(leaf: Any) -> dict[int, Any] | None:
        if isinstance(leaf, Tensor):
            return {0: torch.export.Dim.AUTO} if free and leaf.ndim and leaf.shape[0] == batch else {}
        return None

    with (
        training_mode(model) if training else eval_mode(model),
        kept_generators(),
        without_fast_path(),
        _quiet(),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        warnings.catch_warnings(),
        others_wait(model, hold=not strict),
    ):
        # What the model stores on itself is put back, so there is nothing to warn of.
        warnings.filterwarnings("ignore", message="The tensor attribute", category=UserWarning)
        # Torch itself scripts the decompositions that jvp needs.
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        # Torch itself asks values for gradients where it reads the branches of `torch.cond`.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor", category=UserWarning)
        # By parameter of the model's `forward`, as export wants them: those of `*args` are one entry.
        shapes = pytree.tree_map(dynamic, named_arguments(signature_of(model), example_inputs))
        positional, keywords = split(example_inputs)
        with (
            noted_modes(strict=strict),
            nullcontext() if strict else _one_batch(model, batch, n_inputs),
            nullcontext() if strict else followed(model),
        ):
            return torch.export.export(model, positional, keywords, dynamic_shapes=shapes, strict=strict)


@contextmanager
def _one_batch(model: nn.Module, batch: int, n_inputs: int | None) -> Iterator[None]:
    """Let the trace know that inputs which share the batch do so: it takes the batch of each for a size of its own.

    A model may work with both and never show that they are equal, as one that stacks two images does.
    """

    def compare(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], _: Any) -> None:
        if module is model:
            inputs = pytree.tree_leaves((args, keywords))[:n_inputs]
            sizes = [leaf.shape[0] for leaf in inputs if isinstance(leaf, Tensor) and leaf.ndim]
            free = [size for size in sizes if isinstance(size, torch.SymInt)]
            if any(size != free[0] for size in free):  # the question itself is what the trace notes
                raise InputError(f"not all inputs have {batch} samples")

    with after_each_forward(compare):
        yield


@contextmanager
def after_each_forward(note: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]) -> Iterator[None]:
    """Call a function with each module that has run, its arguments by position and by name, and its output.

    A hook on all modules, since one on the model's own would change the model.
    """
    handle = nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        # Torch takes the hook away, and leaves the note that it takes keywords.
        nn.modules.module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # noqa: SLF001 - see above


def batch_size(args: tuple[Any, ...]) -> int:
    """Return `B`, the first dimension of the first tensor among the arguments.

    Raises:
        InputError: if there is no tensor with a batch dimension, the batch is empty, or a tensor is sparse or nested.
    """
    leaves = pytree.tree_leaves(args)
    for leaf in leaves:
        check_dense(leaf, "an input")
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim:
            if leaf.shape[0] == 0:
                raise InputError("the batch is empty: pass at least one sample")
            return int(leaf.shape[0])
    raise InputError("inputs must hold at least one tensor whose first dimension is the batch")


def check_dense(leaf: Any, name: str) -> None:
    """Refuse a tensor whose values are not laid out one by one.

    Raises:
        InputError: if it is sparse, nested or of another layout.
    """
    if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.layout != torch.strided):
        kind = "a nested tensor" if leaf.is_nested else f"a tensor of layout {str(leaf.layout).removeprefix('torch.')}"
        way = "pad it, with torch.nested.to_padded_tensor" if leaf.is_nested else "convert it, with .to_dense()"
        raise InputError(f"{name} is {kind}, and dense tensors are needed: {way}")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Clear the training flag of every module, and put each module's attributes back as they were.

    The flags are set directly, as a model's own `train` may do more than set flags; what a forward pass stores on its
    module is gone afterwards. One thread at a time.
    """
    with alone(), _kept_attributes(model):
        for module in model.modules():
            module.training = False
        yield


@contextmanager
def undisturbed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Let a model run in eval mode (or in training mode) and leave it and the generators as they were.

    Buffers that its forward writes to get their values back. One thread at a time, as flags are changed for the while.
    """
    with (
        training_mode(model) if training else eval_mode(model),
        kept_buffers(model),
        kept_generators(),
        without_fast_path(),
    ):
        yield


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Give each buffer of a model the values back that it had, and so each embedding that a forward renormalises."""
    limited = [part.weight for part in model.modules() if getattr(part, "max_norm", None) and hasattr(part, "weight")]
    held = [one for one in (*model.buffers(), *limited) if isinstance(one, Tensor) and not one.is_meta]
    kept = [(one, one.detach().clone(), one.grad_fn) for one in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before, made_by in kept:
                if made_by is None and buffer.grad_fn is not None:
                    buffer.detach_()  # written from what has a gradient
                if not torch.equal(buffer, before):
                    buffer.data.copy_(before)  # of `data`, since what has saved the buffer for a gradient may use it


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Set the modules' flags for training, and put each module's attributes back as they were.

    A model that is in training mode stays as it is, so that parts of it may be in eval mode (frozen batch norms).
    Otherwise the flags are those that its own `train` sets, which may leave parts in eval mode as well.
    """
    with alone(), _kept_attributes(model):
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            if not model.training:
                model.train()
            yield
        finally:
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    """Put each module's attributes back as they were, and what lists, dicts and sets among them hold."""
    scripted = [(module, module.training) for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    attributes = [vars(module) for module in model.modules()]
    containers = [value for held in attributes for value in held.values() if type(value) in _CONTAINERS]
    kept = [(held, held.copy()) for held in (*attributes, *containers)]
    try:
        yield
    finally:
        for held, before in kept:
            _put_back(held, before)
        for module, training in scripted:  # which keep their flags elsewhere
            module.training = training


def _put_back(held: Any, before: Any) -> None:
    """Give a container back what it held; what it still holds stays there all the while, for other threads to read."""
    if not held and not before:
        return
    if isinstance(held, list):
        held[:] = before
    elif isinstance(held, set):
        held &= before
        held |= before
    else:
        if list(held) == list(before) and all(map(is_, held.values(), before.values())):
            return
        for gone in held.keys() - before.keys():
            del held[gone]
        if list(held) != list(before):  # the order counts too
            held.clear()
        for key, value in before.items():
            if key not in held or held[key] is not value:
                held[key] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the thousands of lines that torch prints of a trace that failed; what the model prints is shown."""
    loggers = [logging.getLogger(name) for name in (SHAPES_LOGGER, _EXPORT_LOGGER)]
    for logger in loggers:
        logger.addFilter(_is_news)
    partial, text = "", ""
    try:
        with set_aside("stderr") as printed:
            try:
                yield
            finally:
                text = printed.getvalue()
    except Exception as error:
        graph = getattr(error, "partial_fx_graph", None)
        partial = "" if graph is None else f"{graph}\n"  # printed once by each layer of torch that it passes
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)
        write_error(text.replace(partial, ""))


def _is_news(record: logging.LogRecord) -> bool:
    return not any(known in record.getMessage() for known in ("Unable to find user code", "0/1 specialized"))


def uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """Run compiled modules without compiling them: compiled functions round otherwise, and take minutes to make."""
    compiled = any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in model.modules())  # noqa: SLF001 - they have no other name
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def gradients_at(
    outputs: Sequence[Tensor],
    taps: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    parameters: Iterable[Tensor],
    *,
    again: bool = False,
) -> list[Tensor | None]:
    """Return autograd's gradients at some leaves, None where there is none; the `grad` of all leaves stays as it is.

    What a backward pass has read is released, so that the values' memory is used again: page by page, new memory
    takes longer than some operators.

    Args:
        outputs: what is differentiated.
        taps: leaves that require gradients.
        seeds: the gradient at each output; None stands for 1.
        parameters: the other leaves that gradients may arrive at.
        again: whether gradients of these outputs will be asked for once more.
    """
    kept = again or any(map(is_custom, backward_nodes(outputs)))  # which a reentrant checkpoint is
    try:
        return list(torch.autograd.grad(outputs, taps, seeds, allow_unused=True, retain_graph=kept))
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    # A reentrant checkpoint gives gradients to all leaves or to none.
    leaves = {*taps, *parameters}
    before = [(leaf, leaf.grad) for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(outputs, seeds)
        return [tap.grad for tap in taps]
    finally:
        for leaf, grad in before:
            leaf.grad = grad


def backward_nodes(outputs: Iterable[Tensor]) -> set[Node]:
    """Return the functions of autograd's graph."""
    found: set[Node] = set()
    pending = [leaf.grad_fn for leaf in outputs if leaf.grad_fn is not None]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [before for before, _ in node.next_functions if before is not None]
    return found


def is_custom(node: Node) -> bool:
    """Whether a function of autograd's graph is a `torch.autograd.Function`."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)
