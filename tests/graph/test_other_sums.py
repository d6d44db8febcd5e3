"""Sums that are no blocks are told with the reason. What each sum is is known because it is written here."""

import pytest
import torch
from known_networks import CASES
from networks import Residual, Vectors, mlp
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.errors import InputError

WIDTH = 6


class Parts(nn.Module):
    """Submodules for sums: two linear layers `deep`, linear layers `plain` and `other`, a norm and a position."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
        self.plain, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.narrow = nn.Linear(WIDTH, WIDTH // 2)
        self.position = nn.Parameter(torch.ones(WIDTH))


class Position(Parts):
    def forward(self, x):
        return x + self.position


class Fusion(Parts):
    """Two weighted terms, equally deep."""

    def forward(self, x):
        return torch.tanh(self.plain(x) + self.other(x))


class Part(Parts):
    def forward(self, x):
        return torch.cat([x[:, :3] + self.narrow(x), x[:, 3:]], 1)


class Normed(Parts):
    def forward(self, x):
        return self.norm(x) + self.deep(x)


class BothNormed(Parts):
    """As in Swin v2, but with a norm on the skip as well; its name comes after the branch's in the alphabet."""

    def __init__(self):
        super().__init__()
        self.after = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.after(self.deep(x)) + self.norm(x)


class NormedProjection(BothNormed):
    def forward(self, x):
        return self.after(self.deep(x)) + self.other(self.norm(x))


class Lateral(Parts):
    """A feature pyramid's: the value inside the longer way is an output as well."""

    def forward(self, x):
        inside = self.deep[1](self.deep[0](x))
        return torch.tanh(self.plain(x) + self.deep[2](inside)) + inside.mean()


class Difference(Parts):
    def forward(self, x):
        return torch.tanh(self.deep(x) - self.norm(x))


class Broadcast(Parts):
    def forward(self, x):
        return self.deep(x).mean(1, keepdim=True) + self.norm(x)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (Position, "adds a parameter or constant"),
        (Fusion, "no term does more to a value that they share than the other"),
        (Part, "the skip would be a part of a tensor"),
        (Normed, "layer_norm of middle.0.norm stands on the way of the skip"),
        (BothNormed, "layer_norm of middle.0.norm stands on the way of the skip"),
        (NormedProjection, "layer_norm of middle.0.norm stands on the way of the skip"),
        (Lateral, "a value inside the branch is read elsewhere, beside a skip with weights"),
        (Broadcast, "a term is broadcast"),
        (Difference, "a difference: what would be the skip is subtracted"),
    ],
)
def test_the_reason_that_a_sum_is_no_block_is_told(middle, reason):
    net = rpp.unravel(Vectors(middle()), torch.randn(3, 7))
    table = net.other_sums()
    assert net.blocks == ()
    assert table["reason"][0] == reason
    assert table["module"][0] == "middle.0"
    assert table["sum"][0] in {node.name for node in net.graph.graph.nodes}


def test_blocks_are_not_among_the_other_sums():
    class Both(Parts):
        def forward(self, x):
            return x + self.position + self.deep(x)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.sums = nn.Sequential(Residual(mlp()), Both(), Fusion())

        def forward(self, x):
            return self.sums(x)

    net = rpp.unravel(Vectors(Whole()), torch.randn(3, 7))
    assert [block.module for block in net.blocks] == ["middle.0.sums.0", "middle.0.sums.1"]
    assert list(net.other_sums()["module"]) == ["middle.0.sums.2"]


def test_a_block_that_a_plugin_leaves_out_is_told_as_such():
    class LeavesOut:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            return blocks[1:]

    manager = rpp.create_plugin_manager()
    manager.register(LeavesOut())
    case = CASES["pre-activation"]
    table = rpp.unravel(case.model(), case.inputs(), plugin_manager=manager).other_sums()
    assert list(table["module"]) == ["blocks.0"]
    assert list(table["reason"]) == ["a block by its data flow, which a plugin leaves out"]


def test_a_chain_of_blocks_has_no_other_sums():
    case = CASES["pre-activation"]
    assert rpp.unravel(case.model(), case.inputs()).other_sums().empty


def test_the_sums_of_a_network_of_layers_are_not_asked_for():
    net = rpp.unravel(Vectors(mlp()), torch.randn(3, 7), units="layers")
    with pytest.raises(InputError, match="unraveled into layers: ask for its sums with units='blocks'"):
        net.other_sums()


def test_the_command_line_prints_them(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["blocks", "timm/test_vit", "--other-sums"])
    text = capsys.readouterr().out
    assert "other sums" in text
    assert "adds a parameter or constant" in text  # the position embedding
