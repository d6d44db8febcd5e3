"""Keys of the rows of a bank, and the edges that rows take."""

from dataclasses import dataclass
from typing import Literal

Lengths = tuple[int, ...]
"""A path's length on each axis that is counted; with one axis, `(k,)`."""
Key = Lengths | Literal["tail"]
TAIL: Literal["tail"] = "tail"
"""Key of the row that holds all paths longer than those with rows of their own."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One way back from a sum (or the output): a term, and one node that it is read from.

    Attributes:
        origin: position of the sum; None for the output.
        term: position of the term's value.
        block: block whose branch the term is; None for skip and trunk terms and the output.
        node: position of the node read: a sum, or the tap.
    """

    origin: int | None
    term: int
    block: int | None
    node: int
