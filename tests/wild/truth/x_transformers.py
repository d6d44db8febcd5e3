"""Residual blocks of x-transformers' models, read off `AttentionLayers` and its residual functions."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild

TOKENS, LENGTH, DEPTH = 32, 8, 2
_SMALL = {"dim": 16, "depth": DEPTH, "heads": 2, "attn_dim_head": 8, "verbose": False}
_LAYERS = "AttentionLayers: residual_fn after attention and feedforward, 2 layers of 2"


class _WithContext(nn.Module):
    """A wrapper whose context, a keyword there, goes by position here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        output: Tensor = self.model(x, context=context)
        return output


def _language(layers: str, options: dict[str, Any], **wrapper: Any) -> nn.Module:
    import x_transformers

    stack = getattr(x_transformers, layers)(**_SMALL, **options)
    model: nn.Module = x_transformers.TransformerWrapper(
        num_tokens=TOKENS, max_seq_len=LENGTH, attn_layers=stack, **wrapper
    )
    return model


def _vision() -> nn.Module:
    import x_transformers

    stack = x_transformers.Encoder(**_SMALL)
    model: nn.Module = x_transformers.ViTransformerWrapper(
        image_size=32, patch_size=8, num_classes=5, attn_layers=stack
    )
    return model


def _continuous(layers: str, options: dict[str, Any]) -> nn.Module:
    import x_transformers

    stack = getattr(x_transformers, layers)(**_SMALL, **options)
    return x_transformers.ContinuousTransformerWrapper(dim_in=6, dim_out=5, max_seq_len=LENGTH, attn_layers=stack)  # type: ignore[no-any-return]


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randint(TOKENS, (2, LENGTH)),)


def _wild(layers: str, blocks: int = 2 * DEPTH, reason: str = _LAYERS, **options: Any) -> Wild:
    return Wild(partial(_language, layers, options), _tokens, blocks, reason, "first block")


MODELS: dict[str, Wild] = {
    "decoder": _wild("Decoder"),
    "encoder_rotary": _wild("Encoder", rotary_pos_emb=True),
    "decoder_rmsnorm_glu": _wild("Decoder", use_rmsnorm=True, ff_glu=True, ff_swish=True, ff_no_bias=True),
    "decoder_alibi": _wild("Decoder", alibi_pos_bias=True),
    "decoder_t5_bias": _wild("Decoder", rel_pos_bias=True),
    "decoder_sandwich_norm": _wild("Decoder", sandwich_norm=True),
    "decoder_post_norm": _wild("Decoder", pre_norm=False),
    "decoder_scale_residual": _wild("Decoder", scale_residual=True),
    "decoder_qk_norm": _wild("Decoder", attn_qk_norm=True),
    "decoder_talking_heads": _wild(
        # Read again after the comparison: 4 had left out the sums of scores.
        "Decoder", 3 * DEPTH, "2 layers of 2, and in each attention sim + pre_softmax_talking_heads(sim)",
        attn_pre_talking_heads=True,
    ),
    "decoder_shift_tokens": _wild("Decoder", shift_tokens=1),
    "decoder_flash": _wild("Decoder", attn_flash=True),
    "encoder_unet_skips": _wild("Encoder", unet_skips=True),
    "decoder_gru": _wild(
        "Decoder", reason="GRUGating: (1 - z) n + z residual, after attention and feedforward of 2 layers",
        gate_residual=True,
    ),
    "decoder_orthogonal": _wild(
        "Decoder", reason="residual + what of the branch is orthogonal to it, 2 layers of 2", orthog_residual=True
    ),
    "decoder_macaron": _wild(
        "Decoder", 3 * DEPTH, "feedforward, attention, feedforward in each of 2 layers", macaron=True
    ),
    "decoder_residual_attention": _wild(
        "Decoder", 2 * DEPTH + 1,
        "2 layers of 2; the second layer's scores are added to the first's (dots + prev_attn)", residual_attn=True,
    ),
    "vit": Wild(_vision, lambda: (torch.randn(2, 3, 32, 32),), 2 * DEPTH, _LAYERS),
    "continuous_encoder": Wild(
        partial(_continuous, "Encoder", {}), lambda: (torch.randn(3, LENGTH, 6),), 2 * DEPTH, _LAYERS
    ),
    "continuous_cross_attention": Wild(
        lambda: _WithContext(_continuous("Decoder", {"cross_attend": True})),
        lambda: (torch.randn(2, LENGTH, 6), torch.randn(2, 5, 16)), 3 * DEPTH,
        "self attention, cross attention, feedforward in each of 2 layers",
    ),
}  # fmt: skip
