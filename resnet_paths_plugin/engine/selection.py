"""Selection: the derivative of taking one place along a dimension, as of queries, keys and values in one tensor.

Gradients at several places of one value are put together once, where each alone would be a whole of zeros but for it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resnet_paths_plugin.engine.banks import Bank, merged, row_index, sorted_keys
from resnet_paths_plugin.engine.calls import Call


class Place(NamedTuple):
    """One place of a value: a dimension, the position along it, and how many there are."""

    dim: int
    at: int
    size: int


class Selection:
    """Carries gradients from what stands at one place to the value that it is taken from; tangents on."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def pull(self, bank: Tensor) -> list[Tensor]:
        """Return the gradients at the one operand, 0 at its other places."""
        return [together({self.place: Bank(tuple((at,) for at in range(bank.shape[0])), bank)}).rows]

    def push(self, banks: Sequence[Tensor | None]) -> Tensor | None:
        """Return the tangents at the value."""
        return None if banks[0] is None else banks[0].select(1 + self.place.dim, self.place.at)


def selection(call: Call) -> Selection:
    """Return the derivative of a call of `select`."""
    source, dim, index = call.args
    size = source.shape[dim]
    return Selection(Place(dim % source.ndim, index % size, size))


def together(parts: Mapping[Place, Bank]) -> Bank:
    """Return the bank of a value whose gradients stand at some places of it; uses theirs up."""
    found = []
    for dim in dict.fromkeys(place.dim for place in parts):
        banks = {place: bank.settled() for place, bank in parts.items() if place.dim == dim}
        found.append(_along(dim, banks))
    return merged(found)


def _along(dim: int, banks: Mapping[Place, Bank]) -> Bank:
    """Return the bank of a value of whose places along one dimension some have gradients.

    What stands at the places of one position lies side by side, as in the products that most such values are.
    """
    keys = sorted_keys({key for bank in banks.values() for key in bank.keys})
    (size,) = {place.size for place in banks}
    some = next(iter(banks.values())).rows
    rest = tuple(some.shape[1:])
    shape = (len(keys), *rest[:-1], size, *rest[-1:])
    all_there = len(banks) == size and all(len(bank.keys) == len(keys) for bank in banks.values())
    room = torch.empty if all_there else torch.zeros
    rows = room(shape, dtype=some.dtype, device=some.device).movedim(max(1, len(rest)), 1 + dim)
    places = {key: at for at, key in enumerate(keys)}
    for place, bank in banks.items():
        rows.select(1 + dim, place.at)[row_index([places[key] for key in bank.keys], rows)] = bank.rows
    return Bank(keys, rows, owned=True)
