"""The network of an analyzer: captured from the first batch, and compared with the model on the first samples."""

from collections.abc import Callable

from torch import nn

from resnet_paths_plugin.analyzers.study import Study
from resnet_paths_plugin.errors import CaptureMismatchError, InputError
from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.execution.batches import Batches
from resnet_paths_plugin.network.argument_rows import read_whole
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.network.unraveling import unravel
from resnet_paths_plugin.process_lock import alone


def ensure_network(
    model: nn.Module,
    network: UnraveledNetwork | None,
    batches: Batches,
    run: RunOptions | None,
    samples: int | None,
    study_on: Callable[[UnraveledNetwork], Study],
) -> UnraveledNetwork:
    """Return the network of an analyzer, captured from the first batch and compared with the model.

    It is captured where this has not been done yet, and again where the model was changed since.

    Args:
        model: what the analyzer was given.
        network: the network that it has.
        batches: the study's batches.
        run: how the study is run.
        samples: samples per pass that the user asks for; None if they ask for none.
        study_on: returns the study of a network.

    Raises:
        NoResidualBlocksError: if it has no residual blocks.
        CaptureMismatchError: if it is not what the model is.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, not {getattr(model, '__name__', type(model).__name__)}")
    verify = RunOptions.of(run).verify
    own = network is not None and network is not model  # captured by the analyzer itself
    if own and network is not None and network.check.changed:
        network = None
    found = _fitting(model, network, batches, verify=verify is not False, samples=samples)
    found.require_blocks()
    if found.device.type == "meta":
        raise InputError(
            f"{found.name} is on the meta device, where tensors have no values: its blocks can be listed there, and a "
            "study needs values. Build the model on a device, or model.to_empty(device='cpu') and load its weights"
        )
    if not (found.check.enabled if verify is None else verify):
        found.check.verified = "no"
        return found
    try:
        _compare(found, batches, run, samples, study_on)
    except CaptureMismatchError:
        if not own or found is not network:
            raise
        found = _fitting(model, None, batches, verify=True, samples=samples)
        found.require_blocks()
        _compare(found, batches, run, samples, study_on)
    return found


def _compare(
    network: UnraveledNetwork,
    batches: Batches,
    run: RunOptions | None,
    samples: int | None,
    study_on: Callable[[UnraveledNetwork], Study],
) -> None:
    """Compare a network with its model on the samples that the study begins with."""
    study = study_on(network)
    size = network.samples_per_run(batches.first.size, samples or study.samples_per_pass(run))
    chunk = next(batches.first.chunks(size)).to(network.device).copied()
    try:
        network.graph.bind(chunk.args)
    except InputError:
        return  # the study says itself, and better, what does not fit
    network.check.study(chunk.args, study.own_pass(chunk))


def _fitting(
    model: nn.Module, network: UnraveledNetwork | None, batches: Batches, *, verify: bool, samples: int | None
) -> UnraveledNetwork:
    """Return the network if it fits the first batch, else a new one."""
    if network is not None and network is not model and not network.fits(batches.first.to(network.device).args):
        network = None  # the module has another dtype by now, or gets inputs of another shape
    if network is None:
        with alone():  # a capture of the model elsewhere puts other tensors in their place
            device = next((parameter.device for parameter in model.parameters()), None)
        first = batches.first if device is None else batches.first.to(device)
        network = unravel(model, first.args, n_inputs=batches.n_inputs, verify=verify)
        fewer = samples or first.size
        if network.frozen_batch and fewer < first.size and not batches.additional:
            # The batch is frozen: at the size that is asked for.
            network = unravel(model, next(first.chunks(fewer)).args, n_inputs=batches.n_inputs, verify=verify)
        network.check.enabled = True  # what one study asks for holds for that one
    batches.fit(network.graph.arranged, network.readout)
    batches.keep_whole(_read_whole(network, batches))
    return network


def _read_whole(network: UnraveledNetwork, batches: Batches) -> tuple[int, ...]:
    """Return the additional arguments that have as many rows as there are samples by chance.

    The trace shows which ones have a row for each sample; where it does not, the model is asked.

    Raises:
        InputError: if neither tells, or the network was captured as if they were per sample.
    """
    tied = network.graph.n_inputs is None or network.graph.n_inputs > batches.n_inputs
    unknown = [at for at in batches.additional if tied or network.graph.apart(at)]
    if not unknown or batches.first.size in {1, network.frozen_batch}:
        return ()  # nothing is cut
    whole = read_whole(network.model, batches.first.to(network.device).args, unknown)
    if whole is None or (tied and whole):
        problem = (
            "which the model reads whole"
            if whole
            else "and the model's outputs do not tell whether they belong to them"
        )
        raise InputError(
            f"argument {(whole or unknown)[0]} has {batches.first.size} rows, as many as there are samples, {problem}. "
            "Pass it as a further input, inputs=(x, more), if each sample has a row of it; if all samples read all "
            f"rows, pass the model itself, or unravel(model, ..., n_inputs={batches.n_inputs})"
        )
    return whole
