"""Fingerprints of values: what tells two studies' arguments, or two batches of data, apart."""

import hashlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")

_SCALARS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype)
_DEPTH = 8
"""How deep a module's constants may be nested."""


class Unchanging(tuple[T, ...]):  # noqa: SLOT001 - its dictionary keeps what is computed once
    """A tuple whose parts are not changed any more, so that its fingerprint is computed once."""

    @cached_property
    def fingerprint(self) -> str:
        """Return the fingerprint of its parts."""
        return _Reader().digest_of(tuple(self))


def fingerprint(value: object) -> str:
    """Return the SHA-256 of a value's content, the same in every process.

    Tensors and arrays count with dtype, shape and values. Functions count with their name, bytecode, defaults, what
    they close over, and what they read from their module: plain values, and functions of that module. Other objects
    count with their class and attributes, and those that can be called (and those whose methods are given) with the
    code of their class, as far as it is of the same module. An edited function is thus another one, but for what it
    does in other modules and in types.
    """
    return value.fingerprint if isinstance(value, Unchanging) else _Reader().digest_of(value)


@dataclass
class _Reader:
    """Reads a value and all that it is made of.

    Attributes:
        open: identities of the values around the one that is read, to end in a cycle.
        functions: functions that have been read, in their order, as functions of a module name one another freely.
    """

    open: set[int] = field(default_factory=set)
    functions: dict[int, tuple[int, object]] = field(default_factory=dict)

    def digest_of(self, value: object) -> str:
        digest = hashlib.sha256()
        for piece in self._read(value):
            digest.update(piece)
        return digest.hexdigest()

    def _read(self, value: object) -> Iterator[bytes]:  # noqa: PLR0911 - one return for each kind of value
        match value:
            case Tensor():
                yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
                yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                return
            case np.ndarray() if value.dtype.kind != "O":
                yield f"array {value.dtype} {value.shape}".encode()
                yield np.ascontiguousarray(value).tobytes()
                return
            case type():
                yield f"class {value.__module__}.{value.__qualname__};".encode()
                return
            case ModuleType():
                yield f"module {value.__name__};".encode()
                return
        if isinstance(value, _SCALARS):
            yield f"{type(value).__name__} {value!r};".encode()
            return
        if id(value) in self.open:  # a cycle
            yield b"again;"
            return
        if isinstance(value, FunctionType):
            if id(value) in self.functions:
                yield f"function {self.functions[id(value)][0]} again;".encode()
                return
            self.functions[id(value)] = len(self.functions), value
        self.open.add(id(value))
        yield f"{type(value).__module__}.{type(value).__qualname__}(".encode()
        for part in self._parts(value):
            yield from self._read(part)
        self.open.remove(id(value))
        yield b")"

    def _parts(self, value: Any) -> list[object]:  # noqa: C901, PLR0911 - one return for each kind of value
        """Return what a composite value is made of."""
        match value:
            case Mapping():
                return sorted((self._alone(key), self._alone(item)) for key, item in value.items())  # type: ignore[return-value]  # lists are invariant
            case AbstractSet():
                return sorted(self._alone(item) for item in value)  # type: ignore[return-value]  # lists are invariant
            case list() | tuple() | np.ndarray():
                return list(value)
            case partial():
                return [value.func, value.args, value.keywords]
            case FunctionType():
                return _parts_of_function(value)
            case MethodType():
                return [value.__func__, value.__self__, _code_of_class(type(value.__self__))]
            case BuiltinFunctionType():
                return [value.__module__, value.__qualname__, value.__self__]
            case nn.Module():
                kinds = {type(one) for one in value.modules() if type(one).__module__ == type(value).__module__}
                code = [_code_of_class(kind) for kind in sorted(kinds, key=lambda kind: kind.__qualname__)]
                return [repr(value), dict(value.state_dict()), code]
        called = _code_of_class(type(value)) if callable(value) else {}
        if is_dataclass(value):
            return [*((field.name, getattr(value, field.name)) for field in fields(value)), called]
        held = _attributes(value)
        if held is None:  # of a type that is not written in Python
            with suppress(Exception):
                return [value.__reduce_ex__(2)]
        return [getattr(value, "__qualname__", ""), held or {}, called]

    def _alone(self, value: object) -> str:
        """Return the digest of a part whose place among the others has no meaning."""
        return _Reader(self.open, dict(self.functions)).digest_of(value)


def _parts_of_function(function: FunctionType) -> list[object]:
    code = function.__code__
    names = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}
    read = {name: value for name, value in names.items() if _is_followed(value, function.__module__)}
    cells = [_content(cell) for cell in function.__closure__ or ()]
    return [
        function.__module__, function.__qualname__, _code(code), function.__defaults__, function.__kwdefaults__, cells,
        read,
    ]  # fmt: skip


def _is_followed(value: object, module: str) -> bool:
    """Whether what a function reads by its name in a module is part of the function."""
    return value.__module__ == module if isinstance(value, FunctionType) else _is_plain(value)


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value is a number, text or tensor, or a collection of such, as constants of a module are."""
    if isinstance(value, (Tensor, np.ndarray, *_SCALARS)):
        return True
    if depth > _DEPTH:  # perhaps a cycle
        return False
    if type(value) is dict:
        return all(_is_plain(part, depth + 1) for item in value.items() for part in item)
    return type(value) in {tuple, list, set, frozenset} and all(_is_plain(part, depth + 1) for part in value)  # type: ignore[attr-defined]  # of such a type


def _code_of_class(kind: type) -> dict[str, object]:
    """Return the functions and plain values of a class and its bases, as far as they are of its module."""
    found: dict[str, object] = {}
    for one in kind.__mro__:
        if one.__module__ != kind.__module__ or one.__module__ == "builtins":
            continue
        for name, value in vars(one).items():
            part = _function_of(value)
            if isinstance(part, FunctionType) or (not name.startswith("__") and _is_plain(part)):
                found[f"{one.__qualname__}.{name}"] = part
    return found


def _function_of(value: object) -> object:
    """Return the function inside a descriptor; anything else as it is."""
    match value:
        case staticmethod() | classmethod():
            return value.__func__
        case property():
            return value.fget
        case cached_property():
            return value.func
    return value


def _attributes(value: object) -> dict[str, object] | None:
    """Return an object's attributes, those in slots too; None where it can have none."""
    found: dict[str, object] = {}
    slotted = False
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            slotted = True
            private = name.startswith("__") and not name.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{name}" if private else name  # noqa: PLW2901 - as Python stores it
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                found[name] = getattr(value, name)
    if not hasattr(value, "__dict__"):
        return found if slotted else None
    return {**vars(value), **found}


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return "empty"


def _code(code: CodeType) -> tuple[object, ...]:
    """Return what a function does, without the lines where it is written."""
    constants = tuple(_code(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    signature = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    # A handler of exceptions is in a table beside the bytecode.
    handlers = getattr(code, "co_exceptiontable", b"")
    return code.co_code, handlers, code.co_names, code.co_varnames, code.co_freevars, signature, constants


def _names(code: CodeType) -> list[str]:
    """Return the names of globals and attributes that a function reads, those of functions inside it too."""
    inner = [name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one)]
    return sorted({*code.co_names, *inner})
