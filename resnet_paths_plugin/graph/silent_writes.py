"""Silent writes: what a model writes in place where autograd records nothing, under `no_grad` or through `.data`.

Autograd then takes the gradient of values that are gone, which a graph of operators cannot have.
"""

import inspect
import traceback
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.code_location import location_in_code
from resnet_paths_plugin.graph.keywords import called

_NO_WRITES = {"requires_grad_", "detach_", "share_memory_", "retain_grad", "embedding_renorm_"}
"""Named as if they wrote; embeddings that are renormalised get their values back."""
_READ_DATA = Tensor.data.__get__  # type: ignore[attr-defined]  # a property of torch's own
_MOST_TOLD = 3


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a function of torch writes to, as it is called from Python."""
    name = getattr(func, "__name__", "")
    found = [kwargs["out"]] if "out" in kwargs else []
    if name not in _NO_WRITES and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
        found += args[:1]
    if not found:  # as of nearly all that a trace calls
        return []
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def share_memory(one: Tensor, others: Iterable[Tensor]) -> bool:
    """Whether a tensor lies in the memory of one of some others: it is one of them, or a view."""
    own = _memory(one)
    return own is not None and any(_memory(other) == own for other in others)


def silent_writes(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """Return the first silent writes of one run of a model, each as its operation and the line of the user's code.

    Args:
        model: the model; whoever asks sees to its flags, buffers and generators.
        args: the arguments; the run is on copies that require gradients.
    """

    def given(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copy = leaf.detach().clone()
        return copy.requires_grad_().clone() if copy.is_floating_point() else copy

    with torch.enable_grad():
        inputs = pytree.tree_map(given, args)
        with _Noting(model) as noting:
            called(model, inputs)
    return list(noting.found)[:_MOST_TOLD]


class _Noting(TorchFunctionMode):
    """Notes writes to values with gradients that autograd does not see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self._model = model
        self._data: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _READ_DATA:
            found = func(*args, **kwargs)
            if args[0].requires_grad:
                self._data.append(found)  # held, so that its memory is not another tensor's by then
            return found
        for tensor in written(func, args, kwargs):
            base = tensor._base  # noqa: SLF001 - torch has no other name for what a view is of
            tracked = tensor.requires_grad or (base is not None and base.requires_grad)
            if share_memory(tensor, self._data) or (tracked and not torch.is_grad_enabled()):
                place = location_in_code(list(traceback.walk_stack(inspect.currentframe()))[::-1], self._model)
                name = resolve_name(func) or getattr(func, "__name__", "")
                self.found[f"{name} in {place}" if place else str(name)] = None
        return func(*args, **kwargs)


def _memory(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - as above
    except (NotImplementedError, RuntimeError):  # tensors of kinds that have no memory of their own
        return None
