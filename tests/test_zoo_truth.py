"""What is detected in one model of every family, against what its classes declare (`tests/zoo`)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from zoo import table
from zoo.models import Subject, build
from zoo.truth import expected

import resnet_paths_plugin as rpp

LINES = table.read(Path(__file__).with_name("zoo") / "blocks.csv")
LARGEST = 500
"""Nodes of a graph that is captured in a second or two."""
QUICK = [key for key, line in LINES.items() if 0 < line.nodes <= LARGEST]


def test_the_table_holds_models_of_both_libraries():
    assert {library for library, _ in LINES} == {"timm", "torchvision"}
    assert len(LINES) > 150


def test_every_line_agrees_with_the_code_or_says_why_not():
    silent = [
        f"{line.library}/{line.model}: declared {line.declared}, found {line.blocks}"
        for line in LINES.values()
        if line.declared != line.blocks and not line.note
    ]
    assert silent == []


@pytest.mark.zoo
@pytest.mark.parametrize("subject", QUICK, ids="/".join)
def test_blocks_are_those_that_the_classes_declare(subject):
    model, inputs = build(Subject(*subject))
    found = len(rpp.unravel(model, inputs).blocks)
    assert found == LINES[subject].blocks
    if not LINES[subject].note:
        assert found == expected(model)
