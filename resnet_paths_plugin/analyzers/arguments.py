"""Checks of the arguments that several analyzers take."""

from collections.abc import Iterator
from numbers import Integral
from typing import TypeVar, cast

from resnet_paths_plugin.argument_sizes import listed_values
from resnet_paths_plugin.errors import InputError

T = TypeVar("T")


def positive(name: str, value: int | None) -> int | None:
    """Return a positive integer or None as it is.

    Raises:
        InputError: for anything else.
    """
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer or None, not {value!r}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """Return True or False as it is.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {value!r}")
    return value


def check_draws(draws: int, seed: int) -> int:
    """Return a number of random draws after checking it and the seed.

    Raises:
        InputError: if the number is no positive integer, or the seed no integer of 0 or more.
    """
    for name, value, least in (("draws", draws, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least else "an integer of at least 0"
            raise InputError(f"{name} must be {kind}, not {value!r}")
    return int(draws)


def read_once(value: T, name: str) -> T:
    """Return what an iterator yields as a list, iterators inside a list likewise, and other values as they are.

    A study is made again where the network is captured again, and an iterator is empty by then.

    Raises:
        InputError: if an iterator yields more than can be run.
    """
    found: object = listed_values(value, name) if isinstance(value, Iterator) else value
    if isinstance(found, list | tuple) and any(isinstance(one, Iterator) for one in found):
        found = [read_once(one, name) for one in found]
    return cast("T", found)
