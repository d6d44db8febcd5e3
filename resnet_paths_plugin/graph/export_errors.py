"""Why a model cannot be captured: which operation, where in the module tree and in its code, and what to do.

Reads tracebacks and tries parts of the model; the model and the random number generators are left as they were.
"""

import inspect
import logging
import re
import textwrap
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import CaptureError
from resnet_paths_plugin.graph.code_location import CodeLocation, location_in_code, location_of
from resnet_paths_plugin.graph.export import SHAPES_LOGGER, after_each_forward, batch_size, export, undisturbed
from resnet_paths_plugin.graph.keywords import called, packed, split
from resnet_paths_plugin.graph.tracing import DataWrittenError

_READS_VALUES = {
    "__bool__": "the truth of a tensor's value, as if, while, and, or, not, assert ask for it",
    "__int__": "int() of a tensor's value",
    "__index__": "a tensor's value as an index or a range",
    "__float__": "float() of a tensor's value",
    "__complex__": "complex() of a tensor's value",
    "item": "a tensor's value as a number",
    "tolist": "a tensor's values as a list",
}
"""Methods of a tensor that hand its values to Python."""
_TO_NUMPY = frozenset({"numpy", "__array__"})
_VALUES_ERRORS = frozenset({
    "GuardOnDataDependentSymNode", "PendingUnbackedSymbolNotFound", "DataDependentOutputException",
    "DynamicOutputShapeException",
})  # fmt: skip
"""Torch's errors, by name as they are no public ones, for what depends on a tensor's values."""

_LONGEST = 160
PARTS_TRIED = 2
LEAST_SHARE = 0.1
"""Of the model's parameters: smaller parts are not worth naming."""

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
"""Packages of modules that keep their weights in objects which torch.export does not read."""

_HOOK = "write a plugin whose 'resnet_paths_capture' hook exports a form of the model without this operation"


def explained(error: Exception, model: nn.Module, args: tuple[Any, ...], *, training: bool = False) -> str:
    """Say in a few lines why an export failed.

    The model's own forward is run once on the inputs, to tell inputs that do not fit from code that torch does not
    follow, with copies of its buffers; in the latter case the largest part that can be captured is looked for.

    Args:
        error: what `export` raised.
        model: the model.
        args: the arguments that were exported.
        training: whether the export was in training mode; then nothing is run, as batch norms would move.
    """
    name = type(model).__name__
    misfit = _misfit(model, args)
    if misfit is not None:
        return misfit
    place = location_of(error, model)
    on_meta = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(args))
    changes = any(isinstance(each, DataWrittenError) for each in _chain(error))  # a run would change the model
    trial = None if training or on_meta or changes else _Trial(model, args, _beside(model, place))
    hidden = trial.hidden if trial is not None else None
    if hidden is not None:
        return _lines(
            f"torch.export cannot capture {name}: it has eager-quantised modules, whose weights are packed",
            ("operation", hidden[0]),
            ("where", str(hidden[1] or "")),
            ("torch says", _first_line(error)),
            ("what to do", "study the model before it is quantised, or quantise its weights with torchao"),
        )
    if trial is not None and trial.needs_no_grad and trial.error is not None:
        place = location_of(trial.error, model)
        return _lines(
            f"torch.export cannot capture {name}: it runs without gradients alone on these inputs",
            ("operation", place.operation if place else ""),
            ("where", str(place or "")),
            ("torch says", _first_line(trial.error)),
            ("what to do", "run it on a device on which this has a gradient, or choose another implementation of it"),
        )
    if trial is not None and trial.error is not None and not isinstance(trial.error, torch.OutOfMemoryError):
        return _lines(
            f"{name} cannot be captured, as its own forward fails on the example inputs",
            ("error", _first_line(trial.error)),
            ("where", str(location_of(trial.error, model) or "")),
            ("inputs", _described(args)),
            ("what to do", "pass example_inputs on which the model runs: their number, shapes, dtypes and device"),
        )
    kind, operation = _kind(error, place)
    return _lines(
        f"torch.export cannot capture {name}: {_HEADLINES[kind]}",
        ("operation", operation),
        ("where", str(place or "") if kind != "output" else ""),
        ("torch says", _first_line(error)),
        ("what to do", _ADVICE[kind]),
        ("or", _way_out(trial)),
    )


def check_tensors(model: nn.Module) -> None:
    """Refuse a model whose parameters cannot be read yet, or by no gradient.

    Raises:
        CaptureError: if it has parameters without shape, or such that were made in inference mode.
    """
    name = type(model).__name__
    for path, parameter in model.named_parameters():
        owner = path.rpartition(".")[0]
        part = f"{owner} ({type(model.get_submodule(owner)).__name__})" if owner else "the model itself"
        if is_lazy(parameter):
            raise CaptureError(
                f"{name} cannot be captured before it has run once, as {part} is lazy: its parameters get their shapes "
                "from the first input. Run one forward first, model(*inputs), then unravel it"
            )
        if parameter.is_inference():
            raise CaptureError(
                f"{name} cannot be captured, as {path!r} was made under torch.inference_mode, so that no gradient can "
                "be had of what reads it. Build or load the model outside of inference mode, or take a copy made "
                "outside, copy.deepcopy(model)"
            )


