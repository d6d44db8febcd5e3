"""Residual blocks of lucidrains' conformer, read off `ConformerBlock.forward`.

The sum of scores, `dots + pos_attn`, is one of two operands with as many weighted operations: no block.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from wild.truth import Wild

_FOUR = "ConformerBlock: ff1(x) + x, attn(x) + x, conv(x) + x, ff2(x) + x, in each layer"


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    import conformer

    model: nn.Module = getattr(conformer, name)(**({"dim": 16, "dim_head": 8, "heads": 2} | options))
    return model


def _wild(layers: int, name: str = "Conformer", **options: Any) -> Wild:
    build = partial(_build, name, options if name == "ConformerBlock" else {"depth": layers, **options})
    return Wild(build, lambda: (torch.randn(2, 10, 16),), 4 * layers, _FOUR)


MODELS: dict[str, Wild] = {
    "Conformer": _wild(2, conv_kernel_size=5),
    "Conformer_causal": _wild(2, conv_kernel_size=5, conv_causal=True),
    "Conformer_one_layer": _wild(1, conv_kernel_size=31, ff_mult=2, conv_expansion_factor=1),
    "ConformerBlock": _wild(1, "ConformerBlock", conv_kernel_size=3, attn_dropout=0.1, ff_dropout=0.1),
}
