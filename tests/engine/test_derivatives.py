"""Every rule for one operator's derivative, against torch's autograd in both directions, one row at a time.

An operator is called by itself, as a node of a graph of its own; the bank has several rows.
"""

import operator
import warnings

import pytest
import torch
from torch import fx
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.engine.derivative_rules import RULES
from resnet_paths_plugin.engine.derivatives import linearise
from resnet_paths_plugin.engine.selection import Place, together
from resnet_paths_plugin.graph import operators as ops

aten = torch.ops.aten
ROWS = 3


class Data:
    """An operand that a gradient is wanted for."""

    def __init__(self, *shape, dtype=torch.float64):
        self.value = torch.randn(shape, dtype=dtype)


def constant(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def call_of(target, args, kwargs, dtype=torch.float64):
    """Return the call of an operator on some data, and the data in the order of the call's operands."""
    graph = fx.Graph()
    nodes, values, data = {}, {}, {}

    def placed(argument):
        if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
            return type(argument)(map(placed, argument))
        if not isinstance(argument, Data | torch.Tensor):
            return argument
        if id(argument) not in nodes:
            node = nodes[id(argument)] = graph.placeholder(f"x{len(nodes)}")
            values[node] = argument.value if isinstance(argument, Data) else argument
            if isinstance(argument, Data):
                data[node] = argument
        return nodes[id(argument)]

    args, kwargs = placed(args), {key: placed(value) for key, value in kwargs.items()}
    node = graph.call_function(target, args, kwargs)
    actual = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    value = target(*actual[0], **actual[1])
    operands = [other for other in node.all_input_nodes if other in data]
    return Call(node, values.__getitem__, value, operands, dtype), [data[operand] for operand in operands]


def by_autograd(target, args, kwargs, data, bank, dtype=torch.float64):
    """Return autograd's gradients of each row of a bank, for each operand; None where there is none."""

    def plain(argument):
        if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
            return type(argument)(map(plain, argument))
        if isinstance(argument, torch.Tensor) and argument.is_floating_point():
            return argument.to(dtype)
        return leaves[id(argument)] if isinstance(argument, Data) else argument

    leaves = {
        id(d): d.value.to(dtype if d.value.is_floating_point() else d.value.dtype).detach().requires_grad_()
        for d in data
    }
    value = target(*plain(args), **{key: plain(value) for key, value in kwargs.items()})
    parts = {None: value} if isinstance(value, torch.Tensor) else dict(enumerate(value))
    banks = bank if isinstance(bank, dict) else {None: bank}
    found = []
    for row in range(ROWS):
        outputs, seeds = [parts[part] for part in banks], [rows[row] for rows in banks.values()]
        found.append(torch.autograd.grad(outputs, list(leaves.values()), seeds, retain_graph=True, allow_unused=True))
    return [None if column[0] is None else torch.stack(column) for column in zip(*found, strict=True)]


def by_forward_mode(target, args, kwargs, data, tangents, dtype=torch.float64):
    """Return the tangents of each row at the value by torch's forward mode, by part; tangents are one bank a datum."""

    def plain(argument):
        if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
            return type(argument)(map(plain, argument))
        if isinstance(argument, torch.Tensor) and argument.is_floating_point():
            return argument.to(dtype)
        return duals[id(argument)] if isinstance(argument, Data) else argument

    def converted(value):
        value = value.to(dtype) if value.is_floating_point() else value
        return value.clone(memory_format=torch.contiguous_format)  # an expanded one takes no tangent

    found = []
    for row in range(ROWS):
        with (
            warnings.catch_warnings(action="ignore", category=FutureWarning),
            sdpa_kernel(SDPBackend.MATH),  # the fused kernels have no forward mode
            forward_ad.dual_level(),
        ):
            duals = {
                id(d): converted(d.value) if bank is None else forward_ad.make_dual(converted(d.value), bank[row])
                for d, bank in zip(data, tangents, strict=True)
            }
            value = target(*plain(args), **{key: plain(value) for key, value in kwargs.items()})
            parts = {0: value} if isinstance(value, torch.Tensor) else dict(enumerate(value))
            found.append(
                {
                    at: tangent
                    for at, part in parts.items()
                    if part.is_floating_point() and (tangent := forward_ad.unpack_dual(part).tangent) is not None
                }
            )
    return {at: torch.stack([one[at] for one in found]) for at in found[0]}


def check_tangents(call, data, target, args, kwargs, dtype=torch.float64, tolerance=1e-12):
    """Compare the tangents of a call with forward mode: of all operands, and of each alone."""

    def drawn(one):
        return torch.randn(ROWS, *one.value.shape, dtype=dtype) if one.value.is_floating_point() else None

    each = [[drawn(one) if at == only else None for at, one in enumerate(data)] for only in range(len(data))]
    for tangents in [[drawn(one) for one in data], *each]:
        if all(bank is None for bank in tangents):
            continue
        ours = linearise(call).push(tangents)
        ours = {0: ours} if isinstance(ours, torch.Tensor) else (ours or {})
        theirs = by_forward_mode(target, args, kwargs, data, tangents, dtype)
        for at, expected in theirs.items():
            got = ours.get(at, torch.zeros_like(expected))
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def check(target, *args, rule=True, dtype=torch.float64, tolerance=1e-12, **kwargs):
    """Compare the derivative of a call with autograd, both ways; `rule`: whether an own rule is expected to serve."""
    call, data = call_of(target, args, kwargs, dtype)
    found = RULES.get(target)
    served = found is not None and found(call) is not None
    assert served == rule
    if isinstance(call.value, torch.Tensor):
        bank = torch.randn(ROWS, *call.value.shape, dtype=call.value.dtype)
    else:
        floating = {at: part for at, part in enumerate(call.value) if part.is_floating_point()}
        bank = {at: torch.randn(ROWS, *part.shape, dtype=part.dtype) for at, part in floating.items()}
    ours = linearise(call).pull(bank)
    theirs = by_autograd(target, args, kwargs, data, bank, dtype)
    assert any(gradient is not None for gradient in theirs)
    for one, other in zip(ours, theirs, strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    check_tangents(call, data, target, args, kwargs, dtype, tolerance)


# Convolutions


@pytest.mark.parametrize(
    ("channels", "out", "options"),
    [
        (3, 4, ()),
        (3, 4, ([1, 1], [1, 1])),
        (3, 4, ([2, 2], [1, 1])),
        (3, 4, ([2, 1], [0, 2])),
        (4, 6, ([1, 1], [1, 1], [1, 1], 2)),
        (4, 4, ([2, 2], [1, 1], [1, 1], 4)),
        (3, 4, ([1, 1], [2, 2], [2, 2])),
        (4, 8, ([3, 2], [2, 3], [2, 3], 2)),
        (3, 4, ([2], [1], [1], 1)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_two_dimensional_convolution(channels, out, options, bias):
    groups = options[3] if len(options) > 3 else 1
    weight = constant(out, channels // groups, 3, 3)
    check(aten.conv2d.default, Data(2, channels, 9, 8), weight, constant(out) if bias else None, *options)


@pytest.mark.parametrize("size", [(12, 13), (11, 14)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 1), 1, 0), ((1, 1), 2, 0), ((1, 1), 3, 0), ((1, 1), 2, 1), ((1, 1), (2, 1), 0), ((2, 2), 2, 0),
        ((4, 4), 4, 0), ((4, 4), 4, 2), ((7, 7), 2, 3), ((7, 7), 4, 3), ((5, 7), (2, 3), (0, 3)), ((7, 1), (2, 1), 0),
        ((8, 8), 4, 2), ((2, 2), 2, 1), ((3, 3), 3, 1), ((7, 7), 2, 9), ((6, 6), 5, 1),
    ],
)  # fmt: skip
def test_points_patches_and_stems(kernel, stride, padding, size):
    stride, padding = ([given] * 2 if isinstance(given, int) else list(given) for given in (stride, padding))
    check(aten.conv2d.default, Data(2, 3, *size), constant(4, 3, *kernel), None, stride, padding)
    args = Data(2, 3, *size), constant(4, 3, *kernel), None, stride, padding
    call, data = call_of(aten.conv2d.default, args, {})
    bank, slope = torch.randn(ROWS, *call.value.shape, dtype=torch.float64), constant(4, 1, 1)
    (expected,) = by_autograd(aten.conv2d.default, args, {}, data, bank * slope)
    torch.testing.assert_close(linearise(call).pull_with(bank, (slope,)), expected, rtol=1e-12, atol=1e-12)


def test_convolutions_of_one_and_three_dimensions():
    check(aten.conv1d.default, Data(2, 4, 9), constant(6, 2, 3), None, [2], [1], [1], 2)
    check(aten.conv3d.default, Data(2, 2, 5, 4, 5), constant(3, 2, 3, 2, 3), constant(3), [2, 1, 1], [1, 0, 1])


@pytest.mark.parametrize("options", [([1, 1], [1, 1]), ([1, 1], [3, 0]), ([2, 1], [1, 1]), ([1, 1], [0, 0], [2, 2], 2)])
def test_slopes_of_channels_are_worked_into_a_convolutions_weight(options):
    """The oracle multiplies the rows; a second slope must not find the first one's weight."""
    call, data = call_of(
        aten.conv2d.default, (Data(2, 4, 9, 8), constant(6, 4 // (options[3:] or [1])[0], 3, 3), None, *options), {}
    )
    derivative = linearise(call)
    bank = torch.randn(ROWS, *call.value.shape, dtype=torch.float64)
    before = bank.clone()
    for slope in (constant(6, 1, 1), constant(6, 1, 1)):
        assert derivative.absorbs(slope)
        (expected,) = by_autograd(call.node.target, (data[0], *call.args[1:]), {}, data, bank * slope)
        torch.testing.assert_close(derivative.pull_with(bank, (slope,)), expected, rtol=1e-12, atol=1e-12)
    assert not derivative.absorbs(constant(1, 6, 1))
    assert not derivative.absorbs(constant(2, 6, 7, 6))
    assert torch.equal(bank, before)


def test_a_weight_that_is_large_beside_a_row_takes_no_slopes():
    slope = constant(64, 1, 1)
    for size, absorbs in ((2, False), (24, True)):
        call, _ = call_of(
            aten.conv2d.default, (Data(1, 64, size, size), constant(64, 64, 3, 3), None, [1, 1], [1, 1]), {}
        )
        assert linearise(call).absorbs(slope) == absorbs


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(2, 3, 1, 1), (3, 3, 2, 1), (4, 2, 2, 0), (4, 7, 2, 3), (1, 1, 1, 0)]
)
def test_a_weight_that_is_large_beside_a_row_is_left_as_it_lies(size, kernel, stride, padding):
    weight = constant(64, 16, kernel, kernel)
    call, _ = call_of(aten.conv2d.default, (Data(1, 16, size, size), weight, None, [stride] * 2, [padding] * 2), {})
    assert not linearise(call).absorbs(constant(64, 1, 1))
    check(aten.conv2d.default, Data(1, 16, size, size), weight, None, [stride] * 2, [padding] * 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 30], ids=["few points", "many points"])
def test_a_kernel_of_one_point_in_float32(size, stride):
    source, weight = Data(2, 24, size, size, dtype=torch.float32), constant(16, 24, 1, 1).float()
    check(aten.conv2d.default, source, weight, None, [stride] * 2, dtype=torch.float32, tolerance=1e-4)


def test_convolutions_without_a_rule_go_through_autograd():
    weight = constant(4, 3, 3, 3)
    check(aten.conv2d.padding, Data(2, 3, 6, 6), weight, None, [1, 1], "same", rule=False)
    check(aten.conv2d.default, Data(3, 6, 6), weight, rule=False)
    check(aten.conv2d.default, Data(2, 3, 6, 6), Data(4, 3, 3, 3), rule=False)
    check(aten.conv_transpose2d.input, Data(2, 4, 5, 5), weight, None, [2, 2], [1, 1], rule=False)


# Linear maps and products


def test_linear():
    check(aten.linear.default, Data(2, 4), constant(5, 4), constant(5))
    check(aten.linear.default, Data(2, 3, 4), constant(5, 4))
    check(aten.linear.default, Data(4), constant(5, 4))
    check(aten.linear.default, Data(2, 3, 4), Data(5, 4), rule=False)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (1, 2, 0, 3), (3, 0, 2, 1)])
def test_linear_of_rows_in_another_layout(order):
    """The dimensions lie in memory in that order, the outermost first."""
    weight = constant(5, 4)
    call, _ = call_of(aten.linear.default, (Data(2, 3, 4), weight), {})
    derivative = linearise(call)
    for vector, matrix, through in (
        (5, weight, lambda rows: derivative.pull(rows)[0]),
        (4, weight.mT, lambda rows: derivative.push([rows])),
    ):
        shape = (ROWS, 2, 3, vector)
        laid = torch.randn([shape[dim] for dim in order], dtype=torch.float64)
        bank = laid.permute([order.index(dim) for dim in range(4)])
        torch.testing.assert_close(through(bank), bank @ matrix, rtol=1e-12, atol=1e-12)


def test_linear_with_a_vector_for_weight():
    check(aten.linear.default, Data(2, 3, 4), constant(4), rule=False)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_matrix_products_with_any_batch(batch):
    left, right = Data(*batch, 4, 5), Data(*batch, 5, 3)
    check(aten.matmul.default, left, right)
    check(aten.matmul.default, left, constant(*batch, 5, 3))
    check(aten.matmul.default, constant(*batch, 4, 5), right)
    if len(batch) == 1:
        check(aten.bmm.default, left, right)


@pytest.mark.parametrize(
    ("left", "right"), [((4, 5), (5,)), ((5,), (5,)), ((5,), (5, 4)), ((2, 3, 4, 5), (5, 3)), ((2, 1, 4, 5), (3, 5, 4))]
)
def test_products_of_vectors_and_of_unequal_batches_go_through_autograd(left, right):
    check(aten.matmul.default, Data(*left), Data(*right), rule=False)


def test_product_of_a_value_with_itself():
    x = Data(2, 4, 4)
    check(aten.matmul.default, x, x, rule=False)
    check(aten.mul.Tensor, x, x, rule=False)
    check(aten.add.Tensor, x, x, rule=False)
    check(aten.einsum.default, "bij,bkj->bik", [x, Data(2, 3, 4)], rule=False)


# Norms


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_eval_mode(shape, affine):
    weight, bias = (constant(4), constant(4)) if affine else (None, None)
    mean, variance = constant(4), constant(4).square() + 0.3
    check(aten.batch_norm.default, Data(*shape), weight, bias, mean, variance, False, 0.1, 1e-3, True)
    packed = (aten._native_batch_norm_legit_no_training.default, Data(*shape), weight, bias, mean, variance, 0.1, 1e-3)
    call, data = call_of(packed[0], packed[1:], {})
    bank = torch.randn(ROWS, *shape, dtype=torch.float64)
    (ours,) = linearise(call).pull({0: bank})
    (theirs,) = by_autograd(packed[0], packed[1:], {}, data, {0: bank})
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    check_tangents(call, data, packed[0], packed[1:], {})


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (2, 4, 5, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_with_the_statistics_of_the_batch(shape, affine):
    weight, bias = (constant(4), constant(4)) if affine else (None, None)
    check(aten.batch_norm.default, Data(*shape), weight, bias, None, None, True, 0.1, 1e-3, True, tolerance=1e-10)


@pytest.mark.parametrize("norm", [aten.batch_norm.default, aten.instance_norm.default])
@pytest.mark.parametrize("by_rules", [True, False])
def test_the_derivative_of_a_norm_moves_no_running_statistics(norm, by_rules):
    mean, variance = constant(4), constant(4).square() + 0.3
    call, _ = call_of(norm, (Data(5, 4, 3), None, None, mean, variance, True, 0.1, 1e-3, True), {})
    before = mean.clone(), variance.clone()
    linearise(call, by_rules=by_rules).pull(torch.randn(ROWS, 5, 4, 3, dtype=torch.float64))
    assert all(torch.equal(*pair) for pair in zip(before, (mean, variance), strict=True))


@pytest.mark.parametrize("over", [[4], [3, 4]])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(over, affine):
    weight, bias = (constant(*over), constant(*over)) if affine else (None, None)
    check(aten.layer_norm.default, Data(2, 3, 4), over, weight, bias, 1e-2)
    check(aten.layer_norm.default, Data(2, 3, 4), over, weight, None)
    check(aten.layer_norm.default, Data(2, 3, 4), over)


def test_layer_norm_whose_weight_is_data_goes_through_autograd():
    check(aten.layer_norm.default, Data(2, 3, 4), [4], Data(4), rule=False)


def test_group_norm_goes_through_autograd():
    check(aten.group_norm.default, Data(2, 4, 3, 3), 2, constant(4), constant(4), rule=False)


# Softmax


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [(), (None,), (torch.float64,)])
def test_softmax(dim, dtype):
    check(aten.softmax.int, Data(2, 3, 4), dim, *dtype)


def test_softmax_of_masked_scores():
    scores = Data(2, 4, 4)
    scores.value.masked_fill_(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    check(aten.softmax.int, scores, -1)


def test_softmax_in_another_dtype_and_of_a_number_goes_through_autograd():
    check(aten.softmax.int, Data(), 0, rule=False)
    args = (Data(2, 3), -1, torch.float32)
    call, data = call_of(aten.softmax.int, args, {})
    assert RULES[aten.softmax.int](call) is None
    bank = torch.randn(ROWS, 2, 3)
    (ours,), (theirs,) = linearise(call).pull(bank), by_autograd(aten.softmax.int, args, {}, data, bank)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# Functions of each element

OPTIONS = {
    "leaky_relu": (0.2,), "elu": (1.3,), "celu": (1.3,), "hardtanh": (-0.4, 0.7), "softplus": (1.5, 3.0),
    "clamp": (-0.5, 0.6), "clamp_min": (0.1,),
}  # fmt: skip
POINTWISE = sorted({target._opname for target in ops.POINTWISE})


@pytest.mark.parametrize("name", POINTWISE)
def test_functions_of_each_element(name):
    check(getattr(aten, name).default, Data(2, 3, 40), *OPTIONS.get(name, ()))


def test_approximate_gelu():
    check(aten.gelu.default, Data(2, 30), approximate="tanh")


def test_bounds_that_are_tensors():
    low, high = -constant(2, 5).abs(), constant(2, 5).abs()
    check(aten.clamp.Tensor, Data(2, 5), low, high)
    check(aten.clamp.Tensor, Data(2, 1), low, high, rule=False)
    check(aten.clamp.Tensor, Data(2, 5), Data(2, 5), rule=False)


# Arithmetic with broadcasting

BROADCAST = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 3, 4), (1, 3, 4)), ((4,), (2, 3, 4)), ((2, 1), (1, 5))]


