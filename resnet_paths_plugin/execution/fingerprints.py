"""Fingerprints of values: what tells two studies' arguments, or two batches of data, apart."""

import hashlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import reached_code as reached
from resnet_paths_plugin.execution.view_parts import parts_of_pruned, parts_of_view
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.network.pruning import PrunedNetwork

T = TypeVar("T")

_SCALARS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
_STATELESS = (type(threading.Lock()), type(threading.RLock()), weakref.ref, weakref.WeakKeyDictionary)
"""Kinds of objects that decide nothing: locks, and caches that hold what is alive elsewhere."""
_CONTAINERS = (list, tuple, Mapping, AbstractSet, np.ndarray)


class Unchanging(tuple[T, ...]):  # noqa: SLOT001 - its dictionary keeps what is computed once
    """A tuple whose parts are not changed any more, so that its fingerprint is computed once."""

    @cached_property
    def fingerprint(self) -> str:
        """Return the fingerprint of its parts."""
        return _Reader().digest_of(tuple(self))


def fingerprint(value: object) -> str:
    """Return the SHA-256 of a value's content, the same in every process.

    Tensors and arrays count with dtype, shape and values. Functions count with their name, bytecode, defaults, what
    they close over, and what they read from modules; classes with what they define; objects with their class and
    attributes; modules of torch also with hooks and buffers; unraveled networks with graph and tensors. So it goes on
    to all that they reach in turn. What installed packages define counts with the package's version. What can be called
    and has a `version`, a text or whole number, counts with its name and that instead.

    Raises:
        InputError: something is reached whose content cannot be read, such as a generator or an open file.
    """
    return value.fingerprint if isinstance(value, Unchanging) else _Reader().digest_of(value)


def fingerprints_of_code(value: object) -> dict[str, str]:
    """Return the fingerprint of each function and of each value that functions read, by name, as `fingerprint` does."""
    reader = _Reader(notes={})
    reader.digest_of(value)
    return reader.notes or {}


@dataclass
class _Reader:
    """Reads a value and all that it is made of.

    Attributes:
        open: identities of the containers around the one that is read, to end in a cycle.
        seen: objects, functions and classes that have been read, in their order, as they name one another freely.
        notes: fingerprints of functions and what they read; None where they are not asked for.
    """

    open: set[int] = field(default_factory=set)
    seen: dict[int, tuple[int, object]] = field(default_factory=dict)
    notes: dict[str, str] | None = None

    def digest_of(self, value: object) -> str:
        digest = hashlib.sha256()
        for piece in self._read(value):
            digest.update(piece)
        return digest.hexdigest()

    def _read(self, value: object) -> Iterator[bytes]:
        if (plain := _plain(value)) is not None:
            yield from plain
            return
        if id(value) in self.open:  # a cycle
            yield b"again;"
            return
        if not isinstance(value, _CONTAINERS):
            if id(value) in self.seen:
                yield f"object {self.seen[id(value)][0]} again;".encode()
                return
            self.seen[id(value)] = len(self.seen), value
        self.open.add(id(value))
        yield f"{type(value).__module__}.{type(value).__qualname__}(".encode()
        for part in self._parts(value):
            yield from self._read(part)
        self.open.remove(id(value))
        yield b")"

    def _parts(self, value: Any) -> list[object]:  # noqa: C901, PLR0911, PLR0912 - one for each kind
        """Return what a composite value is made of."""
        match value:
            case Mapping():
                if all(type(key) is str for key in value):
                    return [part for key in sorted(value) for part in (key, value[key])]
                return sorted((self._alone(key), self._alone(item)) for key, item in value.items())  # type: ignore[return-value]  # lists are invariant
            case AbstractSet():
                return sorted(self._alone(item) for item in value)  # type: ignore[return-value]  # lists are invariant
            case list() | tuple() | np.ndarray():
                return list(value)
            case type():
                return [value.__module__, value.__qualname__, reached.parts_of_class(value)]
            case Enum():
                return [type(value), value.name]
            case partial():
                return [value.func, value.args, value.keywords, vars(value)]
            case FunctionType():
                return self._parts_of_function(value)
            case MethodType():
                return [value.__func__, value.__self__]
            case BuiltinFunctionType():
                return [value.__module__, value.__qualname__, value.__self__]
            case torch.jit.ScriptFunction() | torch.jit.ScriptModule():
                return [str(value.graph), dict(getattr(value, "state_dict", dict)())]
            case NetworkView():
                return [type(value), *parts_of_view(value)]
            case PrunedNetwork():
                return [type(value), *parts_of_pruned(value)]
            case nn.Module():
                return [type(value), _parts_of_module(value)]
        wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
        return [type(value), wrapped, *_content(value)]

    def _parts_of_function(self, function: FunctionType) -> list[object]:
        defaults = function.__defaults__, function.__kwdefaults__
        read = {f"{function.__module__}.{name}": value for name, value in reached.names_read(function).items()}
        around = {f"{name} of {function.__qualname__}": value for name, value in reached.closed_over(function).items()}
        code = reached.code_of(function.__code__)
        if self.notes is not None:
            place = f"{function.__module__}.{function.__qualname__}"
            parts = {f"{place}()": code, f"defaults of {place}": defaults, **read, **around}
            self.notes |= {name: self._alone(value) for name, value in parts.items()}
        own = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        return [function.__module__, function.__qualname__, code, defaults, read, around, own]

    def _alone(self, value: object) -> str:
        """Return the digest of a part whose place among the others has no meaning."""
        return _Reader(set(self.open), dict(self.seen)).digest_of(value)


