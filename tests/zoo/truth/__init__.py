"""How many residual blocks a model has by its own code: for every class that adds, how many blocks an instance makes.

Read off each class's `forward` (and its paper), never off what detection finds; the definition of a block is that of
the README ("What counts as a block").
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

PARTS = ("timm_b_to_f", "timm_g_to_p", "timm_r_to_z", "torchvision")


@dataclass(frozen=True, slots=True)
class Rule:
    """What one instance of a class contributes.

    Attributes:
        blocks: residual blocks of its own sums (not of the modules that it holds); a number, or a function of the
            instance.
        reason: why, in a phrase.
    """

    blocks: int | Callable[[Any], int]
    reason: str


def rule_of(kind):
    """Return the rule of a class, or of the class that it inherits its `forward` from; None if there is none."""
    for base in kind.__mro__:
        rule = _rules().get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            return rule
        if "forward" in vars(base):
            return None
    return None


def expected(model):
    """Return the number of residual blocks that a model's classes declare."""
    total = 0
    for module in model.modules():
        rule = rule_of(type(module))
        if rule is not None:
            total += rule.blocks(module) if callable(rule.blocks) else rule.blocks
    return total


@cache
def _rules():
    found: dict[str, Rule] = {}
    for name in PARTS:
        rules = import_module(f"{__name__}.{name}").RULES
        twice = found.keys() & rules.keys()
        if twice:
            raise ValueError(f"two rules for {sorted(twice)}")
        found |= rules
    return found
