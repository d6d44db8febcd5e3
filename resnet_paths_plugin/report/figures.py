"""The figures of a result: for each study those that fit it, each with a title and what to see.

The page and the command line show the same figures; what kind a study is, is read off its contents.
"""

import ast
import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_paths_plugin import plotting
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.classes import class_rises, names_of
from resnet_paths_plugin.plotting.damage import default_measure
from resnet_paths_plugin.plotting.kinds import kind_of
from resnet_paths_plugin.plotting.schedules import TITLES, families
from resnet_paths_plugin.plotting.survival import chain_length, default_deletions
from resnet_paths_plugin.report import sentences

DPI = 200
PLAIN_PREFIX = "plain_"
"""A group named so holds a plain network's study, to be drawn beside that of the group named without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFigure:
    """One figure of a result.

    Attributes:
        name: short and unique in the result, such as "single-lesions"; for a file's name.
        group: the study's group; empty for a single Dataset.
        title: what the figure is.
        sentence: what there is to see in this run's numbers.
        draw: draws it as a pyplot figure, which is the caller's to close.
    """

    name: str
    group: str
    title: str
    sentence: str
    draw: Callable[[], Figure] = field(repr=False)

    def png(self, dpi: int = DPI) -> bytes:
        """Draw the figure in matplotlib's default style, whatever the user's is, and return it as a PNG.

        The figure is closed again.
        """
        file = io.BytesIO()
        with plt.style.context("default"), plt.ioff(), warnings.catch_warnings():
            # A name in a script that matplotlib's font lacks shows as boxes here, and as itself in the text beside it.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure = self.draw()
            try:
                figure.savefig(file, format="png", dpi=dpi)
            finally:
                plt.close(figure)
        return file.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStudy:
    """A study and what its figures need beside it.

    Attributes:
        group: its group's path in the result; empty for a single Dataset.
        dataset: its result.
        kind: what kind of study it is; None where no figure fits.
        plain: the same study of a plain network, or None.
        n_classes: number of the model's classes, where the file tells it.
        class_names: names of the model's classes, where the file tells them.
    """

    group: str
    dataset: xr.Dataset
    kind: str | None
    plain: xr.Dataset | None
    n_classes: int | None
    class_names: list[str] | None

    @property
    def title(self) -> str:
        """Its name for people."""
        return (self.group or self.kind or "study").strip("/").replace("/", ": ").replace("_", " ")

    def chance(self, change: str) -> float | None:
        """The error of guessing, where the error is drawn and the number of classes is known."""
        if self.n_classes is None or default_measure(self.dataset, change) != "error":
            return None
        return 1 - 1 / self.n_classes


def studies(result: xr.DataTree | xr.Dataset) -> list[ReportStudy]:
    """The studies of a result, in its order; a plain network's goes with the study that it is compared with.

    Raises:
        InputError: if this is neither a Dataset nor a DataTree.
    """
    if isinstance(result, xr.Dataset):
        return [_study("", result, None, result.attrs)]
    if not isinstance(result, xr.DataTree):
        raise InputError(f"expected a Dataset or a DataTree, not {type(result).__qualname__}")
    groups = {
        path: node.to_dataset(inherit=False)
        for path, node in result.subtree_with_keys
        if node.data_vars  # the root and groups of groups hold none
    }
    plain = {path: groups[_plain_of(path)] for path in groups if _plain_of(path) in groups}
    compared = {_plain_of(path) for path in plain if kind_of(groups[path]) == "single_lesions"}
    return [
        _study("" if path == "." else path, dataset, plain.get(path), result.attrs)
        for path, dataset in groups.items()
        if path not in compared
    ]


def figures(result: xr.DataTree | xr.Dataset) -> list[ReportFigure]:
    """Every figure of a result, in the order of its studies.

    Args:
        result: the result of one study, or a tree with one group for each.

    Returns:
        The figures; their names differ. Studies that no figure fits have none.

    Raises:
        InputError: if this is neither a Dataset nor a DataTree.
    """
    return figures_of(studies(result))


def figures_of(found: Sequence[ReportStudy]) -> list[ReportFigure]:
    """The figures of some studies, named apart."""
    named: dict[str, ReportFigure] = {}
    for study in found:
        kind = study.kind or ""
        stem = _slug(study.group) or _slug(kind)
        for ending, title, sentence, draw in _until_unfit(_MAKERS[kind](study)) if kind else ():
            first = f"{stem}-{_slug(ending)}" if ending else stem
            name = next(
                name for name in chain([first], (f"{first}-{number}" for number in count(2))) if name not in named
            )
            named[name] = ReportFigure(name=name, group=study.group, title=title, sentence=sentence, draw=draw)
    return list(named.values())


def _until_unfit(made: Iterator["_Made"]) -> Iterator["_Made"]:
    """Go on until the study turns out to lack what a figure shows; the page then lists its variables."""
    with contextlib.suppress(InputError):
        yield from made


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


_Made = tuple[str, str, str, Callable[[], Figure]]
"""End of the figure's name, its title, its sentence, and how it is drawn."""


def _single_lesions(study: ReportStudy) -> Iterator[_Made]:
    ds, measure = study.dataset, default_measure(study.dataset, "lesion")
    beside = ", and of a plain network without one of its layers" if study.plain is not None else ""
    yield (
        "",
        f"Deleting single blocks{beside} (Fig. 3)",
        sentences.single_lesions(ds, study.plain),
        lambda: _figure(
            plotting.plot_single_lesions(ds, measure=measure, chance=study.chance("lesion"), plain=study.plain)
        ),
    )
    if {"label", "correct", "intact_correct"} <= set(ds.variables):
        found = class_rises(ds, "the report")
        known = study.class_names
        if known is not None and not 0 <= found.labels.min() <= found.labels.max() < len(known):
            known = None  # names that do not fit the labels are worse than numbers
        yield (
            "by-class",
            "Deleting single blocks, class by class",
            sentences.class_lesions(found, names_of(found.labels, known)),
            lambda: _figure(plotting.plot_class_lesions(ds, class_names=known)),
        )


