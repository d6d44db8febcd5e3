"""What a model's outputs look like, in words, and a line of code that reads them: for what has no built-in measure."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_DENSE_DIMS = 4
"""Of class scores at each position: sample, class, height, width."""


def outputs_of(network: UnraveledNetwork) -> Any:
    """Return the network's outputs as they were captured: tensors without values, the batch a symbol."""
    return network.graph.unflatten([getattr(leaf, "meta", {}).get("val", leaf) for leaf in network.graph.outputs])


def form(outputs: Any, batch: int | None = None) -> str:
    """Return the structure of outputs with its keys and shapes, such as `a dict of 'out': (B, 21, 64, 64)`.

    Args:
        outputs: tensors, in any structure.
        batch: the batch size, where it is a number in the shapes.
    """
    if isinstance(outputs, Tensor):
        sizes = list(outputs.shape)
        first = ["B"] if sizes and (isinstance(sizes[0], torch.SymInt) or sizes[0] == batch) else []
        return f"({', '.join([*first, *(str(size) for size in sizes[len(first) :])])}{',' * (len(sizes) == 1)})"
    if isinstance(outputs, Mapping):
        return f"a dict of {', '.join(f'{key!r}: {form(value, batch)}' for key, value in outputs.items())}"
    if isinstance(outputs, list | tuple):
        forms = [form(value, batch) for value in outputs]
        noun = "list" if isinstance(outputs, list) else "tuple"
        same = len(forms) > 1 and len(set(forms)) == 1
        return f"a {noun} of {f'{len(forms)} times {forms[0]}' if same else ', '.join(forms) or 'nothing'}"
    return f"{type(outputs).__name__}"


def measure_line(outputs: Any) -> str:
    """Return a measure of such outputs and its target, as code: `measures={...}`, and what the target holds."""
    path, tensor = _main(outputs)
    if tensor is None:
        return "measures={'name': function}"
    if tensor.ndim == _DENSE_DIMS and "[-1]" not in path and tensor.is_floating_point():
        return (
            f"measures={{'pixel_accuracy': lambda outputs, target: ({path}.argmax(1) == target).double().flatten(1)"
            ".mean(1)} with the class of each pixel (B, H, W) as the target"
        )
    each = f"({path} - target).abs()"
    rest = ".double().flatten(1).mean(1)" if tensor.ndim > 1 else ".double()"
    return f"measures={{'distance': lambda outputs, target: {each}{rest}}} with a target of the shape of {path}"


def objective_line(outputs: Any) -> str:
    """Return an objective of such outputs, as code: `objective=...`."""
    path, tensor = _main(outputs)
    if tensor is None:
        return "objective=function"
    return f"objective=lambda outputs, target: {path}{'.flatten(1).mean(1)' if tensor.ndim > 1 else ''}"


def _main(outputs: Any, path: str = "outputs") -> tuple[str, Tensor | None]:
    """Return the likely answer and the expression that reads it: the first of a dict, the last of a list."""
    if isinstance(outputs, Tensor):
        return path, outputs if outputs.ndim else None
    if isinstance(outputs, Mapping) and outputs:
        key, value = next(iter(outputs.items()))
        return _main(value, f"{path}[{key!r}]")
    if isinstance(outputs, list | tuple) and outputs:
        return _main(outputs[-1], f"{path}[-1]")
    return path, None
