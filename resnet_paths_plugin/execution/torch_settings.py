"""Settings of torch that decide how numbers are rounded: a worker takes them over from the caller."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from resnet_paths_plugin.execution.checkpoint import Facts

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""Types of devices that numbers may be cast on."""


def _flag(module: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    def get() -> Any:
        try:
            return getattr(module, name)
        except RuntimeError:  # where torch's older and newer ways of setting it have been mixed, it cannot be asked for
            return "not known"

    def put(value: Any) -> None:
        if value != "not known":
            setattr(module, name, value)

    return get, put


# In the order in which they are set: the precision of products sets the use of TF32 too.
_PROCESS_WIDE: Mapping[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic debug mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "mkldnn enabled": _flag(torch.backends.mkldnn, "enabled"),
    "cudnn enabled": _flag(torch.backends.cudnn, "enabled"),
    "cudnn allow_tf32": _flag(torch.backends.cudnn, "allow_tf32"),
    "cudnn deterministic": _flag(torch.backends.cudnn, "deterministic"),
    "cudnn benchmark": _flag(torch.backends.cudnn, "benchmark"),
    "cuda matmul allow_tf32": _flag(torch.backends.cuda.matmul, "allow_tf32"),
}


@dataclass(frozen=True)
class Settings:
    """Settings of torch that decide how numbers are rounded.

    Attributes:
        threads: number of threads that an operator uses; each thread that runs operators has its own.
        autocast: dtype that each type of device casts to, None where it does not; each thread has its own.
        process_wide: values of what all threads of a process share, in the order of `_PROCESS_WIDE`.
    """

    threads: int
    autocast: tuple[torch.dtype | None, ...]
    process_wide: tuple[Any, ...]

    @classmethod
    def here(cls) -> "Settings":
        """Return the settings of this thread."""
        return cls(torch.get_num_threads(), tuple(_cast_to(kind) for kind in _AUTOCAST), _process_wide())

    def facts(self) -> Facts:
        """Return the settings by name, for people to read."""
        shared = zip(_PROCESS_WIDE, self.process_wide, strict=True)
        cast = {f"autocast of {kind}": str(dtype) for kind, dtype in zip(_AUTOCAST, self.autocast, strict=True)}
        return {"number of torch threads": self.threads, **cast, **{name: str(value) for name, value in shared}}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold these settings for a while, beside other threads that hold the same."""
        before = torch.get_num_threads()
        with _SHARED.held(self.process_wide), ExitStack() as stack:
            for kind, dtype in zip(_AUTOCAST, self.autocast, strict=True):
                if dtype != _cast_to(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled=dtype is not None))
            try:
                if self.threads != before:
                    torch.set_num_threads(self.threads)
                yield
            finally:
                if self.threads != before:
                    torch.set_num_threads(before)


@dataclass(eq=False)
class _Shared:
    """Who holds the settings that all threads of this process share: any number of threads, if they want the same.

    The first sets them and the last puts back what was before; who wants others waits until then.
    """

    left: threading.Condition = field(default_factory=threading.Condition)
    holders: int = 0
    wanted: tuple[Any, ...] = ()
    before: tuple[Any, ...] = ()

    @contextmanager
    def held(self, wanted: tuple[Any, ...]) -> Iterator[None]:
        with self.left:
            while self.holders and self.wanted != wanted:
                self.left.wait()
            if not self.holders:
                self.wanted, self.before = wanted, _process_wide()
                _set(wanted, self.before)
            self.holders += 1
        try:
            yield
        finally:
            with self.left:
                self.holders -= 1
                if not self.holders:
                    _set(self.before, self.wanted)
                    self.left.notify_all()


_SHARED = _Shared()
if hasattr(os, "register_at_fork"):  # not on Windows
    # The threads that hold them are not there in a fork.
    os.register_at_fork(after_in_child=_SHARED.__init__)  # type: ignore[misc]  # made anew on purpose


def _process_wide() -> tuple[Any, ...]:
    return tuple(get() for get, _ in _PROCESS_WIDE.values())


def _set(wanted: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Set what differs from other settings."""
    if wanted == other:
        return
    for (get, put), value in zip(_PROCESS_WIDE.values(), wanted, strict=True):
        if get() != value:
            put(value)


def _cast_to(kind: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
