"""ImageSelection: some of many labelled images, with classes in the shares that all of them have."""

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.cli.images import LabelledImages, UInt8Image


class ImageSelection(LabelledImages):
    """Some of many images, drawn at random from each class, in the order that they have among all.

    A class has as many as its share of all images says, rounded so that the whole is what is asked for, the largest
    remainders first.

    Args:
        images: all images.
        count: how many to take; where there are no more, all are taken.
        seed: seed of the choice.
    """

    def __init__(self, images: LabelledImages, count: int, seed: int) -> None:
        self.places = _places(images.labels, min(count, len(images)), np.random.default_rng(seed))
        origin = f"{images.origin} ({len(images)} in all)" if count < len(images) else images.origin
        super().__init__(origin, images.labels[self.places], images.classes)
        self.size = images.size
        self.names = images.names and tuple(images.names[place] for place in self.places)
        self._images = images

    def name(self, index: int) -> str:  # noqa: D102 - as LabelledImages
        return self._images.name(int(self.places[index]))

    def image(self, index: int) -> UInt8Image:  # noqa: D102 - as LabelledImages
        return self._images.image(int(self.places[index]))


def _places(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the places of a stratified choice, ascending, `[count]`."""
    _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = count * sizes / len(labels)
    counts = np.floor(shares).astype(int)
    order = rng.permutation(len(sizes))  # so that no class is favoured among equal remainders
    largest = order[np.argsort((counts - shares)[order], kind="stable")][: count - counts.sum()]
    counts[largest] += 1
    chosen = [rng.choice(np.flatnonzero(of_class == one), size, replace=False) for one, size in enumerate(counts)]
    return np.sort(np.concatenate(chosen))
