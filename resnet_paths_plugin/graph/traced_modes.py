"""Modes of a trace: each node notes under which gradient mode and autocast its operator ran.

torch.export would cut a graph at each change of a mode and put what lies between into graphs of their own, which it
does not manage for every model. Here the trace stays in one piece.
"""

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.utils import checkpoint

from resnet_paths_plugin.graph.process_state import AUTOCAST_DEVICES, kept_autocast

STILL = "runs_without_gradients"
"""Key in a node's `meta`: True where its operator ran without gradients, absent elsewhere."""
AUTOCAST = "autocast"
"""Key in a node's `meta`: what the model asks of autocast there, `(device type, dtype, enabled, keeps casts)` for each
device type; absent where it asks nothing and the caller decides."""

Autocast = tuple[tuple[str, torch.dtype, bool, bool], ...]
_amp = torch.amp.autocast_mode
_grad_mode = torch.autograd.grad_mode


@contextmanager
def noted_modes(*, strict: bool = False, again: bool = False) -> Iterator[None]:
    """Let traces of this thread note on each node the modes of its operator, and keep no nodes that change a mode.

    A reentrant checkpoint, which runs without gradients and is run again with them, is run as if it were none.

    Args:
        strict: whether torch reads the model's bytecode: it then asks for a change of autocast where it would else
            tell of one that is done.
        again: whether a graph is traced again that has noted its modes, or has them as graphs of their own.
    """
    modes = _Modes(strict)
    with kept_autocast(), ExitStack() as stack:  # which a trace that fails leaves open
        replaced: list[tuple[type, str, Callable[..., Any]]] = [
            (PreDispatchTorchFunctionMode, "__torch_function__", modes.changed),
            (fx.proxy.TracerBase, "create_node", modes.noted),
            (_grad_mode.inference_mode, "__enter__", _enter_without_gradients),
            (_grad_mode.inference_mode, "__exit__", _exit_without_gradients),
            (checkpoint.CheckpointFunction, "apply", _without_checkpoint),
        ]
        if again:
            replaced.append((fx.Interpreter, "run_node", modes.run))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):  # the caller's: what it asks holds where the graph is run
                stack.enter_context(torch.autocast(device, enabled=False))
        for owner, name, instead in replaced:
            stack.enter_context(_replaced(owner, name, instead))
        yield


@contextmanager
def modes_of(node: fx.Node) -> Iterator[None]:
    """Hold the autocast under which a node's operator ran."""
    with ExitStack() as stack:
        for device, dtype, enabled, keeps in node.meta.get(AUTOCAST, ()):
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=keeps))
        yield


class AutocastInterpreter(fx.Interpreter):
    """Runs each operator of a functional graph under the autocast that it was traced under."""

    def run_node(self, n: fx.Node) -> Any:  # noqa: D102 - as fx.Interpreter
        with modes_of(n):
            return super().run_node(n)


def autocast_as_facts(graph: fx.Graph) -> list[list[Any]]:
    """Return what each operator of a graph asks of autocast, as JSON keeps it; `torch.export.save` does not."""
    noted = [node.meta.get(AUTOCAST, ()) for node in _operators(graph)]
    return [
        [[device, str(dtype).removeprefix("torch."), *rest] for device, dtype, *rest in autocast] for autocast in noted
    ]


def note_autocast(graph: fx.Graph, facts: list[list[Any]]) -> bool:
    """Note on the operators of a graph what they ask of autocast; return whether they are as many as then."""
    operators = _operators(graph)
    for node, autocast in zip(operators, facts, strict=False):
        asked = tuple((device, getattr(torch, dtype), *rest) for device, dtype, *rest in autocast)
        for noting in (node, *(user for user in node.users if user.target is operator.getitem)) if asked else ():
            noting.meta[AUTOCAST] = asked
    return len(operators) == len(facts)


def _operators(graph: fx.Graph) -> list[fx.Node]:
    """Return the operators of a graph; parts of what one returns are none."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target is not operator.getitem]


class _Modes:
    """What a trace is in the middle of: changes of autocast, outermost first, and nested graphs."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._gradients = True
        self._entered: list[tuple[tuple[str, torch.dtype, bool, bool], torch.autocast | None]] = []

    def changed(self, original: Callable[..., Any], mode: Any, func: Any, *rest: Any, **options: Any) -> Any:
        """Take note of a change of a mode in the place of putting it into the graph."""
        args = rest[1] if len(rest) > 1 else options.get("args", ())
        if func is torch._C._set_grad_enabled:
            self._gradients = bool(args[0])
            return func(*args)
        if func is _amp._enter_autocast:
            self._enter(*args)
            return None
        if func is _amp._exit_autocast:
            _, entered = self._entered.pop()
            if entered is not None:
                entered.__exit__(None, None, None)
            return None
        return original(mode, func, *rest, **options)

    def _enter(self, device: str, dtype: torch.dtype | None, enabled: bool = True, keeps: bool | None = None) -> None:
        entered = None
        if self._strict:
            entered = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=keeps)
            with torch._C.DisableTorchFunction():
                entered.__enter__()  # type: ignore[no-untyped-call]  # torch's
        asked = (device, dtype or torch.get_autocast_dtype(device), enabled, keeps is not False)
        self._entered.append((asked, entered))

    def run(self, original: Callable[..., Any], interpreter: fx.Interpreter, node: fx.Node) -> Any:
        """Run a node that is traced again under the modes that it has noted, or that it is nested in."""
        before = self._gradients
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            self._gradients = bool(node.args[0])
        else:
            self._gradients = before and STILL not in node.meta
        try:
            with modes_of(node):
                return original(interpreter, node)
        finally:
            self._gradients = before

    def noted(self, original: Callable[..., fx.Node], *args: Any, **options: Any) -> fx.Node:
        """Return a new node with the modes that hold now."""
        node = original(*args, **options)
        if node.op == "call_function":
            # As the model asked: torch runs the forward of its functions and its second traces without gradients.
            if not self._gradients and not torch.is_grad_enabled():
                node.meta[STILL] = True
            innermost = {asked[0]: asked for asked, _ in self._entered}
            if innermost:
                node.meta[AUTOCAST] = tuple(innermost.values())
        return node


def _enter_without_gradients(_: Callable[..., Any], context: Any) -> None:
    """Enter `no_grad` where a model enters inference mode: the same values and gradients, and it can be traced."""
    context._inference_mode_context = torch.set_grad_enabled(not context.mode)


def _exit_without_gradients(_: Callable[..., Any], context: Any, *error: Any) -> None:
    context._inference_mode_context.__exit__(*error)


def _without_checkpoint(
    _: Callable[..., Any], function: Callable[..., Any], _keeps_generators: bool, *args: Any
) -> Any:
    return function(*args)


@contextmanager
def _replaced(owner: type, name: str, instead: Callable[..., Any]) -> Iterator[None]:
    """Let a function of torch be another one, which is given it, for this thread."""
    held, original, thread = vars(owner).get(name), getattr(owner, name), threading.get_ident()

    def chosen(*args: Any, **options: Any) -> Any:
        if threading.get_ident() == thread:
            return instead(original, *args, **options)
        return original(*args, **options)

    setattr(owner, name, staticmethod(chosen) if isinstance(held, classmethod) or held is None else chosen)
    try:
        yield
    finally:
        if held is None:
            delattr(owner, name)
        else:
            setattr(owner, name, held)
