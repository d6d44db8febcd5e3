"""Batch items: what an iterable yields as one batch, and what stands for a batch by itself."""

from collections.abc import Mapping, Sized
from typing import Any

from torch import Tensor

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.keywords import is_call

_KEYS = {"inputs", "target"}


def all_tensors(values: tuple[Any, ...]) -> bool:
    """Whether these are tensors, one or more."""
    return bool(values) and all(isinstance(value, Tensor) for value in values)


def is_one_batch(inputs: Any) -> bool:
    """Whether these are the inputs of one batch: a tensor, a tuple of tensors, a dict, or `(args, kwargs)`."""
    if isinstance(inputs, tuple):
        return all_tensors(inputs) or is_call(inputs)
    return isinstance(inputs, Tensor | Mapping)


def inputs_and_target(item: Any, selector: Any = None) -> tuple[Any, Any]:
    """Return the inputs and the target of one batch of an iterable; the target is None where it has none.

    A dict is the model's arguments by name, but for one of `inputs` and `target`.

    Args:
        item: the batch.
        selector: which part of it is the target: a key of the dict, which is no argument of the model then, or a
            function of the batch; None for the second of a pair.

    Raises:
        InputError: if it is no batch, or a dict without the key.
    """
    if callable(selector):
        return (item if isinstance(item, Tensor | Mapping) else _inputs(item)), selector(item)
    if selector is not None and not isinstance(item, Mapping):
        raise InputError(
            f"target={selector!r} names a key of batches that are dicts, and a batch is a {type(item).__name__}: leave "
            "target out where batches are (inputs, target), or pass a function of the batch"
        )
    if isinstance(item, Mapping):
        return _of_dict(item, selector)
    if isinstance(item, list | tuple) and len(item) == 2:
        return _inputs(item), item[1]
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, list | tuple) and len(item) == 1:
        return item[0], None
    form = f"a {type(item).__name__} of {len(item)}" if isinstance(item, Sized) else repr(item)
    raise InputError(
        f"a batch must be (inputs, target), a dict of arguments by name, or a tensor, not {form}: map each batch to "
        "that, such as ((x, y) for x, y, _ in loader)"
    )


def _of_dict(item: Mapping[str, Any], selector: str | None) -> tuple[Any, Any]:
    if selector is None and "inputs" in item and set(item) <= _KEYS:
        return inputs_and_target((item["inputs"], item.get("target")))
    if selector is None:
        return dict(item), None
    if selector not in item:
        raise InputError(
            f"target={selector!r} is no key of the batch, which has {', '.join(map(repr, item)) or 'none'}"
        )
    return {name: value for name, value in item.items() if name != selector}, item[selector]


def _inputs(item: Any) -> Any:
    """Return the inputs of a batch that is a sequence: the first of it; several in a list become a tuple."""
    if not isinstance(item, list | tuple) or not item:
        raise InputError(f"a batch must be (inputs, target), a dict of arguments by name, or a tensor, not {item!r}")
    return tuple(item[0]) if isinstance(item[0], list) else item[0]
