"""Banks: gradient rows at one value, by key; how they are joined, added and put together, each row written once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import mul
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.convolution import Convolution
from resnet_paths_plugin.engine.routes import Key
from resnet_paths_plugin.engine.transfer import sent

Part = int | None
"""Place in a value that is a list or tuple; None for a value that is a tensor."""

_SMALL = 1e-6
"""Largest element of a row below which the row is rescaled, where a routing asks for it."""


@dataclass(frozen=True, eq=False, slots=True)
class Bank:
    """Gradient rows at one value.

    Attributes:
        keys: what each row stands for; no key twice.
        rows: the rows, shape `[R, *value]`.
        slopes: what all rows are still to be multiplied by, each of shape `[*value]` or one that broadcasts to it:
            operators that treat each element alone follow each other, and rows are multiplied as late as can be.
        owned: whether nothing else reads the rows' memory, so that whoever uses the bank up may write there.
    """

    keys: tuple[Key, ...]
    rows: Tensor
    slopes: tuple[Tensor, ...] = ()
    owned: bool = False

    def settled(self) -> "Bank":
        """Return the bank with its slopes worked in; uses the bank up."""
        if not self.slopes:
            return self
        slope = reduce(mul, self.slopes)
        rows = self.rows.mul_(slope) if self.owned else self.rows * slope
        return Bank(self.keys, rows, owned=True)

    def sloped(self, slope: Tensor) -> "Bank":
        """Return the bank behind one more operator that treats each element alone; uses the bank up."""
        return replace(self, slopes=(*self.slopes, slope))

    def through(self, convolution: Convolution) -> "Bank":
        """Return the bank of a convolution's source; uses the bank up."""
        factors = tuple(slope for slope in self.slopes if convolution.absorbs(slope))
        others = tuple(slope for slope in self.slopes if not convolution.absorbs(slope))
        rows = replace(self, slopes=others).settled().rows
        return Bank(self.keys, convolution.pull(rows, factors), owned=True)

    def take(self, keys: Iterable[Key]) -> "Bank | None":
        """Return the rows that have one of the keys, or None."""
        wanted = set(keys)
        places = [place for place, key in enumerate(self.keys) if key in wanted]
        if not places:
            return None
        return Bank(tuple(self.keys[place] for place in places), self.rows[row_index(places, self.rows)], self.slopes)

    def rescaled(self, shifts: list[tuple[tuple[Key, ...], Tensor]]) -> "Bank":
        """Divide small rows by powers of two, which changes no digit of them, and add these to what is collected."""
        peaks = self.rows.abs().flatten(1).amax(1)
        shift = torch.where(peaks < _SMALL, torch.frexp(peaks).exponent, 0)
        shifts.append((self.keys, shift))
        return Bank(self.keys, torch.ldexp(self.rows, -shift.view(-1, *[1] * (self.rows.ndim - 1))))


class Assembly:
    """A bank that is found a part at a time: each part's slopes are worked in on the way to its place.

    Args:
        keys: the keys that may be found, sorted.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._place = {key: at for at, key in enumerate(keys)}
        self._found: list[Key] = []
        self._rows: Tensor | None = None

    def add(self, bank: Bank) -> None:
        """Add rows with keys that were not found yet."""
        if self._rows is None:
            self._rows = _empty_rows(bank.rows, len(self._place))
        here = row_index([self._place[key] for key in bank.keys], self._rows)
        if bank.slopes and isinstance(here, slice):
            torch.mul(bank.rows, reduce(mul, bank.slopes), out=self._rows[here])
        else:
            self._rows[here] = bank.settled().rows
        self._found.extend(bank.keys)

    def bank(self) -> Bank:
        """Return all that was found."""
        keys = sorted_keys(self._found)
        assert self._rows is not None  # noqa: S101 - made where a first part was found
        if len(keys) == len(self._place):
            return Bank(keys, self._rows, owned=True)
        return Bank(keys, self._rows[row_index([self._place[key] for key in keys], self._rows)], owned=True)


def merged(banks: Sequence[Bank]) -> Bank:
    """Add banks row by row; uses them up."""
    if len(banks) > 1 and sum(len(bank.keys) for bank in banks) == len({key for bank in banks for key in bank.keys}):
        assembly = Assembly(sorted_keys(key for bank in banks for key in bank.keys))
        for bank in banks:
            assembly.add(bank)
        return assembly.bank()
    return reduce(_sum, banks)


def _sum(one: Bank, other: Bank) -> Bank:
    """Add two banks, in the memory of one that has all rows and is owned, or else in new memory, each row once."""
    one, other = one.settled(), other.settled()
    in_one, in_other = ({key: at for at, key in enumerate(bank.keys)} for bank in (one, other))
    for total, known, added in ((one, in_one, other), (other, in_other, one)):
        if total.owned and in_one.keys() | in_other.keys() == known.keys():
            here = row_index([known[key] for key in added.keys], total.rows)
            if isinstance(here, slice):
                total.rows[here] += added.rows
            else:
                total.rows.index_add_(0, here, added.rows)
            return total
    keys = sorted_keys({*one.keys, *other.keys})
    rows = _empty_rows(one.rows, len(keys))
    runs = groupby(enumerate(keys), key=lambda item: (item[1] in in_one, item[1] in in_other))
    for (first, second), run in runs:
        places = list(run)
        here = slice(places[0][0], places[-1][0] + 1)
        parts = [
            bank.rows[row_index([known[key] for _, key in places], bank.rows)]
            for bank, known, has in ((one, in_one, first), (other, in_other, second))
            if has
        ]
        if len(parts) == 1:
            rows[here] = parts[0]
        else:
            torch.add(*parts, out=rows[here])
    return Bank(keys, rows, owned=True)


def _empty_rows(like: Tensor, count: int) -> Tensor:
    """Return room for rows in the layout of other rows."""
    one = torch.empty_like(like[0])
    strides = (one.numel(), *one.stride())
    return torch.empty_strided((count, *one.shape), strides, dtype=like.dtype, device=like.device)


def aligned(parts: Mapping[Part, Bank]) -> tuple[tuple[Key, ...], Any]:
    """Return the rows of a value, or of its parts with the same keys, zeros where a part has no such row."""
    if None in parts:
        return parts[None].keys, parts[None].settled().rows
    keys = sorted_keys({key for bank in parts.values() for key in bank.keys})
    rows: dict[Part, Tensor] = {}
    for part, bank in ((part, bank.settled()) for part, bank in parts.items()):
        rows[part] = bank.rows
        if bank.keys != keys:
            rows[part] = bank.rows.new_zeros((len(keys), *bank.rows.shape[1:]))
            rows[part][row_index([keys.index(key) for key in bank.keys], bank.rows)] = bank.rows
    return keys, rows


def row_index(places: Sequence[int], rows: Tensor) -> Any:
    """Return an index of some rows: a slice where they lie side by side, so that nothing is copied."""
    first, last = places[0], places[-1]
    if list(places) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return sent(places, torch.int64, rows.device)


def sorted_keys(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Sort keys by length, the tail last."""
    return tuple(sorted(keys, key=lambda key: (1, ()) if isinstance(key, str) else (0, key)))
