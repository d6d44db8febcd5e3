"""Text for people: names that come from a model or a file are shown, and never obeyed as control characters."""

import re
import unicodedata

_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_MARKS = frozenset({"\u061c", "\u200e", "\u200f"})
"""Marks of direction that count as letters of a script."""
_UNSEEN = re.compile(r"[^ -~\n]")


def visible(text: object) -> str:
    r"""Return a text with what would steer a terminal or a page written out, such as `\x1b` for escape.

    These are control characters but for line breaks, marks that turn the direction of writing, and halves of surrogate
    pairs, as which Python reads file names that are no text.
    """
    return _UNSEEN.sub(_written_out, str(text))


def _written_out(found: re.Match[str]) -> str:
    character = found[0]
    steers = (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(character) in _DIRECTIONS
        or character in _MARKS
    )
    return character.encode("unicode_escape").decode("ascii") if steers else character
