"""The table of the families: read, and written whole or not at all."""

import csv
from dataclasses import asdict, fields
from pathlib import Path

from zoo.models import Subject
from zoo.real.choice import Recipe
from zoo.real.examine import Line

PATH = Path(__file__).parents[1] / "real.csv"
_PARSED = {int: int, float: float, bool: "True".__eq__, str: str}


def read(path=PATH):
    """Return the lines of a table by library and family; of none if there is no such file."""
    if not path.exists():
        return {}
    kinds = {field.name: _PARSED[field.type] for field in fields(Line)}
    with path.open(newline="", encoding="utf-8") as file:
        lines = [Line(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]
    return {(line.library, line.family): line for line in lines}


def write(lines, path=PATH):
    """Write a table, sorted."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(lines[key]) for key in sorted(lines))
    temporary.replace(path)


def recipe(line):
    """Return how the model of a line is built and what it is given."""
    shape = tuple(int(size) for size in line.input.split("x"))
    return Recipe(Subject(line.library, line.model), shape, line.sized_by)
