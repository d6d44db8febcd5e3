"""What single operators mean to a residual block: weighted, kept element by element, scaled, projected.

Targets are matched by identity. A node's value depends on data where it descends from an input of the user.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket

aten = torch.ops.aten

SkipStep = Literal["identity", "scaled", "part", "projection", "weighted", "activation"]


def _overloads(*names: str) -> frozenset[OpOverload]:
    """Return every overload of the named ATen operators; those that this torch does not have are left out."""
    found: set[OpOverload] = set()
    for name in names:
        packet = getattr(aten, name, None)
        if isinstance(packet, OpOverloadPacket):
            found.update(getattr(packet, overload) for overload in packet.overloads())  # type: ignore[no-untyped-call]  # torch's
    return frozenset(found)


CONVOLUTIONS = _overloads(
    "conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "conv_depthwise3d", "_conv_depthwise2d", "thnn_conv2d", "mkldnn_convolution",
)  # fmt: skip
LINEAR = _overloads("linear", "bilinear")
PRODUCTS = _overloads(
    "matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm", "einsum", "tensordot", "chain_matmul", "inner",
    "_trilinear",
)  # fmt: skip
ATTENTION = _overloads(
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
)  # fmt: skip
RECURRENCE = _overloads(
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip
WEIGHTED = CONVOLUTIONS | LINEAR | PRODUCTS | ATTENTION | RECURRENCE

AVERAGE_POOLING = _overloads("avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool2d")
MAX_POOLING = _overloads(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
MAXIMA = frozenset({aten.amax.default, aten.max.dim})
"""Over a dimension of windows, a maximum is a pooling."""
ADAPTIVE_POOLING = _overloads(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
)  # fmt: skip
WINDOWED_POOLING = AVERAGE_POOLING | MAX_POOLING

RESHAPING = _overloads(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "reshape_as", "flatten", "unflatten",
    "ravel", "squeeze", "unsqueeze",
)  # fmt: skip
COPYING = _overloads(
    "contiguous", "clone", "alias", "lift_fresh", "lift_fresh_copy", "to", "_to_copy", "type_as",
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip
PERMUTING = _overloads("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims")
_KEEPING = RESHAPING | COPYING | PERMUTING | _overloads(
    "expand", "expand_as", "roll", "flip", "rot90", "detach", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_dropout",
)  # fmt: skip
_REPEATING = _overloads("repeat", "tile", "repeat_interleave")
_DIVISIONS = _overloads("div", "true_divide", "divide")
_SCALING = _DIVISIONS | _overloads("mul", "multiply", "neg", "negative")
_SHIFTING = _overloads("add", "sub", "subtract")
ARITHMETIC = _SCALING | _SHIFTING
BATCH_NORM = _overloads(
    "batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_batch_norm",
)  # fmt: skip
NORMS = BATCH_NORM | _overloads(
    "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm",
    "_fused_rms_norm",
)  # fmt: skip
_RESAMPLING = (
    AVERAGE_POOLING
    | MAX_POOLING
    | ADAPTIVE_POOLING
    | _overloads(
        "pad", "constant_pad_nd", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "mean",
    )
)  # fmt: skip
POINTWISE = _overloads(
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "clamp", "clamp_min",
)  # fmt: skip
ELEMENTWISE = POINTWISE | _overloads(
    "sqrt", "rsqrt", "log", "log2", "log10", "log1p", "exp", "pow", "reciprocal", "abs", "asin", "acos", "atanh",
    "erfinv",
)  # fmt: skip
ACTIVATIONS = POINTWISE | _overloads("prelu")
_SLICES = _overloads("slice", "narrow", "select", "index_select")
SPLITS = _overloads(
    "split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk",
)  # fmt: skip

JOINS = _overloads("cat", "concat", "concatenate", "stack")
PARTS = SPLITS | frozenset({aten.slice.Tensor, aten.narrow.default, operator.getitem})


DROPOUT = _overloads("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_RANDOM_SWITCHES = ("train", "training", "dropout", "dropout_p")
"""Arguments of operators that draw at random; where one of them is false or 0, the operator draws nothing."""
_FILLED = _overloads(
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like",
    "new_empty", "zero", "fill",
)  # fmt: skip
"""What reads of a tensor its shape, dtype and device, and nothing else, and returns a constant."""
FUSED_SUMS = _overloads(
    "addmm", "addbmm", "baddbmm", "addmv", "addr", "addcmul", "addcdiv", "lerp", "index_add", "scatter_add",
    "_addmm_activation",
)  # fmt: skip
"""Operators that add a product or a part inside, so that no value of the graph is the term that they add."""


SIZES = frozenset({aten.sym_size.int, aten.sym_size.default, aten.sym_numel.default})
"""What reads of a tensor how large it is, and nothing else."""


def is_constant(node: fx.Node) -> bool:
    """Whether a node's value is the same whatever the data: filled in the form of a tensor, or zeros to pad with."""
    if node.target in _FILLED:
        return True
    factors = node.args if node.target in _SCALING - _DIVISIONS else ()
    is_zero = any(isinstance(factor, int | float) and factor == 0 for factor in factors)
    return is_zero and all(user.target in JOINS for user in node.users)


