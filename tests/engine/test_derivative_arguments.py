"""Rules for vector-Jacobian products with arguments that are odd: no elements, other layouts, expanded, named.

The oracle is torch's autograd, one row at a time.
"""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from searching import examples
from test_derivatives import ROWS, Data, by_autograd, call_of, check_tangents, constant

from resnet_paths_plugin.engine.derivatives import linearise

aten = torch.ops.aten
SIZE = st.integers(0, 4)
SHAPE = st.lists(SIZE, max_size=4).map(tuple)
SEED = st.integers(0, 2**16)


def compare(target, *args, **kwargs):
    """Compare the derivative of a call with autograd, where there is an own rule and where there is none."""
    call, data = call_of(target, args, kwargs)
    assert call.value.is_floating_point()
    bank = torch.randn(ROWS, *call.value.shape, dtype=torch.float64)
    theirs = by_autograd(target, args, kwargs, data, bank)
    for one, other in zip(linearise(call).pull(bank), theirs, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    check_tangents(call, data, target, args, kwargs, tolerance=1e-10)


def holding(value):
    """Return an operand that a gradient is wanted for, with this value."""
    data = object.__new__(Data)
    data.value = value
    return data


@st.composite
def laid_out(draw, shape):
    """Draw a tensor of a shape: dense in some order of its dimensions, a part of a larger one, or expanded."""
    torch.manual_seed(draw(SEED))
    order = draw(st.permutations(range(len(shape))))
    whole = [shape[dim] + 2 * (kind == "part") for dim in order for kind in [draw(st.sampled_from(["dense", "part"]))]]
    value = torch.randn(whole, dtype=torch.float64)
    for dim, size in enumerate(whole):
        value = value.narrow(dim, (size - shape[order[dim]]) // 2, shape[order[dim]])
    value = value.permute([order.index(dim) for dim in range(len(shape))])
    for dim, size in enumerate(shape):
        if size and draw(st.integers(0, 4)) == 0:
            value = value.narrow(dim, 0, 1).expand(shape)
    return value


@st.composite
def broadcasting(draw):
    """Draw two tensors whose shapes broadcast."""
    shape = draw(SHAPE)
    shapes = []
    for _ in range(2):
        own = [1 if draw(st.integers(0, 3)) == 0 else size for size in shape]
        shapes.append(tuple(own[draw(st.integers(0, len(own))) if draw(st.booleans()) else 0 :]))
    return tuple(draw(laid_out(one)) for one in shapes)


ARITHMETIC = st.sampled_from([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
WANTED = st.sampled_from(["left", "right", "both"])


@examples(120)
@given(ARITHMETIC, broadcasting(), WANTED, st.sampled_from([None, 2.5, -1]))
def test_arithmetic_of_what_broadcasts(target, pair, wanted, alpha):
    left, right = pair
    options = {"alpha": alpha} if alpha is not None and target in {aten.add.Tensor, aten.sub.Tensor} else {}
    left = left if wanted == "right" else holding(left)
    compare(target, left, right if wanted == "left" else holding(right), **options)


@examples(60)
@given(ARITHMETIC, broadcasting(), st.booleans(), st.sampled_from([torch.int64, torch.int8, torch.bool, torch.float32]))
def test_arithmetic_with_constants_of_other_dtypes(target, pair, swapped, dtype):
    data, other = holding(pair[0]), (pair[1].abs() * 2 + 1).to(dtype)
    if dtype is torch.bool and target is aten.sub.Tensor:
        return  # torch does not subtract truth values
    compare(target, *((other, data) if swapped else (data, other)))


@examples(80)
@given(st.data())
def test_products_of_matrices(data):
    batch, (n, m, k) = data.draw(st.lists(SIZE, max_size=2)), data.draw(st.tuples(SIZE, SIZE, SIZE))
    left, right = data.draw(laid_out((*batch, n, m))), data.draw(laid_out((*batch, m, k)))
    wanted = data.draw(WANTED)
    left = left if wanted == "right" else holding(left)
    compare(aten.matmul.default, left, right if wanted == "left" else holding(right))


@examples(80)
@given(st.data(), st.sampled_from([aten.relu, aten.tanh, aten.gelu, aten.hardtanh, aten.softplus, aten.silu]))
def test_functions_of_each_element_in_any_layout(data, packet):
    compare(packet.default, holding(data.draw(laid_out(data.draw(SHAPE)))))


@examples(80)
@given(st.data())
def test_moved_dimensions_counted_from_either_end(data):
    shape = data.draw(st.lists(SIZE, min_size=1, max_size=4))
    value = holding(data.draw(laid_out(tuple(shape))))
    signed = [
        dim - len(shape) if data.draw(st.booleans()) else dim for dim in data.draw(st.permutations(range(len(shape))))
    ]
    compare(aten.permute.default, value, signed)
    compare(aten.transpose.int, value, signed[0], signed[-1])
    compare(aten.flatten.using_ints, value)
    compare(aten.unsqueeze.default, value, data.draw(st.integers(-len(shape) - 1, len(shape))))
    compare(aten.squeeze.dim, value, signed[0])


@examples(60)
@given(st.data())
def test_concatenation_of_parts_that_may_be_empty(data):
    shape = data.draw(st.lists(SIZE, min_size=1, max_size=3))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for _ in range(data.draw(st.integers(1, 3))):
        own = list(shape)
        own[dim] = data.draw(SIZE)
        part = data.draw(laid_out(tuple(own)))
        parts.append(holding(part) if data.draw(st.booleans()) or not parts else part)
    if data.draw(st.booleans()):
        parts.append(parts[0])
    compare(aten.cat.default, parts, dim)


@examples(60)
@given(st.data())
def test_convolutions_in_any_layout(data):
    groups = data.draw(st.sampled_from([1, 1, 2]))
    size, kernel = (
        data.draw(st.tuples(st.integers(3, 6), st.integers(3, 6))),
        data.draw(st.tuples(*2 * [st.integers(1, 3)])),
    )
    source = holding(data.draw(laid_out((data.draw(SIZE), 2 * groups, *size))))
    weight = data.draw(laid_out((3 * groups, 2, *kernel)))
    stride, padding = (list(data.draw(st.tuples(*2 * [st.integers(low, 2)]))) for low in (1, 0))
    bias = constant(3 * groups)
    compare(
        aten.conv2d.default,
        source,
        weight,
        data.draw(st.sampled_from([None, bias, holding(bias)])),
        stride,
        padding,
        [1, 1],
        groups,
    )


@examples(40)
@given(st.data())
def test_norms_of_layers_in_any_layout(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    over = shape[data.draw(st.integers(0, len(shape) - 1)) :]
    source = holding(data.draw(laid_out(tuple(shape))))
    weight, bias = (data.draw(st.sampled_from([None, constant(*over)])) for _ in range(2))
    compare(aten.layer_norm.default, source, over, weight, bias, 0.1)


@examples(60)
@given(st.data())
def test_softmax_in_any_layout(data):
    shape = data.draw(SHAPE)
    dim = data.draw(st.integers(-len(shape), len(shape) - 1)) if shape else 0
    compare(aten.softmax.int, holding(data.draw(laid_out(shape))), dim)


@pytest.mark.parametrize(
    ("target", "args", "named"),
    [
        (aten.layer_norm.default, (Data(2, 3, 4), [4]), {"eps": 0.1}),
        (aten.layer_norm.default, (Data(2, 3, 4), [4]), {"weight": constant(4), "bias": constant(4)}),
        (aten.cat.default, ([Data(2, 3), Data(2, 3)],), {"dim": 1}),
        (aten.linear.default, (Data(2, 4),), {"weight": constant(3, 4)}),
        (aten.linear.default, (Data(2, 4), constant(3, 4)), {"bias": constant(3)}),
        (aten.mul.Tensor, (Data(2, 4),), {"other": Data(4)}),
        (aten.add.Tensor, (Data(2, 4),), {"other": Data(4), "alpha": 2}),
        (aten.permute.default, (Data(2, 4),), {"dims": [1, 0]}),
        (aten.transpose.int, (Data(2, 4),), {"dim0": 0, "dim1": 1}),
        (aten.softmax.int, (Data(2, 4),), {"dim": 0, "dtype": torch.float64}),
        (aten.conv2d.default, (Data(2, 3, 5, 5), constant(4, 3, 3, 3)), {"stride": [2, 2], "padding": [1, 0]}),
        (
            aten.batch_norm.default,
            (Data(3, 4), None, None),
            {
                "running_mean": constant(4), "running_var": constant(4).abs() + 0.1, "training": False,
                "momentum": 0.1, "eps": 0.3, "cudnn_enabled": False,
            },
        ),
    ],
)  # fmt: skip
def test_arguments_given_by_name(target, args, named):
    compare(target, *args, **named)