def where_batch_is_asked_for(model: nn.Module, args: tuple[Any, ...], *, training: bool = False) -> CodeLocation | None:
    """Return the first place where what a model does depends on its batch size; None if none is found.

    The model is traced once more. For models whose captured graph holds for some batch sizes only.
    """
    found = _FirstAssumption(model, batch_size(args))
    shapes = logging.getLogger(SHAPES_LOGGER)
    level, propagates = shapes.level, shapes.propagate
    shapes.addHandler(found)
    shapes.setLevel(logging.INFO)
    shapes.propagate = False
    others = [(handler, handler.level) for handler in shapes.handlers if handler is not found]
    for handler, _ in others:
        handler.setLevel(logging.CRITICAL)
    try:
        export(model, args, training=training)
    except Exception:  # noqa: BLE001 - it was captured a moment ago, and only a hint is at stake
        return found.place
    finally:
        shapes.removeHandler(found)
        shapes.setLevel(level)
        shapes.propagate = propagates
        for handler, before in others:
            handler.setLevel(before)
    return found.place


class _FirstAssumption(logging.Handler):
    """Notes where torch first assumes that a dimension equals the batch size, or that it has a bound."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__(logging.INFO)
        self.place: CodeLocation | None = None
        self._model, self._told = model, re.compile(rf"eval (Eq\(\w+, {batch}\)|\w+ [<>]=? \w+) \[guard added\]")

    def emit(self, record: logging.LogRecord) -> None:
        if self.place is None and self._told.search(record.getMessage()):
            stack = traceback.walk_stack(inspect.currentframe())
            self.place = location_in_code(list(stack)[::-1], self._model)


class _Trial:
    """One ordinary run of the model in eval mode, and what some of its parts were given.

    Attributes:
        error: what the run raised, or None.
        model: the model.
        calls: arguments of the first call of each part that ran, by its path.
        needs_no_grad: whether the run fails with gradients and not without.
        hidden: class and place of the first eager-quantised module that ran, or None.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], parts: dict[str, nn.Module]) -> None:
        self.model, self.needs_no_grad = model, False
        self.error: Exception | None = None
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.hidden: tuple[str, CodeLocation | None] | None = None
        paths, here = {id(part): path for path, part in parts.items()}, threading.get_ident()

        def look(part: nn.Module, _: Any) -> None:
            kind = type(part)
            if self.hidden is None and threading.get_ident() == here and kind.__module__.startswith(_QUANTISED):
                stack = list(traceback.walk_stack(inspect.currentframe()))[::-1]
                self.hidden = f"{kind.__module__}.{kind.__qualname__}", location_in_code(stack, model)

        def note(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
            path = paths.get(id(part)) if threading.get_ident() == here else None
            if path is not None:
                self.calls.setdefault(path, packed(given, named))

        before = nn.modules.module.register_module_forward_pre_hook(look)
        try:
            with after_each_forward(note):
                self.error = self._run(args, gradients=True)
                self.needs_no_grad = self.error is not None and self._run(args, gradients=False) is None
        finally:
            before.remove()

    def _run(self, args: tuple[Any, ...], *, gradients: bool) -> Exception | None:
        """Run the model; return what it raises."""
        try:
            with undisturbed(self.model), torch.set_grad_enabled(gradients), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                called(
                    self.model,
                    pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args),
                )
        except Exception as error:  # noqa: BLE001 - whatever a user's model raises is reported
            return error
        return None


