"""The page: what a report shows, gathered from a result, and put into one self-contained HTML file.

Every name that comes from a model or a file reaches the page as text, never as markup: the template escapes all.
"""

import base64
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from struct import unpack
from typing import Any

import jinja2
import numpy as np
import pluggy
import xarray as xr
from markupsafe import Markup

from resnet_paths_plugin.errors import InputError, ResnetPathsError
from resnet_paths_plugin.files.output_files import Mode, replacing, writable
from resnet_paths_plugin.plotting import block_axis
from resnet_paths_plugin.plotting.effects import default_measure, effect_of
from resnet_paths_plugin.plotting.wording import listed, percent
from resnet_paths_plugin.report.figures import DPI, ReportFigure, ReportStudy, figures_of, studies
from resnet_paths_plugin.report.model_table import is_model_table, model_table, models_of
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.visible_text import visible

CSS_DPI = 100
"""Dots per inch at which a figure has its natural size on the page; its PNG has twice as many."""

MOST_FINDINGS = 5
"""Sentences at the head of the page."""

EMBEDDED_LIBRARY = "resnet_paths_plugin"
"""What the embedded networks' library is called."""

LONGEST_VALUE = 160
"""Characters of an attribute before it is folded."""

_MODEL_FACTS = {
    "model_architecture": "architecture",
    "model_class": "class",
    "model_library": "library",
    "model_library_version": "library version",
    "weights_digest": "weights",
    "device": "device",
    "dtype": "type of numbers",
}
_BLOCK_FACTS = {
    "block_index": "index",
    "block": "block",
    "block_stage": "stage",
    "block_skip_kind": "skip",
    "block_branch_type": "branch",
    "block_depth": "depth",
    "block_group": "group",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A drawn figure, or why it could not be drawn.

    Attributes:
        figure: what it shows.
        uri: its PNG as a data URI; empty if it could not be drawn.
        width: natural width on the page, in CSS pixels.
        height: natural height, likewise.
        problem: why it could not be drawn; empty if it could.
    """

    figure: ReportFigure
    uri: Markup
    width: int
    height: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTable:
    """The blocks of a network, one row each.

    Attributes:
        title: what it lists.
        columns: heads of the columns.
        rows: cells as text, and whether the block's skip is a projection.
    """

    title: str
    columns: list[str]
    rows: list[tuple[list[str], bool]]


def write_report(
    result: xr.DataTree | xr.Dataset,
    path: str | os.PathLike[str],
    mode: Mode = "w",
    plugin_manager: pluggy.PluginManager | None = None,
    pngs: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the report of a result as one HTML file, whole or not at all, and return its path.

    The file needs nothing beside it: figures and style are inside, there is no script. The same result gives the same
    file, also when it was saved and loaded in between.

    Args:
        result: a study, or a tree of studies of one model.
        path: the file; an older one is replaced.
        mode: `"x"` refuses to replace an older file.
        plugin_manager: whose figures may fit; None asks the installed plugins.
        pngs: figures that `ReportFigure.png` has drawn of this result, by name; they are not drawn again.

    Raises:
        InputError: if this is neither a Dataset nor a DataTree.
        FileError: if the folder does not exist or cannot be written to, there is something else than a file of this
            name, or the result's values are still to be read from that file.
    """
    target = writable(path, mode)
    text = report_html(result, plugin_manager, pngs)
    datasets.check_output(result, path)
    with replacing(path, target, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def report_html(
    result: xr.DataTree | xr.Dataset,
    plugin_manager: pluggy.PluginManager | None = None,
    pngs: Mapping[str, bytes] | None = None,
) -> str:
    """The report of a result as one self-contained HTML page.

    Args:
        result: a study, or a tree of studies of one model.
        plugin_manager: whose figures may fit; None asks the installed plugins.
        pngs: figures that `ReportFigure.png` has drawn of this result, by name; they are not drawn again.

    Raises:
        InputError: if this is neither a Dataset nor a DataTree.
    """
    found = studies(result, plugin_manager)
    every = [_picture(figure, (pngs or {}).get(figure.name)) for figure in figures_of(found)]
    pictures = {study.group: [picture for picture in every if picture.figure.group == study.group] for study in found}
    shared = dict(result.attrs) if isinstance(result, xr.DataTree) else {}
    models = models_of(result)
    return _template().render(
        title=_title(found, shared, models),
        lead=_lead(found, models),
        findings=_findings(found),
        note=_note(found),
        models=None if models is None else model_table(models),
        facts=_model_facts(found, shared),
        tables=[table for study in _subjects(found) for table in _block_tables(study)],
        drawn=[(study, pictures[study.group]) for study in found if pictures[study.group]],
        undrawn=[
            (study, _variables(study.dataset))
            for study in found
            if not pictures[study.group] and not is_model_table(study.dataset)
        ],
        shared=_attributes(shared),
        own=[(title, _attributes(_own(attrs, shared))) for title, attrs in _all_attributes(found)],
        longest=LONGEST_VALUE,
    )


def _template() -> jinja2.Template:
    text = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_written_out
    )
    return environment.from_string(text)


def _written_out(value: object) -> object:
    """Return a text with control characters, which may turn what stands beside it, as escapes; markup as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _picture(figure: ReportFigure, png: bytes | None) -> Picture:
    try:
        png = png or figure.png()
    except ResnetPathsError as error:
        return Picture(figure=figure, uri=Markup(), width=0, height=0, problem=str(error))
    # Width and height stand in the header of every PNG.
    width, height = (round(pixels * CSS_DPI / DPI) for pixels in unpack(">II", png[16:24]))
    # base64 has no character that HTML would read as markup.
    uri = Markup(f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}")  # noqa: S704
    return Picture(figure=figure, uri=uri, width=width, height=height, problem="")


def _subjects(found: list[ReportStudy]) -> list[ReportStudy]:
    """The studies that the page's facts and table of blocks are taken from: the first of a network with blocks."""
    with_blocks = [study for study in found if "block" in study.dataset.coords]
    residual = [study for study in with_blocks if study.dataset.attrs.get("units") != "layers"]
    subjects = (residual or with_blocks)[:1]
    # The table tells what deleting each block does, where a study of these blocks knows it.
    return [
        study
        for study in with_blocks
        if subjects
        and study.kind == "single_lesions"
        and np.array_equal(study.dataset["block"].values, subjects[0].dataset["block"].values)
    ][:1] or subjects


def _title(found: list[ReportStudy], shared: Mapping[Any, Any], models: xr.Dataset | None) -> str:
    if models is not None:
        return f"Residual paths of {listed([str(name) for name in models['model'].values])}"
    for facts in (*(study.dataset.attrs for study in _subjects(found)), shared):
        name = facts.get("model_architecture") or facts.get("model_class")
        if name:
            return f"Residual paths of {name}"
    return "Residual paths"


def _lead(found: list[ReportStudy], models: xr.Dataset | None) -> str:
    """What was studied, in a line."""
    said = []
    if models is not None:
        said.append(f"{models.sizes['model']} models side by side")
        found = [study for study in found if not is_model_table(study.dataset)]
    for study in _subjects(found):
        ds = study.dataset
        unit = "layers" if ds.attrs.get("units") == "layers" else "residual blocks"
        said.append(f"{ds.sizes['block']} {unit}" if ds.sizes["block"] != 1 else f"one {unit[:-1]}")
        if "block_skip_kind" in ds.coords:
            kinds, counts = np.unique(ds["block_skip_kind"].values, return_counts=True)
            said.append("skips: " + ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True)))
    samples = [study.dataset.sizes["sample"] for study in found if "sample" in study.dataset.sizes]
    if samples:
        low, high = min(samples), max(samples)
        said.append(f"{high} samples" if low == high else f"{low} to {high} samples")
    count = len(found)
    return "; ".join([*said, f"{count} studies" if count != 1 else "one study"]) + "."


