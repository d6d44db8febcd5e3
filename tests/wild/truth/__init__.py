"""How many residual blocks models of other libraries have by their code, and how each is built and run.

Read off each library's code, never off what detection finds; the definition of a block is that of the README ("What
counts as a block"). Each library has a file, imported when it is asked for.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Wild:
    """One model.

    Attributes:
        build: makes the model, with weights drawn from the generator that the caller seeded.
        inputs: makes positional arguments, a batch of 2 or 3.
        blocks: residual branches by the library's code.
        reason: where they are in the code, in a phrase.
        tap: `"first block"` where inputs are integers: path gradients end at the first block's source.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    blocks: int
    reason: str
    tap: str | None = None


def libraries() -> list[str]:
    """Return the names of the libraries, as Python imports them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def models(library: str) -> dict[str, Wild]:
    """Return a library's models by name."""
    found: dict[str, Wild] = import_module(f"{__name__}.{library}").MODELS
    return found
