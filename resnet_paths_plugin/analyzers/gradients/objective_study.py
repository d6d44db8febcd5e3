"""ObjectiveStudy: what all studies share that walk back from an objective."""

from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.outputs import outputs_of
from resnet_paths_plugin.analyzers.pass_sizes import chunk_size
from resnet_paths_plugin.analyzers.study import Study
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batch, check_target


class ObjectiveStudy(Study):
    """Walks back from an objective.

    Attributes:
        objective: what is differentiated.
    """

    objective: Objective

    def check(self, batch: Batch) -> None:
        """Check a batch's target against the outputs before anything is run."""
        sizes = self.network.readout.sizes_of(outputs_of(self.network))
        if callable(self.objective) and not (batch.names_outputs and len(sizes or ()) == 1):
            return  # the objective knows what to make of it
        if sizes is not None:
            check_target(batch, sizes)

    def samples_per_pass(self, run: RunOptions | None) -> int:
        """Return the number of samples of a walk."""
        return self.network.graph.conditions.reached(max(1, chunk_size(self.network, run) // 8))
