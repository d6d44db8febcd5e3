"""The call of a view where `torch.compile` reads what calls it: its graph is run, and not compiled once more.

Imported while torch compiles alone, as it imports the compiler.
"""

from typing import Any

import torch
from torch import nn


@torch.compiler.disable(  # type: ignore[no-untyped-call,untyped-decorator]  # torch's
    reason="an unraveled network runs a graph in parts: compile these by unravel(model, ..., optimize=['compile']), "
    "or compile the model itself"
)
def called_eagerly(view: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a view as it is called where nothing is compiled."""
    return view(*args, **options)