def _random_lesions(study: ReportStudy) -> Iterator[_Made]:
    ds, measure = study.dataset, default_measure(study.dataset, "lesion")
    yield (
        "",
        f"Deleting {'random ' if sentences.is_random(ds) else ''}sets of blocks, by their size (Fig. 5a)",
        sentences.random_lesions(ds, study.chance("lesion")),
        lambda: _figure(plotting.plot_random_lesions(ds, measure=measure, chance=study.chance("lesion"))),
    )


def _reorderings(study: ReportStudy) -> Iterator[_Made]:
    ds, measure = study.dataset, default_measure(study.dataset, "reordering")
    if np.isfinite(ds["kendall_tau"].values).any():
        yield (
            "",
            "Reordering the blocks (Fig. 5b)",
            sentences.reorderings(ds),
            lambda: _figure(plotting.plot_reorderings(ds, measure=measure, chance=study.chance("reordering"))),
        )


def _trainings(study: ReportStudy) -> Iterator[_Made]:
    ds, measure = study.dataset, default_measure(study.dataset, "lesion")
    yield (
        "",
        "Deleting single blocks after different trainings (Fig. 8)",
        sentences.trainings(ds),
        lambda: _figure(plotting.plot_training_lesions(ds, measure=measure, chance=study.chance("lesion"))),
    )


def _schedules(study: ReportStudy) -> Iterator[_Made]:
    ds, measure = study.dataset, default_measure(study.dataset, "schedule")
    for family in families(ds):
        yield (
            family,
            f"Schedules: {TITLES.get(family, family)}",
            sentences.schedules(ds, family),
            partial(_draw_schedules, study, family, measure),
        )


def _draw_schedules(study: ReportStudy, family: str, measure: str | None) -> Figure:
    chance = study.chance("schedule")
    return _figure(plotting.plot_schedules(study.dataset, family=family, measure=measure, chance=chance))


def _influence(study: ReportStudy) -> Iterator[_Made]:
    ds = study.dataset
    if set(ds["proxy"].values.tolist()) & set(ds.data_vars):
        yield (
            "",
            "What foretells the effect of deleting a block",
            sentences.influence(ds),
            lambda: _figure(plotting.plot_influence(ds)),
        )
        if ds.sizes["proxy"] > 1:
            yield (
                "proxies",
                "Every proxy against the effect of deletion",
                sentences.proxies(ds),
                lambda: _figure(plotting.plot_influences(ds)[0]),
            )
    if "gate_openness" in ds:
        yield from _gates(study)


def _gates(study: ReportStudy) -> Iterator[_Made]:
    ds = study.dataset
    if np.isfinite(ds["gate_openness"].values).any():
        yield (
            "gates",
            "How far the gates are open",
            sentences.gates(ds),
            lambda: _figure(plotting.plot_gates(ds)),
        )


def _path_lengths(study: ReportStudy) -> Iterator[_Made]:
    ds = study.dataset
    told = " ".join(filter(None, (sentences.path_lengths(ds), sentences.completeness(ds))))
    yield (
        "",
        "Paths and gradients by path length (Fig. 6)",
        told,
        lambda: _figure(plotting.plot_path_lengths(ds)[0]),
    )
    try:
        n = chain_length(ds, "the report")
    except InputError:
        return  # not a chain: paths survive deletions in other numbers
    yield (
        "survival",
        "Paths left after deletions, by length (Fig. 7)",
        sentences.path_survival(n, default_deletions(n)),
        lambda: _figure(plotting.plot_path_survival(n)),
    )


def _path_maps(study: ReportStudy) -> Iterator[_Made]:
    ds = study.dataset
    yield (
        "",
        "Input gradients by path length",
        sentences.path_maps(ds),
        lambda: _figure(plotting.plot_path_attribution(ds)[0, 0]),
    )


_MAKERS: dict[str, Callable[[ReportStudy], Iterator[_Made]]] = {
    "single_lesions": _single_lesions,
    "random_lesions": _random_lesions,
    "reorderings": _reorderings,
    "trainings": _trainings,
    "schedules": _schedules,
    "influence": _influence,
    "gates": _gates,
    "path_lengths": _path_lengths,
    "path_maps": _path_maps,
}


def _study(group: str, dataset: xr.Dataset, plain: xr.Dataset | None, root: Mapping[Any, Any]) -> ReportStudy:
    facts = {**root, **dataset.attrs}
    n_classes = facts.get("n_classes")
    kind = kind_of(dataset)
    return ReportStudy(
        group=group,
        dataset=dataset,
        kind=kind,
        plain=plain if kind == "single_lesions" else None,
        n_classes=int(n_classes) if isinstance(n_classes, int | np.integer) and n_classes > 1 else None,
        class_names=_texts(facts.get("class_names")),
    )


def _plain_of(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{PLAIN_PREFIX}{name}"


def _texts(value: object) -> list[str] | None:
    """A list of texts that an attribute holds in Python's notation."""
    try:
        found = ast.literal_eval(str(value))
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # cut short, or never one
        return None
    return [str(text) for text in found] if isinstance(found, list | tuple) else None


def _figure(ax: Axes) -> Figure:
    # Only Axes that were removed have none.
    return cast("Figure", ax.get_figure(root=True))
