"""Comparison: whether a copy without blocks computes what the network does without them, in whole and place by place.

Outputs alone tell too little: behind a head of zeros all copies are alike.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.export import uncompiled, undisturbed
from resnet_paths_plugin.graph.keywords import called
from resnet_paths_plugin.network.differences import difference, in_last_digits, unit_of, within
from resnet_paths_plugin.network.model_pass import tensors_of
from resnet_paths_plugin.network.skip_chain import SkipChain
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_SCALES = (-3.0, 20.0)
"""Factors of the sources that a module is tried on besides its own."""


class Comparison:
    """Compares a copy with the network without some blocks.

    Args:
        net: the network.
        blocks: the blocks that the copy is without.
        inputs: the arguments that they are compared on.
    """

    def __init__(
        self, net: UnraveledNetwork, blocks: Sequence[ResidualBlock], inputs: Sequence[tuple[Any, ...]]
    ) -> None:
        self._net = net
        self._inputs = inputs
        self._lesioned = net.lesioned(blocks)

    def of_outputs(self, copied: nn.Module) -> str | None:
        """Return what the copy does otherwise than the network; None if it does the same."""
        for args in self._inputs:
            with torch.no_grad():
                theirs = tensors_of(called(self._lesioned, args))
            if not all(bool(torch.isfinite(leaf).all()) for leaf in theirs):
                return "the copy cannot be compared, as outputs are not finite"
            try:
                ours = tensors_of(run_in_eval_mode(copied, args))
            except Exception as error:  # noqa: BLE001 - whatever the model's code raises
                return f"the copy fails ({type(error).__name__}: {error})"
            if not self._equal(ours, theirs):
                return "the copy has other outputs than the network without them"
        return None

    def of_module(self, copied: nn.Module, path: str, chains: Sequence[SkipChain]) -> str | None:
        """Return what stands in a module's place does otherwise than the graph; None if it does the same.

        Args:
            copied: the copy.
            path: the module's path.
            chains: what the graph does in each of its calls.
        """
        replacement = copied.get_submodule(path)
        for args in self._inputs:
            program = self._net.program
            try:
                sources = _sources(copied, replacement, args)
            except Exception as error:  # noqa: BLE001 - whatever the model's code raises
                return f"the copy fails ({type(error).__name__}: {error})"
            if len(sources) != len(chains):
                return "the copy calls what stands in its place otherwise than the model calls it"
            with torch.no_grad():
                static = program.prepare(program.parameters(), self._net.inputs(args))
            for chain, source in zip(chains, sources, strict=True):
                for tried in _perturbed(source):
                    with torch.no_grad():
                        given = chain.admitted(tried)
                        theirs = chain.run(given.clone(), static)
                    kept = given.clone()
                    ours = run_in_eval_mode(replacement, (given,))
                    if not torch.equal(given, kept):
                        return f"{_named(chain)} in its place writes over what it is given"
                    if not self._equal([ours], [theirs]):
                        return f"{_named(chain)} in its place gives other values than the network without them"
        return None

    def _equal(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
        error = difference(ours, theirs)
        if self._net.device.type == "cpu":
            return in_last_digits(error, theirs)
        return within(error, theirs, unit_of(self._net.graph))


def run_in_eval_mode(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """Run a model in eval mode, and leave it as it was."""
    with undisturbed(model), uncompiled(model), torch.no_grad():
        return called(model, args)


def _sources(copied: nn.Module, replacement: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Return what is handed to a module of a copy, call by call."""
    found: list[Tensor] = []
    handle = replacement.register_forward_pre_hook(lambda _, given: found.append(given[0].clone()))
    try:
        run_in_eval_mode(copied, args)
    finally:
        handle.remove()
    return found


def _perturbed(source: Tensor) -> Iterator[Tensor]:
    """Yield a source, multiples of it, and random values in its place."""
    yield source
    for scale in _SCALES:
        yield source * scale
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(source.shape, generator=generator).to(source) * source.abs().amax()


def _named(chain: SkipChain) -> str:
    return " and ".join(map(repr, chain.parts)) or "nn.Identity"
