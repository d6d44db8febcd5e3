"""PruneRequest: which blocks a user asks to delete and how, checked in the words of the command line."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from resnet_paths_plugin.analyzers.coalitions.held_out import HeldOut
from resnet_paths_plugin.analyzers.coalitions.search_plan import MOST_SETS
from resnet_paths_plugin.cli.preprocessing import InputBatches
from resnet_paths_plugin.cli.prune_sizes import most_deleted
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.batches import Batches
from resnet_paths_plugin.network.stand_ins import Fitted, why_not_linear
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

SearchMethod = Literal["exhaustive", "greedy", "beam", "evolutionary", "influence"]
StandIn = Literal["zero"] | Fitted

HELD_OUT = 0.5
"""Share of the images on which the smaller network is reported, and nothing is searched or fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """Which blocks are to be deleted, as the user asks for them.

    Attributes:
        delete: a number of blocks to search for.
        blocks: the blocks themselves.
        keep_latency: the share of the latency that may be left.
        search: the search; None where the user names none.
        keep: blocks that are not deleted.
        rounds: rounds of halving; None where the user names none.
        ablation: what stands in for a deleted branch.
        seed: seed of the choice of the images that are held out.
    """

    delete: int | None
    blocks: tuple[str, ...]
    keep_latency: float | None
    search: SearchMethod | None
    keep: tuple[str, ...]
    rounds: int | None
    ablation: StandIn
    seed: int

    @property
    def method(self) -> SearchMethod:
        """The search."""
        return self.search or "greedy"

    @property
    def halving(self) -> int:
        """Rounds of halving."""
        return self.rounds or 1

    @property
    def is_fitted(self) -> bool:
        """Whether what stands in for deleted branches is fitted on images."""
        return self.ablation != "zero"

    def check(self) -> None:
        """Check that exactly one way to choose is given, and nothing that is for another.

        Raises:
            InputError: if it is not.
        """
        given = _given({"--delete": self.delete, "--blocks": self.blocks, "--keep-latency": self.keep_latency})
        if len(given) != 1:
            raise InputError(
                f"give one of --delete (how many blocks), --blocks (which) and --keep-latency (a share of the time), "
                f"not {' and '.join(given) or 'none of them'}"
            )
        searched = _given({"--method": self.search, "--keep": self.keep, "--halving": self.rounds})
        if self.blocks and searched:
            are = "is" if len(searched) == 1 else "are"
            raise InputError(
                f"{' and '.join(searched)} {are} for a search, and --blocks names the blocks to delete: leave "
                f"{'it' if len(searched) == 1 else 'them'} out, or give --delete or --keep-latency in place of --blocks"
            )

    def check_on(self, network: UnraveledNetwork, batches: InputBatches) -> None:
        """Check the request against the network and the images, before anything is run.

        Raises:
            UnknownBlockError: if the network does not have one of the blocks.
            InputError: if so many blocks cannot be deleted, there are too few images, or nothing can stand in.
        """
        free = self.free(network)
        most = most_deleted(network, free)
        if not most:
            raise InputError(f"--keep leaves no block of {network.name} to delete: keep fewer")
        if self.blocks and len(free) > most:
            raise InputError(
                f"--blocks names every one of the network's {len(free)} blocks, and something has to be left: name "
                f"at most {most}"
            )
        if self.delete is not None:
            self.check_size(network, self.delete)
        self._check_stand_ins(network, free)
        if self.is_fitted or not self.blocks:
            self._check_images(network, batches)

    def check_size(self, network: UnraveledNetwork, size: int) -> None:
        """Check that so many blocks can be deleted.

        Raises:
            InputError: if they cannot, or all sets of that size are too many to be measured.
        """
        free, n_blocks = self.free(network), len(network.blocks)
        most = most_deleted(network, free)
        if size > most:
            what = f"deletes every one of the network's {n_blocks} blocks" if size == n_blocks else "is too many"
            left = " that --keep leaves" if self.keep else ""
            raise InputError(f"--delete {size} {what}: choose at most {most} of the {len(free)} blocks{left}")
        count = math.comb(len(free), size)
        if self.method == "exhaustive" and count > MOST_SETS:
            raise InputError(
                f"--method exhaustive would measure {count:,} sets of {size} blocks, more than {MOST_SETS:,}: delete "
                "fewer blocks, --keep more of them, or take --method greedy, beam or evolutionary"
            )

    def free(self, network: UnraveledNetwork) -> list[int]:
        """Return the blocks that may be deleted, by their indices.

        Raises:
            UnknownBlockError: if the network does not have one of those named.
        """
        if self.blocks:
            return [block.index for block in network.select(self.blocks)]
        kept = {block.index for block in network.select(self.keep)} if self.keep else set()
        return [block.index for block in network.blocks if block.index not in kept]

    def reference(self, network: UnraveledNetwork, batches: InputBatches) -> Any:
        """Return the images that stand-ins are fitted on, those that are searched on; None where none are fitted."""
        return self._split(network, batches).inputs_searched() if self.is_fitted else None

    def _split(self, network: UnraveledNetwork, batches: InputBatches) -> HeldOut:
        """Return the images as the analyzer splits them."""
        unit = network.frozen_batch or 1
        return HeldOut(
            Batches(batches, None, None), HELD_OUT, self.halving, None, seed=self.seed, unit=unit, check=lambda _: None
        )

    def _check_images(self, network: UnraveledNetwork, batches: InputBatches) -> None:
        try:
            self._split(network, batches)
        except InputError as error:
            rounds = f" and --halving {self.halving}" if self.halving > 1 else ""
            raise InputError(
                f"{len(batches.targets)} images are too few to hold half of them out{rounds}: give more --images"
                f"{', or a smaller --halving' if rounds else ''}"
            ) from error

    def _check_stand_ins(self, network: UnraveledNetwork, free: Collection[int]) -> None:
        if self.ablation != "linear":
            return
        found = {network.blocks[block].name: why_not_linear(network, block) for block in free}
        reasons = {name: reason for name, reason in found.items() if reason is not None}
        if reasons:
            first = next(iter(reasons))
            how = "leave them out of --blocks" if self.blocks else "name them in --keep"
            raise InputError(
                "--ablation linear puts a linear map over channels in the place of a branch, and "
                f"{', '.join(map(repr, reasons))} allow none ({first!r}: {reasons[first]}): {how}, or take "
                "--ablation mean"
            )


def chosen_place(methods: np.ndarray, method: str) -> int:
    """Return the place of the first set of a search in a selection.

    Raises:
        InputError: if it found none.
    """
    places = np.flatnonzero(methods == method)
    if not len(places):
        raise InputError(
            f"--method {method} measured no set whose loss is finite, so that there is none to delete: --keep the "
            "blocks whose deletion makes the outputs overflow"
        )
    return int(places[0])


def _given(options: dict[str, object]) -> list[str]:
    """Return the options that the user gave."""
    return [option for option, value in options.items() if value not in {None, ()}]