def _misfit(model: nn.Module, args: tuple[Any, ...]) -> str | None:
    """Say how the arguments differ from those that the model's forward takes; None where they do not."""
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    like = next(model.parameters(), None)
    if like is not None and like.is_meta and not all(leaf.is_meta for leaf in leaves):
        return _lines(
            f"{type(model).__name__} cannot be captured, as it is on the meta device, and the inputs are not",
            ("inputs", _described(args)),
            ("to list its blocks", "pass example_inputs on the meta device, x.to('meta')"),
            ("to run studies", "build the model on a device, or model.to_empty(device='cpu') and load its weights"),
        )
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # not known, as for a forward that is not written in Python
        return None
    try:
        positional, keywords = split(args)
        signature.bind(*positional, **keywords)
    except TypeError as error:
        name = type(model).__name__
        parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        needed = [p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
        names = [p.name for p in needed]
        advice = f"pass example_inputs=({', '.join(names)}{',' * (len(names) == 1)}), in this order"
        if split(args)[1] or any(p.kind is p.KEYWORD_ONLY for p in needed):
            advice = f"pass example_inputs as a dict of arguments by name: {', '.join(map(repr, names))}"
        return _lines(
            f"{name} cannot be captured, as its forward does not take the example inputs",
            ("error", str(error)),
            ("forward", f"{name}.forward{signature.replace(parameters=parameters, return_annotation=signature.empty)}"),
            ("inputs", _described(args)),
            ("what to do", advice),
        )
    return None


_HEADLINES = {
    "values": "what it does next depends on the values of a tensor",
    "numpy": "it leaves torch for NumPy",
    "function": "its custom autograd function depends on the values of a tensor or leaves torch",
    "output": "it returns something else than tensors in tuples, lists and dicts",
    "other": "it does what torch does not follow",
}
_ADVICE = {
    "values": f"choose with torch.where or a mask instead of Python, or {_HOOK}",
    "numpy": f"compute this with torch, or {_HOOK}",
    "function": f"let the forward of the function use torch operations alone, or {_HOOK}",
    "output": "wrap the model in a module that returns the tensors, or register the type as a pytree node with torch",
    "other": f"write this line with other torch operations, or {_HOOK}",
}


def _kind(error: Exception, place: CodeLocation | None) -> tuple[str, str]:
    """Return which kind of failure this is, and the operation in words."""
    operation = place.operation if place else ""
    method = operation.rpartition(".")[2]
    names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    if "in output, which is not a known type" in str(error):
        return "output", ""
    words = f"{operation}, {_READS_VALUES[method]}" if method in _READS_VALUES else operation
    if not words and _VALUES_ERRORS & names:
        words = "a decision of Python (if, while, range, a size) about a number that was a tensor's value"
    if place and place.function:
        return "function", f"custom autograd function {place.function}{words and f': {words}'}"
    if method in _TO_NUMPY:
        return "numpy", words
    if method in _READS_VALUES or _VALUES_ERRORS & names:
        return "values", words
    return "other", words


def _beside(model: nn.Module, place: CodeLocation | None) -> dict[str, nn.Module]:
    """Return the modules next to the way from the model to the module that fails, largest first, by path."""
    failing = place.module if place else ""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        owner = path.rpartition(".")[0]
        on_the_way = _within(failing, path)
        is_whole = next(module.children(), None) is not None
        if is_whole and not on_the_way and _within(failing, _callable_owner(model, owner)):
            found[path] = module
    return dict(sorted(found.items(), key=lambda item: -_size(item[1])))


def _callable_owner(model: nn.Module, path: str) -> str:
    """Return the path of the module that calls what is held at a path: lists and dicts of modules call nothing."""
    while path and isinstance(model.get_submodule(path), nn.ModuleList | nn.ModuleDict):
        path = path.rpartition(".")[0]
    return path


def _within(path: str, owner: str) -> bool:
    return not owner or path == owner or path.startswith(f"{owner}.")


def _way_out(trial: _Trial | None) -> str:
    """Name the largest part of the model that can be captured, of the few largest that were called."""
    if trial is None:
        return ""
    total = max(1, _size(trial.model))
    tried = ((path, trial.model.get_submodule(path)) for path in _largest(trial))
    for path, part in tried:
        share = _size(part) / total
        if share >= LEAST_SHARE and _exports(part, trial.calls[path]):
            return (
                f"study a part of the model: {path!r} ({type(part).__name__}, {share:.0%} of the parameters) can be "
                f"captured, unravel(model.get_submodule({path!r}), ...)"
            )
    return ""


def _largest(trial: _Trial) -> list[str]:
    return sorted(trial.calls, key=lambda path: -_size(trial.model.get_submodule(path)))[:PARTS_TRIED]


def _exports(part: nn.Module, args: tuple[Any, ...]) -> bool:
    try:
        export(part, pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, args))
    except Exception:  # noqa: BLE001 - a part that cannot be captured is not named
        return False
    return True


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _described(args: tuple[Any, ...]) -> str:
    def described(leaf: Any) -> str:
        if isinstance(leaf, Tensor):
            return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')} on {leaf.device}"
        if isinstance(leaf, list | tuple):
            return f"{type(leaf).__name__} of {len(leaf)}: {'; '.join(map(described, leaf))}"
        return type(leaf).__name__

    positional, keywords = split(args)
    named = [f"{name}: {described(leaf)}" for name, leaf in keywords.items()]
    return "; ".join([*map(described, positional), *named]) or "none"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    line = text.splitlines()[0] if text else "no message"
    return f"{type(error).__name__}: {textwrap.shorten(line, _LONGEST)}"


def _lines(headline: str, *facts: tuple[str, str]) -> str:
    return "\n".join([headline, *(f"  {name}: {text}" for name, text in facts if text)])
