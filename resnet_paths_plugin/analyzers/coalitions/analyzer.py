"""GameAnalyzer: the base of analyzers of a game over blocks; it takes a game from `attribute` to a Dataset."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from captum.attr import PerturbationAttribution
from tqdm.auto import tqdm

from resnet_paths_plugin.analyzers.base import Analyzer, study_attrs
from resnet_paths_plugin.analyzers.coalitions.evaluated import Coalitions
from resnet_paths_plugin.analyzers.coalitions.game import BlockGame
from resnet_paths_plugin.analyzers.study import StudyResult
from resnet_paths_plugin.execution import RunOptions, TaskFolder
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.block_coords import NOT_KNOWN, block_coords
from resnet_paths_plugin.results.opened_files import opened
from resnet_paths_plugin.results.schema import QUANTITIES
from resnet_paths_plugin.results.variables import Entry

_OF_GAME = (
    "target", "additional_forward_args", "value", "measures", "higher_is_better", "level", "ablation", "reference",
    "ridge", "seed", "internal_batch_size", "perturbations_per_eval", "show_progress",
)  # fmt: skip
_IN_UNITS_OF_MEASURE = frozenset({
    "shapley_value", "shapley_stderr", "shapley_interaction", "shapley_interaction_stderr", "shapley_value_per_sample",
    "efficiency_error", "single_effect", "pair_effect", "interaction", "interaction_per_sample", "set_effect",
    "additive_effect",
})  # fmt: skip
OTHER = "other_block"
"""Dim of the second player of a pair."""

_NOT_RECORDED = frozenset({"self", "__class__", "seed", "show_progress", "run"})


class GameAnalyzer(Analyzer, PerturbationAttribution):  # type: ignore[misc]  # captum is untyped
    """Base of analyzers of a game over blocks.

    Args:
        model: a module, captured at the first `attribute` from its first batch, or an unraveled network.
    """

    def run_game(
        self,
        play: Callable[[BlockGame], StudyResult],
        arguments: Mapping[str, Any],
        *,
        title: str,
        summary: str,
    ) -> xr.Dataset:
        """Make the game, have it played, and return the result; with a checkpoint, opened from its file.

        Args:
            play: evaluates coalitions and returns what is made of them, along dim `block` for players.
            arguments: all arguments of `attribute`, as `dict(locals())` has them.
            title: what the result is, before the network's name.
            summary: what the result holds.

        Raises:
            InputError: if arguments do not fit.
            CheckpointError: if there is a checkpoint of another game.
        """
        run = RunOptions.of(arguments.get("run"))
        target = None if isinstance(run.checkpoint, TaskFolder) else run.checkpoint
        folder = run.checkpoint if target is None else TaskFolder.beside(target)
        options = {name: arguments[name] for name in _OF_GAME if name in arguments}
        game = BlockGame(
            self.forward_func,
            arguments["inputs"],
            **options,
            captured=self._network,
            run=replace(run, checkpoint=folder),
        )
        self._network = game.network
        result = play(game)
        attrs = study_attrs(
            game.network,
            analyzer=type(self).__name__,
            title=f"{title} of {game.network.name}",
            summary=summary,
            seed=arguments.get("seed"),
            arguments={name: value for name, value in arguments.items() if name not in _NOT_RECORDED},
            run=run,
        )
        attrs |= game.conditions.attrs
        coords = {**result.coords, **_player_coords(game)}
        found = datasets.build(result.variables, coords=coords, attrs=attrs)
        if target is None:
            return found
        path = datasets.save(found, target)
        game.remove_checkpoint()
        return opened(path)


def with_measure(game: BlockGame, variables: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return variables of which those in the measure's unit say which measure that is, and which way is better."""
    known = QUANTITIES.get(game.value)
    attrs: dict[str, object] = {"measure": game.value, "units": "1" if known is None else known.units}
    if game.direction is not None:
        attrs["higher_is_better"] = int(game.direction)
    return {name: (*entry[:2], attrs) if name in _IN_UNITS_OF_MEASURE else entry for name, entry in variables.items()}


def tell(game: BlockGame, coalitions: Coalitions, *, told: bool) -> None:
    """Say what is going to be run, where the user wants to see progress."""
    if told:
        passes = game.forward_passes(coalitions)
        count = len(np.unique(np.packbits(coalitions, axis=1), axis=0))
        tqdm.write(f"{count:,} coalitions of {game.n_players} players: about {passes:,.0f} forward passes", sys.stderr)


def _player_coords(game: BlockGame) -> dict[str, Entry]:
    """Return the coordinates of dim `block`: of a group the facts of its blocks, joined by "+" where they differ."""
    groups = list(game.units.values())
    coords = block_coords([blocks[0] for blocks in groups])
    stage = [blocks[0].stage if len({block.stage for block in blocks}) == 1 else None for blocks in groups]
    return coords | {
        "block": ("block", list(game.players)),
        "block_stage": ("block", [NOT_KNOWN if one is None else one for one in stage], *coords["block_stage"][2:]),
        "block_skip_kind": ("block", [_joined(block.skip_kind for block in blocks) for blocks in groups]),
        "block_branch_type": ("block", [_joined(block.branch_type for block in blocks) for blocks in groups]),
        "block_depth": ("block", [sum(block.depth for block in blocks) for blocks in groups]),
    }


def _joined(kinds: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(kinds))
