"""What code of the user's is made of: functions with all that they read, and classes. Installed packages are not read.

A package that is installed counts with its name and version; the user's own modules count with what is used of them.
"""

import functools
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

_OWN = "resnet_paths_plugin"
_UNREAD = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "_abc_impl"}
)
"""Names in a class that say nothing of what it does."""


def is_installed(module: str | None) -> bool:
    """Whether a module is Python's or an installed package's, rather than the user's."""
    top = (module or "").partition(".")[0]
    if top in {"", "__main__"}:
        return False
    if top == _OWN or top in sys.stdlib_module_names:
        return True
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None), *getattr(found, "__path__", [])]
    return any(
        folder in Path(place).parents for place in places if isinstance(place, str) for folder in _installed_folders()
    )


def package(module: str | None) -> str:
    """Return the package of a module, with its version where it tells one."""
    top = (module or "").partition(".")[0]
    return f"{top} {getattr(sys.modules.get(top), '__version__', '')}"


def names_read(function: FunctionType) -> dict[str, object]:
    """Return what a function reads by name from its module, and from modules of the user's that it finds there."""
    names = _names(function.__code__)
    return {
        name: part
        for name in names
        if name in function.__globals__
        for name, part in _expanded(name, function.__globals__[name], names, 0)
    }


def closed_over(function: FunctionType) -> dict[str, object]:
    """Return what a function closes over, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    return {name: _content(cell) for name, cell in cells}


def code_of(code: CodeType) -> tuple[object, ...]:
    """Return what a function does, without the lines where it is written."""
    constants = tuple(code_of(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    signature = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    # A handler of exceptions is in a table beside the bytecode.
    handlers = getattr(code, "co_exceptiontable", b"")
    return code.co_code, handlers, code.co_names, code.co_varnames, code.co_freevars, signature, constants


def parts_of_class(kind: type) -> dict[str, object]:
    """Return what a class and its bases define, as far as they are the user's."""
    return {
        f"{one.__qualname__}.{name}": _inside(value)
        for one in kind.__mro__
        if not is_installed(one.__module__)
        for name, value in vars(one).items()
        if name not in _UNREAD
        and not isinstance(value, MemberDescriptorType | GetSetDescriptorType)
        and not (name.startswith("__") and not isinstance(_first(_inside(value)), FunctionType))
    }


def attributes(value: object) -> dict[str, object] | None:
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


def refuses_copies(kind: type) -> bool:
    """Whether a class says itself how it is copied, or that it is not."""
    return any(
        getattr(kind, name, None) is not getattr(object, name, None)
        for name in ("__reduce__", "__reduce_ex__", "__getstate__")
    )


def _inside(value: object) -> object:
    """Return the functions inside a descriptor; anything else as it is."""
    match value:
        case staticmethod() | classmethod():
            return value.__func__
        case property():
            return value.fget, value.fset, value.fdel
        case functools.cached_property():
            return value.func
        case functools.partialmethod():
            return value.func, value.args, value.keywords
        case functools.singledispatchmethod():
            return value.func, dict(value.dispatcher.registry)
    return value


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) and value else value


def _expanded(name: str, value: object, names: list[str], depth: int) -> Iterator[tuple[str, object]]:
    """Yield what a name stands for; of a module of the user's, what has one of the names that the code reads."""
    if not isinstance(value, ModuleType) or is_installed(value.__name__):
        yield name, value
        return
    for inner in names:
        if inner in vars(value) and depth < 4:
            yield from _expanded(f"{name}.{inner}", vars(value)[inner], names, depth + 1)


def _names(code: CodeType) -> list[str]:
    """Return the names of globals and attributes that a function reads, those of functions inside it too."""
    inner = [name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one)]
    return sorted({*code.co_names, *inner})


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return "empty"


@functools.cache
def _installed_folders() -> frozenset[Path]:
    paths: Mapping[str, str] = sysconfig.get_paths()
    named = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in paths]
    return frozenset(map(Path, [*named, *site.getsitepackages(), site.getusersitepackages()]))
