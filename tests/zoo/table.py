"""One line for each model: what was found in it, what its code declares, and what it cost."""

import csv
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields

import timm
import torchvision

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import ResnetPathsError
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
        capture_seconds, detection_seconds: what it took.
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


def line_of(library, name):
    """Look at one model."""
    from resnet_paths_plugin.graph.detection import detect_blocks

    subject = Subject(library, name)
    version = {"timm": timm, "torchvision": torchvision}[library].__version__
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
    started = time.perf_counter()
    try:
        net = rpp.unravel(model, inputs)
    except ResnetPathsError as error:
        line.note = f"not captured: {_told(error)}"
        return line
    taken = time.perf_counter() - started
    started = time.perf_counter()
    detect_blocks(net.graph)
    line.detection_seconds = round(time.perf_counter() - started, 3)
    line.capture_seconds = round(taken - line.detection_seconds, 2)
    line.nodes = len(net.graph.graph.nodes)
    line.blocks = len(net.blocks)
    line.groups = len({block.group for block in net.blocks})
    kinds = Counter(block.skip_kind for block in net.blocks)
    for kind in KINDS:
        setattr(line, kind, kinds[kind])
    return line


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
