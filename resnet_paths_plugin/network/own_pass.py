"""OwnPass: what a study does with its first samples, as the network's side of the check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from resnet_paths_plugin.network.model_pass import Call, Objective, Tap, passed, random_objective


@dataclass(frozen=True, eq=False)
class Compared:
    """Two gradients that must agree.

    Attributes:
        ours: the one that the study uses, summed where it is split.
        theirs: the ordinary one.
        tap: where the model's own is taken; None inside the graph.
    """

    ours: Tensor
    theirs: Tensor
    tap: Tap | None


@dataclass(frozen=True, eq=False)
class Found:
    """What a study's own pass has found on its first samples.

    Attributes:
        outputs: the tensors among the network's outputs.
        gradients: those that must agree.
        finish: goes on from there and returns the study's results on these samples; None where there are none.
    """

    outputs: Sequence[Tensor]
    gradients: Sequence[Compared]
    finish: Callable[[], Any] | None = None


class OwnPass(Protocol):
    """A study's own work on its first samples, of which the network's side of the check is a part."""

    @property
    def key(self) -> object:
        """What its results are kept under."""

    @property
    def given(self) -> Any:
        """All that its results depend on: arguments, targets."""

    @property
    def objective(self) -> Objective:
        """What is differentiated."""

    def against(self, theirs: Mapping[Tap, Tensor]) -> Found:
        """Run it, with the gradients of the model at hand."""


@dataclass(frozen=True, eq=False)
class ThroughAutograd:
    """The gradient of a random objective, as autograd takes it through a network or a view.

    Attributes:
        call: the network or the view.
        args: the arguments.
        name: the model's name.
    """

    call: Call
    args: tuple[Any, ...]
    name: str
    key: object = None
    given: Any = None
    objective: Objective = random_objective

    def against(self, theirs: Mapping[Tap, Tensor]) -> Found:
        """Run it."""
        ours = passed(self.call, self.args, theirs, self.objective)
        parameters = [tap for tap in theirs if isinstance(tap, nn.Parameter)]
        gradients = ours.gradients(self.name, parameters)
        return Found(ours.outputs, [Compared(gradients[tap], theirs[tap], tap) for tap in theirs])
