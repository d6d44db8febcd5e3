"""Which of torchvision's builders made a model: its instances do not say.

A model that was built here is remembered. Any other is compared with what the builders of its class make,
without spending memory on their weights.
"""

import inspect
from functools import cache
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

# Modules compare by identity, so none is mistaken for another, and an entry ends with its model.
_remembered: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

# Parameters that change with the classes or the size of the images: no marks of an architecture.
_VARIABLE = ("fc.", "classifier.", "head.", "heads.", "aux", "AuxLogits.", "encoder.pos_embedding")

_CONVOLUTION_NDIM = 4

# Builders that ask whether to draw their weights from the distributions that their authors used.
_TELL_INITIALISATION = ("googlenet", "inception_v3")

_Trunk = tuple[type, frozenset[tuple[str, tuple[int, ...]]]]


def build(name: str, *, weights: str | None, **arguments: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of `torchvision.models.list_models()`.
        weights: name of the weights to load, such as `"DEFAULT"`.
        arguments: further arguments of the builder.
    """
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None  # the default would download them unasked
    if weights is None and name.removeprefix("quantized_") in _TELL_INITIALISATION:
        arguments.setdefault("init_weights", True)  # their default too, but a left out one warns
    model: nn.Module = models.get_model(name, weights=weights, **arguments)
    _remembered[model] = name
    return model


def builder_of(model: nn.Module) -> str | None:
    """Return the name under which torchvision builds a model's architecture, None where that is not clear."""
    if model in _remembered:
        return _remembered[model]
    size = sum(parameter.numel() for parameter in model.parameters())

    def difference(name: str) -> int:
        return abs(int(models.get_model_weights(name).DEFAULT.meta["num_params"]) - size)

    candidates = [
        name for name in models.list_models() if models.get_model_builder(name).__module__ == type(model).__module__
    ]
    trunk = _trunk(model)
    for _, similar in groupby(sorted(candidates, key=difference), key=difference):
        matching = [name for name in similar if _built_trunk(name) == trunk]
        if matching:
            return matching[0] if len(matching) == 1 else None
    return None


class _WithoutMemory(TorchFunctionMode):
    """Puts the parameters that layers allocate on the meta device, and leaves what is computed where it is.

    The meta device as the default would be too much: some constructors compute their layout with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@cache
def _built_trunk(name: str) -> _Trunk | None:
    """Return the trunk of what a builder makes; None for the few builders that need real weights to work."""
    slow = {"init_weights": False} if name.removeprefix("quantized_") in _TELL_INITIALISATION else {}
    try:
        with torch.random.fork_rng(devices=[]), _WithoutMemory():
            return _trunk(build(name, weights=None, **slow))
    except RuntimeError:
        return None


def _trunk(model: nn.Module) -> _Trunk:
    """Return a model's class and the shapes of the parameters that mark its architecture."""
    shapes = {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters() if not name.startswith(_VARIABLE)
    }
    stem = next((name for name, shape in shapes.items() if len(shape) >= _CONVOLUTION_NDIM), None)
    if stem is not None:  # the number of channels of the input is no mark either
        shapes[stem] = (shapes[stem][0], *shapes[stem][2:])
    return type(model), frozenset(shapes.items())
