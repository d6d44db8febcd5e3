"""WalkStudy: what the studies share that walk from an objective back to the blocks, sample by sample."""

from collections.abc import Sequence
from typing import Any

from resnet_paths_plugin.analyzers.gradients.first_samples import PathsOfFirstSamples
from resnet_paths_plugin.analyzers.gradients.objective_study import ObjectiveStudy
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.tasks import PathWork
from resnet_paths_plugin.engine.keys import Lengths
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.graph.operators import has_gradient
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.variables import Entry


class WalkStudy(ObjectiveStudy):
    """Walks from an objective back to the blocks.

    Args:
        network: the network.
        title: title of the result.
        summary: what the result holds.
        objective: what is differentiated.
        n_inputs: how many of the network's arguments are inputs.
        max_length: longest length with a row of its own; None for all.
        grades: for each block, what its branch adds to the length; None for 1.

    Attributes:
        lengths: numbers of branches that paths take, from 0 to the longest, or to `max_length`.
        cut: whether there are longer paths.

    Raises:
        NoResidualBlocksError: if the network has no residual blocks.
        InputError: if `max_length` is no whole number from 0.
    """

    def __init__(
        self,
        network: UnraveledNetwork,
        *,
        title: str,
        summary: str,
        objective: Objective,
        n_inputs: int,
        max_length: int | None = None,
        grades: Sequence[Lengths] | None = None,
    ) -> None:
        super().__init__(network, title=title, summary=summary)
        network.require_paths()
        self.objective, self.n_inputs = objective, n_inputs
        # Over all inputs, integers too, as a block may be reached from some of them only.
        longest = network.longest_path(grades)
        if max_length is not None and (
            not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 0
        ):
            raise InputError(f"max_length must be a whole number from 0, not {max_length!r}")
        last = longest if max_length is None else min(longest, max_length)
        self.lengths = tuple(range(last + 1))
        self.cut = last < longest

    @property
    def takes_floats(self) -> bool:
        """Whether some input holds floating-point values, at which gradients can be taken."""
        program = self.network.program
        return any(has_gradient(program.nodes[at]) for at in program.inputs[: self.n_inputs])

    def own_pass(self, chunk: Batch) -> PathsOfFirstSamples:
        """Return a walk over the first samples in one row, to be compared with the model's gradient."""
        work = PathWork.of_all_paths(self.network, self.objective, self.n_inputs, inside=not self.takes_floats)
        return PathsOfFirstSamples(work, self.network, chunk)

    @property
    def length_coord(self) -> dict[str, Entry]:
        """The coordinate of dim `path_length`."""
        coord: Any = ("path_length", list(self.lengths))
        return {"path_length": coord}
