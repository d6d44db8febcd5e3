"""ChosenLengths: which path lengths a restricted view keeps, and the rows that a walk needs for them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.keys import TAIL, Key
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.errors import InputError


class ChosenLengths:
    """Path lengths, in blocks, of a network that has paths of these lengths.

    Rows stand for single lengths up to the longest one that is chosen; where all longer ones are, too, they share one.

    Attributes:
        lengths: the lengths, in ascending order.
        everything: whether they are those of all paths.
        routing: walks the rows that are needed.
        whole: the same with the paths that it drops, in one row: all of its rows are the ordinary gradient.
        keys: keys of the rows whose paths are chosen.

    Args:
        name: of the network, for messages.
        n_blocks: how many blocks it has.
        lengths: the lengths that were asked for.
        known: the lengths that paths have.

    Raises:
        InputError: if a length is none of these, or none is given.
    """

    def __init__(self, name: str, n_blocks: int, lengths: Sequence[object], known: Sequence[int]) -> None:
        strange = [length for length in lengths if not _is_length(length, known)]
        if strange or not lengths:
            raise InputError(
                f"{name} has paths of length {known[0]} to {known[-1]}, "
                f"and {f'none of length {strange}' if strange else 'no length was given'}"
            )
        chosen = {length for length in known if length in lengths}
        self.lengths = tuple(sorted(chosen))
        left_out = [length for length in known if length not in chosen]
        self.everything = not left_out
        last = self.lengths[-1]
        if self.everything:
            self.routing = self.whole = ByLength([(0,)] * n_blocks)
            self.keys: frozenset[Key] = frozenset({(0,)})
            return
        if last == known[-1]:  # all that are longer than the last one left out share a row
            self.routing = self.whole = ByLength([(1,)] * n_blocks, (left_out[-1],), tail=True)
            self.keys = frozenset({TAIL, *((length,) for length in self.lengths if length < left_out[-1])})
            return
        self.routing = ByLength([(1,)] * n_blocks, (last,), tail=False)
        self.whole = ByLength([(1,)] * n_blocks, (last,), tail=True)
        self.keys = frozenset((length,) for length in self.lengths)

    @property
    def all_keys(self) -> frozenset[Key]:
        """Keys of all rows of the walk with the paths of all lengths."""
        limits = self.whole.limits or (0,)
        return frozenset({TAIL, *((length,) for length in range(limits[0] + 1))})

    def total(self, bank: Bank, like: Tensor) -> Tensor:
        """Return the gradient along the chosen paths: zeros where a bank has none of them."""
        chosen = bank.take(self.keys)
        return torch.zeros_like(like) if chosen is None else chosen.rows.sum(0)

    def __str__(self) -> str:
        return ", ".join(_ranges(self.lengths))


def _is_length(length: object, known: Sequence[int]) -> bool:
    """Whether a path has this length."""
    return isinstance(length, int | np.integer) and not isinstance(length, bool) and int(length) in known


def _ranges(lengths: Iterable[int]) -> list[str]:
    """Write `0, 1, 2, 5` as `0-2` and `5`."""
    parts: list[list[int]] = []
    for length in lengths:
        if parts and length == parts[-1][-1] + 1:
            parts[-1].append(length)
        else:
            parts.append([length])
    return [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]
