"""How much an argument may ask for: a number of any size is refused in words, before memory or time is spent on it."""

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

from resnet_paths_plugin.errors import InputError

T = TypeVar("T")

MOST = 1_000_000
"""Blocks, lengths, schedules or draws that one argument names, or that one study runs."""


def listed_values(values: Iterable[T], what: str) -> list[T]:
    """Return values as a list, such as those of a `range`.

    Raises:
        InputError: if there are more than `MOST`.
    """
    found = list(islice(values, MOST + 1))
    if len(found) > MOST:
        raise InputError(f"{what} holds more than {MOST:,} values: give fewer")
    return found


def check_count(count: int, what: str) -> None:
    """Check how many things an argument asks for.

    Raises:
        InputError: if they are more than `MOST`.
    """
    if count > MOST:
        raise InputError(f"{what}: at most {MOST:,} are possible, not {shown(count)}")


def shown(number: int) -> str:
    """Return a number for a message; of one that Python does not print, how large it is."""
    return f"{number:,}" if abs(number) < 10**30 else f"about 2^{number.bit_length() - 1}"
