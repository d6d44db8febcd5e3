"""What the length of a path counts: blocks, layers, or branches of each stage or type on an axis of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral

from resnet_paths_plugin.engine.keys import Lengths
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.schema import QUANTITIES

IMAGE_DIMS = frozenset({"channel", "height", "width"})

Grade = str | Callable[[ResidualBlock], int | Mapping[str, int]]
"""A name, or a function of a block: how much its branch adds to a path's length, or to its length on each axis."""


@dataclass(frozen=True, slots=True)
class Grading:
    """How the lengths of paths are counted in one study.

    Attributes:
        axes: name of each axis; `("path_length",)` where there is one.
        grades: for each block, what its branch adds to the length on each axis.
    """

    axes: tuple[str, ...]
    grades: tuple[Lengths, ...]


def grading_of(network: UnraveledNetwork, grade: Grade) -> Grading:
    """Return how lengths are counted.

    Args:
        network: the network.
        grade: `"blocks"` (1 each), `"layers"` (the longest chain of weighted operations in the branch),
            `"stages"` or `"branch_type"` (1 each, on an axis for each stage or type), or a function of a block.

    Raises:
        InputError: if the grade is unknown, if a function returns something else than whole numbers from 0, or if
            the name of an axis means something else in a result.
    """
    functions: Mapping[str, Callable[[ResidualBlock], int | Mapping[str, int]]] = {
        "blocks": lambda _: 1,
        "layers": lambda block: block.depth,
        "stages": lambda block: {f"path_length_stage_{block.stage}": 1},
        "branch_type": lambda block: {f"path_length_{block.branch_type}": 1},
    }
    function = functions.get(grade) if isinstance(grade, str) else grade
    if not callable(function):
        raise InputError(
            f"grade must be one of {', '.join(map(repr, functions))} or a function of a block, not {grade!r}"
        )
    given = [function(block) for block in network.blocks]
    named = [{"path_length": value} if not isinstance(value, Mapping) else value for value in given]
    for block, values in zip(network.blocks, named, strict=True):
        for value in values.values():
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 0:
                raise InputError(f"the grade of {block.name!r} is {value!r}: expected a whole number from 0")
    axes = tuple(dict.fromkeys(axis for values in named for axis in values))
    taken = QUANTITIES.keys() - {"path_length"} | IMAGE_DIMS
    for axis in axes:
        if not isinstance(axis, str) or not axis.isidentifier() or axis in taken:
            raise InputError(f"an axis of the grade cannot be named {axis!r}: take a word that no result uses yet")
    return Grading(axes, tuple(tuple(int(values.get(axis, 0)) for axis in axes) for values in named))
