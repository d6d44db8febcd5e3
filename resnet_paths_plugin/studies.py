"""What `resnet-paths analyze` runs: its studies, their figures and what it says of them.

Each study is one entry of `STUDIES`; the mathematics is in the analyzers, the drawing in `plotting`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_paths_plugin import plotting
from resnet_paths_plugin.analyzers.lesion import BlockLesion
from resnet_paths_plugin.network import UnraveledNetwork
from resnet_paths_plugin.preprocessing import InputBatches

_WORST_SHOWN = 3
_SIZES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """What the user chose for all studies.

    Attributes:
        draws: random lesions of each size.
        max_deleted: largest number of blocks that a random lesion deletes, at most n.
        seed: seed of every random draw.
        internal_batch_size: samples per forward pass; None lets the analyzer choose.
        show_progress: whether to show progress bars.
        chance: error of guessing.
    """

    draws: int = 10
    max_deleted: int = 20
    seed: int = 0
    internal_batch_size: int | None = None
    show_progress: bool = False
    chance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study, which becomes one group of the file.

    Attributes:
        group: name of its group.
        run: computes its result.
        figures: draws each figure from the result; a figure's name becomes the end of its file's.
        summary: says in a line or a few what the result shows.
    """

    group: str
    run: Callable[[UnraveledNetwork, InputBatches, StudyOptions], xr.Dataset]
    figures: Mapping[str, Callable[[xr.Dataset, StudyOptions], Figure]]
    summary: Callable[[xr.Dataset], Iterable[str]]


def _single_lesions(network: UnraveledNetwork, images: InputBatches, options: StudyOptions) -> xr.Dataset:
    result: xr.Dataset = BlockLesion(network).attribute(
        images, internal_batch_size=options.internal_batch_size, show_progress=options.show_progress
    )
    return result


def _random_lesions(network: UnraveledNetwork, images: InputBatches, options: StudyOptions) -> xr.Dataset:
    result: xr.Dataset = BlockLesion(network).attribute(
        images,
        n_deleted=range(1, min(options.max_deleted, len(network.blocks)) + 1),
        draws=options.draws,
        seed=options.seed,
        internal_batch_size=options.internal_batch_size,
        show_progress=options.show_progress,
    )
    return result


def _figure(ax: Axes) -> Figure:
    # Only Axes that were removed have none.
    return cast("Figure", ax.get_figure(root=True))


def _say_single(result: xr.Dataset) -> Iterable[str]:
    total = result.sizes["sample"]
    intact = float(result["intact_error"])
    yield f"intact network: error {intact:.1%} ({round(intact * total)} of {total})"
    ranked = result["error"].sortby(result["error"], ascending=False)
    worst = ", ".join(f"{name} {error:.1%}" for name, error in _pairs(ranked[:_WORST_SHOWN]))
    yield f"one block deleted: median error {float(ranked.median()):.1%}; worst {worst}"


def _say_random(result: xr.Dataset) -> Iterable[str]:
    means = result["error"].groupby(result["n_deleted"]).mean()
    shown = np.unique(np.linspace(0, len(means) - 1, _SIZES_SHOWN).round().astype(int))
    curve = ", ".join(f"{number}: {error:.1%}" for number, error in _pairs(means[shown]))
    yield f"random blocks deleted: mean error {curve}"


def _pairs(values: xr.DataArray) -> Iterable[tuple[object, float]]:
    """Return the label and the value of each entry of a one-dimensional array."""
    return zip(values[values.dims[0]].values.tolist(), values.values.tolist(), strict=True)


STUDIES: tuple[Study, ...] = (
    Study(
        group="single_lesions",
        run=_single_lesions,
        figures={
            "single-lesions": lambda result, options: _figure(
                plotting.plot_single_lesions(result, chance=options.chance)
            )
        },
        summary=_say_single,
    ),
    Study(
        group="random_lesions",
        run=_random_lesions,
        figures={
            "random-lesions": lambda result, options: _figure(
                plotting.plot_random_lesions(result, chance=options.chance)
            )
        },
        summary=_say_random,
    ),
)
"""The studies, in the order in which they are run."""
