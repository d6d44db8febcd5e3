"""Keywords: the arguments of a call that go by name; they travel as the last of its positional arguments.

So one tuple holds a call, and its tensors are flattened in the order in which torch.export has them.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import InputError


class Keywords(dict[str, Any]):
    """Arguments by name."""


def _flatten(keywords: Keywords) -> tuple[list[Any], list[str]]:
    return list(keywords.values()), list(keywords)


def _flatten_with_keys(keywords: Keywords) -> tuple[list[tuple[Any, Any]], list[str]]:
    return [(pytree.MappingKey(name), value) for name, value in keywords.items()], list(keywords)


def _unflatten(values: Any, names: Any) -> Keywords:
    return Keywords(zip(names, values, strict=True))


pytree.register_pytree_node(
    Keywords,
    _flatten,
    _unflatten,
    serialized_type_name="resnet_paths_plugin.Keywords",
    flatten_with_keys_fn=_flatten_with_keys,
)


def call_arguments(inputs: Any) -> tuple[Any, ...]:
    """Return the arguments of a call as one tuple.

    Args:
        inputs: a tensor, a tuple of arguments by position, a dict of arguments by name, or both: `(args, kwargs)`.

    Raises:
        InputError: if an argument by name holds numbers that are no tensor.
    """
    if isinstance(inputs, Mapping):
        return packed((), inputs)
    if is_call(inputs):
        return packed(*inputs)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def is_call(inputs: Any) -> bool:
    """Whether these are arguments by position and by name, `(args, kwargs)`."""
    return (
        isinstance(inputs, tuple)
        and len(inputs) == 2
        and isinstance(inputs[0], tuple)
        and isinstance(inputs[1], Mapping)
        and not isinstance(inputs[1], Keywords)
    )


def packed(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return arguments by position and by name as one tuple.

    Raises:
        InputError: if one by name holds numbers that are no tensor.
    """
    args, own = split(args)
    for name, value in keywords.items():
        _check_tensor(name, value)
        own[name] = value
    return (*args, Keywords(own)) if own else args


def split(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional arguments and those by name."""
    if args and isinstance(args[-1], Keywords):
        return args[:-1], dict(args[-1])
    return args, {}


def called(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return what a function gives for the arguments of a call."""
    positional, keywords = split(args)
    return function(*positional, **keywords)


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return the signature of a model's `forward`, without annotations.

    Raises:
        ValueError: if it is not known, as for a forward that is not written in Python.
    """
    signature = inspect.signature(model.forward)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)


def named_arguments(signature: inspect.Signature, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return arguments by the parameters of a signature, those of `**kwargs` by their own names.

    Those of `*args` are one entry, a tuple, under its name.

    Raises:
        TypeError: if they are not what it takes.
    """
    positional, keywords = split(args)
    found: dict[str, Any] = dict(signature.bind(*positional, **keywords).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def rearranged(signature: inspect.Signature, args: tuple[Any, ...], captured: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments in the form of those of another call: by position or by name, in its order.

    What they lack is taken from the other call where it holds no tensor there, as of a flag that stays as it was. What
    is there beside that must be the default.

    Args:
        signature: of what is called.
        args: the arguments.
        captured: the arguments of the other call.

    Raises:
        InputError: if they are others.
    """
    wanted = named_arguments(signature, captured)
    try:
        given = named_arguments(signature, args)
    except TypeError as error:
        raise InputError(f"the model was captured with the arguments {', '.join(wanted)}: {error}") from error
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    missing = [name for name in wanted if name not in given and not _is_fixed(wanted[name])]
    extra = [name for name in given if name not in wanted and given[name] is not defaults.get(name, _NOTHING)]
    if missing or extra:
        problems = [
            f"{what} {', '.join(map(repr, names))}" for what, names in (("lack", missing), ("have", extra)) if names
        ]
        raise InputError(
            f"the model was captured with the arguments {', '.join(wanted)}, and those of this call "
            f"{' and '.join(problems)}: pass the same ones (target='labels', say, takes that key of a batch for the "
            "target), or unravel the model again with example_inputs like these"
        )
    by_name = {name: given.get(name, wanted[name]) for name in wanted}
    positional, keywords = split(captured)
    in_place: list[Any] = []
    for name in signature.bind_partial(*positional).arguments:
        is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        in_place += by_name[name] if is_rest else [by_name[name]]
    return packed(tuple(in_place), {name: by_name[name] for name in keywords})


_NOTHING = object()


def _check_tensor(name: str, value: Any) -> None:
    numbers = isinstance(value, list) and any(isinstance(leaf, int | float) for leaf in pytree.tree_leaves(value))
    if numbers or isinstance(value, np.ndarray):
        what = "a list of numbers" if numbers else "a NumPy array"
        raise InputError(
            f"argument {name!r} is {what}, and the model takes tensors: convert it, as by torch.tensor(...), or with "
            "return_tensors='pt' of a tokenizer"
        )


def _is_fixed(value: Any) -> bool:
    """Whether an argument holds no tensor, so that a capture fixes it."""
    return not any(hasattr(leaf, "shape") for leaf in pytree.tree_leaves(value))
