"""Attributes of a result: its provenance, and how any value becomes one that netCDF gives back unchanged."""

import json
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from functools import partial, singledispatch
from importlib import metadata

import numpy as np

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.results.arguments import INT64, read_argument
from resnet_paths_plugin.results.schema import SCHEMA_VERSION

PAPER = (
    "Veit, Wilber, Belongie: Residual Networks Behave Like Ensembles of Relatively Shallow Networks, "
    "NIPS 2016, https://arxiv.org/abs/1605.06431"
)

Attribute = str | int | float | np.number
"""What a netCDF attribute gives back exactly as it was: text or one number."""

_LONGEST_TEXT = 10_000
_LONGEST_RANGE = 1_000
"""Numbers that are written one by one."""


def provenance(
    *,
    title: str,
    summary: str,
    analyzer: str,
    model_class: type,
    description: ModelDescription | None,
    weights_digest: str,
    plugins: Sequence[str],
    device: object,
    dtype: object,
    seed: int | None,
    arguments: Mapping[str, object],
) -> dict[str, Attribute]:
    """Return the global attributes of a result: what it is, and everything needed to make it again.

    Args:
        title: the study in a phrase.
        summary: what was done and how to read it, in a few sentences.
        analyzer: name of the analyzer, such as `"BlockLesion"`.
        model_class: class of the model.
        description: what plugins know of the model; None where none knows it.
        weights_digest: digest of parameters and buffers.
        plugins: the plugins that were asked, with their versions.
        device: device that the model ran on.
        dtype: type of the model's parameters.
        seed: seed of every random draw; None where nothing is drawn, and then there is no such attribute.
        arguments: every argument of `attribute` by name; stored as `argument_<name>`.
    """
    identity: dict[str, str] = {}
    if description is not None:
        identity = {
            "model_library": description.library,
            "model_library_version": description.library_version,
            "model_architecture": description.architecture,
        }
    facts: dict[str, object] = {
        **package_facts(title=title, summary=summary, action=f"{analyzer}.attribute"),
        **identity,
        "model_class": _notation(model_class),
        "weights_digest": weights_digest,
        "plugins": ", ".join(plugins) or "none",
        "device": str(device),
        "dtype": str(dtype),
        **({} if seed is None else {"seed": seed}),
        "python_version": platform.python_version(),
        **{f"{name}_version": _version(name) for name in ("torch", "captum", "timm", "torchvision", "xarray")},
        **{f"argument_{name}": argument_attribute(value) for name, value in arguments.items()},
    }
    return {name: netcdf_safe(value) for name, value in facts.items()}


def package_facts(*, title: str, summary: str, action: str) -> dict[str, Attribute]:
    """Return the global attributes that every result has, whatever it is of.

    Args:
        title: what it is, in a phrase.
        summary: what was done and how to read it, in a few sentences.
        action: what made it, such as `"BlockLesion.attribute"`.
    """
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    package = f"resnet_paths_plugin {_version('resnet-paths-plugin')}"
    return {
        # Not CF: its units are those of UDUNITS, which has no nat.
        "Conventions": "ACDD-1.3",
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "summary": summary,
        "source": package,
        "references": PAPER,
        "date_created": created,
        "history": f"{created} {action}, {package}",
    }


def argument_attribute(value: object) -> Attribute:
    """Return an argument as an attribute that `read_argument` gives back: a text that reads as JSON is quoted."""
    safe = netcdf_safe(value)
    is_text = isinstance(value, str | os.PathLike) and isinstance(safe, str)
    return json.dumps(safe, ensure_ascii=False) if is_text and read_argument(safe) != safe else safe


def netcdf_safe(value: object) -> Attribute:
    """Return the value as text or number that a netCDF attribute gives back unchanged.

    Text and numbers stay what they are, paths and dates become text; None, flags, collections, short ranges and
    integers beyond 64 bits become JSON, cut after 10,000 characters. What is no data is described, in a collection too:
    blocks, functions and classes become their names, arrays and tensors their shape and dtype, dataclasses are written
    as Python does. Iterators and loaders are not read.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, date):
        value = value.isoformat()
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, np.number) and fits_netcdf(value.dtype):
        return value
    if isinstance(value, float | np.float16):
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool) and INT64.min <= value <= INT64.max:
        return int(value)
    data = _plain(value)
    text = _storable(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ... ({len(text)} characters in all)"


def _storable(text: str) -> str:
    """Return a text that netCDF keeps: it ends a text at NUL and cannot encode a lone surrogate."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")


