"""Study: several ways to one result that are timed, and the ratios that the table prints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """A line of the table: what is divided by what, of the ways' seconds, and what it can be at best."""

    of: str
    value: Callable[[dict[str, float]], float]
    bound: str


@dataclass(frozen=True)
class Study:
    """Several ways to one result.

    Attributes:
        what: the study, its network and its samples.
        ways: the ways by name; `ours` is among them.
        ratios: the lines of the table.
        check: raises if the ways' results differ.
    """

    what: str
    ways: dict[str, Callable[[], Any]]
    ratios: tuple[Ratio, ...]
    check: Callable[[dict[str, Any]], None] = lambda _: None
