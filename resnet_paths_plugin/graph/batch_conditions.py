"""Batch conditions: the batch sizes for which a captured graph does what the model does.

Reads what torch.export assumed of the batch: its range and its guards, such as parity. Runs no model.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

_SIZES_SHOWN = 6
_LARGEST_TRIED = 64
"""Sizes up to this one are tried to say in a message which ones hold."""
_DOUBTFUL = 3
"""Sizes that are tried on the model, as torch may have ruled them out for no reason of the model's."""


_ARITHMETIC = {"abs": abs, "bool": bool, "float": float, "int": int, "max": max, "min": min, "round": round}
"""Python's own functions that guards may use."""


@dataclass(frozen=True, slots=True)
class _Sized:
    """Stands for an input in a guard, which asks for its size."""

    shape: tuple[Any, ...]

    def at(self, sizes: Mapping[Any, int]) -> "_Size":
        return _Size(tuple(_at(size, sizes) for size in self.shape))


@dataclass(frozen=True, slots=True)
class _Size:
    shape: tuple[Any, ...]

    def size(self) -> tuple[Any, ...]:
        return self.shape


@dataclass(frozen=True, slots=True)
class BatchConditions:
    """What the capture assumed of the batch size `B`.

    Attributes:
        least: the smallest batch; 1 where the bound of 2 is only what torch assumes of every free size.
        most: the largest batch, None where there is none.
        guards: further conditions, as torch writes them in Python.
        inputs: the inputs by parameter of the model's forward and by position, which the guards ask for their sizes.
        shown: sizes of which some samples have shown whether the model does what was captured.
        names: parameters of the model's forward that the positional arguments belong to, as guards name them; a star
            stands before the one that takes all further arguments.
        example: the size that was captured, for which alone a guard holds that cannot be read.
        symbol: what stands for the batch size in shapes; None where it is frozen.
        others: smallest and largest size of the first dimensions of arguments that do not share the batch.
    """

    least: int = 1
    most: int | None = None
    guards: tuple[str, ...] = ()
    inputs: Mapping[str, Any] | None = None
    shown: Mapping[int, bool] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    example: int | None = None
    symbol: Any = None
    others: Mapping[Any, tuple[int, int | None]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what a file of the program does not keep, for `restored`."""
        kept = {name: getattr(self, name) for name in ("least", "most", "guards", "names", "example")}
        return {**kept, "shown": list(self.shown.items())}

    @classmethod
    def restored(cls, program: ExportedProgram, facts: Mapping[str, Any]) -> "BatchConditions":
        """Return the conditions of a program that was read from a file, with the `facts` sent beside it."""
        names, guards, shown = tuple(facts["names"]), tuple(facts["guards"]), dict(facts["shown"])
        return replace(batch_conditions(program, names), **{**facts, "names": names, "guards": guards, "shown": shown})

    @property
    def always(self) -> bool:
        """Whether every batch size holds."""
        return self.least == 1 and self.most is None and not self.guards and all(self.shown.values())

    def holds(self, batch: int, sizes: Mapping[Any, int] | None = None) -> bool:
        """Whether the captured graph does what the model does for this batch size.

        Args:
            batch: the batch size.
            sizes: other first dimensions of the arguments by their symbols; they are as captured where not given.
        """
        sizes = {**(sizes or {}), self.symbol: batch}
        if any(not _within(sizes[symbol], *ends) for symbol, ends in self.others.items() if symbol in sizes):
            return False
        if batch in self.shown:
            return self.shown[batch] and self._hold(self._of_others(), sizes)
        if not _within(batch, self.least, self.most):
            return False
        return self._hold(self._without_artefacts() if batch == 1 else self.guards, sizes)

    @property
    def doubtful(self) -> list[int]:
        """Sizes that torch may have ruled out as it takes what is derived from a free size for 2 or more, or took in.

        One sample is among them, and those that leave one clip of folded frames.
        """
        halved = [self.least // 2] if self.least > 2 else []
        within = range(max(2, self.least), min(self.most or _LARGEST_TRIED, _LARGEST_TRIED) + 1)
        ruled_out = (
            [size for size in within if not self.holds(size) and self._hold_loosely(size)] if self.guards else []
        )
        return ([1] if self.least == 1 else []) + (halved + ruled_out)[:_DOUBTFUL]

    @property
    def narrow(self) -> bool:
        """Whether no other size holds than the one that was captured, as far as is tried."""
        return not any(self.holds(size) for size in range(1, 2 * self._largest + 1) if size != self.example)

    def width(self, batch: int, most: int) -> int:
        """Return how many copies of a batch may run as one, up to `most`, so that fewer of them may too."""
        held = 1
        while held < most and self.holds((held + 1) * batch):
            held += 1
        return held

    def reached(self, size: int) -> int:
        """Return a number of samples per run, or where no batch of up to so many holds the smallest one that does."""
        if self.always or any(self.holds(one) for one in range(size, 0, -1)):
            return size
        return next((one for one in range(size + 1, self._largest + 1) if self.holds(one)), size)

    def piece(self, total: int, most: int) -> int:
        """Return how many of `total` samples to run at a time, at most `most`, so that each piece and the rest hold."""
        sizes = range(min(total, most), 0, -1)
        if self.always:
            return sizes.start
        held = [size for size in sizes if self.holds(size)]
        whole = (size for size in held if total % size == 0 or self.holds(total % size))
        return next(whole, held[0] if held else most)

    @property
    def _largest(self) -> int:
        """The largest batch that is tried."""
        return max(_LARGEST_TRIED, self.least, self.example or 0, *self.shown)

    def _hold(self, guards: tuple[str, ...], sizes: Mapping[Any, int]) -> bool:
        return all(self._true(guard, sizes) for guard in guards)

    def _hold_loosely(self, size: int) -> bool:
        return self._hold(self._without_artefacts(), {self.symbol: size})

    def _without_artefacts(self) -> tuple[str, ...]:
        """Return the guards without those that may follow from a size being taken for 2 or more."""
        return tuple(guard for guard in self.guards if not guard.endswith((" >= 2", "!= 0", "!= 1")))

    def _of_others(self) -> tuple[str, ...]:
        """Return the guards that ask for a size beside the batch."""
        return self.guards if self.others else ()

    def described(self) -> str:
        """Return the sizes that hold, in words."""
        largest = self._largest
        held = [size for size in range(1, largest + 1) if self.holds(size)]
        if not held:
            return f"some above {largest}"
        if held == list(range(held[0], min(self.most or largest, largest) + 1)):
            if held[0] == self.most:
                return f"{held[0]}"
            return f"{held[0]} or more" if self.most is None else f"{held[0]} to {self.most}"
        further = ", ..." if len(held) > _SIZES_SHOWN else ""
        return ", ".join(map(str, held[:_SIZES_SHOWN])) + further

    def _true(self, guard: str, sizes: Mapping[Any, int]) -> bool:
        sized = pytree.tree_map(
            lambda leaf: leaf.at(sizes) if isinstance(leaf, _Sized) else leaf, dict(self.inputs or {})
        )
        known = {"L": sized, "math": math, "torch": torch, "__builtins__": _ARITHMETIC}
        try:
            return bool(eval(guard, known))  # noqa: S307 - torch writes the guard for this use, and runs it so itself
        except ZeroDivisionError:
            return False  # a size that the condition divides by is none of this batch
        except Exception:  # noqa: BLE001 - asks for something else than the inputs' sizes, which may be anything
            return sizes[self.symbol] == self.example


def batch_conditions(program: ExportedProgram, names: tuple[str, ...]) -> BatchConditions:
    """Return what a program assumed of its batch.

    Args:
        program: the exported program.
        names: parameters of the model's forward that the positional arguments belong to, as guards name them; a star
            stands before the one that takes all further arguments.
    """
    leaves = _inputs(program)
    size = _batch(leaves)
    if size is None:
        batch = example_batch(program)
        return BatchConditions(batch, batch, example=batch)
    symbol = size.node.expr
    least, most = _range(program, symbol)
    others = {
        other: _range(program, other)
        for value in leaves
        if (first := _free(value)) is not None and (other := first.node.expr) != symbol and other.is_symbol
    }
    stand_ins = [_Sized(tuple(v.shape)) if isinstance(v, Tensor) else v for v in leaves]
    in_spec = program.call_spec.in_spec
    arguments: dict[str, Any] = {"flat_args": stand_ins}
    if in_spec is not None and in_spec.num_leaves == len(stand_ins):
        args, keywords = pytree.tree_unflatten(stand_ins, in_spec)
        arguments |= {**keywords, "args": args, "kwargs": keywords}
        for at, name in enumerate(names):
            if name.startswith("*"):
                arguments[name[1:]] = args[at:]
            elif at < len(args):
                arguments[name] = args[at]
    return BatchConditions(
        least,
        most,
        _guards(program),
        arguments,
        names=names,
        example=example_batch(program),
        symbol=symbol,
        others=others,
    )


def parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters of a model's forward, a star before the one that takes all further positional arguments."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except ValueError:  # not known, as for a forward that is not written in Python
        return ()
    return tuple(f"*{one.name}" if one.kind is one.VAR_POSITIONAL else one.name for one in parameters)


def example_batch(program: ExportedProgram) -> int:
    """Return the batch size that a program was traced with."""
    leaves = _inputs(program)
    size = _batch(leaves)
    if size is not None:
        return as_captured(size)
    return next((as_captured(value.shape[0]) for value in leaves if isinstance(value, Tensor) and value.ndim), 1)


def as_captured(size: int | torch.SymInt) -> int:
    """Return a size as it was in the trace."""
    return int(size.node.hint or 2) if isinstance(size, torch.SymInt) else size


def _batch(leaves: Sequence[Any]) -> torch.SymInt | None:
    """Return the batch size, read off the first input that was free at first; None if it has become a number."""
    first = next((size for value in leaves if (size := _free(value)) is not None), None)
    return None if first is None or first.node.expr.is_number else first


def one_sample(expression: Any, symbol: Any, batch: int) -> int:
    """Return a size for a batch of one, or for the batch that was captured where a batch of one has none."""
    for size in (1, batch):
        try:
            found = expression.subs(dict.fromkeys(expression.free_symbols, size))
        except ZeroDivisionError:
            continue
        if found.is_Integer and found > 0:
            return int(found)
    return max(1, int(expression.subs({symbol: batch})))


def _inputs(program: ExportedProgram) -> list[Any]:
    """Return what stands for each user input, in order."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    return [nodes[spec.arg.name].meta.get("val") for spec in specs if spec.kind is InputKind.USER_INPUT]


def _free(value: Any) -> torch.SymInt | None:
    """Return the first dimension of an input where it is free."""
    if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
        return value.shape[0]
    return None


def _range(program: ExportedProgram, symbol: Any) -> tuple[int, int | None]:
    """Return the smallest and the largest batch; export takes any free size to be 2 or more, and 1 may hold too."""
    known = program.range_constraints.get(symbol)
    if known is None:
        return 1, None
    least, most = (int(end) if end.is_Integer else None for end in (known.lower, known.upper))
    return (1 if least is None or least <= 2 else least), most


def _guards(program: ExportedProgram) -> tuple[str, ...]:
    """Return the guards, each once."""
    found = dict.fromkeys(getattr(program, "_guards_code", None) or ())
    return tuple(found)


def _at(size: Any, sizes: Mapping[Any, int]) -> Any:
    """Return a size of an input for given first dimensions, as captured where they do not decide it."""
    if not isinstance(size, torch.SymInt):
        return size
    found = size.node.expr.subs(sizes)
    return int(found) if found.is_Integer else size.node.hint


def _within(size: int, least: int, most: int | None) -> bool:
    return least <= size and (most is None or size <= most)