def fits_netcdf(dtype: np.dtype[np.generic]) -> bool:
    """Whether netCDF has this type of number."""
    return dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize in (4, 8))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@singledispatch
def _plain(value: object) -> object:
    """Return a value as JSON has it; what is no data as a text that describes it."""
    return _notation(value)


@_plain.register(str | int | float | None)
def _(value: object) -> object:
    return value


@_plain.register
def _(value: np.generic) -> object:
    item = value.item()
    # A longdouble is its own item, and the item of a time in nanoseconds is a bare number.
    return str(value) if isinstance(item, np.generic) or value.dtype.kind in "mM" else _plain(item)


@_plain.register
def _(value: date) -> str:
    return value.isoformat()


@_plain.register
def _(value: os.PathLike) -> object:  # type: ignore[type-arg]  # a class to dispatch on
    return os.fspath(value)


@_plain.register
def _(value: ResidualBlock) -> str:
    return value.name


@_plain.register
def _(value: range) -> object:
    return list(value) if len(value) <= _LONGEST_RANGE else repr(value)


@_plain.register
def _(value: Mapping) -> dict[str, object]:  # type: ignore[type-arg]  # a class to dispatch on
    return {key if isinstance(key, str) else _text(_plain(key)): _plain(item) for key, item in value.items()}


@_plain.register(list | tuple)
def _(value: Collection[object]) -> list[object]:
    return [_plain(item) for item in value]


@_plain.register(set | frozenset)
def _(value: Collection[object]) -> list[object]:
    # Sorted, since the order of a set of text changes from run to run.
    plain = [_plain(item) for item in value]
    numbers = all(isinstance(item, int | float) for item in plain)
    return sorted(plain, key=None if numbers else _text)  # type: ignore[type-var, arg-type]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@singledispatch
def _notation(value: object) -> str:
    """Return a description of a value in one line, in Python's notation; what has none is named by its class."""
    if hasattr(value, "__qualname__"):
        module = getattr(value, "__module__", None)
        return value.__qualname__ if module in {None, "builtins"} else f"{module}.{value.__qualname__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}, dtype {value.dtype}"
    if is_dataclass(value):
        stated = (f"{field.name}={_notation(getattr(value, field.name))}" for field in fields(value) if field.repr)
        return f"{type(value).__qualname__}({', '.join(stated)})"
    text = repr(value)
    # An address or a whole model tells a reader nothing.
    return _notation(type(value)) if " at 0x" in text or "\n" in text else text


_notation.register(str, repr)


@_notation.register
def _(value: ResidualBlock) -> str:
    return repr(value.name)


@_notation.register
def _(value: np.generic) -> str:
    item = value.item()
    # A longdouble is its own item, and the item of a time in nanoseconds is a bare number.
    return repr(str(value)) if isinstance(item, np.generic) or value.dtype.kind in "mM" else _notation(item)


@_notation.register
def _(value: partial) -> str:  # type: ignore[type-arg]  # a class to dispatch on
    given = [
        *map(_notation, value.args),
        *(f"{name}={_notation(item)}" for name, item in value.keywords.items()),
    ]
    return f"partial({', '.join([_notation(value.func), *given])})"


@_notation.register
def _(value: Mapping) -> str:  # type: ignore[type-arg]  # a class to dispatch on
    return "{" + ", ".join(f"{_notation(key)}: {_notation(item)}" for key, item in value.items()) + "}"


@_notation.register(list | tuple | set | frozenset)
def _(value: Collection[object]) -> str:
    items = [_notation(item) for item in value]
    if isinstance(value, list):
        return f"[{', '.join(items)}]"
    if isinstance(value, tuple):
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    # Sorted, since the order of a set of text changes from run to run.
    return f"{{{', '.join(sorted(items))}}}" if items else "set()"
