"""One line for each model: what was found in it, what its code declares, and what it cost."""

import csv
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields

import numpy as np
import timm
import torchvision

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import ResnetPathsError
from resnet_paths_plugin.graph.detection import detect_blocks
from resnet_paths_plugin.network.grouping import find_blocks
from zoo import graphs
from zoo.differences import reason
from zoo.models import Subject, build, family
from zoo.truth import expected

KINDS = ("identity", "scaled", "projection", "gated")


@dataclass(slots=True)
class Line:
    """What is known of one model.

    Attributes:
        library, version, model, family: which model.
        declared: residual blocks by the rules read off its classes; -1 where there is none for it.
        blocks: residual blocks detected; -1 where the model could not be captured.
        identity, scaled, projection, gated: those by kind of skip.
        groups: modules that own them.
        nodes: nodes of the captured graph.
        capture_seconds, detection_seconds: time of one processor that it took.
        note: why it failed or differs.
    """

    library: str
    version: str
    model: str
    family: str
    declared: int = -1
    blocks: int = -1
    identity: int = 0
    scaled: int = 0
    projection: int = 0
    gated: int = 0
    groups: int = 0
    nodes: int = 0
    capture_seconds: float = 0.0
    detection_seconds: float = 0.0
    note: str = ""


def line_of(library, name, kept=None, before=None):
    """Look at one model.

    Args:
        library: timm or torchvision.
        name: the model's name there.
        kept: a file to keep the captured graph in. If it is there, the graph is not captured again.
        before: the line of an earlier run, which says how long capturing took.
    """
    subject = Subject(library, name)
    version = {"timm": timm, "torchvision": torchvision}[library].__version__.partition("+")[0]
    line = Line(library, version, name, family(subject))
    try:
        model, inputs = build(subject)
    except Exception as error:  # noqa: BLE001 - a library's constructor may raise anything; the line says what
        line.note = f"not built: {_told(error)}"
        return line
    try:
        line.declared = expected(model)
    except LookupError as error:
        line.note = f"no rule: {_told(error)}"
    try:
        graph = _graph_of(model, inputs, kept, line, before)
    except ResnetPathsError as error:
        line.note = f"not captured: {_told(error)}"
        return line
    started = time.process_time()
    detect_blocks(graph)
    line.detection_seconds = round(time.process_time() - started, 4)
    blocks = find_blocks(graph)
    line.nodes = len(graph.graph.nodes)
    line.blocks = len(blocks)
    line.groups = len({block.group for block in blocks})
    kinds = Counter(block.skip_kind for block in blocks)
    for kind in KINDS:
        setattr(line, kind, kinds[kind])
    if line.declared != line.blocks:
        line.note = line.note or reason(subject, line.family)
    return line


def _graph_of(model, inputs, kept, line, before):
    if kept is not None and kept.exists() and before is not None:
        line.capture_seconds = before.capture_seconds
        return graphs.kept(kept, model)
    started = time.process_time()
    graph = rpp.unravel(model, inputs).graph
    line.capture_seconds = round(time.process_time() - started, 2)
    if kept is not None:
        graphs.keep(graph, kept)
    return graph


def by_family(lines):
    """Return the lines with blocks of each library's families."""
    families: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.blocks >= 0:
            families.setdefault((line.library, line.family), []).append(line)
    return families


def growth(lines, seconds):
    """Return the exponent `a` of a time that grows as `nodes ** a`, fitted by least squares of the logarithms."""
    timed = [(line.nodes, getattr(line, seconds)) for line in lines if getattr(line, seconds) > 0]
    nodes, taken = np.log(np.array(timed)).T
    return float(np.polyfit(nodes, taken, 1)[0])


def read(path):
    """Return the lines of a table by library and model; of none if there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [_typed(row) for row in csv.DictReader(file)]
    return {(line.library, line.model): line for line in rows}


def write(path, lines):
    """Write a table, sorted, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(lines[key]) for key in sorted(lines))
    temporary.replace(path)


def _typed(row):
    kinds = {field.name: {int: int, float: float}.get(field.type, str) for field in fields(Line)}
    return Line(**{name: kinds[name](value) for name, value in row.items()})


def _told(error):
    return " ".join(str(error).split())[:200]
