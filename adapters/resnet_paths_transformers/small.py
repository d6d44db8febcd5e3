"""Small configurations of any architecture: a few narrow layers with random weights, for trying."""

from collections.abc import Mapping
from typing import Any

from resnet_paths_transformers.library import architectures, library

VOCABULARY = 256
"""Of each small model: a byte is a token."""

_LAYERS, _WIDTH, _HEADS, _INNER, _POSITIONS, _SIDE = 2, 32, 4, 64, 514, 64

_NUMBERS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth",
            "num_encoder_layers", "num_decoder_layers", "num_blocks", "decoder_num_hidden_layers",
        ), _LAYERS,
    ),
    **dict.fromkeys(
        (
            "hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size", "word_embed_proj_dim",
            "projection_dim", "decoder_hidden_size", "encoder_hidden_size", "emb_dim", "out_hidden_size",
            "hidden_dim_size", "d_embed", "d_hidden", "lru_width", "backbone_hidden_size", "fusion_hidden_size",
        ), _WIDTH,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "num_key_value_heads",
            "decoder_attention_heads", "attention_heads", "decoder_num_attention_heads",
        ), _HEADS,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "v_head_dim", "attention_head_dim", "global_head_dim"),
                    _WIDTH // _HEADS),
    **dict.fromkeys(
        (
            "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim", "d_inner",
            "mlp_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "decoder_intermediate_size",
            "ffn_hidden_size", "expert_intermediate_size",
        ), _INNER,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), _POSITIONS),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k"), 2),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), _SIDE),
    "vocab_size": VOCABULARY, "rotary_dim": 4, "state_size": 8, "time_step_rank": 4, "classifier_proj_size": _WIDTH,
    "sliding_window": 16, "num_conv_pos_embedding_groups": 2, "window_size": 4, "relative_attention_num_buckets": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "n_group": 1, "topk_group": 1,
    "num_queries": 8, "num_detection_tokens": 4, "max_length": 128, "pooler_output_size": _WIDTH,
}  # fmt: skip
"""What the library's configurations call the same things."""

_WIDTHS = ("hidden_sizes", "embed_dim", "encoder_hidden_sizes", "widths", "embed_dims", "neck_hidden_sizes")
_HEADS_LISTED = ("num_heads", "num_attention_heads", "encoder_num_heads")
_DEPTHS = ("depths", "depth", "num_encoder_blocks_per_stage", "layer_depths")
_SMALLEST_PATCH = 8


_TWO_STAGES = {"depths": [1, 2], "num_heads": [2, 2], "embed_dim": 16, "patch_size": 4}
_PARTICULAR: Mapping[str, Mapping[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    **dict.fromkeys(("swin", "swinv2", "donut-swin", "maskformer-swin"), _TWO_STAGES),
    "bit": {"hidden_sizes": [32, 32, 64, 64], "embedding_size": 8, "num_groups": 4},
    "cvt": {"depth": [1, 2, 3]},  # it takes as many layers in a stage as stages before it
    "levit": {
        "patch_size": 16, "hidden_sizes": [16, 16, 32], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
        "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2], "num_attention_heads": [2, 2, 2],
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "rwkv": {"rescale_every": 0},  # what it divides its own weights by, at each change of mode
}  # fmt: skip
"""What an architecture needs beside, or otherwise."""


def small_config(architecture: str) -> Any:
    """Return a small configuration of an architecture, by the name that the library has for it."""
    return _small(getattr(library(), architectures()[architecture]), architecture)


def _small(config_class: Any, architecture: str) -> Any:
    default = config_class()
    changes = {name: new for name, old in vars(default).items() if (new := _smaller(name, old)) is not None}
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            known = _small(type(part), part.model_type)
            changes[name] = known
    return config_class(**{**changes, **_PARTICULAR.get(architecture, {})})


def _smaller(name: str, old: Any) -> Any:
    """Return the value of a setting in a small configuration; None leaves the default."""
    if isinstance(old, bool) or old is None:
        return None
    if isinstance(old, int):
        return _smaller_number(name, old)
    if isinstance(old, list | tuple) and old and all(type(one) is int for one in old):
        return _smaller_list(name, list(old))
    return None


def _smaller_number(name: str, old: int) -> int | None:
    if name.endswith(("_token_id", "_token_index")) and old >= VOCABULARY:
        return old % VOCABULARY
    if name == "image_size":
        return _SIDE
    if name == "patch_size":
        return min(old, _SMALLEST_PATCH)
    new = _NUMBERS.get(name)
    return None if new is None else min(new, old)


def _smaller_list(name: str, old: list[int]) -> list[int] | None:
    if name == "patch_size":
        return [min(one, _SMALLEST_PATCH) for one in old]
    if name in _HEADS_LISTED:
        return [min(one, 2) for one in old]
    if name in _DEPTHS:
        deepest = old.index(max(old))
        return [2 if at == deepest else 1 for at in range(len(old))]
    if name in _WIDTHS:
        return [16 * 2 ** (at // 2) for at in range(len(old))]
    every = {"image_size": _SIDE, "conv_dim": _WIDTH}.get(name)
    return None if every is None else [every] * len(old)