@pytest.mark.parametrize(("left", "right"), BROADCAST)
@pytest.mark.parametrize("target", [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
def test_arithmetic_sums_over_what_was_broadcast(target, left, right):
    division = target is aten.div.Tensor
    check(target, Data(*left), Data(*right), rule=not division)
    check(target, Data(*left), constant(*right))
    check(target, constant(*left), Data(*right), rule=not division)


def test_arithmetic_with_numbers_and_factors():
    for target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        check(target, Data(2, 3), 1.7)
    for target in (aten.add.Tensor, aten.sub.Tensor):
        check(target, Data(2, 3), Data(3), alpha=2.5)
    check(aten.mul.Tensor, Data(2, 3), torch.tensor([True, False, True]))


# Shapes


def test_shapes():
    check(aten.view.default, Data(2, 3, 4), [2, 12])
    check(aten.reshape.default, Data(2, 3, 4), [-1, 4])
    check(aten.flatten.using_ints, Data(2, 3, 4), 1)
    check(aten.unsqueeze.default, Data(2, 3), 1)
    check(aten.squeeze.dim, Data(2, 1, 3), 1)
    check(aten.permute.default, Data(2, 3, 4, 5), [0, -1, 1, 2])
    check(aten.transpose.int, Data(2, 3, 4, 5), -2, 1)
    check(aten.clone.default, Data(2, 3))
    check(aten.dropout.default, Data(2, 3), 0.5, False)


def test_one_place_along_a_dimension():
    check(aten.select.int, Data(2, 5, 4), 2, -1)
    check(aten.select.int, Data(2, 5, 4), -2, 3)
    check(aten.select.int, Data(3), 0, 1)


def test_gradients_at_places_of_one_value_are_put_together():
    """Places with rows of other lengths, places along two dimensions, none of them complete."""
    torch.manual_seed(0)
    whole = torch.zeros(3, 2, 4, 5, dtype=torch.float64)
    parts = {}
    for place, keys in {(1, 0): (0, 1, 2), (1, 3): (1, 2), (0, 1): (0, 2), (2, 4): (1,)}.items():
        dim, index = place
        rows = torch.randn(len(keys), *(size for at, size in enumerate((2, 4, 5)) if at != dim), dtype=torch.float64)
        parts[Place(dim, index, (2, 4, 5)[dim])] = Bank(tuple((key,) for key in keys), rows)
        whole.select(1 + dim, index)[list(keys)] += rows
    found = together(parts)
    assert found.keys == ((0,), (1,), (2,))
    torch.testing.assert_close(found.rows, whole, rtol=0, atol=1e-15)


def test_shape_taken_from_another_value():
    check(aten.view_as.default, Data(2, 6), Data(2, 3, 2), rule=False)
    check(aten.reshape_as.default, Data(2, 6), Data(2, 3, 2), rule=False)
    check(aten.view_as.default, Data(2, 6), constant(2, 3, 2))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concatenation(dim):
    x, y = Data(2, 3, 4), Data(2, 3, 4)
    check(aten.cat.default, [x, y], dim)
    check(aten.cat.default, [x, constant(2, 3, 4), y], dim)
    check(aten.cat.default, [x, y, x], dim)
    check(aten.cat.default, [x, y])
    check(aten.cat.default, [constant(0), x, y], dim, rule=False)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.split.Tensor, (2, 1)),
        (aten.split_with_sizes.default, ([1, 4], 1)),
        (aten.chunk.default, (2, 1)),
        (aten.unbind.int, (1,)),
        (aten.max_pool2d_with_indices.default, ([2, 2], [2, 2])),
    ],
)
def test_values_that_are_several_tensors(target, args):
    shape = (2, 5, 4, 4)
    check(target, Data(*shape), *args, rule=False)
    call, data = call_of(target, (Data(*shape), *args), {})
    bank = {0: torch.randn(ROWS, *call.value[0].shape, dtype=torch.float64)}
    (ours,) = linearise(call).pull(bank)
    (theirs,) = by_autograd(target, (data[0], *args), {}, data, bank)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    check_tangents(call, data, target, (data[0], *args), {})