def _findings(found: list[ReportStudy]) -> list[tuple[str, str]]:
    """What the studies found, a sentence each by its first figure, with the study's group; the first few of them."""
    told = []
    for study in found:
        sentence = ""
        with contextlib.suppress(InputError):  # it lacks what the sentence tells
            sentence = study.figures[0].finding(study.dataset) if study.figures else ""
        if sentence:
            told.append((sentence, study.group))
    return told[:MOST_FINDINGS]


def _note(found: list[ReportStudy]) -> str:
    """What a reader must know of the network before anything else; empty for most."""
    facts = next((study.dataset.attrs for study in _subjects(found)), {})
    if facts.get("model_library") != EMBEDDED_LIBRARY:
        return ""
    return (
        "This is the network that comes with the package. Its training recipe and seed were chosen for a deletion "
        "curve that rises from near the intact error to near chance, on the same held-out digits as are shown here: it "
        "demonstrates the method and estimates nothing."
    )


def _model_facts(found: list[ReportStudy], shared: Mapping[Any, Any]) -> list[tuple[str, str]]:
    facts = {**shared, **{name: value for study in _subjects(found) for name, value in study.dataset.attrs.items()}}
    return [(heading, str(facts[name])) for name, heading in _MODEL_FACTS.items() if name in facts]


