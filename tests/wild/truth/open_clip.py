"""Residual blocks of OpenCLIP's towers, read off `transformer.py` and `modified_resnet.py`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wild.truth import Wild

TOKENS, LENGTH, LAYERS = 32, 8, 2
_VISION = {"image_size": 32, "patch_size": 8, "width": 16, "layers": LAYERS, "heads": 2, "mlp_ratio": 2.0}
_TEXT = {"context_length": LENGTH, "vocab_size": TOKENS, "width": 16, "heads": 2, "layers": LAYERS, "output_dim": 8}
_TWO = "q_x + ls_1(attention), x + ls_2(mlp) in each of 2 layers"


class _Pair(nn.Module):
    """Both towers of a CLIP model; the features of image and text side by side."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        features = self.model(image, text)
        return torch.cat(features[:2], dim=1)


def _tower(name: str, **options: Any) -> nn.Module:
    from open_clip import transformer

    tower: nn.Module = getattr(transformer, name)(**options)
    return tower


def _resnet() -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet(layers=(1, 2, 1, 1), output_dim=8, heads=4, image_size=64, width=8)  # type: ignore[no-any-return]


def _clip(quick_gelu: bool) -> nn.Module:
    from open_clip import model

    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": LENGTH, "vocab_size": TOKENS, "width": 16, "heads": 2, "layers": LAYERS}
    return _Pair(model.CLIP(8, vision, text, quick_gelu=quick_gelu))


def _image() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 32, 32),)


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randint(1, TOKENS, (2, LENGTH)),)


MODELS: dict[str, Wild] = {
    "VisionTransformer": Wild(partial(_tower, "VisionTransformer", output_dim=8, **_VISION), _image, 4, _TWO),
    "VisionTransformer_layer_scale": Wild(
        partial(_tower, "VisionTransformer", output_dim=8, ls_init_value=0.1, pool_type="avg", **_VISION), _image, 4,
        _TWO
    ),
    "VisionTransformer_custom": Wild(
        partial(
            _tower, "VisionTransformer", output_dim=8, block_type="custom", qk_norm=True, scale_attn=True,
            scale_fc=True, **_VISION,
        ),
        _image, 4, "CustomResidualAttentionBlock: x + ls_1(ln_attn(attn)), x + ls_2(mlp) in each of 2 layers",
    ),
    "VisionTransformer_attentional_pool": Wild(
        partial(
            _tower, "VisionTransformer", output_dim=8, attentional_pool=True, attn_pooler_queries=4,
            attn_pooler_heads=2, **_VISION,
        ),
        _image, 4, f"{_TWO}; AttentionalPooler adds nothing to its queries",
    ),
    "TextTransformer": Wild(partial(_tower, "TextTransformer", **_TEXT), _tokens, 4, _TWO, "first block"),
    "TextTransformer_class_token": Wild(
        partial(_tower, "TextTransformer", embed_cls=True, pad_id=0, pool_type="last", **_TEXT), _tokens, 4, _TWO,
        "first block",
    ),
    "MultimodalTransformer": Wild(
        partial(_tower, "MultimodalTransformer", width=16, layers=LAYERS, heads=2, context_length=LENGTH, output_dim=8),
        lambda: (torch.randn(2, 5, 16), torch.randn(2, LENGTH, 16)), 8,
        "a self-attention and a cross-attention ResidualAttentionBlock of 2 in each of 2 layers",
    ),
    "ModifiedResNet": Wild(
        _resnet, lambda: (torch.randn(2, 3, 64, 64),), 5, "1 + 2 + 1 + 1 bottlenecks; the attention pool adds no skip"
    ),
    "CLIP": Wild(
        partial(_clip, quick_gelu=False), lambda: (*_image(), *_tokens()), 6, "1 layer of 2 for images, 2 for texts"
    ),
    "CLIP_quick_gelu": Wild(
        partial(_clip, quick_gelu=True), lambda: (*_image(), *_tokens()), 6, "1 layer of 2 for images, 2 for texts"
    ),
}  # fmt: skip
