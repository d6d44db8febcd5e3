"""Labels that are both a block's name and another group's: studies write blocks, what is given is refused with both."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import UnknownBlockError


class Pooling(nn.Module):
    """Two blocks: a pooling, which has no parameters and so the module's own name, and an MLP."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(5, 5)

    def forward(self, x):
        x = x + nn.functional.avg_pool1d(x[:, None], 3, 1, 1)[:, 0]
        return x + torch.tanh(self.mlp(x))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(5, 5)

    def forward(self, x):
        return x + torch.tanh(self.q(x))


class Nested(nn.Module):
    """A block whose branch is module `attn`, which has a block of its own, and an MLP."""

    def __init__(self):
        super().__init__()
        self.attn, self.out, self.mlp = Inner(), nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        x = x + self.out(self.attn(x))
        return x + torch.tanh(self.mlp(x))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def unraveled(layer):
    torch.manual_seed(0)
    return rpp.unravel(nn.Sequential(layer(), layer(), nn.Linear(5, 3)).eval(), X)


def ambiguous(net):
    groups = {name: {block for block in net.blocks if block.group == name} for name in {b.group for b in net.blocks}}
    return [block for block in net.blocks if groups.get(block.name, {block}) != {block}]


@pytest.mark.parametrize("layer", [Pooling, Nested])
class TestAmbiguousLabels:
    def test_a_study_of_groups_labels_them_so_that_each_label_means_its_blocks(self, layer):
        net = unraveled(layer)
        study = rpp.BlockLesion(net).attribute(X, 0, level="group")
        assert len(study.lesion) == len({block.group for block in net.blocks})
        for label, deleted in zip(study.lesion.values, study.deleted.values, strict=True):
            named = [block.index for block in net.select(str(label))]
            np.testing.assert_array_equal(np.flatnonzero(deleted), named)
            again = rpp.BlockLesion(net).attribute(X, 0, lesions=[str(label)], level="group")
            np.testing.assert_array_equal(again.deleted.values[0], deleted)
            score = net.lesioned(str(label))(X)[:, 0].detach()
            np.testing.assert_allclose(study.target_score.sel(lesion=label), score, rtol=1e-6)
        assert (study.deleted.sum("lesion") == 1).all()

    def test_a_label_of_several_blocks_names_blocks(self, layer):
        net = unraveled(layer)
        names = [block.name for block in net.blocks[:3]]
        assert [block.name for block in net.select("+".join(names))] == names

    def test_the_name_alone_is_refused_wherever_several_blocks_could_be_meant(self, layer):
        net = unraveled(layer)
        schedule = rpp.Schedule
        found = ambiguous(net)
        assert len(found) == 2
        for block in found:
            group = "+".join(other.name for other in net.blocks if other.group == block.name)
            for ask in (
                net.lesioned,
                lambda name: net.lesioned([name]),
                lambda name: schedule.scaled(net, 0.5, [name]),
                lambda name: schedule.parallel(net, [name]),
                lambda name: rpp.BlockLesion(net).attribute(X, 0, lesions=[name]),
                lambda name: rpp.BlockLesion(net).attribute(X, 0, lesions=[name], level="group"),
            ):
                with pytest.raises(UnknownBlockError) as refused:
                    ask(block.name)
                assert f"{block.name!r} is a block" in str(refused.value)
                assert f"the blocks {group!r}" in str(refused.value)
            for one in (block, block.index, net.block(block.name)):
                assert net.select(one) == (block,)
            assert len(net.select(group)) == group.count("+") + 1


def test_an_order_names_blocks():
    net = unraveled(Pooling)
    order = [block.name for block in net.blocks]
    order[0], order[2] = order[2], order[0]
    found = rpp.BlockReordering(net).attribute(X, 0, orders=[order])
    assert found.order.values.tolist() == [[2, 1, 0, 3]]


@pytest.mark.parametrize("name", ["efficientformer_l1", "mvitv2_tiny", "swiftformer_xs"])
@pytest.mark.zoo
def test_group_labels_of_timm_models_mean_their_blocks(name):
    from resnet_paths_plugin.network.levels import units_of

    with torch.device("meta"):
        net = rpp.unravel(timm.create_model(name))
    assert ambiguous(net)
    for label, blocks in units_of(net, "group").items():
        assert net.select(label) == blocks
