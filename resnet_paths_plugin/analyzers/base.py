"""Analyzer: the base of this package's analyzers and of plugins'; it takes a study from `attribute` to a Dataset.

A subclass's `attribute` checks its own arguments and says how the study is made; all else stands here, once.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import xarray as xr
from captum.attr import Attribution
from torch import nn

from resnet_paths_plugin.analyzers.arguments import positive
from resnet_paths_plugin.analyzers.captured import ensure_network
from resnet_paths_plugin.analyzers.pass_sizes import device_of
from resnet_paths_plugin.analyzers.study import Study
from resnet_paths_plugin.analyzers.study_results import results_as_datasets
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions, Stage, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results import provenance
from resnet_paths_plugin.tasks import Readout

_NOT_RECORDED = frozenset({"self", "__class__", "seed", "show_progress", "run"})
"""Arguments that are no `argument_NAME` of the result: they do not decide it, or have an attribute of their own."""


class Analyzer(Attribution):  # type: ignore[misc]  # captum is untyped
    """Base of analyzers, to be put before one of Captum's: `class MyAnalyzer(Analyzer, GradientAttribution)`.

    It captures the model at the first `attribute`, compares the network with the model, runs the study with its
    progress bar, checkpoint and executor, and states the provenance. For any number of threads: each study keeps its
    own state.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.

    Example:
        An analyzer's `attribute` says how its study is made; `OutputNorms` is the one of `Study`'s example.

        >>> import torch, resnet_paths_plugin as rpp
        >>> class OutputNorm(rpp.Analyzer):
        ...     def attribute(self, inputs, target=None, additional_forward_args=None, *, run=None):
        ...         return self.run_study(lambda network, batches: OutputNorms(network), dict(locals()))
        >>> issubclass(rpp.BlockLesion, rpp.Analyzer)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._network = model if isinstance(model, UnraveledNetwork) else None

    def run_study(self, make: Callable[[UnraveledNetwork, Batches], Study], arguments: Mapping[str, Any]) -> xr.Dataset:
        """Make a study of the network, run it over the batches and return its result.

        Args:
            make: returns the study of a network over batches; called again where the network must be captured again.
            arguments: all arguments of `attribute`, as `dict(locals())` in its first line has them. `inputs`, `target`,
                `additional_forward_args`, `internal_batch_size`, `show_progress` and `run` are obeyed where they are
                there; the result records each argument, but for the last two and `seed`.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            CaptureMismatchError: if the network is not what the model is.
            InputError: if inputs, targets or options do not fit, there is no argument `inputs`, or the study's results
                do not hold each sample once.
            CheckpointError: if there is a checkpoint of another study.
        """
        if "inputs" not in arguments:
            raise InputError(
                f"{type(self).__name__}.attribute must have an argument 'inputs', and run_study all of its arguments, "
                f"as dict(locals()) has them in its first line; it got {', '.join(map(repr, arguments)) or 'none'}"
            )
        batches = Batches(arguments["inputs"], arguments.get("target"), arguments.get("additional_forward_args"))
        run = arguments.get("run")
        given = positive("internal_batch_size", arguments.get("internal_batch_size"))

        @cache
        def study_on(network: UnraveledNetwork) -> Study:
            study = make(network, batches)
            study.check(batches.first)
            return study

        self._network = network = ensure_network(self.forward_func, self._network, batches, run, given, study_on)
        study = study_on(network)
        attrs = {**_provenance(type(self).__name__, study, arguments, run), **_with_classes(study.attrs, batches)}
        sizes = study.sizes(given or study.samples_per_pass(run), run)
        show_progress = bool(arguments.get("show_progress"))
        facts = {**study.manifest, **({} if network.readout == Readout() else {"readout": network.readout})}
        with StudyRun(network, run, attrs, facts=facts, sizes=sizes, show_progress=show_progress) as study_run:
            work = study.work(study_run)
            samples = study.chunks(_checked(study, batches), study_run.sizes["samples"])
            chunks = study_run.pieces(Stage(study.name, work), samples, batches.n_samples)
            return study_run.gather(
                results_as_datasets(study, chunks, coords=study.block_coords, attrs=attrs, names=batches.sample_names)
            )


def _checked(study: Study, batches: Batches) -> Iterator[Batch]:
    for batch in batches:
        study.check(batch)
        yield batch


def _with_classes(attrs: Mapping[str, object], batches: Batches) -> Mapping[str, object]:
    """Return a study's attributes with the names of the batches' classes, where it has none and they are as many."""
    names = batches.class_names
    if not names or "class_names" in attrs or attrs.get("n_classes") != len(names):
        return attrs
    return {**attrs, "class_names": list(names)}


def _provenance(analyzer: str, study: Study, arguments: Mapping[str, Any], run: RunOptions | None) -> dict[str, object]:
    return study_attrs(
        study.network,
        analyzer=analyzer,
        title=study.title,
        summary=study.summary,
        seed=study.seed,
        arguments={name: value for name, value in arguments.items() if name not in _NOT_RECORDED},
        run=run,
    )


def study_attrs(
    network: UnraveledNetwork,
    *,
    analyzer: str,
    title: str,
    summary: str,
    seed: int | None,
    arguments: Mapping[str, Any],
    run: RunOptions | None = None,
) -> dict[str, object]:
    """Return the provenance of a study of this network."""
    facts = provenance.provenance(
        title=title,
        summary=summary,
        analyzer=analyzer,
        model_class=type(network.model),
        description=network.description,
        weights_digest=network.weights_digest(),
        plugins=network.plugin_names,
        device=device_of(network, run),
        dtype=network.dtype,
        seed=seed,
        arguments=arguments,
    )
    optimized = {"optimize": ", ".join(network.optimize)} if network.optimize else {}
    task = {"task": network.readout.task.name} if network.readout.task else {}
    return {**facts, "units": network.units, **task, **optimized, "verified": network.check.verified}
