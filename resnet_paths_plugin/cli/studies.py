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
from resnet_paths_plugin.analyzers.path_length import PathLengthGradient
from resnet_paths_plugin.cli.preprocessing import InputBatches
from resnet_paths_plugin.network import UnraveledNetwork

_WORST_SHOWN = 3
_SIZES_SHOWN = 5
_MAPS_SHOWN = 4
_LONGEST_MAP = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """What the user chose for all studies.

    Attributes:
        draws: random lesions of each size.
        max_deleted: largest number of blocks that a random lesion deletes, at most n.
        path_images: images whose gradients are split by path length, from the first.
        path_draws: sampled paths of each length.
        seed: seed of every random draw.
        internal_batch_size: samples per forward pass; None lets the analyzer choose.
        show_progress: whether to show progress bars.
        chance: error of guessing.
    """

    draws: int = 10
    max_deleted: int = 20
    path_images: int = 8
    path_draws: int = 20
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
        wanted: whether the user's choices ask for it.
    """

    group: str
    run: Callable[[UnraveledNetwork, InputBatches, StudyOptions], xr.Dataset]
    figures: Mapping[str, Callable[[xr.Dataset, StudyOptions], Figure]]
    summary: Callable[[xr.Dataset], Iterable[str]]
    wanted: Callable[[StudyOptions], bool] = lambda _: True


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


def _path_lengths(network: UnraveledNetwork, images: InputBatches, options: StudyOptions) -> xr.Dataset:
    result: xr.Dataset = PathLengthGradient(network).attribute(
        images.head(options.path_images),
        estimator=("exact", "sampled"),
        draws=options.path_draws,
        seed=options.seed,
        internal_batch_size=options.internal_batch_size,
        show_progress=options.show_progress,
    )
    return result


def _path_maps(network: UnraveledNetwork, images: InputBatches, options: StudyOptions) -> xr.Dataset:
    result: xr.Dataset = PathLengthGradient(network).attribute(
        images.head(min(options.path_images, _MAPS_SHOWN)),
        max_length=_LONGEST_MAP,
        keep_maps=True,
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


def _say_lengths(result: xr.Dataset) -> Iterable[str]:
    digits = result["log10_path_count"].values
    # Relative to the largest, since counts of deep networks are beyond the range of floats.
    counts = 10.0 ** (digits - digits.max())
    yield f"paths: 10^{digits.max() + np.log10(counts.sum()):.1f}, of length 0 to {len(counts) - 1}"
    for measure, told in (("gradient_norm", "exact"), ("total_path_gradient", "sampled paths")):
        low, high = (float(result[f"effective_length_{end}"].sel(measure=measure)) for end in ("low", "high"))
        if np.isfinite(low):
            share = counts[int(low) : int(high) + 1].sum() / counts.sum()
            yield f"95 % of the gradient ({told}): lengths {low:.0f} to {high:.0f}, {share:.1g} of all paths"


def _say_maps(result: xr.Dataset) -> Iterable[str]:
    worst = float(result["completeness_error"].max())
    yield f"gradients of all lengths add up to the ordinary gradient within {worst:.0e} of its norm"


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
    Study(
        group="path_lengths",
        run=_path_lengths,
        figures={"path-lengths": lambda result, _: _figure(plotting.plot_path_lengths(result)[0])},
        summary=_say_lengths,
        wanted=lambda options: options.path_images > 0,
    ),
    Study(
        group="path_maps",
        run=_path_maps,
        figures={"path-maps": lambda result, _: _figure(plotting.plot_path_attribution(result)[0, 0])},
        summary=_say_maps,
        wanted=lambda options: options.path_images > 0,
    ),
)
"""The studies, in the order in which they are run."""
