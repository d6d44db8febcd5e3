"""PathsOfFirstSamples: a study of paths on its first samples, as the network's side of the check against the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from resnet_paths_plugin.analyzers.gradients.objectives import per_sample, summed
from resnet_paths_plugin.analyzers.gradients.tasks import PathWork
from resnet_paths_plugin.engine.random_states import generator_states, replayed
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.model_pass import Tap, tensors_of
from resnet_paths_plugin.network.own_pass import Compared, Found
from resnet_paths_plugin.network.unraveled import UnraveledNetwork


@dataclass(frozen=True, eq=False)
class PathsOfFirstSamples:
    """A study of paths on its first samples: the gradients of all lengths together are compared with the ordinary one.

    At a tap inside the graph that is autograd's through the graph, which is compared with the model's at the arguments.
    """

    work: PathWork
    network: UnraveledNetwork
    chunk: Batch

    @property
    def key(self) -> object:
        """The work that the results are of."""
        return self.work

    @property
    def given(self) -> Any:
        """What the results depend on."""
        return self.chunk.args, self.chunk.target

    def objective(self, outputs: Any) -> Tensor:
        """Return the study's own objective, summed over samples."""
        if self.work.tap is not None:  # with a gradient through the graph, where the model itself may have none
            return per_sample(self.work.objective, outputs, self.chunk).sum()
        return summed(self.work.objective, outputs, self.chunk)

    def against(self, theirs: Mapping[Tap, Tensor]) -> Found:
        """Walk the paths."""
        job = self.work.on(self.network)
        states = generator_states()
        walked = job.walked(self.chunk, range(self.chunk.size))
        outputs = tensors_of(self.network.graph.unflatten(walked.walk.outputs))
        if self.work.tap is None:
            ordinary, pairs = job.at_inputs(theirs), []
            places: dict[int, Tap] = {tap: self.network.program.inputs.index(tap) for tap in ordinary}
        else:
            with replayed(states):
                ordinary, at_arguments = job.inside(self.chunk, theirs)
            pairs = [Compared(at_arguments[tap], theirs[tap], tap) for tap in theirs]
            places = {}
        pairs += [Compared(total, ordinary[tap], places.get(tap)) for tap, total in job.totals(walked).items()]
        return Found(outputs, pairs, lambda: job.estimates(walked, ordinary))