def _block_tables(study: ReportStudy) -> Iterator[BlockTable]:
    """The table of the network's blocks, and that of the plain network beside it."""
    for heading, ds in (("Blocks", study.dataset), ("Layers of the plain network", study.plain)):
        if ds is None or "block" not in ds.coords:
            continue
        names = [name for name in _BLOCK_FACTS if name in ds.coords]
        if "block_group" in names and np.array_equal(ds["block_group"].values, ds["block"].values):
            names.remove("block_group")
        unit = "layer" if ds.attrs.get("units") == "layers" else "block"
        columns = [unit if name == "block" else _BLOCK_FACTS[name] for name in names]
        cells = [[_cell(name, value) for value in ds[name].values.tolist()] for name in names]
        if study.kind == "single_lesions":
            head, values = _deletions(ds)
            columns, cells = [*columns, head], [*cells, values]
        projections = block_axis.projections(ds).tolist()
        rows = [(list(row), bool(marked)) for *row, marked in zip(*cells, projections, strict=True)]
        yield BlockTable(title=heading, columns=columns, rows=rows)


def _deletions(ds: xr.Dataset) -> tuple[str, list[str]]:
    """The column that tells what deleting each block, or its group, does."""
    effect = effect_of(ds, "lesion", default_measure(ds, "lesion"), "the report")
    lesions = block_axis.single_lesions(ds, "the report")
    deleted = ds["deleted"].transpose("lesion", "block").values
    cells = ["\N{EN DASH}"] * ds.sizes["block"]
    for lesion in lesions.chosen:
        for place in np.flatnonzero(deleted[lesion]):
            cells[place] = percent(effect.values[lesion]) if effect.is_fraction else f"{effect.values[lesion]:.3g}"
    what = " ".join(effect.label.split()).removesuffix(" (%)").replace(r"\$", "$")
    return f"{what} without {'its group' if lesions.unit == 'group' else 'it'}", cells


def _cell(name: str, value: object) -> str:
    return "\N{EN DASH}" if name == "block_stage" and value == -1 else str(value)


def _variables(ds: xr.Dataset) -> list[list[str]]:
    """What a study holds that no figure fits: a row for each variable."""
    rows = []
    for name, variable in ds.variables.items():
        dims = ", ".join(f"{dim}: {size}" for dim, size in variable.sizes.items())
        what = str(variable.attrs.get("long_name", ""))
        unit = str(variable.attrs.get("units", ""))
        rows.append([str(name), dims, what, "" if unit == "1" else unit, _range(variable)])
    return rows


def _range(variable: xr.Variable) -> str:
    """The values of a variable in a few characters."""
    values = variable.values
    if values.dtype.kind == "b" and values.size:
        return f"true in {percent(values.mean())}"
    if values.dtype.kind in "iuf":
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = (f"{float(value):.4g}" for value in (finite.min(), finite.max()))
            return low if low == high else f"{low} to {high}"
    if values.dtype.kind in "OU" and values.size:
        return ", ".join(str(value) for value in values.ravel()[:3].tolist()) + (
            ", \N{HORIZONTAL ELLIPSIS}" if values.size > 3 else ""
        )
    return ""


def _all_attributes(found: list[ReportStudy]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    for study in found:
        yield study.title, study.dataset.attrs
        if study.plain is not None:
            yield f"{study.title}, plain network", study.plain.attrs


def _own(attrs: Mapping[Any, Any], shared: Mapping[Any, Any]) -> dict[Any, Any]:
    """The attributes of a study that are not those of all."""
    return {name: value for name, value in attrs.items() if name not in shared or str(shared[name]) != str(value)}


def _attributes(attrs: Mapping[Any, Any]) -> list[tuple[str, str]]:
    return [(str(name).replace("_", " "), str(value)) for name, value in attrs.items()]
