"""Banks: gradient rows at one value, by key; how they are joined, added and put together, each row written once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import mul
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.convolution import Convolution
from resnet_paths_plugin.engine.keys import Key
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

    def settled_but(self, left: Callable[[Tensor], bool]) -> "Bank":
        """Return the bank with its slopes worked in but for some; uses the bank up."""
        kept = tuple(slope for slope in self.slopes if left(slope))
        others = tuple(slope for slope in self.slopes if not left(slope))
        return replace(replace(self, slopes=others).settled(), slopes=kept)

    def through(self, convolution: Convolution) -> "Bank":
        """Return the bank of a convolution's source; uses the bank up."""
        bank = self.settled_but(convolution.absorbs)
        return Bank(self.keys, convolution.pull_with(bank.rows, bank.slopes), owned=True)

    def take(self, keys: Iterable[Key]) -> "Bank | None":
        """Return the rows that have one of the keys, or None."""
        wanted = set(keys)
        places = [place for place, key in enumerate(self.keys) if key in wanted]
        if not places:
            return None
        return Bank(tuple(self.keys[place] for place in places), self.rows[row_index(places, self.rows)], self.slopes)

    def renamed(self, keys: Sequence[Key | None]) -> "Bank | None":
        """Return the bank under other keys: rows without one are dropped, rows with the same are added.

        It shares its memory with this bank where all rows are kept. None where none is.
        """
        kept = [place for place, key in enumerate(keys) if key is not None]
        if not kept:
            return None
        rows = self.rows if len(kept) == len(keys) else self.rows[row_index(kept, self.rows)]
        found = tuple(key for key in keys if key is not None)
        if len(set(found)) == len(found):
            return Bank(found, rows)
        return merged([Bank((key,), rows[place : place + 1]) for place, key in enumerate(found)])

    def rescaled(self, shifts: list[tuple[tuple[Key, ...], Tensor]]) -> "Bank":
        """Divide small rows by powers of two, which changes no digit of them, and add these to what is collected."""
        shift = rescaling_shift(self.rows.abs().flatten(1).amax(1))
        shifts.append((self.keys, shift))
        return Bank(self.keys, torch.ldexp(self.rows, -shift.view(-1, *[1] * (self.rows.ndim - 1))))


def rescaling_shift(peaks: Tensor) -> Tensor:
    """Return the powers of two to divide rows by, 0 where the largest element of one is not small."""
    return torch.where(peaks < _SMALL, torch.frexp(peaks).exponent, 0)


def merged(banks: Sequence[Bank]) -> Bank:
    """Add banks row by row, each row written once; uses them up."""
    if len(banks) == 1:
        return banks[0]
    keys = sorted_keys({key for bank in banks for key in bank.keys})
    total = next((bank for bank in banks if bank.owned and not bank.slopes and len(bank.keys) == len(keys)), None)
    if total is not None:  # there is room for all rows in the memory of one of them
        for bank in banks:
            if bank is not total:
                _add_to(total, bank.settled())
        return total
    places = [{key: at for at, key in enumerate(bank.keys)} for bank in banks]
    rows = _empty_rows(banks, len(keys))
    holders = [tuple(which for which, place in enumerate(places) if key in place) for key in keys]
    for which, run in groupby(range(len(keys)), key=holders.__getitem__):
        here = list(run)
        parts = []
        for one in which:
            index = row_index([places[one][keys[at]] for at in here], banks[one].rows)
            parts.append((banks[one].rows[index], banks[one].slopes))
        _write_sum(rows[here[0] : here[-1] + 1], parts)
    return Bank(keys, rows, owned=True)


def pieces(banks: Sequence[Bank]) -> list[Bank]:
    """Add banks row by row, but leave apart those that have no row in common, so that these are not copied."""
    found: list[tuple[set[Key], list[Bank]]] = []
    for bank in banks:
        keys = set(bank.keys)
        shared = [group for group in found if not keys.isdisjoint(group[0])]
        found = [group for group in found if group not in shared]
        found.append((keys.union(*(group[0] for group in shared)), [*(b for group in shared for b in group[1]), bank]))
    return [merged(group) for _, group in found]


def _add_to(total: Bank, bank: Bank) -> None:
    """Add rows to those of a bank that has all their keys, in its memory."""
    place = {key: at for at, key in enumerate(total.keys)}
    here = row_index([place[key] for key in bank.keys], total.rows)
    if isinstance(here, slice):
        total.rows[here].add_(bank.rows)
    else:
        total.rows.index_add_(0, here, bank.rows)


def _write_sum(out: Tensor, parts: Sequence[tuple[Tensor, tuple[Tensor, ...]]]) -> None:
    """Write the sum of rows, each with slopes that it is still to be multiplied by, in as few passes as can be."""
    plain = [rows for rows, slopes in parts if not slopes]
    sloped = [(rows, reduce(mul, slopes)) for rows, slopes in parts if slopes]
    if len(plain) > 1:
        torch.add(plain.pop(), plain.pop(), out=out)
    elif plain and sloped:
        torch.addcmul(plain.pop(), *sloped.pop(), out=out)
    elif plain:
        out.copy_(plain.pop())
    else:
        torch.mul(*sloped.pop(), out=out)
    for rows in plain:
        out.add_(rows)
    for rows, slope in sloped:
        out.addcmul_(rows, slope)


def _empty_rows(banks: Sequence[Bank], count: int) -> Tensor:
    """Return room for rows, laid out like those that a convolution has laid out, if there are such, or the first."""
    like = next((bank.rows[0] for bank in banks if laid_out_like_images(bank.rows[0])), banks[0].rows[0])
    one = torch.empty_like(like)
    strides = (one.numel(), *one.stride())
    return torch.empty_strided((count, *one.shape), strides, dtype=like.dtype, device=like.device)


def laid_out_like_images(row: Tensor) -> bool:
    """Whether a row has its channels last in memory."""
    return row.ndim == 4 and not row.is_contiguous() and row.is_contiguous(memory_format=torch.channels_last)


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


def by_part(rows: Any) -> dict[Part, Any]:
    """Return rows of a value by its parts; those of a tensor have the part None."""
    return rows if isinstance(rows, dict) else {None: rows}


def row_index(places: Sequence[int], rows: Tensor) -> Any:
    """Return an index of some rows: a slice where they lie side by side, so that nothing is copied."""
    first, last = places[0], places[-1]
    if list(places) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return sent(places, torch.int64, rows.device)


def sorted_keys(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Sort keys by length, the tail last."""
    return tuple(sorted(keys, key=lambda key: (1, ()) if isinstance(key, str) else (0, key)))
