"""RandomStates: operators that draw at random draw the same again, when they are run or differentiated once more."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.program import Program, Values, positions_of
from resnet_paths_plugin.graph.operators import draws_at_random
from resnet_paths_plugin.process_lock import alone

States = tuple[Tensor, ...]
"""The state of torch's generator on the CPU, and of that on each GPU in use."""


def generator_states() -> States:
    """Return the states that torch's generators have now."""
    return (torch.get_rng_state(), *map(torch.cuda.get_rng_state, _devices()))


@contextmanager
def replayed(states: States) -> Iterator[None]:
    """Let torch's generators draw as from these states, and leave them as they were; one thread at a time."""
    devices = _devices()
    with alone(), torch.random.fork_rng(devices=devices):
        torch.set_rng_state(states[0])
        for device, state in zip(devices, states[1:], strict=False):
            torch.cuda.set_rng_state(state, device)
        yield


class RandomStates:
    """The states of torch's generators before each operator that draws, as they were when it ran first.

    Args:
        program: the program; nothing is done where none of its operators draws.
    """

    def __init__(self, program: Program) -> None:
        self._drawing = frozenset(at for at in program.dynamic if draws_at_random(program.nodes[at]))
        self._program = program
        self._states: dict[int, States] = {}

    def __contains__(self, position: int) -> bool:
        return position in self._drawing

    def run(self, position: int, static: Values, values: Values) -> Any:
        """Return the value of an operator that draws, drawn as with gradients: without, dropout draws another mask."""
        reads = positions_of(self._program.reads[position])
        tracked = {at: pytree.tree_map(_leaf, values[at]) for at in reads}
        with self.at(position), torch.enable_grad():
            value = self._program.operators[position](static, tracked)
        return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, value)

    def at(self, position: int) -> AbstractContextManager[None]:
        """Return a context for running the operator at a position: the first time as it is, then as it was then."""
        if position not in self._drawing:
            return nullcontext()
        return replayed(self._states[position]) if position in self._states else self._drawn(position)

    @contextmanager
    def _drawn(self, position: int) -> Iterator[None]:
        with alone():  # other threads draw from the same generators
            self._states[position] = generator_states()
            yield


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.is_floating_point() or value.is_complex())


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]  # torch's
