"""Structure: what a model is made of, cheap to take at every call, so that a later change of it can be named.

It holds no tensors and no modules, and compares no weights: a network reads these from the model each time it runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from resnet_paths_plugin.process_lock import alone

_HOOKS: Mapping[str, str] = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
_PLAIN = (bool, int, float, complex, str, type(None))
_MOST_NAMED = 4
"""Changes that a message names."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one module is: its identity and class, its tensors, its hooks, and its plain attributes."""

    identity: int
    kind: type
    forward: int
    tensors: Mapping[str, tuple[Any, ...] | None]
    hooks: tuple[tuple[int, ...], ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Structure:
    """What a model is made of at one time.

    Attributes:
        parts: its modules by name.
    """

    parts: Mapping[str, _Part]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Return the structure that a model has now."""
        with alone():  # a capture of it elsewhere changes it for a while
            return cls({name: _part(module) for name, module in model.named_modules()})

    def changes_since(self, before: "Structure") -> list[str]:
        """Return in words what is other than before, the first few of it; nothing where all is alike."""
        if self == before:
            return []
        found: list[str] = []
        for change in _changes(before.parts, self.parts):
            if len(found) == _MOST_NAMED:
                return [*found, "..."]
            found.append(change)
        return found


def _part(module: nn.Module) -> _Part:
    state = vars(module)
    kind: Any = type(module)  # a class, hashable whatever torch says of it
    forward = state.get("forward") or _declared_forward(kind)
    tensors = {name: _form(tensor) for held in (module._parameters, module._buffers) for name, tensor in held.items()}  # noqa: SLF001 - torch's registries
    settings = {
        name: value
        for name, value in state.items()
        if isinstance(value, _PLAIN) and name not in {"training", "_is_full_backward_hook"}
    }
    hooks = tuple(tuple(state.get(name) or ()) for name in _HOOKS)
    return _Part(id(module), type(module), id(forward), tensors, hooks, settings)


@cache
def _declared_forward(kind: Any) -> Any:
    """Return the `forward` of a class, as it stands there: that of a traced module cannot be asked for."""
    return next((vars(one)["forward"] for one in kind.__mro__ if "forward" in vars(one)), None)


def _form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    hooks = tensor._backward_hooks  # noqa: SLF001 - it has no other name
    return tensor.shape, tensor.dtype, tensor.device, tuple(hooks or ())


def _changes(before: Mapping[str, _Part], now: Mapping[str, _Part]) -> Iterator[str]:
    """Yield in words how the parts differ, the outermost modules first."""
    replaced: list[str] = []
    for name, part in now.items():
        if any(name.startswith(f"{outer}.") for outer in replaced):
            continue
        was = before.get(name)
        if was is None:
            replaced.append(name)
            yield f"module {name!r} ({part.kind.__name__}) is new"
        elif part.identity != was.identity:
            replaced.append(name)
            yield f"module {name!r} was replaced ({was.kind.__name__} by {part.kind.__name__})"
        elif part != was:
            yield from _changes_of(name, was, part)
    yield from (f"module {name!r} is gone" for name in before if name not in now)


def _changes_of(name: str, was: _Part, now: _Part) -> Iterator[str]:
    """Yield in words what is other about a module that is still the same object."""
    owner, inside = (f"module {name!r}", f"{name}.") if name else ("the model", "")
    if now.kind is not was.kind:
        yield f"{owner} has become a {now.kind.__name__}, as a parametrization makes it"
    if now.forward != was.forward:
        yield f"the 'forward' of {owner} was replaced"
    for tensor in {**was.tensors, **now.tensors}:
        yield from _changes_of_tensor(f"{inside}{tensor}", tensor, was, now)
    for hook, old, new in zip(_HOOKS.values(), was.hooks, now.hooks, strict=True):
        if old != new:
            yield f"a {hook} of {owner} was {'added' if {*new} - {*old} else 'removed'}"
    for setting in {**was.settings, **now.settings}:
        old, new = was.settings.get(setting, "unset"), now.settings.get(setting, "unset")
        if old != new:
            yield f"{inside}{setting} was {old!r} and is {new!r}"


def _changes_of_tensor(path: str, name: str, was: _Part, now: _Part) -> Iterator[str]:
    if name not in was.tensors:
        yield f"tensor {path!r} is new"
    elif name not in now.tensors:
        yield f"tensor {path!r} is gone, as pruning and parametrizations take it away"
    elif (new := now.tensors[name]) != (old := was.tensors[name]):
        if old is None or new is None:
            yield f"tensor {path!r} {'was' if old is None else 'is now'} None"
        elif old[:-1] == new[:-1]:
            yield f"tensor {path!r} has other hooks"
        else:
            was_form, now_form = (f"{tuple(form[0])}, {form[1]} on {form[2]}" for form in (old, new))
            yield f"tensor {path!r} was {was_form} and is {now_form}"
