"""Fingerprints of values: what tells two studies' arguments, or two batches of data, apart."""

import hashlib
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint(value: object) -> str:
    """Return the SHA-256 of a value's content, the same in every process.

    Tensors and arrays count with dtype, shape and values; functions with their name, bytecode, defaults and what
    they close over, so that an edited function is another one; other objects with their class and attributes.
    """
    digest = hashlib.sha256()
    _feed(digest.update, value, set())
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: object, open_: set[int]) -> None:
    match value:
        case Tensor():
            update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            return
        case np.ndarray() if value.dtype.kind != "O":
            update(f"array {value.dtype} {value.shape}".encode())
            update(np.ascontiguousarray(value).tobytes())
            return
        case None | bool() | int() | float() | complex() | str() | bytes() | np.generic() | torch.dtype():
            update(f"{type(value).__name__} {value!r};".encode())
            return
        case type():
            update(f"class {value.__module__}.{value.__qualname__};".encode())
            return
    if id(value) in open_:  # a cycle
        update(b"again;")
        return
    inner = open_ | {id(value)}
    update(f"{type(value).__module__}.{type(value).__qualname__}(".encode())
    for part in _parts(value):
        _feed(update, part, inner)
    update(b")")


def _parts(value: Any) -> list[object]:  # noqa: PLR0911 - one return for each kind of value
    """Return what a composite value is made of."""
    match value:
        case Mapping():
            return sorted((fingerprint(key), fingerprint(item)) for key, item in value.items())  # type: ignore[return-value]
        case AbstractSet():
            return sorted(fingerprint(item) for item in value)  # type: ignore[return-value]
        case list() | tuple() | np.ndarray():
            return list(value)
        case partial():
            return [value.func, value.args, value.keywords]
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [value.__module__, value.__qualname__, _code(value.__code__), value.__defaults__, cells]
        case nn.Module():
            return [repr(value), dict(value.state_dict())]
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return [getattr(value, "__qualname__", ""), getattr(value, "__self__", None), getattr(value, "__dict__", {})]


def _code(code: CodeType) -> tuple[object, ...]:
    """Return what a function does, without the lines where it is written."""
    constants = tuple(_code(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants
