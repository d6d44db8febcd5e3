"""What a capture changes of the whole process and puts back: generators, output streams, a flag of torch."""

import io
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from resnet_paths_plugin.process_lock import uninterrupted

AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")
"""Device types that autocast is asked of."""


@dataclass(frozen=True, eq=False)
class _States:
    """States of the generators of torch, Python and numpy that a model may draw from."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> "_States":
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]  # torch's
        cuda = tuple(torch.cuda.get_rng_state(device) for device in devices)
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)  # noqa: NPY002 - the global one is what a model draws from

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - as above
        torch.set_rng_state(self.cpu)
        for device, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, device)


class _Keepers:
    """Threads that keep the generators at present, and the states before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: Counter[int] = Counter()
        self.first: _States | None = None


_KEEPERS = _Keepers()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_KEEPERS.__init__)  # type: ignore[misc]  # made anew: a fork has none of them


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the generators of torch, Python and numpy, which a model may draw from, as they were.

    Where several threads keep them, the last one to leave puts back what was before all of them.
    """
    here = threading.get_ident()
    with uninterrupted(), _KEEPERS.lock:
        before = _States.now()
        if not _KEEPERS.threads:
            _KEEPERS.first = before
        _KEEPERS.threads[here] += 1
    try:
        yield
    finally:
        with uninterrupted(), _KEEPERS.lock:
            _KEEPERS.threads[here] -= 1
            _KEEPERS.threads += Counter()  # drops those that are done
            if not _KEEPERS.threads and _KEEPERS.first is not None:
                before, _KEEPERS.first = _KEEPERS.first, None
            before.restore()


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch off the fused inference path of nn.MultiheadAttention, which has no gradient; within `alone`."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=enabled)


@contextmanager
def kept_autocast() -> Iterator[None]:
    """Leave this thread's autocast as it was, also where an error left some open that a graph had entered."""
    before = {device: _autocast_of(device) for device in AUTOCAST_DEVICES}
    keeps, depth = torch.is_autocast_cache_enabled(), _autocast_depth()
    try:
        yield
    finally:
        for device, was in before.items():
            if _autocast_of(device) != was:
                torch.set_autocast_enabled(device, was[0])
                torch.set_autocast_dtype(device, was[1])
        torch.set_autocast_cache_enabled(keeps)
        for _ in range(_autocast_depth() - depth):
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()


def autocast_now() -> dict[str, torch.dtype]:
    """Return the dtype of this thread's autocast for each device type for which it is on."""
    return {
        device: torch.get_autocast_dtype(device) for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)
    }


@contextmanager
def autocast_as(asked: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Run under the autocast that another time or thread had, or under none.

    Values that are cast are not kept: those made without gradients would serve calls with gradients, too.

    Args:
        asked: the dtype for each device type for which it is on; it is off for all others.
    """
    with ExitStack() as stack:
        for device in AUTOCAST_DEVICES:
            if device in asked:
                stack.enter_context(torch.autocast(device, dtype=asked[device], cache_enabled=False))
            elif torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _autocast_of(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _autocast_depth() -> int:
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return int(depth)


class Forgiving:
    """Stands for an output stream that may be closed or full, and loses what cannot be written then."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Aside:
    """Stands for an output stream: keeps what one thread writes, and passes on what the others write."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()
        self.text: io.StringIO | None = io.StringIO()

    def write(self, text: str) -> int:
        if self.text is not None and threading.get_ident() == self._thread:
            return self.text.write(text)
        return len(text) if self._stream is None else int(self._stream.write(text))

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def set_aside(name: Literal["stdout", "stderr"]) -> Iterator[io.StringIO]:
    """Keep what this thread writes to an output stream meanwhile; within `alone`."""
    stream: Any = getattr(sys, name)
    aside, text = _Aside(stream), io.StringIO()
    aside.text = text
    setattr(sys, name, aside)
    try:
        yield text
    finally:
        setattr(sys, name, stream)
        aside.text = None  # who still has it, such as a logger, writes to the stream


def write_error(text: str) -> None:
    """Write to standard error; a stream that is closed, full or missing loses it."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
