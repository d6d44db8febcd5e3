"""One thread at a time where the state of the whole process is changed: a lock that Ctrl-C cannot tear open.

Export, flags of a model, `sys.stderr`, filters of warnings, matplotlib's style and hooks on all modules are shared by
all threads.
"""

import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_POLL_S = 0.1
_SAME_PRESS_S = 1.0
"""Interruptions within this time count as one: a terminal and a script may both send it."""


class _HeldBack:
    """A handler of Ctrl-C that notes it, for what was the handler before; the second one is obeyed at once."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler
        self._noted: tuple[int, FrameType | None] | None = None
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._noted is None:
            self._noted, self._since = (number, frame), time.monotonic()
        elif time.monotonic() - self._since > _SAME_PRESS_S:
            self.obey()

    def obey(self) -> None:
        """Do what Ctrl-C does, if it was noted."""
        noted, self._noted = self._noted, None
        if noted is not None:
            self.handler(*noted)


class _Lock:
    """The lock, who holds it, and the interruption that waits meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.writing = threading.Lock()
        self.here = threading.local()
        self.held_back: _HeldBack | None = None

    @property
    def depth(self) -> int:
        """How often this thread holds it."""
        return getattr(self.here, "depth", 0)

    def renew(self) -> None:
        """Begin anew in a fork, which lacks the other threads of the process."""
        if self.depth:
            return
        handler = signal.getsignal(signal.SIGINT)
        if isinstance(handler, _HeldBack):
            signal.signal(signal.SIGINT, handler.handler)
        self.__init__()  # type: ignore[misc]  # made anew on purpose


_ONE = _Lock()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_ONE.renew)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the end, or the next `safe_point`, so that what is changed is put back as a whole."""
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or _ONE.held_back is not None or not callable(handler):
        yield
        return
    held_back = _HeldBack(handler)
    _ONE.held_back = held_back
    signal.signal(signal.SIGINT, held_back)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is held_back:  # a model may have set another one
            signal.signal(signal.SIGINT, handler)
        _ONE.held_back = None
        held_back.obey()


def safe_point() -> None:
    """Raise the KeyboardInterrupt that waits, if there is one, here where all is put back after it."""
    if _ONE.held_back is not None and threading.current_thread() is threading.main_thread():
        _ONE.held_back.obey()


@contextmanager
def alone() -> Iterator[None]:
    """Keep all other threads out that change the state of the process; a thread may enter it again."""
    with uninterrupted():
        while not _ONE.lock.acquire(timeout=_POLL_S):
            safe_point()
        _ONE.here.depth = _ONE.depth + 1
        try:
            yield
        finally:
            _ONE.here.depth = _ONE.depth - 1
            _ONE.lock.release()


ENTERING = inspect.unwrap(alone).__code__
"""What a thread runs that waits for the lock."""


def is_alone() -> bool:
    """Whether this thread holds the lock, so that it must not wait for another one that may need it."""
    return _ONE.depth > 0


@contextmanager
def without_cluster() -> Iterator[None]:
    """Let xarray write files with locks of this process: of a dask cluster that is gone it would wait for one."""
    dask = sys.modules.get("dask")
    if dask is None:
        yield
        return
    with _ONE.writing, dask.config.set(scheduler="synchronous"):
        yield