@pytest.mark.parametrize(
    "options",
    [
        ([3, 3], [2, 2], [1, 1]), ([2, 2],), ([3, 2], [1, 2]), ([3, 3], [2, 2], [0, 1], [1, 1], True),
        ([2, 2], [1, 1], [0, 0], [2, 1]), ([3], [2], [1]),
    ],
)  # fmt: skip
def test_max_pooling(options):
    check(aten.max_pool2d.default, Data(1, 5, 6, 7), *options)
    check(aten.max_pool2d.default, Data(2, 5, 6, 7), *options)
    rectified = Data(2, 5, 6, 7)
    rectified.value.relu_()  # zeros side by side: the first one counts
    check(aten.max_pool2d.default, rectified, *options)
    check(aten.max_pool2d.default, Data(5, 6, 7), *options, rule=False)


def test_one_part_of_several_tensors():
    graph = fx.Graph()
    source = graph.placeholder("x")
    node = graph.call_function(operator.getitem, (source, 1))
    parts = (torch.randn(2, 3), torch.randn(2, 4))
    call = Call(node, lambda _: parts, parts[1], [source], torch.float64)
    bank = torch.randn(ROWS, 2, 4, dtype=torch.float64)
    (found,) = linearise(call).pull(bank)
    assert found.keys() == {1}
    assert torch.equal(found[1], bank)
    assert torch.equal(linearise(call).push([{1: bank}]), bank)
    assert linearise(call).push([{0: bank}]) is None


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.mean.dim, ([2, 3],)),
        (aten.sum.dim_IntList, ([1], True)),
        (aten.slice.Tensor, (1, 1, 5, 2)),
        (aten.expand.default, ([2, 5, 4, 4],)),
        (aten.pad.default, ([1, 0, 2, 1],)),
        (aten.roll.default, ([1, -1], [2, 3])),
        (aten.avg_pool2d.default, ([3, 3], [2, 2], [1, 1], False, False)),
        (aten.adaptive_avg_pool2d.default, ([1, 1],)),
        (aten.upsample_bilinear2d.default, ([7, 6], False)),
        (aten.pow.Tensor_Scalar, (3,)),
        (aten.exp.default, ()),
        (aten.glu.default, (2,)),
        (aten.cumsum.default, (1,)),
        (aten.amax.default, ([2],)),
        (aten.linalg_vector_norm.default, (2, [1])),
    ],
)
def test_operators_without_a_rule_go_through_autograd(target, args):
    check(target, Data(2, 5, 4, 4), *args, rule=False)


