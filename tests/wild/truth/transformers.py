"""Residual blocks of Hugging Face transformers' models, read off each `modeling_*.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild

TOKENS, LENGTH = 32, 8
_BERT = {
    "vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
_GPT = {"vocab_size": TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
_VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_POST_NORM = "LayerNorm(dense(...) + input_tensor) after attention and after the MLP, 2 layers"
_PRE_NORM = "residual + attention, residual + mlp in each of 2 layers"
_PARALLEL = "attention + mlp + residual, two parallel branches in each of 2 layers"
_ENCODER_DECODER = "2 encoder layers of 2, 2 decoder layers of 3"


class Keywords(nn.Module):
    """A model whose tensors go by keyword, as one whose tensors go by position; of its outputs, one."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *tensors: Tensor) -> Tensor:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)))
        found: Tensor = getattr(outputs, self.output)
        return found


def _build(kind: str, names: tuple[str, ...], output: str, options: dict[str, Any], suffix: str = "Model") -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**options)
    return Keywords(getattr(transformers, f"{kind}{suffix}")(config), names, output)


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randint(3, TOKENS, (2, LENGTH)),)


def _two_texts() -> tuple[Tensor, ...]:
    return (*_tokens(), torch.randint(3, TOKENS, (2, 5)))


def _image(side: int = 32) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, side, side),)


def _noise(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, *shape),)


def _text(kind: str, options: dict[str, Any], reason: str, blocks: int = 4, **more: Any) -> Wild:
    build = partial(_build, kind, ("input_ids",), "last_hidden_state", options, **more)
    return Wild(build, _tokens, blocks, reason, "first block")


def _seq2seq(kind: str, options: dict[str, Any]) -> Wild:
    build = partial(_build, kind, ("input_ids", "decoder_input_ids"), "last_hidden_state", options)
    return Wild(build, _two_texts, 10, _ENCODER_DECODER, "first block")


def _vision(
    kind: str,
    options: dict[str, Any],
    blocks: int = 4,
    reason: str = _PRE_NORM,
    inputs: Callable[[], tuple[Tensor, ...]] = _image,
    name: str = "pixel_values",
    output: str = "last_hidden_state",
    suffix: str = "Model",
) -> Wild:
    return Wild(partial(_build, kind, (name,), output, options, suffix), inputs, blocks, reason)


