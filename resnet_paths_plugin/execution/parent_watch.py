"""A worker process ends with the process that started it, however that ended: nobody is left to give it work."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

_POLL_S = 1.0
"""How often to look at who the parent is, besides its pipe: other processes may hold the pipe open."""

_WATCHING: set[int] = set()
"""Processes that watch: this one, and those that it was forked from."""


def end_with_parent() -> None:
    """End this process soon after the one that started it as a worker; nothing elsewhere, or where it is watched."""
    parent = multiprocessing.parent_process()
    if parent is None or os.getpid() in _WATCHING:
        return
    _WATCHING.add(os.getpid())
    started_by = os.getppid()
    threading.Thread(target=_watch, args=(parent.sentinel, started_by), daemon=True).start()


def _watch(sentinel: int, started_by: int) -> None:
    while not wait([sentinel], timeout=_POLL_S) and os.getppid() == started_by:
        pass
    os._exit(1)  # the main thread may be in the middle of an operator
