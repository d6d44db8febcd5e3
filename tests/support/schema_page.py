"""Writes resnet_paths_plugin/results/SCHEMA.md from the schema: `python -m tests.support.schema_page`."""

from pathlib import Path

import numpy as np

from resnet_paths_plugin.results import schema

PAGE = Path(__file__).parents[2] / "resnet_paths_plugin" / "results" / "SCHEMA.md"
LONGEST_LINE = 120
ARGUMENTS = """\
A netCDF attribute is a number or a text. Numbers and texts are kept as they are. All other data is JSON: `null`,
`true`, `[1, 2]`, `{"a": [1, null]}`; tuples, sets and ranges are lists, and blocks their names. What is no data, such
as a tensor, a function or a loader, is described by a text. A text that would read as JSON is quoted, one of more than
10,000 characters is cut and says so. `ds.resnet_paths.arguments` has all of them by name as Python values.
"""
HEAD = """\
# What a result holds

Generated from [schema.py](schema.py) by `python -m tests.support.schema_page`; a test compares the two. An analyzer
returns an `xarray.Dataset`; several studies of one model are a `DataTree` with one group each. `rpp.save` and
`rpp.load` keep all of it: dims, dtypes, coordinates, attributes. This is version {version} of the schema, and `load`
reads every earlier one.

Every variable has the attribute `long_name`, and every number `units`; units of `1` are left out below. Norms are
Euclidean. A measure of your own becomes a variable along the study's dim and `sample`, in its own dtype.
"""


def page():
    """Return the text of the page."""
    parts = [HEAD.format(version=schema.SCHEMA_VERSION), "## Studies\n"]
    parts += [_study(name, study) for name, study in schema.STUDIES.items()]
    parts += ["## Variables\n", *(_quantity(name) for name in sorted(schema.QUANTITIES))]
    parts += [
        "\n`intact_NAME` is `NAME` of the intact network. Summaries and comparisons hold the ends of its interval as",
        "`NAME_low` and `NAME_high`; comparisons also its value of each training as `replicate_NAME`.\n",
        "## Global attributes\n",
        "| attribute | meaning |\n|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in schema.ATTRIBUTES.items()),
        "| `argument_NAME` | argument `NAME` of `attribute` |\n",
        ARGUMENTS,
    ]
    return "\n".join(parts)


def _study(name, study):
    rows = [_row(variable, where) for variable, where in study.variables.items()]
    coords = [_row(variable, where) for variable, where in study.coords.items()]
    head = "|---|---|---|---|"
    return "\n".join(
        [
            *(f"### {name}\n", "| variable | dims | dtype | only with |", head, *rows, ""),
            *("| coordinate | dims | dtype | only with |", head, *coords, ""),
        ]
    )


def _row(name, where):
    dims = ", ".join("dims of one input" if dim == "*" else dim for dim in where.dims)
    return f"| `{name}` | {dims or '(one number)'} | {_dtype(name)} | {where.needs} |"


def _dtype(name):
    dtype = np.dtype(schema.QUANTITIES[name.removeprefix("intact_")].dtype)
    return "text" if dtype.kind == "U" else dtype.name


def _quantity(name):
    quantity = schema.QUANTITIES[name]
    units = "" if quantity.units == "1" else f" ({quantity.units})"
    words = f"* `{name}`: {quantity.long_name}{units}".split()
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > LONGEST_LINE:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
