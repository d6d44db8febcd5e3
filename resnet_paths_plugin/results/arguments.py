"""Arguments of a study as its attributes keep them, and the values that they stand for.

netCDF attributes are text or numbers. All else that is data is JSON text; what is no data is described in words.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX = "argument_"
INT64 = np.iinfo(np.int64)
_LONGEST_LITERAL = 10_000
"""Characters of a literal that is parsed."""
_RANGE = re.compile(r"range\((-?\d+), (-?\d+)(?:, (-?\d+))?\)")


def arguments_of(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the arguments that a study was run with by name, as Python values."""
    return {
        str(name).removeprefix(PREFIX): read_argument(value)
        for name, value in attrs.items()
        if str(name).startswith(PREFIX)
    }


def read_argument(value: Any) -> Any:
    """Return the value that the attribute of an argument stands for.

    Numbers and text are themselves; JSON is None, a flag, a list, a mapping, an integer beyond 64 bits, a quoted text.
    """
    if not isinstance(value, str):
        return value.item() if isinstance(value, np.generic) else value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    is_small = isinstance(found, float) or (is_number and INT64.min <= found <= INT64.max)
    return value if is_small else found  # such numbers are stored as numbers, so this is a text


def read_literal(text: str) -> Any:
    """Return the value that a text in Python's notation stands for, as schema 2 kept arguments; else the text itself.

    Only None, flags, collections and ranges were kept in that way.
    """
    if len(text) > _LONGEST_LITERAL:
        return text
    if found := _RANGE.fullmatch(text):
        return range(*(int(part) for part in found.groups() if part is not None))
    if text == "set()":
        return set()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, bool | list | tuple | set | dict) else text