@pytest.mark.parametrize("batch", [(2,), (2, 2), (2, 1, 3)])
def test_attention(batch):
    attend = aten.scaled_dot_product_attention.default
    q, k, v = Data(*batch, 5, 3), Data(*batch, 4, 3), Data(*batch, 4, 2)
    check(attend, q, k, v)
    check(attend, q, k, v, constant(5, 4))
    check(attend, q, k, v, torch.ones(5, 4, dtype=torch.bool).tril(), 0.0, False, scale=0.3)
    check(attend, q, k, v, None, 0.0, True)
    for parts in ([q, k.value, v.value], [q.value, k, v.value], [q.value, k.value, v], [q.value, k, v]):
        check(attend, *parts)


def test_attention_of_a_value_to_itself():
    q, k = Data(2, 2, 5, 3), Data(2, 2, 5, 3)
    check(aten.scaled_dot_product_attention.default, q, q, k, constant(5, 5))
    check(aten.scaled_dot_product_attention.default, q, q, q)


def test_attention_that_sees_nothing_passes_nothing_on():
    q, k, v = (Data(1, 2, 3, 4) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    call, _ = call_of(aten.scaled_dot_product_attention.default, (q, k, v, mask), {})
    bank = torch.randn(ROWS, 1, 2, 3, 4, dtype=torch.float64)
    found = linearise(call).pull(bank)
    assert all(bool(one.isfinite().all()) for one in found)
    assert not found[0][..., 1, :].any()


def test_attention_of_other_forms_goes_through_autograd():
    attend = aten.scaled_dot_product_attention.default
    q, k, v = (Data(2, 2, 5, 3) for _ in range(3))
    check(attend, q, k, v, Data(5, 5), rule=False)
    check(attend, q, Data(1, 2, 5, 3), Data(1, 2, 5, 3), rule=False)
    check(attend, Data(2, 4, 5, 3), k, v, enable_gqa=True, rule=False)
    check(attend, Data(5, 3), Data(5, 3), Data(5, 3), rule=False)


def test_operators_of_several_operands_go_through_autograd():
    q, k = Data(2, 2, 5, 3), Data(2, 2, 5, 3)
    check(aten.stack.default, [q, k, q], 1, rule=False)
    check(aten.where.self, constant(2, 2, 5, 3) > 0, q, k, rule=False)
    check(aten.prelu.default, Data(2, 3, 4), constant(3), rule=False)
    check(aten.index.Tensor, q, [None, None, torch.tensor([3, 0, 0])], rule=False)


# Dtypes


def test_float32_bank_of_a_bfloat16_model():
    """Values are converted before the operator is linearised: the oracle is autograd in float32."""

    def check_short(target, *args):
        call, data = call_of(target, args, {}, torch.float32)
        bank = torch.randn(ROWS, *call.value.shape)
        ours = linearise(call).pull(bank)
        theirs = by_autograd(target, args, {}, data, bank, torch.float32)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    def short(*shape):
        return Data(*shape, dtype=torch.bfloat16)

    def parameter(*shape):
        return constant(*shape).bfloat16()

    check_short(aten.conv2d.default, short(2, 3, 6, 6), parameter(4, 3, 3, 3), parameter(4))
    check_short(aten.linear.default, short(2, 3), parameter(4, 3), parameter(4))
    check_short(aten.gelu.default, short(2, 30))
    check_short(aten.layer_norm.default, short(2, 3, 4), [4], parameter(4), parameter(4))
    check_short(aten.softmax.int, short(2, 3, 40), -1)
    check_short(aten.softmax.int, short(2, 3, 40), -1, torch.float32)
    check_short(aten.matmul.default, short(2, 3, 4), short(2, 4, 3))
    check_short(aten.scaled_dot_product_attention.default, *(short(1, 2, 4, 3) for _ in range(3)))
    check_short(aten.to.dtype, short(2, 3), torch.float32)


def test_no_gradient_passes_through_integers():
    bank = torch.ones(ROWS, 2, 3, dtype=torch.float64)
    for target, args in ((aten.to.dtype, (torch.int64,)), (aten.gt.Scalar, (0,)), (aten.argmax.default, (1, True))):
        call, _ = call_of(target, (Data(2, 3), *args), {})
        assert linearise(call).pull(bank) == [None]
    integers = Data(2, 3)
    integers.value = integers.value.long()
    call, _ = call_of(aten.clamp.default, (integers, 0, 1), {})
    assert linearise(call).pull(bank) == [None]


@pytest.mark.parametrize("target", [aten.mul.Tensor, aten.matmul.default, aten.add.Tensor])
def test_gradients_of_complex_products_are_conjugated_as_torchs(target):
    left, right = (Data(2, 4, 4, dtype=torch.complex128) for _ in range(2))
    call, data = call_of(target, (left, right), {})
    bank = torch.randn(ROWS, 2, 4, 4, dtype=torch.complex128)
    for one, other in zip(linearise(call).pull(bank), by_autograd(target, (left, right), {}, data, bank), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_every_rule_is_tested_here():
    tested = {
        aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.batch_norm.default,
        aten._native_batch_norm_legit_no_training.default, aten.permute.default, aten.transpose.int, aten.add.Tensor,
        aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.matmul.default, aten.bmm.default, aten.cat.default,
        aten.layer_norm.default, aten.select.int, aten.max_pool2d.default, aten.softmax.int, operator.getitem,
        aten.scaled_dot_product_attention.default,
    }  # fmt: skip
    assert set(RULES) - ops.POINTWISE - ops.RESHAPING - ops.COPYING == tested
