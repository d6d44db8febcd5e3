"""`torch.export` of a model as it stands; the model and the random number generators are left as they were.

Knows nothing of graphs, and does not explain failures.
"""

import copy
import inspect
import io
import logging
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import InputError

SHAPES_LOGGER = "torch.fx.experimental.symbolic_shapes"
"""Where torch logs what it assumes of shapes while tracing."""
_CONTAINERS = (list, dict, set, OrderedDict)
_EXPORT_LOGGER = "torch._export.non_strict_utils"


def export(model: nn.Module, example_inputs: tuple[Any, ...], *, training: bool = False) -> ExportedProgram:
    """Trace a model with a dynamic batch.

    Args:
        model: the model.
        example_inputs: positional arguments of one call. Tensors whose first dimension equals that of the first
            tensor share its batch `B`.
        training: whether to trace in training mode (see `training_mode`).

    Raises:
        Exception: whatever the model or torch raises.
    """
    batch = batch_size(example_inputs)

    def dynamic(leaf: Any) -> dict[int, Any] | None:
        if isinstance(leaf, Tensor):
            return {0: torch.export.Dim.AUTO} if leaf.ndim and leaf.shape[0] == batch else {}
        return None

    with (
        training_mode(model) if training else eval_mode(model),
        kept_generators(),
        _without_fast_path(),
        _quiet(),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        # What the model stores on itself is put back, so there is nothing to warn of.
        warnings.filterwarnings("ignore", message="The tensor attribute", category=UserWarning)
        # By parameter of the model's `forward`, as export wants them: those of `*args` are one.
        given = inspect.signature(model.forward).bind(*example_inputs).arguments
        shapes = pytree.tree_map(dynamic, dict(given))
        with _one_batch(model, batch):
            return torch.export.export(model, example_inputs, dynamic_shapes=shapes, strict=False)


@contextmanager
def _one_batch(model: nn.Module, batch: int) -> Iterator[None]:
    """Let the trace know that inputs which share the batch do so: it takes the batch of each for a size of its own.

    A model may work with both and never show that they are equal, as one that stacks two images does.
    """

    def compare(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is model:
            sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor) and leaf.ndim]
            free = [size for size in sizes if isinstance(size, torch.SymInt)]
            if any(size != free[0] for size in free):  # the question itself is what the trace notes
                raise InputError(f"not all inputs have {batch} samples")

    # A hook on all modules, since one on the model's own would change the model.
    handle = nn.modules.module.register_module_forward_pre_hook(compare)
    try:
        yield
    finally:
        handle.remove()


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
def kept_generators() -> Iterator[None]:
    """Leave the generators of torch, Python and numpy, which a model may draw from, as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]  # torch's
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is what a model draws from
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    """Put each module's attributes back as they were, and what lists, dicts and sets among them hold."""
    attributes = [vars(module) for module in model.modules()]
    containers = [value for held in attributes for value in held.values() if type(value) in _CONTAINERS]
    kept = [(held, copy.copy(held)) for held in (*attributes, *containers)]
    try:
        yield
    finally:
        for held, before in kept:
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(before)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Switch off the fused inference path of nn.MultiheadAttention, which has no gradient."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=enabled)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the thousands of lines that torch prints of a trace that failed; what the model prints is shown."""
    loggers, printed = [logging.getLogger(name) for name in (SHAPES_LOGGER, _EXPORT_LOGGER)], io.StringIO()
    for logger in loggers:
        logger.addFilter(_is_news)
    partial = ""
    try:
        with redirect_stderr(printed):
            yield
    except Exception as error:
        graph = getattr(error, "partial_fx_graph", None)
        partial = "" if graph is None else f"{graph}\n"  # printed once by each layer of torch that it passes
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)
        sys.stderr.write(printed.getvalue().replace(partial, ""))


def _is_news(record: logging.LogRecord) -> bool:
    return not any(known in record.getMessage() for known in ("Unable to find user code", "0/1 specialized"))