MODELS: dict[str, Wild] = {
    "Roberta": _text("Roberta", _BERT, _POST_NORM),
    "Electra": _text("Electra", {**_BERT, "embedding_size": 16}, _POST_NORM),
    "Albert": _text("Albert", {**_BERT, "embedding_size": 8}, "one layer of 2, run twice"),
    "DistilBert": _text(
        "DistilBert", {"vocab_size": TOKENS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, _POST_NORM
    ),
    "DebertaV2": _text(
        "DebertaV2",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
        _POST_NORM,
    ),
    "SqueezeBert": _text(
        "SqueezeBert",
        {**_BERT, "embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1, "intermediate_groups": 2},
        "ConvDropoutLayerNorm: x + input_tensor, 2 in each of 2 layers",
    ),
    "ConvBert": _text("ConvBert", {**_BERT, "embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}, _POST_NORM),
    "FNet": _text(
        "FNet", {key: value for key, value in _BERT.items() if key != "num_attention_heads"},
        "the MLP in each of 2 layers; the Fourier transform has no weighted operation", 2,
    ),
    "XLNet": _text(
        "XLNet", {"vocab_size": TOKENS, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
        "attn_out + h, output + inp in each of 2 layers; scores ac + bd are fusions",
    ),
    "ModernBert": _text("ModernBert", {**_BERT, "cls_token_id": 1, "sep_token_id": 2}, _PRE_NORM),
    "GPTNeo": _text(
        "GPTNeo", {
            "vocab_size": TOKENS, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 16,
            "attention_types": [[["global", "local"], 1]], "window_size": 4,
        }, _PRE_NORM,
    ),
    "GPTNeoX": _text("GPTNeoX", _BERT, _PARALLEL),
    "GPTNeoX_sequential": _text("GPTNeoX", {**_BERT, "use_parallel_residual": False}, _PRE_NORM),
    "GPTJ": _text("GPTJ", {**_GPT, "rotary_dim": 4}, _PARALLEL),
    "CodeGen": _text("CodeGen", {**_GPT, "n_head": 4, "rotary_dim": 2}, _PARALLEL),
    "Phi": _text("Phi", _BERT, _PARALLEL),
    "Falcon": _text("Falcon", _BERT, _PARALLEL),
    "Cohere": _text("Cohere", _LLAMA, _PARALLEL),
    "StableLm": _text("StableLm", {**_BERT, "num_key_value_heads": 2}, _PRE_NORM),
    "StableLm_parallel": _text(
        "StableLm", {**_BERT, "num_key_value_heads": 2, "use_parallel_residual": True}, _PARALLEL
    ),
    "OPT": _text(
        "OPT", {
            "vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "max_position_embeddings": 16, "word_embed_proj_dim": 16,
        }, _PRE_NORM,
    ),
    "Bloom": _text("Bloom", {"vocab_size": TOKENS, "hidden_size": 16, "n_layer": 2, "n_head": 2}, _PRE_NORM),
    "Mpt": _text("Mpt", {"vocab_size": TOKENS, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 16},
    _PRE_NORM),
    "Mistral": _text("Mistral", _LLAMA, _PRE_NORM),
    "Qwen3": _text("Qwen3", _LLAMA, _PRE_NORM),
    "Gemma2": _text("Gemma2", _LLAMA, "residual + norm(attention), residual + norm(mlp) in each of 2 layers"),
    "Olmo2": _text("Olmo2", _LLAMA, "residual + norm(attention), residual + norm(mlp) in each of 2 layers"),
    "Glm": _text("Glm", _LLAMA, _PRE_NORM),
    "Mixtral": _text("Mixtral", {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}, _PRE_NORM),
    "Mamba": _text(
        "Mamba", {"vocab_size": TOKENS, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2,
        "time_step_rank": 2},
        "residual + mixer, and in it scan + hidden_states * D, in each of 2 layers",
    ),
    "T5Encoder": _text(
        "T5", {"vocab_size": TOKENS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}, _PRE_NORM,
        suffix="EncoderModel",
    ),
    "T5": _seq2seq("T5", {"vocab_size": TOKENS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}),
    "Bart": _seq2seq(
        "Bart", {
            "vocab_size": TOKENS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16,
        },
    ),
    "DeiT": _vision("DeiT", _VIT),
    "Beit": _vision("Beit", {**_VIT, "use_relative_position_bias": True}),
    "Dinov2": _vision("Dinov2", {**_VIT, "mlp_ratio": 2}),
    "Yolos": _vision("Yolos", {**_VIT, "image_size": [32, 32], "num_detection_tokens": 3}),
    "CLIPVision": _vision("CLIPVision", _VIT),
    "SiglipVision": _vision(
        "SiglipVision", _VIT, 5, "2 layers of 2, and the pooling head's residual + mlp", output="pooler_output"
    ),
    "Swin": _vision(
        "Swin", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2],
        "window_size": 4},
        6, "shortcut + attention, residual + mlp in 1 + 2 layers",
    ),
    "Swinv2": _vision(
        "Swinv2",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
        6, "shortcut + norm(attention), x + norm(mlp) in 1 + 2 layers",
    ),
    "ConvNext": _vision(
        "ConvNext", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}, 5, "residual + features in 5 layers",
        partial(_image, 64),
    ),
    "ConvNextV2": _vision(
        "ConvNextV2", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}, 5,
        "residual + features in 5 layers; global response normalisation is none", partial(_image, 64),
    ),
    "RegNet": _vision(
        "RegNet", {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "groups_width": 4}, 5,
        "hidden_state += shortcut(x) in 5 layers", partial(_image, 64),
    ),
    "Bit": _vision(
        "Bit", {"embedding_size": 8, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 2, 1], "num_groups": 4}, 5,
        "hidden_states + shortcut in 5 layers", partial(_image, 64),
    ),
    "PoolFormer": _vision(
        "PoolFormer", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}, 10,
        "x + scale (pool(x) - x), x + scale mlp(x) in 5 layers", partial(_image, 64),
    ),
    "Segformer": _vision(
        "Segformer", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}, 8,
        "drop_path(attention) + residual, drop_path(mlp) + residual in 4 layers", partial(_image, 64),
    ),
    "MobileNetV2": _vision(
        "MobileNetV2", {"depth_multiplier": 0.25, "image_size": 64}, 10,
        "stride 1 and equal widths: 1 + 2 + 3 + 2 + 2 layers", partial(_image, 64),
    ),
    "Cvt": _vision(
        "Cvt", {
            "embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3], "patch_sizes": [7, 3, 3],
            "patch_stride": [4, 2, 2],
        }, 12, "attention + x, mlp + x in 1 + 2 + 3 layers", partial(_image, 64),
    ),
    "Levit": _vision(
        "Levit", {
            "image_size": 64, "hidden_sizes": [16, 16, 32], "depths": [1, 1, 1], "num_attention_heads": [2, 2, 2],
            "key_dim": [8, 8, 8], "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2],
        }, 8, "attention and MLP in 3 layers; an MLP after each of 2 subsampling attentions", partial(_image, 64),
    ),
    "PvtV2": _vision(
        "PvtV2", {
            "image_size": 64, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1,
            2, 2],
            "mlp_ratios": [2, 2, 2, 2],
        }, 8, "attention + x, x + mlp in 4 layers", partial(_image, 64),
    ),
    "FocalNet": _vision(
        "FocalNet", {"image_size": 32, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 2],
                     "focal_levels": [2, 2], "focal_windows": [3, 3]},
        6, "shortcut + modulation, x + mlp in 1 + 2 layers; sums of gated contexts have no affine skip",
    ),
    "VideoMAE": _vision(
        "VideoMAE", {**_VIT, "num_frames": 4, "tubelet_size": 2}, inputs=partial(_noise, 4, 3, 32, 32)
    ),
    "Wav2Vec2": _vision(
        "Wav2Vec2", {
            **{key: value for key, value in _BERT.items() if key != "max_position_embeddings"}, "conv_dim": [8, 8],
            "conv_kernel": [4, 4], "conv_stride": [4, 4], "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        }, 5, "x + positional convolution of x; 2 layers of 2", partial(_noise, 400), "input_values",
    ),
    "ASTAudio": _vision(
        "AST", {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16,
        }, inputs=partial(_noise, 32, 16), name="input_values",
    ),
    "PatchTST": _vision(
        "PatchTST", {
            "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "num_targets": 4,
        }, 4, "hidden_state + attention, hidden_state + ff in each of 2 layers", partial(_noise, 32, 3), "past_values",
        "prediction_logits", "ForClassification",
    ),
    "PatchTSMixer": _vision(
        "PatchTSMixer", {
            "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16,
            "num_layers": 2, "num_targets": 4,
        }, 4, "patch mixer and feature mixer: out + residual in each of 2 layers", partial(_noise, 32, 3),
        "past_values", "prediction_outputs", "ForTimeSeriesClassification",
    ),
    "Starcoder2": _text("Starcoder2", _LLAMA, _PRE_NORM),
    "Granite": _text("Granite", {**_LLAMA, "residual_multiplier": 0.5}, "residual + 0.5 branch, 2 in each of 2 layers"),
    "Phi3": _text("Phi3", _LLAMA, _PRE_NORM),
    "BioGpt": _text("BioGpt", _BERT, _PRE_NORM),
    "Persimmon": _text("Persimmon", _BERT, _PRE_NORM),
    "Rwkv": _text(
        "Rwkv", {"vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "rescale_every": 1},
        "hidden + attention, hidden + feed_forward in each of 2 layers; mixing with the token before has no weights",
    ),
    "CLIPText": _text("CLIPText", {**_BERT, "eos_token_id": 2, "bos_token_id": 1}, _PRE_NORM),
    "SiglipText": _text("SiglipText", _BERT, _PRE_NORM),
    "IJepa": _vision("IJepa", _VIT),
    "Dinov2WithRegisters": _vision("Dinov2WithRegisters", {**_VIT, "mlp_ratio": 2, "num_register_tokens": 2}),
    "Vivit": _vision(
        "Vivit", {**_VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}, inputs=partial(_noise, 4, 3, 32, 32)
    ),
    "MobileNetV1": _vision(
        "MobileNetV1", {"depth_multiplier": 0.25, "image_size": 64}, 0, "no skips", partial(_image, 64)
    ),
    "Hubert": _vision(
        "Hubert", {
            **{key: value for key, value in _BERT.items() if key != "max_position_embeddings"}, "conv_dim": [8, 8],
            "conv_kernel": [4, 4], "conv_stride": [4, 4], "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        }, 5, "x + positional convolution of x; 2 layers of 2", partial(_noise, 400), "input_values",
    ),
    "PatchTST_prediction": _vision(
        "PatchTST", {
            "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "prediction_length": 4,
        }, 5, "2 layers of 2; y_hat * scale + loc, whose skip is the mean of the input over time",
        partial(_noise, 32, 3), "past_values", "prediction_outputs", "ForPrediction",
    ),
}  # fmt: skip
