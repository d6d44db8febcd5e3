"""Operators that draw at random in eval mode: which they are, and that a walk back has what was drawn on the way there.

The oracles are the model's own gradient from the same state of torch's generator, and two calls of an operator.
"""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import StochasticModelWarning
from resnet_paths_plugin.graph.operators import draws_at_random

pytestmark = pytest.mark.slow

aten = torch.ops.aten


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = x + self.branch(self.f(x))
        x = x + torch.tanh(self.g(x))
        return self.h(x).mean(1)


class Attention(Random):
    def branch(self, y):
        heads = y.unflatten(-1, (2, 3)).transpose(1, 2)
        found = functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)
        return found.transpose(1, 2).flatten(2)


class MaskedAttention(Random):
    def branch(self, y):
        mask = torch.ones(5, 5, dtype=torch.bool).tril()
        return functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None], mask, 0.3)[:, 0]


class Slopes(Random):
    def branch(self, y):
        return functional.rrelu(y, 0.1, 0.9, training=True)


class Gumbel(Random):
    def branch(self, y):
        return y * functional.gumbel_softmax(y, hard=True)


class Noise(Random):
    def branch(self, y):
        return torch.normal(y, y.abs() + 0.1) * torch.bernoulli(y.sigmoid()) + y * torch.randn_like(y)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("kind", [Attention, MaskedAttention, Slopes, Gumbel, Noise])
def test_paths_are_those_of_what_was_drawn_forward(monkeypatch, kind, kept):
    if not kept:
        monkeypatch.setattr("resnet_paths_plugin.engine.linearised_pass.KEPT_BYTES", 0)
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(3, 5, 6, dtype=torch.float64)
    with pytest.warns(StochasticModelWarning):
        net = rpp.unravel(model, x)
    torch.manual_seed(7)
    found = rpp.PathLengthGradient(net).attribute(x, target=0, run=rpp.RunOptions(verify=False))
    assert found.completeness_error.max() < 1e-12
    assert (found.gradient_norm[1] > 0).all()


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
STATE = torch.zeros(2, 2, 4)
WEIGHTS = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in 2 * ((12, 4), (12, 4))]
SEQUENCE = torch.ones(2, 3, 4)
CALLS = [
    (aten.scaled_dot_product_attention.default, (X, X, X, None, 0.5), {}, True),
    (aten.scaled_dot_product_attention.default, (X, X, X), {"dropout_p": 0.5}, True),
    (aten.scaled_dot_product_attention.default, (X, X, X, None, 0.0, True), {}, False),
    (aten.scaled_dot_product_attention.default, (X, X, X), {}, False),
    (aten.rrelu.default, (X, 0.1, 0.9, True), {}, True),
    (aten.rrelu.default, (X,), {"training": True}, True),
    (aten.rrelu.default, (X,), {}, False),
    (aten.gru.input, (SEQUENCE, STATE, WEIGHTS, False, 2, 0.5, True, False, True), {}, True),
    (aten.gru.input, (SEQUENCE, STATE, WEIGHTS, False, 2, 0.5, False, False, True), {}, False),
    (aten.gru.input, (SEQUENCE, STATE, WEIGHTS, False, 2, 0.0, True, False, True), {}, False),
    (aten.dropout.default, (X, 0.5, True), {}, True),
    (aten.dropout.default, (X, 0.5, False), {}, False),
    (aten.alpha_dropout.default, (X, 0.5, True), {}, True),
    (aten.feature_dropout.default, (X, 0.5, True), {}, True),
    (aten.native_dropout.default, (X, 0.5, True), {}, True),
    (aten.rand_like.default, (X,), {}, True),
    (aten.bernoulli.p, (X, 0.5), {}, True),
    (aten.normal.Tensor_float, (X,), {}, True),
    (aten.log_normal.default, (X,), {}, True),
    (aten.multinomial.default, (X.flatten(1).abs(), 3), {}, True),
    (aten.relu.default, (X,), {}, False),
    (aten.zeros_like.default, (X,), {}, False),
]


@pytest.mark.parametrize(("target", "args", "kwargs", "random"), CALLS)
def test_an_operator_draws_at_random_where_two_calls_of_it_differ(target, args, kwargs, random):
    def called(seed):
        torch.manual_seed(seed)
        value = target(*args, **kwargs)
        return value if isinstance(value, torch.Tensor) else value[0]

    graph = fx.Graph()
    node = graph.call_function(
        target,
        *fx.node.map_aggregate(
            (args, kwargs), lambda one: graph.placeholder("x") if isinstance(one, torch.Tensor) else one
        ),
    )
    assert torch.equal(called(0), called(1)) != random
    assert draws_at_random(node) == random
