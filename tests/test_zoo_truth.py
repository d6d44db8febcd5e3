"""What is detected in the smallest model of every family, against what its classes declare (`tests/zoo`)."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from zoo import table
from zoo.differences import REASONS, reason
from zoo.models import Subject, build, subjects
from zoo.truth import expected

import resnet_paths_plugin as rpp

LINES = table.read(Path(__file__).with_name("zoo") / "blocks.csv")
SAMPLE = [min(lines, key=lambda line: line.nodes) for lines in table.by_family(LINES.values()).values()]


def test_the_table_holds_every_model_of_the_versions_that_it_was_made_with():
    for library in ("timm", "torchvision"):
        made_with = {line.version for line in LINES.values() if line.library == library}
        assert len(made_with) == 1
        if made_with == {version(library).partition("+")[0]}:
            names = {one.name for one in subjects() if one.library == library}
            assert names == {name for kind, name in LINES if kind == library}
    assert len(LINES) > 1400


def test_every_model_was_captured_or_the_line_says_why_not():
    failed = [line for line in LINES.values() if line.blocks < 0]
    assert all(line.note for line in failed)
    assert len(failed) <= len(LINES) / 100


def test_every_line_agrees_with_the_code_or_says_why_not():
    silent = [
        f"{line.library}/{line.model}: declared {line.declared}, found {line.blocks}"
        for line in LINES.values()
        if line.declared != line.blocks and not line.note
    ]
    assert silent == []


def test_every_reason_is_needed():
    told = {
        line.note for line in LINES.values() if line.note and line.blocks >= 0 and line.declared != line.blocks
    }  # fmt: skip
    assert told == set(REASONS.values())
    for line in LINES.values():
        if line.note and line.blocks >= 0:
            assert line.note == reason(Subject(line.library, line.model), line.family)


def test_the_kinds_of_skips_add_up():
    for line in LINES.values():
        if line.blocks >= 0:
            assert sum(getattr(line, kind) for kind in table.KINDS) == line.blocks
            assert line.groups <= line.blocks


def test_the_page_of_hard_cases_tells_the_counts_of_the_table():
    page = (Path(__file__).with_name("zoo") / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"(timm|torchvision)/(\w+), (\d+) blocks:", page)
    assert len(rows) > 30
    assert {(library, name): int(blocks) for library, name, blocks in rows} == {
        (library, name): LINES[library, name].blocks for library, name, _ in rows
    }


@pytest.mark.zoo
@pytest.mark.parametrize("line", SAMPLE, ids=lambda line: f"{line.library}/{line.model}")
def test_blocks_are_those_that_the_classes_declare(line):
    model, inputs = build(Subject(line.library, line.model))
    found = len(rpp.unravel(model, inputs).blocks)
    assert found == line.blocks
    if not line.note:
        assert found == expected(model)
