"""A study's results as Datasets, each compared with the samples that the study was given up to there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import xarray as xr

from resnet_paths_plugin.analyzers.study import Chunk, Study
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.variables import Entry

_DIM = "sample"


class _CountedChunks:
    """Chunks of samples, counted as they are read.

    Attributes:
        n_samples: number of samples read.
    """

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self.n_samples = 0

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = next(self._chunks)
        self.n_samples += chunk[0][0].size
        return chunk


def results_as_datasets(
    study: Study,
    chunks: Iterable[Chunk],
    *,
    coords: Mapping[str, Entry],
    attrs: Mapping[str, object],
    names: Sequence[str] | None = None,
) -> Iterator[xr.Dataset]:
    """Yield the Dataset of each result of a study.

    Args:
        study: the study.
        chunks: chunks of samples with the results of their tasks.
        coords: coordinates of every Dataset.
        attrs: global attributes of every Dataset.
        names: a name for each sample; None where they have none.

    Raises:
        InputError: if a result's variables do not fit each other, if the results hold fewer or more samples than the
            study was given or than there are names, or if there are none.
    """
    given = _CountedChunks(chunks)
    n_results = n_samples = 0
    for result in study.results(given):
        found = datasets.build(result.variables, coords={**result.coords, **coords}, attrs=attrs)
        n_results += 1
        n_samples += found.sizes.get(_DIM, 0)
        if n_samples > given.n_samples:
            raise _wrong_count(study, n_samples, given.n_samples)
        yield found if names is None else _named(found, names, n_samples)
    if not n_results:
        raise InputError(f"{type(study).__name__}.results yields no StudyResult: it must yield at least one")
    if n_samples and n_samples < given.n_samples:
        raise _wrong_count(study, n_samples, given.n_samples)
    if n_samples and next(given, None) is not None:
        raise InputError(
            f"{type(study).__name__}.results ends after {n_samples} samples, and there are more: read every chunk"
        )
    if names is not None and n_samples and len(names) != n_samples:
        raise InputError(f"there are {len(names)} names for {n_samples} samples: give one each, in their order")


def _named(found: xr.Dataset, names: Sequence[str], end: int) -> xr.Dataset:
    """Return the results of some samples with their names.

    Args:
        found: the results.
        names: the names of all samples.
        end: how many samples there are up to the last of these.
    """
    size = found.sizes.get(_DIM, 0)
    if not size:
        return found
    if end > len(names):
        raise InputError(f"there are {len(names)} names for {end} samples or more: give one each, in their order")
    own = datasets.build({}, coords={"sample_name": (_DIM, list(names[end - size : end]))}, attrs={})
    return found.assign_coords(sample_name=own["sample_name"].variable)


def _wrong_count(study: Study, found: int, given: int) -> InputError:
    return InputError(
        f"{type(study).__name__}.results yields {found} samples for the {given} that it was given: each sample must "
        f"be in exactly one StudyResult, in the order of the chunks, or none may have dim {_DIM!r}"
    )
