"""NamedBatches: batches whose samples have names, which the results then carry."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import RandomSampler

from resnet_paths_plugin.errors import InputError


class NamedBatches:
    """Batches with the names of their samples, as a coordinate `sample_name` of results.

    Any other iterable of batches with an attribute `sample_names`, and perhaps `class_names`, is read in the same way.

    Args:
        batches: `(inputs, target)` batches in a fixed order, such as a `DataLoader` without shuffling.
        names: a name for each sample, such as its file, in the order of the batches.
        class_names: names of the classes that targets count, for results of a model whose own are not known.

    Raises:
        InputError: if names are no texts, or the batches can be read only once or come in a random order.

    Examples:
        >>> batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
        >>> named = rpp.NamedBatches(batches, names=[f"digit {number}" for number in range(8)])
        >>> rpp.BlockLesion(net).attribute(named).sample_name.values[:2].tolist()
        ['digit 0', 'digit 1']
    """

    def __init__(self, batches: Iterable[Any], names: Iterable[str], class_names: Iterable[str] | None = None) -> None:
        if isinstance(batches, Iterator):
            raise InputError(
                "batches with names may be read several times, and a one-shot iterator allows one: pass a list of "
                "batches or a DataLoader"
            )
        if isinstance(getattr(batches, "sampler", None), RandomSampler):
            raise InputError("this DataLoader shuffles, so that names would be those of other samples: shuffle=False")
        self.batches = batches
        self.sample_names = texts(names, "names") or ()
        self.class_names = texts(class_names, "class_names")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.sample_names)} samples"

    @property
    def dataset(self) -> Sequence[str]:
        """What tells how many samples there are, as the `dataset` of a `DataLoader` does."""
        return self.sample_names


def texts(values: Iterable[str] | None, what: str) -> tuple[str, ...] | None:
    """Return names as a tuple; None for None.

    Raises:
        InputError: if they are no texts.
    """
    if values is None:
        return None
    found = None if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if found is None or not all(isinstance(value, str) for value in found):
        given = values if found is None else found
        raise InputError(f"{what} must be a sequence of texts, such as file names, not {given!r:.80}")
    return tuple(map(str, found))
