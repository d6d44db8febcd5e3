"""HeldOut: which samples a selection searches on and which it reports on, each pass over the same data."""

from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Any

from resnet_paths_plugin.analyzers.coalitions.sample_parts import SampleParts
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.execution.fingerprints import fingerprint

Holdout = Any
"""A share of the samples, None for none, `(inputs, target)`, or an iterable of such batches."""


class HeldOut:
    """The samples to search on, in rounds of halving, and the samples to report on.

    Args:
        batches: all samples given.
        holdout: what is held out.
        rounds: rounds of halving: the last one has half of the samples searched, the one before a quarter, ...
        extra: further arguments of the model.
        seed: seed of the split.
        unit: samples that stay together.
        check: called with each batch before anything is run on it.

    Raises:
        InputError: if the holdout is no such thing, samples can be read once only, or too few are left on one side.
    """

    def __init__(
        self,
        batches: Batches,
        holdout: Holdout,
        rounds: int,
        extra: Any,
        *,
        seed: int,
        unit: int,
        check: Callable[[Batch], None],
    ) -> None:
        batches.check_again()
        share, given = _share(holdout)
        self._batches = _Again(batches, check)
        self._given = None if given is None else _Again(_given_batches(given, extra, batches), check)
        self._rounds = rounds
        self._n_extra = 0 if extra is None else len(extra) if isinstance(extra, tuple) else 1
        searched = [(1 - share) * part for part in _shares(rounds)]
        self._parts = SampleParts([*searched, share], seed, unit)
        self._sizes = None if batches.n_samples is None else self._parts.sizes(batches.n_samples)
        self.is_held_out = share > 0 or given is not None
        if self._sizes is not None and batches.n_samples is not None:
            n_held_out = int(self._sizes[-1])
            if share and not n_held_out:
                raise InputError(
                    f"holdout={holdout} of {batches.n_samples} samples leaves none to report on: give more samples, a "
                    "larger share, or holdout=None"
                )
            if not self._sizes[:-1].all():
                raise InputError(
                    f"{batches.n_samples} samples with holdout={holdout if given is None else 'data'} and "
                    f"halving={rounds} leave a round of the search without samples: give more samples, or a smaller "
                    "halving"
                )

    def searched(self, part: int) -> Iterator[Batch]:
        """Yield the samples of a round of the search."""
        return self._parts.of(self._batches, [part])

    def all_searched(self) -> Iterator[Batch]:
        """Yield the samples of all rounds."""
        return self._parts.of(self._batches, range(self._rounds))

    def inputs_searched(self) -> "_Inputs":
        """Return the inputs of the samples of all rounds, to be read any number of times."""
        return _Inputs(self.all_searched, self._n_extra)

    def n_searched(self, part: int) -> int | None:
        """Return the number of samples of a round, where it is known beforehand."""
        return None if self._sizes is None else int(self._sizes[part])

    def n_all_searched(self) -> int | None:
        """Return the number of samples of all rounds, where it is known beforehand."""
        return None if self._sizes is None else int(self._sizes[: self._rounds].sum())

    def reported(self) -> Iterator[Batch]:
        """Yield the samples to report on."""
        if self._given is not None:
            return iter(self._given)
        return self._parts.of(self._batches, [self._rounds]) if self.is_held_out else iter(())


class _Inputs:
    """Inputs of batches, without further arguments and targets, that can be read any number of times.

    Args:
        batches: returns the batches.
        n_extra: the number of further arguments, at the end of all.
    """

    def __init__(self, batches: Callable[[], Iterator[Batch]], n_extra: int) -> None:
        self._batches, self._n_extra = batches, n_extra

    def __iter__(self) -> Iterator[tuple[Any, None]]:
        for batch in self._batches():
            yield batch.args[: len(batch.args) - self._n_extra], None


class _Again:
    """Batches that are read several times and give the same samples each time."""

    def __init__(self, batches: Batches, check: Callable[[Batch], None]) -> None:
        self._given, self._check = batches, check
        self._data: str | None = None

    def __iter__(self) -> Iterator[Batch]:
        digests: list[str] = []
        for batch in self._given.again():
            self._check(batch)
            digests.append(fingerprint((batch.args, batch.target)))
            yield batch
        data = fingerprint(tuple(digests))
        if self._data not in {None, data}:
            raise InputError(
                "the batches hold other samples than when they were read first, and sets of blocks are compared on the "
                "same ones: pass a list of batches, or a DataLoader without shuffling and random augmentation"
            )
        self._data = data


def _share(holdout: Holdout) -> tuple[float, Any]:
    """Return the share of the samples that is held out, and the samples that are given for it."""
    if holdout is None:
        return 0.0, None
    if isinstance(holdout, Real) and not isinstance(holdout, bool):
        if not 0 < float(holdout) < 1:
            raise InputError(
                f"holdout={holdout} must be a share of the samples between 0 and 1, None, or samples: (inputs, target)"
            )
        return float(holdout), None
    if isinstance(holdout, bool | str) or not isinstance(holdout, Iterable):
        raise InputError(
            f"holdout must be a share of the samples, None, or samples as (inputs, target), not {holdout!r}"
        )
    return 0.0, holdout


def _given_batches(given: Any, extra: Any, batches: Batches) -> Batches:
    if isinstance(given, tuple):
        if len(given) != 2:
            raise InputError(f"holdout as a tuple is (inputs, target); this one has {len(given)} entries")
        found = Batches(given[0], given[1], extra)
    else:
        found = Batches(given, None, extra)
    found.check_again()
    found.keep_whole(batches.first.whole)
    return found


def _shares(rounds: int) -> list[float]:
    """Return the share of each round: 1/4, 1/4, 1/2 of three."""
    return [2.0 ** -(rounds - 1)] + [2.0 ** -(rounds - place) for place in range(1, rounds)]