def draws_at_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers: torch marks it so, and its arguments do not switch it off."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = {argument.name: argument.default_value for argument in target._schema.arguments}  # noqa: SLF001 - torch's
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    return all(given[switch] for switch in _RANDOM_SWITCHES if switch in given)


def has_gradient(node: fx.Node) -> bool:
    """Whether a gradient can be taken at the node's value: integers and truth values are constants for gradients."""
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else (value,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return not tensors or any(part.is_floating_point() or part.is_complex() for part in tensors)


def moves_statistics(node: fx.Node) -> bool:
    """Whether the node is a norm that moves running statistics, its arguments 3 and 4, each time it runs."""
    norms = {aten.batch_norm.default, aten.instance_norm.default}
    given = node.args[3:6] if len(node.args) > 5 else (None, None, False)
    return node.target in norms and bool(given[2]) and isinstance(given[0], fx.Node)


def holds_tensor(node: fx.Node) -> bool:
    """Whether the node's value is a tensor, or a list or tuple that holds one."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)


def skip_step(node: fx.Node, data: set[fx.Node]) -> tuple[SkipStep, list[fx.Node]] | None:
    """Classify one operator on the way of a skip.

    Args:
        node: the operator.
        data: the nodes that descend from the user's inputs through tensors.

    Returns:
        What the operator does and the values that it does it to: one, or the parts that it puts together; None where it
        is no operator of a skip: an activation function, a normalisation over positions or channels, or one that
        computes with two data values.
    """
    operands = [other for other in node.all_input_nodes if other in data]
    if not operands or node.op != "call_function":
        return None
    if node.target in JOINS:
        return _join_step(node, operands), operands
    judge = _JUDGES.get(node.target)
    step = judge(node, operands[0]) if judge is not None and len(operands) == 1 else None
    return None if step is None else (step, operands)


def is_part(node: fx.Node) -> bool:
    """Whether a node picks a part of its operand: a slice without a stride, or one value of a split."""
    operands = node.all_input_nodes
    judge = _JUDGES.get(node.target)
    return bool(operands) and judge is not None and judge(node, operands[0]) == "part"


def pre_activation(node: fx.Node, data: set[fx.Node]) -> tuple[SkipStep, list[fx.Node]] | None:
    """Return the value that an activation function is applied to; None where the node is another operator."""
    operands = [other for other in node.all_input_nodes if other in data]
    return ("activation", operands) if node.target in ACTIVATIONS and len(operands) == 1 else None


def _join_step(node: fx.Node, operands: list[fx.Node]) -> SkipStep:
    """Values put together keep every element; constants beside them, or one value twice, pad or repeat."""
    parts = node.args[0]
    return "identity" if isinstance(parts, list | tuple) and len(parts) == len(operands) else "projection"


def _getitem_step(node: fx.Node, operand: fx.Node) -> SkipStep | None:
    if operand.target in SPLITS:
        return "part"
    return "identity" if operand.target in BATCH_NORM | MAX_POOLING | MAXIMA and node.args[1] == 0 else None


def _maximum_step(_: fx.Node, operand: fx.Node) -> SkipStep | None:
    """A maximum over windows reduces a dimension that a view has split off just before."""
    whole = operand.all_input_nodes[:1]
    split_off = operand.target in RESHAPING and bool(whole) and operand.meta["val"].ndim > whole[0].meta["val"].ndim
    return "projection" if split_off else None


def _product_step(node: fx.Node, operand: fx.Node) -> SkipStep | None:
    """A product of a value with itself is no affine map."""
    arguments = node.args[1] if node.target is aten.einsum.default else node.args
    assert isinstance(arguments, list | tuple)  # noqa: S101 - the operator's signature
    return "weighted" if sum(argument is operand for argument in arguments) == 1 else None


def _scaling_step(node: fx.Node, operand: fx.Node) -> SkipStep | None:
    factor = node.args[1] if len(node.args) > 1 else None
    if factor is operand and (node.target in _DIVISIONS or node.args[0] is operand):
        return None
    return "identity" if factor == 1 else "scaled"


def _shifting_step(node: fx.Node, _: fx.Node) -> SkipStep | None:
    return "identity" if node.args[1] == 0 else "scaled"


def _masking_step(node: fx.Node, operand: fx.Node) -> SkipStep | None:
    """A mask that does not depend on the data replaces elements by a constant, whatever they are."""
    return "scaled" if node.args[0] is operand else None


def _slice_step(node: fx.Node, operand: fx.Node) -> SkipStep:
    """A slice that keeps every element is an identity, one with a stride subsamples, another picks a part."""
    if same_size(operand, node):
        return "identity"
    step: Any = node.kwargs.get("step", node.args[4] if len(node.args) > 4 else 1)
    return "projection" if node.target is aten.slice.Tensor and step != 1 else "part"


def _always(step: SkipStep) -> Callable[[fx.Node, fx.Node], SkipStep]:
    return lambda _node, _operand: step


_JUDGES: dict[Any, Callable[[fx.Node, fx.Node], SkipStep | None]] = {
    operator.getitem: _getitem_step,
    **dict.fromkeys(CONVOLUTIONS | LINEAR | PRODUCTS, _product_step),
    **dict.fromkeys(_KEEPING, _always("identity")),
    **dict.fromkeys(_SCALING, _scaling_step),
    **dict.fromkeys(_SHIFTING, _shifting_step),
    **dict.fromkeys(BATCH_NORM, _always("scaled")),
    **dict.fromkeys(_SLICES, _slice_step),
    **dict.fromkeys(SPLITS, _always("identity")),
    **dict.fromkeys(_RESAMPLING, _always("projection")),
    **dict.fromkeys(MAXIMA, _maximum_step),
    **dict.fromkeys(_REPEATING, _always("projection")),
    **dict.fromkeys(_overloads("masked_fill"), _masking_step),
}


def same_shape(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same shape; symbolic sizes are compared without adding a guard."""
    return same_sizes(one.meta["val"].shape, other.meta["val"].shape)


def same_sizes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether sizes, or strides, are the same for every batch; no guard is added."""
    return len(one) == len(other) and all(_same_size(x, y) for x, y in zip(one, other, strict=True))


def same_size(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have as many elements."""
    return _same_size(one.meta["val"].numel(), other.meta["val"].numel())


def _same_size(one: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    a = one.node.expr if isinstance(one, torch.SymInt) else one
    b = other.node.expr if isinstance(other, torch.SymInt) else other
    return bool(a == b)
