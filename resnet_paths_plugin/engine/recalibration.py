"""Batch-norm statistics of a rewired network: what its running statistics would be had it always been wired so."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.engine.program import Operator, Program, Values
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.operators import aten

# Places of running mean, running variance and epsilon among the arguments.
_ARGUMENTS: Mapping[Any, tuple[int, int, int]] = {
    aten.batch_norm.default: (3, 4, 7),
    aten._native_batch_norm_legit_no_training.default: (3, 4, 6),  # noqa: SLF001 - an operator's name
}


class Recalibration:
    """Runs a program with the statistics of the batch in its batch norms, and returns these; variances are unbiased.

    Nothing is written to the model.

    Raises:
        InputError: if the program has no batch norm with running statistics.
    """

    def __init__(self, program: Program) -> None:
        self._program = copy.copy(program)
        self._found: dict[int, list[Tensor]] = {}
        operators = list(program.operators)
        norms = [at for at in program.dynamic if _tracks_statistics(program.nodes[at])]
        if not norms:
            raise InputError(
                "batch_norm='recalibrated' needs batch norms with running statistics, and this network has none: "
                "leave batch_norm='frozen'"
            )
        for at in norms:
            operators[at] = self._with_batch_statistics(program.nodes[at])
        self._program.operators = tuple(operators)
        self._engine = ForwardEngine(self._program)

    def statistics(self, schedule: Schedule, inputs: Values) -> Values:
        """Return a batch's means and variances by the positions of the running ones; of norms that are not run none.

        A norm that runs several times gets the average over its runs.

        Raises:
            InputError: if a norm gets one value per channel only, or values that are not finite.
        """
        self._found = {}
        with torch.no_grad():
            for _ in self._engine.run([schedule], inputs, self._program.parameters()):
                pass
        found = {at: torch.stack(values).mean(0) for at, values in self._found.items()}
        if not all(bool(torch.isfinite(values).all()) for values in found.values()):
            raise InputError(
                "a batch gives batch-norm statistics that are not finite: a batch of one sample has no variance (of a "
                "DataLoader, leave a short last batch out with drop_last=True), or the network's values are not finite"
            )
        return found

    def _with_batch_statistics(self, node: fx.Node) -> Operator:
        order = self._program.flow.order
        mean_at, variance_at, epsilon_at = _ARGUMENTS[node.target]
        x, weight, bias, mean, variance = (
            None if argument is None else order[argument]  # type: ignore[index]  # tensors are nodes
            for argument in (*node.args[:3], node.args[mean_at], node.args[variance_at])
        )
        epsilon: Any = node.args[epsilon_at]
        as_tuple = node.target is not aten.batch_norm.default
        assert x is not None and mean is not None and variance is not None  # noqa: S101, PT018 - `_tracks_statistics`

        def operator(static: Mapping[int, Any], values: Mapping[int, Any]) -> Any:
            given, scale, shift = values[x], *(None if at is None else static[at] for at in (weight, bias))
            # A momentum of 1 leaves just the batch's own statistics, the variance unbiased.
            own = torch.zeros_like(static[mean]), torch.ones_like(static[variance])
            output = torch.batch_norm(given, scale, shift, own[0], own[1], True, 1.0, epsilon, False)
            for at, value in zip((mean, variance), own, strict=True):
                self._found.setdefault(at, []).append(value)
            return (output, given.new_empty(0), given.new_empty(0)) if as_tuple else output

        return operator


def _tracks_statistics(node: fx.Node) -> bool:
    places = _ARGUMENTS.get(node.target)
    return places is not None and all(isinstance(node.args[at], fx.Node) for at in places[:2])
