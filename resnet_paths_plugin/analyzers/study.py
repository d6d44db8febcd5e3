"""Study: what an analyzer computes on one network, how samples are cut into tasks, and what the result holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from resnet_paths_plugin.analyzers.pass_sizes import chunk_size
from resnet_paths_plugin.execution import Arrays, RunOptions, Samples, Stage, StudyRun, Work
from resnet_paths_plugin.execution.batches import Batch, Batches, Target
from resnet_paths_plugin.network.model_pass import Tap
from resnet_paths_plugin.network.own_pass import Compared, Found, OwnPass, ThroughAutograd
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.block_coords import block_coords
from resnet_paths_plugin.results.variables import Entry

__all__ = [
    "Arrays", "Batch", "Batches", "Chunk", "Compared", "Found", "FunctionWork", "OwnPass", "Samples", "Stage", "Study",
    "StudyResult", "StudyRun", "Tap", "Target", "ThroughAutograd", "Work",
]  # fmt: skip

Chunk = tuple[Samples, Sequence[Arrays]]
"""A chunk of samples with the results of its tasks, one for each group of the work."""


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What is known of some samples, as a Dataset is made of it.

    The coordinates of dim `block` are added, and those of `sample` and `path_length`, which count from 0.

    Attributes:
        variables: dims, values and, where the schema does not know the variable, attributes (`long_name`, `units`),
            by name. Variables with dim `sample` hold these samples alone; of others the last one counts.
        coords: further coordinates, likewise.

    Example:
        >>> import numpy as np, resnet_paths_plugin as rpp
        >>> found = rpp.StudyResult({"norm": ("sample", np.ones(4), {"long_name": "norm", "units": "1"})})
    """

    variables: Mapping[str, Entry]
    coords: Mapping[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FunctionWork:
    """The work of tasks that one function does.

    Attributes:
        function: called with the network and the samples of a task, returns arrays by name. It must be picklable: a
            function of a module, or a `functools.partial` of one.
    """

    function: Callable[[UnraveledNetwork, Batch], Arrays]

    @property
    def n_groups(self) -> int:
        """One task for each chunk of samples."""
        return 1

    def on(self, network: UnraveledNetwork) -> Callable[[int, Samples], Arrays]:
        """Return what runs a task on a network."""
        return lambda _, samples: self.function(network, samples[0])


class Study(ABC):
    """What an analyzer computes on one network. A subclass has at least `name`, `work` and `results`.

    Args:
        network: the network.
        title: title of the result.
        summary: what the result holds, in a sentence or two.
        seed: seed of what is drawn at random; None if nothing is.

    Attributes:
        name: a word for what is computed: names the progress bar and the files of a checkpoint. It has letters,
            digits, `_`, `-` and spaces, and is not that of a pass that runs before (`recalibration`, `branch_means`).

    Example:
        >>> import resnet_paths_plugin as rpp
        >>> from resnet_paths_plugin.analyzers import FunctionWork
        >>> def norms(network, batch):
        ...     return {"norm": network.intact(*batch.args).flatten(1).norm(dim=1).detach().numpy()}
        >>> class OutputNorms(rpp.Study):
        ...     name = "output_norms"
        ...     def __init__(self, network):
        ...         super().__init__(network, title="Output norms", summary="The norm of each sample's outputs.")
        ...     def work(self, run):
        ...         return FunctionWork(norms)
        ...     def results(self, chunks):
        ...         for _, (found,) in chunks:
        ...             yield rpp.StudyResult({"norm": ("sample", found["norm"], {"long_name": "norm", "units": "1"})})
    """

    name: str

    def __init__(self, network: UnraveledNetwork, *, title: str, summary: str, seed: int | None = None) -> None:
        self.network = network
        self.title = title
        self.summary = summary
        self.seed = seed

    @property
    def attrs(self) -> Mapping[str, object]:
        """Global attributes of the result beside its provenance."""
        return {}

    @property
    def block_coords(self) -> Mapping[str, Entry]:
        """The coordinates of dim `block`."""
        return block_coords(self.network.blocks)

    @property
    def manifest(self) -> Mapping[str, object]:
        """What else decides the result, by name: a checkpoint of a study with other values is refused."""
        return {}

    def check(self, batch: Batch) -> None:  # noqa: B027 - a study need not refuse anything
        """Check a batch before anything is run on it.

        Raises:
            InputError: if it does not fit.
        """

    def samples_per_pass(self, run: RunOptions | None) -> int:
        """Return the number of samples of a task where the user names none."""
        return chunk_size(self.network, run)

    def sizes(self, samples: int, run: RunOptions | None) -> Mapping[str, int]:  # noqa: ARG002 - for subclasses
        """Return the sizes of tasks by name, `samples` among them; a checkpoint keeps those that it began with.

        Args:
            samples: samples per pass.
            run: how the study is run.
        """
        return {"samples": samples}

    def own_pass(self, chunk: Batch) -> OwnPass | None:  # noqa: ARG002 - for subclasses
        """Return what a study that takes gradients does with its first samples, to be compared with the model."""
        return None

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:
        """Cut batches into the samples of tasks, at most `size` each."""
        for batch in batches:
            for chunk in batch.chunks(self.network.samples_per_run(batch.size, size)):
                yield (chunk,)

    @abstractmethod
    def work(self, run: StudyRun) -> Work:
        """Return what a task does with its samples.

        Args:
            run: the study under way, which has the sizes of tasks, and runs passes that are needed before.
        """

    @abstractmethod
    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the result of each chunk of samples; what holds for all samples holds for those up to there."""
