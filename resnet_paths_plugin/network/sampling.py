"""Training on chosen paths: a module for a training loop in which each batch runs a random subset of the blocks.

It trains nothing itself: optimizer, loss and loop are the user's.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Self

import torch

from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.engine.schedule import Row, Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.keywords import packed
from resnet_paths_plugin.graph.structure import Structure
from resnet_paths_plugin.network.captured_network import CapturedNetwork
from resnet_paths_plugin.network.model_check import ModelCheck
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.network.training_program import BatchCounters, training_program


class SamplingNetwork(NetworkView):
    """A model of which each training batch runs a random subset of the residual blocks; made by `net.sampling`.

    In training mode, in which it starts, each call draws a subset: a block that is drawn is `y = s(x) + f(x)`, any
    other `y = s(x)`. What is not needed then is not computed: it costs no time, moves no running statistics, and its
    parameters get no gradient. A block inside the branch of a block that is not drawn does not run either. In eval
    mode all blocks run, their branches multiplied by the probability that they ran in training.

    Parameters and buffers are the model's own, so that an optimizer takes them from either, and the model is what is
    saved. `train` and `eval` switch this module and leave the model's flags alone: what dropout and batch norms do
    in training mode was fixed when it was made, by the model's flags where the model was in training mode (parts of
    it may be in eval mode, as frozen batch norms are), else by those that `model.train()` sets. So were the momentum of
    batch norms and the rates of dropout: after changing flags or these, make a new one.

    For one thread: what a batch draws and counts is kept here and in the model. Make one for each thread.

    Sources: exactly m of n blocks, Veit et al. 2016, Sec. 5; stochastic depth, Huang et al. 2016, "Deep Networks with
    Stochastic Depth", ECCV, eq. 2 (training), 4 (linear decay) and 5 (eval mode).

    Attributes:
        sampled: the blocks that are drawn from, in execution order; all others always run.
        survival: for each of them, the probability that a batch runs it.
        n_active: how many of them each batch runs; None where each is drawn on its own.
        active: those of the last batch that was run in training mode; empty before the first.
        eval_schedule: what eval mode runs.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        check: ModelCheck,
        n_active: int | None = None,
        *,
        survival: float | Sequence[float] | None = None,
        include_projections: bool = False,
        scale_in_eval: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(network.model)
        network.require_paths()
        if (n_active is None) == (survival is None):
            raise InputError(
                "give either n_active, the number of blocks that each batch runs, or survival, the probability that "
                "it runs the last block (or one for each block)"
            )
        if generator is not None and generator.device.type != "cpu":
            raise InputError(f"subsets are drawn on the CPU: give a CPU generator, not one on {generator.device}")
        self._network = (network,)
        self._check = check
        self._generator = generator
        self.sampled = tuple(block for block in network.blocks if include_projections or block.movable)
        if not self.sampled:
            raise InputError(
                f"every skip of {network.name} is a projection, so there is no block to sample: pass "
                "include_projections=True"
            )
        self.n_active = None if n_active is None else _checked_number(n_active, len(self.sampled))
        self.survival = self._probabilities(survival)
        rows: dict[int, Row] = {
            block.index: ((block.index, probability),)
            for block, probability in zip(self.sampled, self.survival, strict=True)
            if scale_in_eval and probability != 1
        }
        self.eval_schedule = Schedule.from_rows(network, rows)
        self.active: tuple[ResidualBlock, ...] = ()
        self._checked: Structure | None = None
        self._program = training_program(network)
        self._engine = ForwardEngine(self._program)
        self._counters = BatchCounters(self._program)
        self.training = True

    @property
    def network(self) -> CapturedNetwork:
        """The network that this is a view of."""
        return self._network[0]

    @property
    def generator(self) -> torch.Generator | None:
        """What the subsets are drawn from; None for torch's global one."""
        return self._generator

    def train(self, mode: bool = True) -> Self:
        """Run random subsets of the blocks, or all; the model's own flags stay as they are."""
        if not isinstance(mode, bool):
            raise ValueError(f"training mode is expected to be boolean, not {mode!r}")  # noqa: TRY004 - as nn.Module
        self.training = mode
        return self

    def forward(self, *args: Any) -> Any:
        """Return the output for the arguments that the model takes, tensors with batch `B`.

        Raises:
            InputError: if the arguments do not fit what was captured; nothing is drawn then.
        """
        network = self._network[0]
        args = network.graph.arranged(args)
        if not self.training:
            self._check.view(args)
            return self._check.watched(args, next(network.outputs([self.eval_schedule], args))[1])
        program = self._program
        order = program.flow.order
        inputs = {order[node]: value for node, value in program.graph.bind(args).items()}
        self._checked = self._check.sampling(self.all_active, program.graph, args, self._checked)
        drawn = self._draw()
        self.active = tuple(block for block, runs in zip(self.sampled, drawn, strict=True) if runs)
        gone: dict[int, Row] = {block.index: () for block, runs in zip(self.sampled, drawn, strict=True) if not runs}
        return self._run(Schedule(len(network.blocks), gone), inputs)

    def all_active(self, *args: Any, **keywords: Any) -> Any:
        """Return the output in training mode with every block; batch norms count it as any batch."""
        order = self._program.flow.order
        inputs = {order[node]: value for node, value in self._program.graph.bind(packed(args, keywords)).items()}
        return self._run(Schedule.identity(self._network[0]), inputs)

    def _run(self, schedule: Schedule, inputs: Values) -> Any:
        parameters = self._program.parameters()
        _, leaves = next(self._engine.run([schedule], inputs, parameters))
        self._counters.count(self._engine.analysis.of(schedule).needed, parameters)
        return self._program.graph.unflatten(leaves)

    def _draw(self) -> list[bool]:
        """Draw which of the sampled blocks run; nothing is drawn where all do."""
        n = len(self.sampled)
        if self.n_active == n:
            return [True] * n
        if self.n_active is not None:
            chosen = set(torch.randperm(n, generator=self._generator)[: self.n_active].tolist())
            return [at in chosen for at in range(n)]
        draws = torch.rand(n, generator=self._generator, dtype=torch.float64).tolist()
        return [draw < probability for draw, probability in zip(draws, self.survival, strict=True)]

    def _probabilities(self, survival: float | Sequence[float] | None) -> tuple[float, ...]:
        n = len(self.sampled)
        if survival is None:
            return ((self.n_active or 0) / n,) * n
        if isinstance(survival, torch.Tensor):
            survival = survival.tolist()
        if isinstance(survival, Real):
            last = _checked_probability(survival)
            return tuple(1 - place / n * (1 - last) for place in range(1, n + 1))
        if isinstance(survival, str) or not isinstance(survival, Iterable):
            raise InputError(f"survival must be a number or a sequence of numbers, not {survival!r}")
        each = tuple(_checked_probability(probability) for probability in survival)
        if len(each) != n:
            raise InputError(
                f"survival has {len(each)} probabilities, and {n} blocks are sampled: give one for each of `sampled`, "
                "in execution order (blocks whose skip is a projection count only with include_projections=True)"
            )
        return each

    def __repr__(self) -> str:
        rule = (
            f"{self.n_active} of {len(self.sampled)} blocks per batch"
            if self.n_active is not None
            else f"{len(self.sampled)} blocks, survival {self.survival[0]:.3g} to {self.survival[-1]:.3g}"
        )
        return f"{type(self).__name__}({self._network[0].name}, {rule})"


def _checked_number(n_active: object, n: int) -> int:
    if not isinstance(n_active, Integral) or isinstance(n_active, bool) or not 1 <= int(n_active) <= n:
        raise InputError(
            f"n_active must be an integer from 1 to {n}, the number of blocks that are sampled, not {n_active!r}"
        )
    return int(n_active)


def _checked_probability(probability: object) -> float:
    # An integer is compared as it is, as a large one has no float.
    number = probability if isinstance(probability, int) else float(probability) if isinstance(probability, Real) else 0
    if isinstance(probability, bool) or not 0 < number <= 1:
        raise InputError(f"a survival probability must be above 0 and at most 1, not {probability!r}")
    return float(number)
