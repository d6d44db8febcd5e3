"""Bystanders: other threads that call modules while one is traced. Torch lets a trace see them, and them the trace.

While it traces, torch puts tensors without values in the place of a model's parameters, and follows every module that
any thread calls.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import proxy_tensor

from resnet_paths_plugin.process_lock import ENTERING, safe_point

_MOST_WAIT_S = 60.0
"""How long threads wait for each other: a model whose forward waits for threads of its own would do so for good."""
_POLL_S = 0.001
_CALL = nn.Module._call_impl.__code__  # noqa: SLF001 - what every call of a module runs


@contextmanager
def others_wait(model: nn.Module, *, hold: bool = True) -> Iterator[None]:
    """Let other threads wait before they call a part of this model, and keep their calls of other models untraced.

    Ctrl-C, if held back, is obeyed where this thread calls a module.

    Args:
        model: the model.
        hold: whether to let them wait; without, nothing is registered that a strict trace would see.
    """
    here, over = threading.get_ident(), threading.Event()
    parts = {id(part) for part in model.modules()}

    def wait(part: nn.Module, _: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            return  # this thread's, where torch reads the branches of `torch.cond`
        if threading.get_ident() == here:
            safe_point()
        elif id(part) in parts:
            _wait(over)

    with _untraced_elsewhere(here):
        # A hook on all modules, since one on the model's own would change the model.
        handle = nn.modules.module.register_module_forward_pre_hook(wait) if hold else None
        try:
            if hold:
                _until_out_of(parts, over)
            yield
        finally:
            if handle is not None:
                handle.remove()
            over.set()


def _wait(over: threading.Event) -> None:
    over.wait(_MOST_WAIT_S)


def _until_out_of(parts: set[int], over: threading.Event) -> None:
    """Wait until every other thread that is inside one of these modules has come to where it waits."""
    end = time.monotonic() + _MOST_WAIT_S
    while _is_inside(parts, over) and time.monotonic() < end:
        safe_point()
        time.sleep(_POLL_S)


def _is_inside(parts: set[int], over: threading.Event) -> bool:
    for thread, top in sys._current_frames().items():  # noqa: SLF001 - documented under this name
        frame = None if thread == threading.get_ident() else top
        inside = False
        while frame is not None:
            if frame.f_code is ENTERING or (frame.f_code is _wait.__code__ and frame.f_locals["over"] is over):
                break
            inside = inside or (frame.f_code is _CALL and id(frame.f_locals.get("self")) in parts)
            frame = frame.f_back
        if inside and frame is None:
            return True
    return False


@contextmanager
def _untraced_elsewhere(thread: int) -> Iterator[None]:
    """Let torch's tracer follow the modules that one thread calls, and no others."""
    tracer: Any = proxy_tensor._ModuleStackTracer  # noqa: SLF001 - the one that export uses
    call_module, get = tracer.call_module, tracer.getattr

    def call_own(self: Any, part: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            return call_module(self, part, forward, args, kwargs)
        return forward(*args, **kwargs)

    def get_own(self: Any, name: str, value: Any, cache: Any) -> Any:
        return get(self, name, value, cache) if threading.get_ident() == thread else value

    tracer.call_module, tracer.getattr = call_own, get_own
    try:
        yield
    finally:
        tracer.call_module, tracer.getattr = call_module, get
