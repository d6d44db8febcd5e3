"""Every rule for the gradients at an operator's parameters, against autograd, one row at a time."""

from functools import reduce
from operator import mul

import pytest
import torch
from torch import fx

from resnet_paths_plugin.engine import parameter_rules
from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.engine.parameter_rules import RULES, parameter_pullback

aten = torch.ops.aten
ROWS = 3


class Parameter:
    """An argument that a gradient is wanted for."""

    def __init__(self, *shape):
        self.value = drawn(*shape)


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def check(target, *args, slopes=(), by_rules=True, dtype=torch.float64):
    """Compare the gradients at a call's parameters with autograd's, of rows that slopes are multiplied into."""
    graph = fx.Graph()
    values, leaves = {}, {}
    slopes = [slope.to(dtype) for slope in slopes]
    tolerance = 1e-12 if dtype is torch.float64 else 1e-4

    def placed(at, argument):
        if not isinstance(argument, Parameter | torch.Tensor):
            return argument
        node = graph.placeholder(f"x{at}")
        values[node] = (argument.value if isinstance(argument, Parameter) else argument).to(dtype)
        if isinstance(argument, Parameter):
            leaves[node] = values[node].clone().requires_grad_()
        return node

    node = graph.call_function(target, tuple(placed(at, argument) for at, argument in enumerate(args)))
    value = target(*fx.node.map_arg(node.args, lambda one: leaves.get(one, values[one])))
    bank = drawn(ROWS, *value.shape).to(dtype)
    if value.ndim == 4:  # as a walk's rows are
        bank = bank.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (ROWS, -1))
    rows = [reduce(mul, slopes, row) for row in bank]
    expected = [torch.autograd.grad(value, [*leaves.values()], row, retain_graph=True) for row in rows]
    call = Call(node, values.__getitem__, value.detach(), [*leaves], dtype)
    pull, before = parameter_pullback(call, by_rules=by_rules), bank.clone()
    for _ in range(2):  # what the first has laid out serves again
        for found, each in zip(pull(bank, *slopes), zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(each), rtol=tolerance, atol=tolerance)
    assert torch.equal(bank, before)


CONVOLUTIONS = [
    (3, 4, ()),
    (3, 4, ([1, 1], [1, 1])),
    (3, 4, ([2, 2], [1, 1])),
    (3, 4, ([2, 1], [0, 2])),
    (3, 4, ([1, 1], [2, 2], [2, 2])),
    (4, 6, ([1, 1], [1, 1], [1, 1], 2)),
    (4, 4, ([2, 2], [1, 1], [1, 1], 4)),
    (3, 4, ([2], [1], [1], 1)),
]


@pytest.mark.parametrize(("channels", "out", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("slopes", [0, 2])
@pytest.mark.parametrize("size", [2**20, 1], ids=["all samples at once", "one sample at a time"])
def test_two_dimensional_convolution(channels, out, options, slopes, size, monkeypatch):
    monkeypatch.setattr(parameter_rules, "_SEEN_BYTES", size)
    groups = options[3] if len(options) > 3 else 1
    source, weight = drawn(5, channels, 9, 8), Parameter(out, channels // groups, 3, 2)
    slopes = [drawn(out, 1, 1) for _ in range(slopes)]
    check(aten.conv2d.default, source, weight, None, *options, slopes=slopes)
    check(aten.conv2d.default, source, weight, Parameter(out), *options, slopes=slopes)
    check(aten.conv2d.default, source, weight.value, Parameter(out), *options, slopes=slopes)


@pytest.mark.parametrize("out", [6, 40], ids=["narrow", "wide"])
@pytest.mark.parametrize("options", [([1, 1], [1, 1]), ([1, 1], [2, 0], [2, 2]), ([2, 1], [1, 1]), ([1, 1], [0, 0])])
def test_two_dimensional_convolution_in_float32(out, options):
    for kernel in ((3, 2), (1, 1)):
        check(
            aten.conv2d.default, drawn(2, 3, 9, 8), Parameter(out, 3, *kernel), Parameter(out), *options,
            slopes=[drawn(out, 1, 1)], dtype=torch.float32,
        )  # fmt: skip


def test_convolutions_of_one_and_three_dimensions():
    check(aten.conv1d.default, drawn(2, 4, 9), Parameter(6, 4, 3), Parameter(6), [2], [1], [1], 1)
    check(aten.conv1d.default, drawn(2, 4, 9), Parameter(6, 2, 3), None, [2], [1], [1], 2)
    check(aten.conv3d.default, drawn(2, 2, 5, 4, 5), Parameter(3, 2, 3, 2, 3), Parameter(3), [2, 1, 1], [1, 0, 1])


def test_convolutions_without_a_rule_go_through_autograd():
    source, weight, slopes = drawn(2, 3, 6, 6), Parameter(4, 3, 3, 3), (drawn(4, 1, 1),)
    check(aten.conv2d.default, source, weight, Parameter(4), slopes=slopes, by_rules=False)
    check(aten.conv2d.padding, source, weight, None, [1, 1], "same", slopes=slopes)


def test_linear():
    check(aten.linear.default, drawn(2, 4), Parameter(5, 4), Parameter(5))
    check(aten.linear.default, drawn(2, 3, 4), Parameter(5, 4), None)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2)])
def test_batch_norm(shape):
    statistics = drawn(4), drawn(4).square() + 0.3
    check(
        aten.batch_norm.default, drawn(*shape), Parameter(4), Parameter(4), *statistics, False, 0.1, 1e-3, True
    )  # fmt: skip


@pytest.mark.parametrize("over", [[4], [3, 4]])
def test_layer_norm(over):
    check(aten.layer_norm.default, drawn(2, 3, 4), over, Parameter(*over), Parameter(*over), 1e-2)
    check(aten.layer_norm.default, drawn(2, 3, 4), over, Parameter(*over), Parameter(*over))


def test_every_rule_is_tested_here_or_with_the_networks_of_enumerated_paths():
    tested = {
        aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.batch_norm.default,
        aten.layer_norm.default,
    }  # fmt: skip
    assert set(RULES) - tested == {aten._native_batch_norm_legit_no_training.default}
