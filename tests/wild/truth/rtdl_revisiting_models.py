"""Residual blocks of rtdl_revisiting_models' models for tables, read off their forward methods."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild

COLUMNS, TOKENS, WIDTH, OUTPUTS = 6, 5, 16, 3
_TWO = "FTTransformerBackbone: x_identity + x after attention and ffn; the last attention's token is broadcast"


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    import rtdl_revisiting_models

    model: nn.Module = getattr(rtdl_revisiting_models, name)(**options)
    return model


def _backbone(blocks: int, **options: Any) -> Wild:
    usual = {
        "d_out": OUTPUTS, "n_blocks": blocks, "d_block": WIDTH, "attention_n_heads": 2, "attention_dropout": 0.1,
        "ffn_d_hidden": 32, "ffn_d_hidden_multiplier": None, "ffn_dropout": 0.1, "residual_dropout": 0.1,
    }  # fmt: skip
    build = partial(_build, "FTTransformerBackbone", usual | options)
    return Wild(build, lambda: (torch.randn(3, TOKENS, WIDTH),), 2 * blocks, _TWO)


def _resnet(blocks: int, outputs: int | None = OUTPUTS) -> Wild:
    options = {
        "d_in": COLUMNS, "d_out": outputs, "n_blocks": blocks, "d_block": WIDTH, "d_hidden": 24,
        "d_hidden_multiplier": None, "dropout1": 0.1, "dropout2": 0.1,
    }  # fmt: skip
    return Wild(partial(_build, "ResNet", options), _table, blocks, "ResNet.forward: x + block(x)")


def _table() -> tuple[Tensor, ...]:
    return (torch.randn(3, COLUMNS),)


_TABLE_TRANSFORMER = {
    "n_cont_features": COLUMNS, "d_out": OUTPUTS, "n_blocks": 2, "d_block": WIDTH, "attention_n_heads": 2,
    "attention_dropout": 0.1, "ffn_d_hidden": None, "ffn_d_hidden_multiplier": 2.0, "ffn_dropout": 0.1,
    "residual_dropout": 0.1,
}  # fmt: skip

MODELS: dict[str, Wild] = {
    "ResNet": _resnet(3),
    "ResNet_without_head": _resnet(2, None),
    "MLP": Wild(
        partial(_build, "MLP", {"d_in": COLUMNS, "d_out": OUTPUTS, "n_blocks": 2, "d_block": WIDTH, "dropout": 0.1}),
        _table, 0, "no sums",
    ),
    "FTTransformerBackbone": _backbone(2),
    "FTTransformerBackbone_3_relu": _backbone(3, ffn_activation="ReLU"),
    "FTTransformerBackbone_compressed": _backbone(
        2, n_tokens=TOKENS, linformer_kv_compression_ratio=0.4, linformer_kv_compression_sharing="headwise"
    ),
    "FTTransformer": Wild(
        partial(_build, "FTTransformer", {**_TABLE_TRANSFORMER, "cat_cardinalities": [3, 4]}),
        lambda: (torch.randn(3, COLUMNS), torch.randint(3, (3, 2))), 4, _TWO,
    ),
}  # fmt: skip
