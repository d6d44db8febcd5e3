"""One model of every family with real tensors (`tests/zoo/real`): the table that was made, and some of it again.

The oracle is each model itself: its outputs, and autograd's gradient of it.
"""

import math
import sys
from pathlib import Path

import pytest
import torch

import resnet_paths_plugin as rpp

sys.path.insert(0, str(Path(__file__).parent))

from zoo.real import choice, table
from zoo.real.examine import MOST_BLOCKS, VISIBLE, examine
from zoo.table import read as read_blocks

LINES = table.read()
BROADCAST = table.read(table.PATH.with_name("broadcast.csv"))
BLOCKS = table.PATH.with_name("blocks.csv")
FEW = 16
"""Families of image networks that are looked at again, those that took least."""


def kind(line):
    """Return what a family's networks are for, as torchvision's modules tell it."""
    return line.family.rpartition(".")[0] if line.library == "torchvision" else ""


def quick():
    """Return the families that took least: a few of networks for images, and one of each other kind."""
    by_kind = {}
    for key, line in sorted(LINES.items(), key=lambda item: item[1].seconds):
        if line.blocks > 0:
            by_kind.setdefault(kind(line), []).append(key)
    return [key for name, keys in by_kind.items() for key in keys[: 1 if name else FEW]]


def test_the_table_has_every_family():
    assert LINES.keys() == choice.families().keys()


def test_every_family_passes_or_says_why_not():
    assert [key for key, line in LINES.items() if not line.passes and not line.note] == []


def test_a_family_is_without_blocks_only_where_none_of_its_models_has_any():
    residual = {(line.library, line.family) for line in read_blocks(BLOCKS).values() if line.declared > 0}
    assert [key for key in residual if not LINES[key].blocks] == []
    assert len(residual) > 110


def test_what_differs_in_a_digit_says_why():
    inexact = [line for line in LINES.values() if not line.identical or not math.isnan(line.completeness_float64)]
    assert [line.model for line in inexact if not line.note] == []


def test_all_lengths_are_told_apart_up_to_sixty_blocks():
    for line in LINES.values():
        alone = 0 < line.blocks <= MOST_BLOCKS
        assert not (alone and math.isnan(line.completeness) and not line.note), line.model
        assert ("told apart" in line.note) == (line.blocks > MOST_BLOCKS), line.model


def test_every_family_with_a_broadcast_term_in_a_sum_passes():
    complete = {key for key, line in {**LINES, **BROADCAST}.items() if line.passes and line.blocks}
    assert complete >= choice.BROADCAST
    assert all(line.passes and not line.note for line in BROADCAST.values())


@pytest.mark.zoo
def test_the_models_of_the_broadcast_table_add_terms_that_broadcast():
    for line in BROADCAST.values():
        graph = rpp.unravel(table.recipe(line).model(), table.recipe(line).inputs(2)).graph.graph
        sizes = [
            [leaf.meta["val"].shape for leaf in node.args[:2] if hasattr(leaf, "meta")]
            for node in graph.nodes
            if node.target is torch.ops.aten.add.Tensor
        ]
        assert any(len(pair) == 2 and tuple(pair[0]) != tuple(pair[1]) for pair in sizes), line.model


@pytest.mark.zoo
@pytest.mark.parametrize("key", BROADCAST, ids="/".join)
def test_a_model_with_a_broadcast_term_is_as_in_the_table(key):
    found = examine(table.recipe(BROADCAST[key]))
    assert found.passes, found.note
    assert (found.blocks, found.lesions) == (BROADCAST[key].blocks, BROADCAST[key].lesions)
    assert found.least_change == pytest.approx(BROADCAST[key].least_change, rel=0.05)


@pytest.mark.zoo
@pytest.mark.parametrize("key", quick(), ids="/".join)
def test_outputs_lesions_and_path_gradients_are_those_of_the_table(key):
    expected = LINES[key]
    found = examine(table.recipe(expected))
    assert found.passes, found.note
    assert (found.blocks, found.lesions) == (expected.blocks, expected.lesions)
    assert found.identical == expected.identical
    assert found.least_change > VISIBLE
    assert found.least_change == pytest.approx(expected.least_change, rel=0.05)
