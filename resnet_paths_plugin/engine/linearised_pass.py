"""LinearisedPass: one forward pass of the intact network, and the derivatives of its operators there.

The forward pass runs under the autocast that its caller is in; derivatives are taken in the dtype of the rows.
Derivatives are kept as long as there is room; the rest of the values is computed again when a walk comes by.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.calls import Call, Derivative
from resnet_paths_plugin.engine.derivatives import linearise
from resnet_paths_plugin.engine.frozen_norms import frozen_norm, frozen_operands
from resnet_paths_plugin.engine.liveness import LivenessAnalysis
from resnet_paths_plugin.engine.parameter_rules import Pullback, parameter_pullback
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program, Values
from resnet_paths_plugin.engine.random_states import RandomStates
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.graph.operators import has_gradient, moves_statistics
from resnet_paths_plugin.graph.process_state import autocast_as, autocast_now

KEPT_BYTES = 256 * 2**20
"""Size of the values of the forward pass that are kept for the walks on a CPU; beyond it, they are computed again."""
KEPT_BYTES_ON_DEVICE = 4 * 2**30
"""The same on other devices."""


class LinearisedPass:
    """One batch's forward pass, for walks over one graph of paths.

    Args:
        graph: the paths' graph, whose taps are where rows end.
        inputs: the value of each input placeholder.
        parameters: the values of parameters, buffers and constants.
        dtype: dtype of the rows; values are converted to it where an operator is linearised.
        keep: positions of values to keep.
        freeze_norms: whether the scales of layer and RMS norms are constants for gradients.

    Attributes:
        outputs: leaves of the output.
        kept: the values at the positions to keep, as they were computed.
        on_cpu: whether all inputs are on a CPU.
        drawn_at: returns a context in which the operator at a position draws what it drew at first.
    """

    def __init__(
        self,
        graph: PathGraph,
        inputs: Values,
        parameters: Values,
        *,
        dtype: torch.dtype,
        keep: Collection[int] = (),
        freeze_norms: bool = False,
    ) -> None:
        self.freeze_norms = freeze_norms
        self.graph = graph
        self.program: Program = graph.program
        self.dtype = dtype
        self.kept: dict[int, Tensor] = {}
        self.on_cpu = all(value.device.type == "cpu" for value in inputs.values() if isinstance(value, Tensor))
        self._keep = frozenset(keep)
        self._linearised: dict[int, LinearisedSegment] = {}
        self._drawn = RandomStates(self.program)
        self.drawn_at: Callable[[int], AbstractContextManager[None]] = self._drawn.at
        self._room = KEPT_BYTES if self.on_cpu else KEPT_BYTES_ON_DEVICE
        self._autocast = autocast_now()
        with torch.no_grad(), autocast_as(self._autocast):
            self.static = self.program.prepare(parameters, inputs)
            self._once_more = self.static | self._statistics()
            self._starts, final = self._forward({at: inputs[at] for at in self.program.inputs})
        self.outputs = self.program.output_leaves(self.static, final)

    def segment(self, which: int, *, by_rules: bool = True) -> "LinearisedSegment":
        """Return the operators of a segment, each linearised at its first use.

        Args:
            which: the segment.
            by_rules: whether common operators have own rules, or all go through autograd, which takes longer.
        """
        kept = self._linearised.get(which) if by_rules else None
        if kept is not None:
            return kept
        with autocast_as(self._autocast):
            values = self._values(which, self._starts, self._once_more)
        return LinearisedSegment(self, values, by_rules=by_rules)

    def _forward(self, values: Values) -> tuple[list[Values], Values]:
        """Run the intact network; keep what is still needed at the start of each segment."""
        program = self.program
        liveness = LivenessAnalysis(program).of(Schedule(len(program.blocks)))
        starts = [values]
        self._keep_from(values, program.inputs)
        for which, total in enumerate(program.sums):
            values = self._values(which, starts)
            self._linearise(which, values)
            for at in (*total.brackets, total.root):
                values[at] = program.operators[at](self.static, values)
            self._keep_from(values, (*program.segments[which], *total.brackets, total.root))
            starts.append({at: value for at, value in values.items() if liveness.after[which] >> at & 1})
        values = self._values(len(program.sums), starts)
        self._linearise(len(program.sums), values)
        self._keep_from(values, program.segments[-1])
        return starts, values

    def _keep_from(self, values: Values, positions: Iterable[int]) -> None:
        self.kept.update({at: values[at] for at in positions if at in self._keep})

    def _values(self, which: int, starts: Sequence[Values], static: Values | None = None) -> Values:
        """Return every value of a segment, and those that were alive at its start."""
        static = self.static if static is None else static
        values = dict(starts[which])
        for at in self.program.segments[which]:
            if at in self._drawn:
                values[at] = self._drawn.run(at, static, values)
            else:
                values[at] = self.program.operators[at](static, values)
        return values

    def _statistics(self) -> Values:
        """Return copies of the running statistics that norms move, for when they run once more."""
        order = self.program.flow.order
        norms = [self.program.nodes[at] for at in self.program.dynamic if moves_statistics(self.program.nodes[at])]
        moved = {order[buffer] for norm in norms for buffer in norm.args[3:5] if isinstance(buffer, fx.Node)}
        return {at: self.static[at].clone() for at in moved}

    def _linearise(self, which: int, values: Values) -> None:
        """Linearise a segment for all walks where there is room for its values, of which most are not kept then."""
        found = pytree.tree_leaves([values[at] for at in self.program.segments[which]])
        # Linearised, they have the dtype of the rows.
        size = sum(max(one.nbytes, one.numel() * self.dtype.itemsize) for one in found if isinstance(one, Tensor))
        if size <= self._room:
            self._room -= size
            with autocast_as({}):
                self._linearised[which] = LinearisedSegment(self, values).complete(self.program.segments[which])


class LinearisedSegment:
    """The operators of a segment, each linearised at its first use."""

    def __init__(self, of: LinearisedPass, values: Values, *, by_rules: bool = True) -> None:
        # Parts of the pass, not the pass itself, which holds this: its memory is to go when the pass does.
        self.graph, self.program, self.dtype, self.static = of.graph, of.program, of.dtype, of.static
        self.freeze_norms, self.drawn_at = of.freeze_norms, of.drawn_at
        self.values = values
        self.by_rules = by_rules
        self._made: dict[int, tuple[tuple[int, ...], Derivative]] = {}
        self._parameters: dict[int, Pullback] = {}
        self._read: dict[int, tuple[int, ...]] = {}

    def complete(self, positions: Sequence[int]) -> "LinearisedSegment":
        """Linearise all operators at some positions, and release the values."""
        for at in positions:
            if self.graph.leads_to_tap(at) and not self.graph.nodes >> at & 1:
                self.at(at)
        if not self.graph.parameters:  # whose gradients need what the operators read
            self.values = {}
        return self

    def at(self, at: int) -> tuple[tuple[int, ...], Derivative]:
        """Return the positions of an operator's operands, and its derivative."""
        if at not in self._made:
            program, order = self.program, self.program.flow.order
            node = program.nodes[at]
            operands = [
                other
                for other in node.all_input_nodes
                if other in program.flow.data and self.graph.leads_to_tap(order[other]) and has_gradient(other)
            ]

            frozen = self.freeze_norms
            constant = frozen_operands(node, program.flow.data) if frozen else ()
            operands = [other for other in operands if other not in constant]
            with self.drawn_at(at):
                call = self._call(at, operands)
                derivative = (frozen_norm(call) if frozen else None) or linearise(call, by_rules=self.by_rules)
            self._made[at] = tuple(order[other] for other in operands), derivative
        return self._made[at]

    def parameter_gradients(self, at: int, rows: Any, slopes: tuple[Tensor, ...] = ()) -> dict[int, Tensor]:
        """Return the gradients at what an operator reads of parameters, by its position, `[R, *parameter]`.

        Args:
            at: the operator's position.
            rows: the gradients at its value, `[R, *value]`, or those of its parts.
            slopes: what rows of a convolution are still to be multiplied by, each one factor per channel.
        """
        if at not in self._parameters:
            order = self.program.flow.order
            node = self.program.nodes[at]
            operands = [other for other in node.all_input_nodes if order[other] in self.graph.parameters]
            with self.drawn_at(at):
                self._parameters[at] = parameter_pullback(self._call(at, operands), by_rules=self.by_rules)
            self._read[at] = tuple(order[other] for other in operands)
        found = self._parameters[at](rows, *slopes)
        return {place: bank for place, bank in zip(self._read[at], found, strict=True) if bank is not None}

    def release_parameters(self) -> None:
        """Forget what was laid out for gradients at parameters, when a walk has left the segment."""
        self._parameters.clear()

    def _call(self, at: int, operands: Sequence[fx.Node]) -> Call:
        program = self.program

        def value(other: fx.Node) -> Any:
            place = program.flow.order[other]
            return self.values[place] if place in self.values else self.static[place]

        return Call(program.nodes[at], value, self.values[at], operands, self.dtype)
