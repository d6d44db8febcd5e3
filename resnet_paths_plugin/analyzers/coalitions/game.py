"""BlockGame: a measure of the network in which only some blocks keep their branch, as a game over blocks.

It evaluates coalitions, each once. What is made of their values (shares, interactions, best sets) stands elsewhere.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from torch import nn

from resnet_paths_plugin.analyzers.arguments import check_draws, positive
from resnet_paths_plugin.analyzers.base import study_attrs
from resnet_paths_plugin.analyzers.captured import ensure_network
from resnet_paths_plugin.analyzers.coalitions.evaluated import Coalitions, Evaluated, digest
from resnet_paths_plugin.analyzers.coalitions.study import CoalitionStudy
from resnet_paths_plugin.analyzers.coalitions.tasks import VALUE, schedules_of
from resnet_paths_plugin.analyzers.rewiring.conditions import Conditions
from resnet_paths_plugin.analyzers.rewiring.measures import Measure, Measures, higher_is_better, offered_measures
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning
from resnet_paths_plugin.execution import RunOptions, Stage, StudyRun, TaskFolder
from resnet_paths_plugin.execution.batches import Batch, Batches, Target
from resnet_paths_plugin.execution.fingerprints import fingerprint
from resnet_paths_plugin.network.levels import Level, units_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork


class BlockGame:
    """The game `v(S)`: a measure, as its mean over samples, of the network in which only the blocks in `S` are left.

    Of the other blocks the skip stays, a projection included. A call evaluates the coalitions that no call has
    evaluated yet, all in one study: those that begin alike share what they have in common, so that all `2^n` of them
    cost about `2^n / n` forward passes.

    It is what `shapiq` calls a game: a function of a boolean matrix, which all its approximators take as it is. Any
    threads may call it, one after the other. The same calls give the same values, bit for bit on a CPU whatever else is
    evaluated beside them.

    Args:
        net: a module, captured from the first batch, or an unraveled network.
        inputs: a tensor with batch `B`, a tuple of tensors, or an iterable of `(inputs, target)` batches that can be
            read again and gives the same samples each time, such as a list or a `DataLoader` that does not shuffle.
        target: which output to measure, as in Captum; for outputs `[B, classes]` an integer is the label too.
        additional_forward_args: further arguments of the model, after the inputs.
        value: the measure: `"target_score"`, `"loss"` (nats), `"correct"`, `"target_score_drop"`,
            `"prediction_changed"`, `"kl_divergence"` (nats), or the name of a plugin's measure or of one in `measures`.
        measures: measures of your own by name, `function(outputs, target) -> [B]`.
        higher_is_better: whether more of the measure means a better network, for `effects`; None knows it of the
            measures above, and asks others for an attribute of this name.
        level: whether players are single blocks, or groups: all blocks of one owning module.
        ablation: what stands in for a deleted branch, as in `BlockLesion`.
        reference: data for branch means and linear maps, as `inputs`; None takes the inputs themselves.
        ridge: ridge parameter of linear maps, as in `BlockLesion`.
        seed: seed of the choice of other samples, with `ablation="resample"`.
        internal_batch_size: samples per forward pass; None chooses a number that suits the cache.
        perturbations_per_eval: coalitions per forward pass, in one larger batch; None chooses.
        captured: a network that the module was captured as before; captured again where it does not fit any more.
        show_progress: whether to show a progress bar at each call.
        run: where to evaluate, and where to keep what is evaluated: with `checkpoint="game.nc"` a folder
            `game.nc.partial` holds all coalitions with their values, and the tasks of a call that was interrupted. A
            game of the same model, data and measure goes on from it, another one is refused. It stays there until
            `remove_checkpoint`.

    Attributes:
        network: the unraveled network.
        players: names of the players, in execution order.
        units: the blocks of each player, by its name.
        value: name of the measure.
        conditions: what stands in for deleted branches.

    Raises:
        NoResidualBlocksError: if the network has no residual blocks.
        CaptureMismatchError: if the network is not what the model is.
        InputError: if inputs, target, value or options do not fit.

    Examples:
        >>> import numpy as np
        >>> game = rpp.BlockGame(net, images, labels, value="loss")
        >>> game.players
        ('layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'layer3.0', 'layer3.1')
        >>> without_last = np.array([[True] * 6, [True] * 5 + [False]])
        >>> game(without_last).shape, game.n_evaluated
        ((2,), 2)
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        value: str = "target_score",
        measures: Mapping[str, Measure] | None = None,
        higher_is_better: bool | None = None,
        level: Level = "block",
        ablation: Ablation = "zero",
        reference: Any = None,
        ridge: float | None = None,
        seed: int = 0,
        internal_batch_size: int | None = None,
        perturbations_per_eval: int | None = None,
        captured: UnraveledNetwork | None = None,
        show_progress: bool = False,
        run: RunOptions | None = None,
    ) -> None:
        arguments = dict(locals())
        for name in ("inputs", "reference"):
            if isinstance(arguments[name], Iterator):
                raise InputError(
                    f"a game reads the {name} at each call, and a one-shot iterator can be read once: pass a list of "
                    "batches or a DataLoader"
                )
        if higher_is_better is not None and not isinstance(higher_is_better, bool):
            raise InputError(f"higher_is_better must be True, False or None, not {higher_is_better!r}")
        check_draws(1, seed)
        if not isinstance(value, str):
            raise InputError(f"value must be the name of one measure, such as 'loss', not {value!r}")
        self.value = value
        self._higher_is_better = higher_is_better
        self._batches = batches = Batches(inputs, target, additional_forward_args)
        self._options = RunOptions.of(run)
        self._show_progress = show_progress
        self._given = positive("internal_batch_size", internal_batch_size)
        self._width = positive("perturbations_per_eval", perturbations_per_eval)

        def study_on(network: UnraveledNetwork) -> CoalitionStudy:
            self._measures = Measures(network, measures, offered_measures(network))
            self.conditions = Conditions(network, batches, ablation, "frozen", reference, seed, ridge)
            study = self._study(network, np.zeros((1, len(network.blocks)), dtype=bool))
            study.check(batches.first)
            return study

        known = net if isinstance(net, UnraveledNetwork) else captured
        self.network = ensure_network(net, known, batches, run, self._given, study_on)
        study = study_on(self.network)
        self.network.check.forget()
        self.units = units_of(self.network, level)
        self.players = tuple(self.units)
        self._members = np.zeros((len(self.players), len(self.network.blocks)), dtype=bool)
        for row, unit in zip(self._members, self.units.values(), strict=True):
            row[[block.index for block in unit]] = True
        self._sizes = study.sizes(self._given or study.samples_per_pass(run), run)
        self._attrs = _attrs(self.network, arguments, self._options)
        self._facts = {**study.manifest, "players": self.players}
        self._folder = _folder(self._options)
        self._evaluated = Evaluated(len(self.players))
        self._is_prepared = False
        self._data: str | None = None
        self._n_samples: int | None = None
        self._lock = RLock()

    @property
    def n_players(self) -> int:
        """The number of players."""
        return len(self.players)

    @property
    def n_evaluated(self) -> int:
        """The number of coalitions that have a value by now."""
        return len(self._evaluated)

    @property
    def n_samples(self) -> int:
        """The number of samples that values are means over; 0 before the first call."""
        return self._n_samples or 0

    @property
    def direction(self) -> bool | None:
        """Whether more of the measure means a better network; None where this is not known."""
        try:
            return self.higher_is_better
        except InputError:
            return None

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the measure means a better network.

        Raises:
            InputError: if this is not known of the measure.
        """
        if self._higher_is_better is not None:
            return self._higher_is_better
        return higher_is_better(self.value, self._measures.functions.get(self.value))

    def __call__(self, coalitions: npt.ArrayLike) -> NDArray[np.float64]:
        """Return the value of each coalition: the mean of the measure over samples.

        Args:
            coalitions: whether each player is in it, bool `[m, players]`, or `[players]` for a single one.

        Returns:
            The values, float64 `[m]`.

        Raises:
            InputError: if these are no such coalitions, or the inputs or the model are not what they were.
            CheckpointError: if the checkpoint is that of another game.

        Examples:
            >>> import numpy as np
            >>> game = rpp.BlockGame(net, images, labels)
            >>> intact, nothing = game(np.array([[True] * 6, [False] * 6]))
            >>> float(intact) == game(np.ones(6, dtype=bool)).item()
            True
        """
        given = self._checked(coalitions)
        self._evaluate(given)
        return self._evaluated.means(given)

    def per_sample(self, coalitions: npt.ArrayLike) -> NDArray[np.float64]:
        """Return the measure of each coalition on each sample, float64 `[m, B]`; as a call otherwise.

        Examples:
            >>> import numpy as np
            >>> game = rpp.BlockGame(net, images, labels, value="correct")
            >>> game.per_sample(np.ones((1, 6), dtype=bool)).shape == (1, len(images))
            True
        """
        given = self._checked(coalitions)
        if not len(given):
            return np.zeros((0, self._n_samples or self._batches.n_samples or 0))
        self._evaluate(given)
        return self._evaluated.per_sample(given)

    def effects(self, deleted: npt.ArrayLike, *, per_sample: bool = False) -> NDArray[np.float64]:
        """Return the effect of deleting each set of players, signed so that positive means harm.

        `d(T) = v(N) - v(N without T)` where higher is better, the negative of it where lower is.

        Args:
            deleted: whether each player is deleted, bool `[m, players]`, or `[players]` for a single set.
            per_sample: whether to return the effect on each sample.

        Returns:
            The effects, float64 `[m]`, or `[m, B]` per sample.

        Raises:
            InputError: as a call, and if it is not known whether more of the measure is better.

        Examples:
            >>> import numpy as np
            >>> game = rpp.BlockGame(net, images, labels, value="loss")
            >>> game.effects(np.eye(6, dtype=bool)).shape
            (6,)
        """
        sign = 1.0 if self.higher_is_better else -1.0
        left = ~self._checked(deleted)
        with_intact = np.concatenate([np.ones((1, self.n_players), dtype=bool), left])
        values = self.per_sample(with_intact) if per_sample else self(with_intact)
        effects: NDArray[np.float64] = sign * (values[0] - values[1:])
        return effects

    def forward_passes(self, coalitions: npt.ArrayLike) -> float:
        """Return about how many forward passes the coalitions cost that have no value yet.

        It counts the branches that are run, each once for all coalitions that begin alike up to there. In a network
        whose blocks make a chain, that is what they cost, heads aside.

        Args:
            coalitions: as in a call.

        Raises:
            InputError: if these are no such coalitions.

        Examples:
            >>> import itertools
            >>> import numpy as np
            >>> game = rpp.BlockGame(net, images, labels)
            >>> every = np.array(list(itertools.product([False, True], repeat=6)))
            >>> game.forward_passes(every) == (2**6 - 1) / 6
            True
        """
        missing = self._evaluated.missing(self._checked(coalitions))
        sizes = self._members.sum(axis=1)
        runs = sum(
            int(size) * len(np.unique(np.packbits(missing[missing[:, at], :at], axis=1), axis=0))
            for at, size in enumerate(sizes)
        )
        return runs / len(self.network.blocks)

    def remove_checkpoint(self) -> None:
        """Remove what the checkpoint keeps; what is in memory stays.

        Raises:
            FileError: if it cannot be removed.
        """
        if self._folder is not None:
            self._folder.remove()

    def _checked(self, coalitions: npt.ArrayLike) -> Coalitions:
        given = np.asarray(coalitions)
        form = f"a boolean matrix [m, {self.n_players}], one column for each player"
        if given.dtype != np.bool_:
            raise InputError(f"coalitions must be {form}, not {given.dtype}: convert them with .astype(bool)")
        if given.ndim not in {1, 2} or given.shape[-1] != self.n_players:
            raise InputError(
                f"coalitions must be {form} ({self.network.name} has {self.n_players} players), not of shape "
                f"{given.shape}"
            )
        return np.atleast_2d(given)

    def _evaluate(self, coalitions: Coalitions) -> None:
        """Evaluate the coalitions that have no value yet."""
        with self._lock:
            if not len(self._evaluated.missing(coalitions)):
                return
            self._check_weights()
            if self._folder is not None and self._data is None:
                for _ in self._samples():  # only another game's checkpoint tells other data
                    pass
            options = replace(self._options, checkpoint=self._folder)
            with StudyRun(
                self.network,
                options,
                self._attrs,
                facts=self._facts,
                sizes=self._sizes,
                show_progress=self._show_progress,
            ) as run:
                if self._folder is not None and self._data is not None:
                    self._evaluated.read(self._folder, self._data)
                missing = self._evaluated.missing(coalitions)
                if len(missing):
                    self._run(missing, run)

    def _run(self, missing: Coalitions, run: StudyRun) -> None:
        if not self._is_prepared:
            self.conditions.prepare(schedules_of(np.ones((1, len(self.network.blocks)), dtype=bool)), run)
            self._is_prepared = True
        study = self._study(self.network, ~missing @ self._members, f"coalitions {digest(missing)}")
        samples = study.chunks(self._samples(study), run.sizes["samples"])
        chunks = run.pieces(Stage(study.name, study.work(run)), samples, self._n_samples)
        parts = [np.asarray(result.variables[VALUE][1]) for result in study.results(chunks)]
        values = np.concatenate(parts, axis=1)
        self._warn_of_non_finite(values)
        if self._folder is not None and self._data is not None:
            self._evaluated.write(self._folder, self._data, missing, values)
            self._folder.forget(study.name)
        self._evaluated.add(missing, values)

    def _study(self, network: UnraveledNetwork, deleted: NDArray[np.bool_], name: str = "coalitions") -> CoalitionStudy:
        return CoalitionStudy(
            network,
            deleted,
            self.value,
            self._measures,
            self.conditions,
            width=self._width,
            first_size=self._batches.first.size,
            name=name,
        )

    def _samples(self, study: CoalitionStudy | None = None) -> Iterator[Batch]:
        """Yield the batches, and check at the end that they are those of the first time."""
        digests: list[str] = []
        n_samples = 0
        for batch in self._batches.again():
            if study is not None:
                study.check(batch)
            digests.append(fingerprint((batch.args, batch.target)))
            n_samples += batch.size
            yield batch
        data = fingerprint(tuple(digests))
        if self._data not in {None, data}:
            raise InputError(
                "the inputs give other samples than at the game's first call, so that its values could not be compared "
                "with one another: pass a list of batches, or a DataLoader without shuffling and random augmentation"
            )
        self._data, self._n_samples = data, n_samples

    def _check_weights(self) -> None:
        if self.network.weights_digest() != self._attrs["weights_digest"]:
            raise InputError(
                f"the weights of {self.network.name} were changed after the game was made, so that its values could "
                "not be compared with one another: make another BlockGame"
            )

    def _warn_of_non_finite(self, values: NDArray[np.generic]) -> None:
        odd = int((~np.isfinite(values.astype(np.float64))).any(axis=1).sum())
        if odd:
            warnings.warn(
                f"{self.value!r} is NaN or infinite on some samples under {odd} of {len(values)} coalitions: what is "
                "computed from them means little. Look at the model's outputs there, or take a bounded measure",
                NonFiniteOutputWarning,
                stacklevel=4,
            )


def _attrs(network: UnraveledNetwork, arguments: Mapping[str, Any], options: RunOptions) -> dict[str, object]:
    """Return what a game is, for its checkpoint."""
    own = {"self", "net", "captured", "show_progress", "run", "higher_is_better", "__class__"}
    return study_attrs(
        network,
        analyzer="BlockGame",
        title=f"Game over blocks of {network.name}",
        summary="A measure of the network under coalitions of its blocks.",
        seed=None,
        arguments={name: value for name, value in arguments.items() if name not in own},
        run=options,
    )


def _folder(options: RunOptions) -> TaskFolder | None:
    checkpoint = options.checkpoint
    if checkpoint is None or isinstance(checkpoint, TaskFolder):
        return checkpoint
    return TaskFolder.beside(checkpoint)