def _plain(value: object) -> list[bytes] | None:
    """Return a value that is made of no others, as bytes; None for others."""
    match value:
        case Tensor():
            dense = value.detach().cpu().contiguous().flatten()
            return [f"tensor {value.dtype} {tuple(value.shape)}".encode(), dense.view(torch.uint8).numpy().tobytes()]
        case np.ndarray() if value.dtype.kind != "O":
            return [f"array {value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).tobytes()]
        case ModuleType():
            return [f"module {reached.package(value.__name__)} {value.__name__};".encode()]
    return _named(value)


def _named(value: object) -> list[bytes] | None:
    """Return a value that counts by its name, or by its notation, as bytes; None for others."""
    notation = None
    version = getattr(value, "version", None) if callable(value) and not isinstance(value, type) else None
    if isinstance(value, _SCALARS):
        notation = f"{type(value).__name__} {value!r};"
    elif isinstance(value, _STATELESS):
        notation = f"{type(value).__qualname__};"
    elif isinstance(value, type | FunctionType) and reached.is_installed(value.__module__):
        notation = f"{reached.package(value.__module__)} {value.__module__}.{value.__qualname__};"
    elif isinstance(version, str | int):
        notation = f"version {version!r} of {getattr(value, '__qualname__', type(value).__qualname__)};"
    return None if notation is None else [notation.encode("utf-8", "surrogatepass")]


def _parts_of_module(module: nn.Module) -> list[object]:
    """Return what a module of torch holds and does: its modules' classes, weights, buffers, hooks and attributes."""
    parts: list[object] = []
    for path, one in module.named_modules():
        held = {
            # Hooks are numbered as they come in a process.
            name: list(value.values()) if "hooks" in name and isinstance(value, Mapping) else value
            for name, value in vars(one).items()
            if name != "_modules"
        }
        parts += [path, type(one), held]
    return parts


def _content(value: Any) -> list[object]:
    """Return what an object holds, as its class says to copy it: its attributes, but for those that are computed once.

    Raises:
        InputError: if that cannot be read.
    """
    kind = type(value)
    if is_dataclass(value) and reached.is_installed(kind.__module__):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    try:
        made = value.__reduce_ex__(2)
    except Exception as error:
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if callable(value) and name and reached.is_installed(getattr(value, "__module__", None)):
            return [reached.package(value.__module__), value.__module__, name]
        held = reached.attributes(value) if reached.refuses_copies(kind) else None
        if held is None:
            raise InputError(
                f"what a {kind.__qualname__} does cannot be compared when a checkpoint is gone on from ({error}): give "
                "what reaches it, such as your measure, a version, a text or number that you change with it "
                "(measure.version = '1')"
            ) from error
        return [_lasting(kind, held)]
    if isinstance(made, str):
        return [made]
    # Iterators show its parts in lists and dicts.
    return [_lasting(kind, part) if place < 3 else list(part or ()) for place, part in enumerate(made[:5])]


def _lasting(kind: type, held: object) -> object:
    """Return attributes without those that are computed when they are first asked for."""
    if not isinstance(held, dict):
        return held
    return {
        name: part for name, part in held.items() if not isinstance(getattr(kind, str(name), None), cached_property)
    }
