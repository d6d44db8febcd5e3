"""Residual blocks of diffusers' models, read off `attention.py`, `resnet.py` and each model's own file."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild
from wild.truth.transformers import Keywords

_UNET = {
    "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 16), "layers_per_block": 1,
    "norm_num_groups": 4,
}  # fmt: skip
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
_RESNETS = "ResnetBlock2D: 2 down, 2 in the middle, 4 up"


class _Flux(nn.Module):
    """A Flux transformer with the places of its tokens, which have no batch."""

    def __init__(self, model: nn.Module, image: int, text: int) -> None:
        super().__init__()
        self.model = model
        places = torch.arange(image)
        self.register_buffer("image_places", torch.stack([torch.zeros_like(places), places, places], 1).float())
        self.register_buffer("text_places", torch.zeros(text, 3))

    def forward(self, image: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.model(
            image, text, pooled, timestep, img_ids=self.image_places, txt_ids=self.text_places
        ).sample
        return found


def _diffuser(name: str, options: dict[str, Any]) -> nn.Module:
    import diffusers

    model: nn.Module = getattr(diffusers, name)(**options)
    return model


def _build(name: str, names: Sequence[str], options: dict[str, Any], output: str = "sample") -> nn.Module:
    return Keywords(_diffuser(name, options), tuple(names), output)


def _tiny(half: str) -> nn.Module:
    options = {
        "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 2),
        "num_decoder_blocks": (2, 1),
    }  # fmt: skip
    return _diffuser("AutoencoderTiny", options).get_submodule(half)


def _flux() -> nn.Module:
    options = {
        "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    return _Flux(_diffuser("FluxTransformer2DModel", options), 6, 5)


def _noise(*shapes: tuple[int, ...], steps: int = 0, classes: int = 0) -> tuple[Tensor, ...]:
    """Return floats of these shapes, then for diffusers' time steps and classes an integer per sample."""
    drawn = [torch.randint(limit, (2,)) for limit in (steps, classes) if limit]
    return (*(torch.randn(2, *shape) for shape in shapes), *drawn)


def _wild(
    name: str,
    names: Sequence[str],
    inputs: Callable[[], tuple[Tensor, ...]],
    blocks: int,
    reason: str,
    **options: Any,
) -> Wild:
    return Wild(partial(_build, name, names, options), inputs, blocks, reason)


MODELS: dict[str, Wild] = {
    "UNet2D": _wild(
        "UNet2DModel", ("sample", "timestep"), partial(_noise, (3, 16, 16), steps=100), 12,
        f"{_RESNETS}; attention with its residual: 1 down, 1 in the middle, 2 up", **_UNET, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2D_resampling_blocks": _wild(
        "UNet2DModel", ("sample", "timestep"), partial(_noise, (3, 16, 16), steps=100), 11,
        f"{_RESNETS}, 1 resampling each way; 1 attention in the middle", **_UNET, attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D")[::-1],
    ),
    "UNet2DCondition": _wild(
        "UNet2DConditionModel", ("sample", "encoder_hidden_states", "timestep"),
        partial(_noise, (3, 16, 16), (5, 8), steps=100), 24,
        f"{_RESNETS}; 1 + 1 + 2 transformers with a residual of their own and self-attention, cross-attention, MLP",
        **_UNET, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "DiT": _wild(
        "DiTTransformer2DModel", ("hidden_states", "timestep", "class_labels"),
        partial(_noise, (4, 8, 8), steps=100, classes=5), 4, "gated attention + x, gated MLP + x in each of 2 layers",
        **_HEADS, in_channels=4, sample_size=8, num_embeds_ada_norm=10, norm_num_groups=4,
    ),
    "PixArt": _wild(
        "PixArtTransformer2DModel", ("hidden_states", "encoder_hidden_states", "timestep"),
        partial(_noise, (4, 8, 8), (5, 8), steps=100), 6, "self-attention, cross-attention, MLP in each of 2 layers",
        **_HEADS, in_channels=4, out_channels=8, sample_size=8, caption_channels=8, cross_attention_dim=16,
        use_additional_conditions=False,
    ),
    "SD3": _wild(
        "SD3Transformer2DModel", ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"),
        partial(_noise, (4, 8, 8), (5, 8), (8,), steps=100), 6,
        "attention and MLP of both streams in the first layer, of the image alone in the last", **_HEADS, in_channels=4,
        sample_size=8, patch_size=2, joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8,
        out_channels=4, pos_embed_max_size=8,
    ),
    "Flux": Wild(
        _flux, partial(_noise, (6, 4), (5, 8), (8,), steps=100), 5,
        "attention and MLP of both streams in one layer; one single layer, attention and MLP in one branch",
    ),
    "Sana": _wild(
        "SanaTransformer2DModel", ("hidden_states", "encoder_hidden_states", "timestep"),
        partial(_noise, (4, 8, 8), (5, 8), steps=100), 6,
        "linear attention, cross-attention, convolutional MLP in each of 2 layers", **_HEADS, in_channels=4,
        out_channels=4, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=8, sample_size=8, patch_size=1,
    ),
    "Wan": _wild(
        "WanTransformer3DModel", ("hidden_states", "encoder_hidden_states", "timestep"),
        partial(_noise, (4, 2, 8, 8), (5, 8), steps=100), 6,
        "self-attention, cross-attention, MLP in each of 2 layers", num_attention_heads=2, attention_head_dim=12,
        num_layers=2, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, rope_max_seq_len=16,
    ),
    "PriorTransformer": Wild(
        partial(
            _build, "PriorTransformer", ("hidden_states", "proj_embedding", "encoder_hidden_states", "timestep"),
            {**_HEADS, "embedding_dim": 8, "num_embeddings": 5, "additional_embeddings": 4},
            "predicted_image_embedding",
        ),
        partial(_noise, (8,), (8,), (5, 8), steps=100), 4, "attention + x, MLP + x in each of 2 layers",
    ),
    "AutoencoderKL": _wild(
        "AutoencoderKL", ("sample",), partial(_noise, (3, 16, 16)), 12,
        "ResnetBlock2D: 2 down, 2 + 2 in the middles, 4 up; attention with its residual in each middle",
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "AutoencoderTiny_encoder": Wild(
        partial(_tiny, "encoder"), partial(_noise, (3, 16, 16)), 3, "fuse(conv(x) + skip(x)) in 1 + 2 blocks"
    ),
    "AutoencoderTiny_decoder": Wild(
        partial(_tiny, "decoder"), partial(_noise, (4, 8, 8)), 3, "fuse(conv(x) + skip(x)) in 2 + 1 blocks"
    ),
    "AutoencoderDC": _wild(
        "AutoencoderDC", ("sample",), partial(_noise, (3, 16, 16)), 8,
        "2 ResBlocks each way, a resampling shortcut (mean of channels, repeated channels) each way, and one at the "
        "latent each way",
        latent_channels=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        downsample_block_type="pixel_unshuffle", upsample_block_type="pixel_shuffle",
        decoder_norm_types="rms_norm", decoder_act_fns="silu",
    ),
    "AutoencoderOobleck": _wild(
        "AutoencoderOobleck", ("sample",), partial(_noise, (2, 64)), 12,
        "3 residual units in 2 blocks each way; Snake's x + sin(x)^2 has no weighted operation", encoder_hidden_size=8,
        downsampling_ratios=[2, 2], channel_multiples=[1, 2], decoder_channels=8, decoder_input_channels=4,
        audio_channels=2,
    ),
}  # fmt: skip
