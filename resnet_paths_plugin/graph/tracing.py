"""Tracing: what a trace is given to follow where torch.export would not, though it means something that it follows.

`.data` reads as `detach()`, scripted parts as the operators that they run, inputs made in inference mode as copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import optimized_execution  # type: ignore[attr-defined]  # not in its own list
from torch.jit._script import RecursiveScriptModule
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.silent_writes import share_memory, written

_READ, _WRITTEN = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]  # a property of torch's own


class DataWrittenError(RuntimeError):
    """A model writes to a parameter or sets the `.data` of a tensor, so that running it changes it."""


@contextmanager
def followed(model: nn.Module) -> Iterator[None]:
    """Let a trace follow `.data` and scripted parts; within `eval_mode`, which puts parts back."""
    for module in model.modules():
        if isinstance(module, RecursiveScriptModule):
            vars(module)["forward"] = _Call(module)
    with _DataIsDetached(model):
        yield


def outside_inference_mode(args: Any) -> Any:
    """Return arguments in which tensors made in inference mode are copies that autograd takes; others as they are."""
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    if not any(leaf.is_inference() for leaf in leaves):
        return args
    with torch.inference_mode(mode=False):
        return pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, args
        )


class _Call:
    """Calls a scripted module's compiled method, where a trace would call the Python that it was made from."""

    def __init__(self, module: RecursiveScriptModule) -> None:
        self._method = module._c._get_method("forward")  # noqa: SLF001 - torch has no other way to it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with optimized_execution(False):  # its own backward hides operators
            return self._method(*args, **kwargs)


class _DataIsDetached(TorchFunctionMode):
    """Reads `.data` of a tensor as `detach()`, which a graph has; what sets it or writes to a parameter is refused."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _WRITTEN:
            raise DataWrittenError("a tensor's .data is set, which changes it behind the trace")
        if func == _READ:
            return args[0].detach()
        # The trace has put tensors of its own in the place of parameters.
        if any(share_memory(tensor, self._model.parameters()) for tensor in written(func, args, kwargs)):
            raise DataWrittenError("a parameter is written to, which changes the model as it runs")
        return func(*args, **kwargs)
