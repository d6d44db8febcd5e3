"""CodeLocation: a line of a model's code and the module that runs it, read off the frames of a traceback."""

import linecache
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

_NOT_THE_MODELS = ("torch", "logging", __package__ or "")
"""Packages whose code is not the model's."""
_LONGEST_LINE = 100

Frames = Sequence[tuple[FrameType, int]]
"""Frames from the outermost to the innermost, each with the line that runs."""


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """Where something happens in a model.

    Attributes:
        module: path of the innermost module that runs; empty for the model itself.
        module_class: its class.
        file: file of the innermost line that is not torch's.
        line: number of that line.
        code: the name of the function that it is in.
        source: the line itself, where it can be read.
        operation: the torch function or operator that runs; empty where none is known.
        function: class of the custom autograd function that the line is in; empty where it is in none.
    """

    module: str
    module_class: str
    file: str
    line: int
    code: str
    source: str
    operation: str = ""
    function: str = ""

    def __str__(self) -> str:
        owner = f"{self.module} ({self.module_class})" if self.module else f"the model itself ({self.module_class})"
        return f"{owner}, {self.file}:{self.line} in {self.code}{self.source and f': {self.source}'}"


def location_of(error: BaseException, model: nn.Module) -> CodeLocation | None:
    """Return where in a model an error was raised; None where no code of the model is on the way."""
    while True:
        place = location_in_code(list(traceback.walk_tb(error.__traceback__)), model)
        before = error.__cause__ or error.__context__
        if place is not None or before is None:
            return place
        error = before


def location_in_code(frames: Frames, model: nn.Module) -> CodeLocation | None:
    """Return where in a model the innermost of some frames is; None where no module of it runs.

    Torch hands the arguments of `__torch_function__` and `__torch_dispatch__` over in an order that its documentation
    fixes; the operation is read off those frames, and is not known where there are none.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    owners = [(at, owner) for at, (frame, _) in enumerate(frames) if id(owner := _runner(frame)) in paths]
    if not owners:
        return None
    outermost, _ = owners[0]
    _, module = owners[-1]
    its_own = [at for at in range(outermost, len(frames)) if _is_the_models(frames[at][0])]
    at = its_own[-1] if its_own else owners[-1][0]
    frame, line = frames[at]
    file = frame.f_code.co_filename
    context = _argument(frame, 0)
    return CodeLocation(
        module=paths[id(module)],
        module_class=type(module).__name__,
        file=file,
        line=line,
        code=frame.f_code.co_name,
        source=linecache.getline(file, line, frame.f_globals).strip()[:_LONGEST_LINE],
        operation=_operation(frames[at + 1 :]),
        function=type(context).__name__.removesuffix("Backward")
        if isinstance(context, torch.autograd.function.FunctionCtx)
        else "",
    )


def _is_the_models(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__") or "")  # none in code that torch generates
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    return bool(name) and not any(name == other or name.startswith(f"{other}.") for other in _NOT_THE_MODELS)


def _runner(frame: FrameType) -> Any:
    """Return the module whose method a frame runs, if it runs one: what torch.export hands on is none."""
    code = frame.f_code
    is_torchs = not _is_the_models(frame)
    return None if is_torchs and code.co_varnames[:1] != ("self",) else _argument(frame, 0)


def _argument(frame: FrameType, position: int) -> Any:
    """Return an argument of the function that a frame runs, None where it has fewer."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[position]) if position < code.co_argcount else None


def _operation(frames: Frames) -> str:
    """Return the innermost torch function that frames run, else the outermost operator, as torch names it."""
    named = {
        protocol: [_argument(frame, 1) for frame, _ in frames if frame.f_code.co_name == protocol]
        for protocol in ("__torch_function__", "__torch_dispatch__")
    }
    for function in [*named["__torch_function__"][::-1], *named["__torch_dispatch__"]]:
        if callable(function):
            return str(torch.overrides.resolve_name(function) or getattr(function, "__name__", ""))
    return _called(frames[0][0]) if frames else ""


def _called(frame: FrameType) -> str:
    """Return the public function of torch that the model's code calls; empty where that is a module's own call."""
    name = f"{frame.f_globals.get('__name__') or ''}.{frame.f_code.co_qualname}"
    return name if name.startswith("torch.") and "._" not in name and "<" not in name else ""
