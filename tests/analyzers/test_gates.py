"""How open the gates of highway layers are: against what multiplies the branch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from influence_studies import LABELS, Seen, assert_block, by_hand, cross_entropy, doubled
from known_networks import CASES
from networks import randomised
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence
from resnet_paths_plugin.engine.activations import ActivationEngine
from resnet_paths_plugin.errors import PluginError


def test_the_gate_of_a_highway_layer_is_its_transform_gate():
    model, inputs = doubled(CASES["highway"])
    net = rpp.unravel(model, inputs)
    result = BlockInfluence(net).attribute(inputs, LABELS)
    paths = [f"middle.{i}{part}" for i in range(2) for part in ("", ".gate", ".transform")]
    seen = Seen(model, inputs, cross_entropy(LABELS), paths)
    gates = {}
    ActivationEngine(net.program).run(
        net.inputs(inputs), net.program.parameters(), lambda state: gates.update({state.block.name: state.gate})
    )
    for block in net.blocks:
        gate = seen.returned[f"{block.name}.gate"]
        assert block.skip_kind == "gated"
        torch.testing.assert_close(gates[block.name], gate.detach(), rtol=1e-12, atol=0)
        np.testing.assert_allclose(
            result["gate_openness"].sel(block=block.name), gate.detach().mean(1), rtol=1e-12, atol=0
        )
        branch = gate * seen.returned[f"{block.name}.transform"]
        expected = by_hand(seen.got[block.name], branch, seen.returned[block.name], seen.gradient(block.name))
        assert_block(result, block.name, expected)


class Coupled(nn.Module):
    """Highway layers of other forms: of the carry gate, with one gate for all channels; and a plain block."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.transform = nn.Conv2d(4, 4, 3, padding=1)
        self.gate = nn.Conv2d(4, 4 if form in {"full", "carry", "negated"} else 1, 1)
        self.branch = nn.Conv2d(4, 4, 1)

    def opened(self, x):
        """Return what multiplies the branch."""
        gate = self.gate(x)
        if self.form == "one per sample":
            gate = gate.mean((2, 3), keepdim=True)
        return 1 - gate.sigmoid() if self.form == "carry" else gate.sigmoid()

    def forward(self, x):
        gate = self.gate(x)
        if self.form == "one per sample":
            gate = gate.mean((2, 3), keepdim=True)
        gate = gate.sigmoid()
        if self.form == "carry":
            x = gate * x + (1 - gate) * self.transform(x).tanh()
        elif self.form == "negated":
            x = self.transform(x).tanh() * gate + x * (-gate + 1)
        else:
            x = (1 - gate) * x + gate * self.transform(x).tanh()
        x = x + self.branch(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("form", ["full", "carry", "negated", "one per position", "one per sample"])
def test_openness_is_that_of_what_multiplies_the_branch(form):
    model = randomised(Coupled(form)).double()
    x = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert [block.skip_kind for block in net.blocks] == ["gated", "identity"]
    assert net.blocks[0].gate is not None
    assert net.blocks[1].gate is None
    result = BlockInfluence(net).attribute(x)
    with torch.no_grad():
        expected = model.opened(x).expand(5, 4, 6, 6).mean((1, 2, 3))
    np.testing.assert_allclose(result["gate_openness"][0], expected, rtol=1e-12)
    assert result["gate_openness"][1].isnull().all()


def test_networks_without_gates_have_no_openness():
    for name in ("transformer", "gated"):  # squeeze gates are no highway
        model, inputs = doubled(CASES[name])
        net = rpp.unravel(model, inputs)
        assert all(block.gate is None for block in net.blocks)
        assert "gate_openness" not in BlockInfluence(net).attribute(inputs)


def test_a_gate_that_the_graph_does_not_have_is_an_error_of_the_plugin():
    class Misnamed:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            return [replace(block, gate="nowhere") for block in blocks]

    model, inputs = doubled(CASES["highway"])
    manager = rpp.create_plugin_manager()
    manager.register(Misnamed())
    net = rpp.unravel(model, inputs, plugin_manager=manager)
    with pytest.raises(PluginError, match=r"block 'middle\.0' names a gate .* 'nowhere'"):
        BlockInfluence(net).attribute(inputs)
