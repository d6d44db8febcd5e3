"""Blocks by class: timm's model files b to f, the blocks of its EfficientNets and its shared layers."""

from typing import Any

from . import Rule

_EPS = "a small constant against division by zero, or a running statistic: nothing but x is a term"
_NORM = "normalisation: mean, shift and scale only, no weighted operation in any term"
_ACT = "the constant of a piecewise linear activation"
_MASK = "attention mask or bias is added to the scores"
_POS = "position embedding, a parameter"
_ROPE = "rotary embedding: a rotation of q and k, both terms without weights"
_POOL = "average and maximum of the same map: neither term weighted"


def _has_skip(m: Any) -> int:
    """EfficientNet blocks keep whether stride and width allow a skip."""
    return int(m.has_skip)


def _has_shortcut(m: Any) -> int:
    """A shortcut module (identity or projection) or None."""
    return int(m.shortcut is not None)


def _byob_repvgg(m: Any) -> int:
    """The 3x3 and the 1x1 branch beside batch norm as the skip."""
    return 0 if m.reparam_conv is not None or m.identity is None else 2


def _mobileone(m: Any) -> int:
    """Every convolution branch beside batch norm as the skip."""
    if m.reparam_conv is not None or m.identity is None:
        return 0
    return len(m.conv_kxk or ()) + int(m.conv_scale is not None)


def _cait_class_attention(m: Any) -> int:
    """Runs of the class attention sum whose token depends on the image already."""
    return max(len(m.blocks_token_only or ()) - 1, 0)


def _coat_position_convolutions(m: Any) -> int:
    """Runs of the shared position convolutions: one per serial block, three per parallel one."""
    serial = sum(len(getattr(m, f"serial_blocks{i}") or ()) for i in range(1, 5))
    return serial + 3 * len(m.parallel_blocks or ())


def _repmixer(m: Any) -> int:
    """The outer sum, where a layer scale keeps it apart from the mixer's own."""
    return int(m.reparam_conv is None and hasattr(m.layer_scale, "gamma"))


_EFFICIENTNET = {
    "ConvBnAct": Rule(_has_skip, "block input + one convolution, where stride and width allow"),
    "DepthwiseSeparableConv": Rule(_has_skip, "block input + depthwise and pointwise convolution, where they fit"),
    "InvertedResidual": Rule(_has_skip, "block input + expand, depthwise, project, where stride and width allow"),
    "UniversalInvertedResidual": Rule(_has_skip, "block input + universal inverted bottleneck, where it fits"),
    "MobileAttention": Rule(
        lambda m: int(m.conv_cpe_dw is not None) + int(m.has_skip),
        "x + depthwise position convolution if there is one, then x + attention if it fits",
    ),
    "CondConvResidual": Rule(_has_skip, "as the inverted residual, kernels mixed by routing weights"),
    "EdgeResidual": Rule(_has_skip, "block input + expanding and projecting convolution, where they fit"),
}

_MODELS = {
    # beit
    "beit.Attention": Rule(0, "bias of q, k, v and relative position bias are parameters"),
    "beit.Block": Rule(2, "x + attention, x + mlp"),
    "beit.Beit": Rule(0, _POS),
    # byobnet, byoanet
    "byobnet.BasicBlock": Rule(_has_shortcut, "two convolutions + identity or 1x1 projection; no sum without shortcut"),
    "byobnet.BottleneckBlock": Rule(_has_shortcut, "three convolutions + identity or 1x1 projection"),
    "byobnet.DarkBlock": Rule(_has_shortcut, "1x1 and kxk convolution + identity or 1x1 projection"),
    "byobnet.EdgeBlock": Rule(_has_shortcut, "kxk and 1x1 convolution + identity or 1x1 projection"),
    "byobnet.SelfAttnBlock": Rule(_has_shortcut, "bottleneck around self-attention + identity or 1x1 projection"),
    "byobnet.RepVggBlock": Rule(
        _byob_repvgg,
        "hard: batch norm is the skip of two branches, 3x3 and 1x1; without it 1x1 and 3x3 are equally deep: none",
    ),
    "byobnet.MobileOneBlock": Rule(
        _mobileone,
        "hard: batch norm is the skip, each kxk branch and the 1x1 scale branch a block; without it all equally deep",
    ),
    # cait
    "cait.LayerScaleBlockClassAttn": Rule(1, "token + mlp; the token + attention sum is counted at the owner"),
    "cait.Cait": Rule(
        _cait_class_attention,
        "class token + class attention in every token block but the first, where the token is a parameter; position 0",
    ),
    "cait.LayerScaleBlock": Rule(2, "x + attention, x + mlp"),
    # coat
    "coat.FactorAttnConvRelPosEnc": Rule(
        0, "attention + q times convolved v: neither term is affine in a common source (products of projections)"
    ),
    "coat.ConvPosEnc": Rule(0, "x + depthwise convolution, but shared: runs are counted at the owner"),
    "coat.SerialBlock": Rule(2, "x + attention, x + mlp"),
    "coat.ParallelBlock": Rule(
        6,
        "x + attention and x + mlp on three scales; maps resampled from the other scales are terms from elsewhere",
    ),
    "coat.CoaT": Rule(
        _coat_position_convolutions,
        "hard: image tokens + depthwise convolution, once per run; skip and branch both start at the sliced tokens",
    ),
    # convit
    "convit.GPSA": Rule(0, "content and position attention mixed by a parameter; the positions are constant"),
    "convit.Block": Rule(2, "x + attention, x + mlp"),
    "convit.ConVit": Rule(0, _POS),
    # convmixer
    "convmixer.Residual": Rule(1, "x + depthwise convolution, GELU, batch norm"),
    # convnext
    "convnext.ConvNeXtBlock": Rule(1, "x, or its pooled 1x1 projection, + depthwise convolution and mlp"),
    # cpubone
    "cpubone.ResidualBlock": Rule(_has_shortcut, "x + main path; downsampling layers have no shortcut"),
    # crossvit
    "crossvit.CrossAttentionBlock": Rule(
        1,
        "hard: the token sliced off is the one concatenated just before, and the attention reads it too",
    ),
    "crossvit.CrossVit": Rule(0, "position embedding; heads of the two streams averaged, equally deep"),
    # csatv2
    "csatv2.LearnableDct2d": Rule(0, "colour conversion and fixed statistics: constants and unweighted channel mixes"),
    "csatv2.Block": Rule(1, "x + convolution, mlp, spatial attention"),
    "csatv2.SpatialTransformerBlock": Rule(2, "one-channel x + attention, x + mlp, nested in the attention of a block"),
    "csatv2.TransformerBlock": Rule(2, "x, or max pool and 1x1 projection, + attention; x + mlp"),
    "csatv2.PosConv": Rule(1, "tokens + their depthwise convolution"),
    # cspnet, cspnext
    "cspnet.BottleneckBlock": Rule(1, "x + bottleneck; source is the half that the stage splits off"),
    "cspnet.DarkBlock": Rule(1, "x + 1x1 and 3x3 convolution"),
    "cspnet.EdgeBlock": Rule(1, "x + 3x3 and 1x1 convolution"),
    "cspnext.CspNextBlock": Rule(lambda m: int(m.add_identity), "x + 3x3 and separable convolution, unless disabled"),
    # davit
    "davit.ConvPosEnc": Rule(1, "x + depthwise convolution"),
    "davit.ChannelBlock": Rule(lambda m: 1 + int(m.mlp is not None), "x + channel attention, x + mlp"),
    "davit.SpatialBlock": Rule(lambda m: 1 + int(m.mlp is not None), "x + window attention, x + mlp"),
    # deepseek_vit, deit
    "deepseek_vit.DeepseekVitBlock": Rule(2, "x + attention, x + mlp"),
    "deit.VisionTransformerDistilled": Rule(0, "position embedding; two heads on two tokens averaged"),
    # dla
    "dla.DlaBasic": Rule(1, "two convolutions + x, or + max pool and 1x1 projection handed in by the tree"),
    "dla.DlaBottleneck": Rule(1, "bottleneck + x, or + max pool and 1x1 projection handed in by the tree"),
    "dla.DlaBottle2neck": Rule(1, "bottleneck + shortcut; the sums over splits inside close none"),
    "dla.DlaRoot": Rule(
        lambda m: int(m.shortcut),
        "hard: residual root: 1x1 of the concatenated children + the first child, unweighted; plain roots do not add",
    ),
    # dpn
    "dpn.DualPathBlock": Rule(
        lambda m: int(not (m.has_proj and m.b)),
        "hard: residual slice + bottleneck; a projecting block's skip has a norm and a ReLU of its own before the 1x1."
        " Where two convolutions stand in the place of the last split (variants b), the dense one reads a value inside"
        " the branch, so a projecting block is none."
        " Corrected after the first run, which counted those as none: the definition names dual path nets, and the"
        " paper (arXiv 1707.01629, Table 1) gives 3 + 4 + 12 + 3 for DPN-68",
    ),
    # edgenext
    "edgenext.PositionalEncodingFourier": Rule(0, "made from the shape alone"),
    "edgenext.ConvBlock": Rule(1, "x + convolution and mlp; where the width changes, depthwise output + mlp"),
    "edgenext.SplitTransposeBlock": Rule(
        2,
        "x + cross-covariance attention, nested in block input + whole path; sums over splits and positions close none",
    ),
    # efficientformer
    "efficientformer.Attention": Rule(0, _MASK),
    "efficientformer.Pooling": Rule(
        0, "hard: pool(x) - x: the skip is x times -1, not an identity, and pooling has no weights"
    ),
    "efficientformer.MetaBlock1d": Rule(2, "x + attention, x + mlp"),
    "efficientformer.MetaBlock2d": Rule(2, "x + scaled pooling (identity skip, windowed), x + mlp"),
    "efficientformer.EfficientFormer": Rule(0, "two heads on the same features averaged, equally deep"),
    # efficientformer_v2
    "efficientformer_v2.Attention2d": Rule(
        1,
        "hard: 1x1 and depthwise convolution of x (value path, two weighted) against talking-head attention (five)",
    ),
    "efficientformer_v2.LocalGlobalQuery": Rule(1, "hard: strided subsampling of x + strided depthwise convolution"),
    "efficientformer_v2.Attention2dDownsample": Rule(
        1, "hard: 1x1 and strided depthwise convolution of x (two weighted) against attention (four)"
    ),
    "efficientformer_v2.Downsample": Rule(
        lambda m: int(m.attn is not None),
        "hard: strided 3x3 convolution and batch norm (affine, one weighted) against attention (five)",
    ),
    "efficientformer_v2.EfficientFormerV2Block": Rule(
        lambda m: 1 + int(m.token_mixer is not None), "x + attention where there is one, x + mlp"
    ),
    "efficientformer_v2.EfficientFormerV2": Rule(0, "two heads on the same features averaged, equally deep"),
    # efficientvim
    "efficientvim.PatchMerging": Rule(
        lambda m: 0 if m.fused else 2, "x + depthwise convolution before and after the merging"
    ),
    "efficientvim.HSMSSD": Rule(0, "parameter added to the step; gated and scaled state equally deep"),
    "efficientvim.EfficientViMBlock": Rule(
        lambda m: 2 if m.fused else 4,
        "hard: x + a (f(x) - x) four times, that is (1 - a) x + a f(x): one block each, the difference is its spelling",
    ),
    "efficientvim.EfficientViM": Rule(0, "heads of several stages summed, each on its own normed features"),
    "efficientvim.EfficientViMDistilled": Rule(0, "heads of several stages summed, two sets averaged"),
    # efficientvit
    "efficientvit_mit.LiteMLA": Rule(0, _EPS),
    "efficientvit_mit.ResidualBlock": Rule(_has_shortcut, "x + main path; downsampling layers have no shortcut"),
    "efficientvit_msra.ResidualDrop": Rule(1, "x + depthwise convolution, mlp or window attention"),
    "efficientvit_msra.CascadedGroupAttention": Rule(
        0, "head output + next channel split: a slice is no identity; attention bias"
    ),
    # eva
    "eva.EvaAttention": Rule(0, "bias of q, k, v; attention mask; rotary embedding"),
    "eva.EvaBlock": Rule(2, "x + attention, x + mlp"),
    "eva.EvaBlockPostNorm": Rule(2, "x + normed attention, x + normed mlp"),
    "eva.Eva": Rule(0, _POS),
    # fasternet
    "fasternet.MLPBlock": Rule(1, "x + partial convolution and mlp"),
    # fastvit
    "fastvit.MobileOneBlock": Rule(
        _mobileone,
        "hard: batch norm is the skip, each kxk branch and the 1x1 scale branch a block; without it all equally deep",
    ),
    "fastvit.ReparamLargeKernelConv": Rule(0, "large and small kernel convolution, equally deep"),
    "fastvit.RepMixer": Rule(
        _repmixer,
        "hard: x + scale (mixer(x) - norm(x)): block around the mixer's own; the difference itself closes none; "
        "without layer scale it is one tree with the mixer's sum, counted there",
    ),
    "fastvit.RepConditionalPosEnc": Rule(lambda m: int(m.reparam_conv is None), "x + depthwise convolution"),
    "fastvit.RepMixerBlock": Rule(1, "x + convolutional mlp; the mixer's sums are its own"),
    "fastvit.AttentionBlock": Rule(2, "x + attention, x + convolutional mlp"),
    # focalnet
    "focalnet.FocalModulation": Rule(0, "contexts of growing depth, each after GELU and times a gate of the input"),
    "focalnet.FocalNetBlock": Rule(2, "x + focal modulation, x + mlp"),
}

_LAYERS = {
    "activations.HardSwish": Rule(0, _ACT),
    "activations.HardSigmoid": Rule(0, _ACT),
    "activations.HardMish": Rule(0, _ACT),
    "activations_me.HardSwishMe": Rule(0, _ACT),
    "activations_me.HardSigmoidMe": Rule(0, _ACT),
    "activations_me.HardMishMe": Rule(0, _ACT),
    "adaptive_avgmax_pool.FastAdaptiveAvgMaxPool": Rule(0, _POOL),
    "adaptive_avgmax_pool.AdaptiveAvgMaxPool2d": Rule(0, _POOL),
    "test_time_pool.TestTimePoolHead": Rule(0, _POOL),
    "classifier.ClNormMlpClassifierHead": Rule(0, _POOL),
    "attention.Attention": Rule(0, _MASK),
    "attention.AttentionRope": Rule(0, "attention mask; rotary embedding"),
    "attention2d.MultiQueryAttention2d": Rule(0, _MASK),
    "attention2d.Attention2d": Rule(0, _MASK),
    "attention_pool.AttentionPoolLatent": Rule(
        lambda m: int(m.mlp is not None), "pooled token + mlp; position embedding and mask close none"
    ),
    "attention_pool2d.RotAttentionPool2d": Rule(0, _ROPE),
    "attention_pool2d.AttentionPool2d": Rule(0, _POS),
    "bottleneck_attn.PosEmbedRel": Rule(0, "row and column bias of the scores, both q times a parameter"),
    "bottleneck_attn.BottleneckAttn": Rule(0, "relative position bias of the scores"),
    "cbam.ChannelAttn": Rule(0, "the same gate mlp on average and maximum, equally deep"),
    "cbam.LightChannelAttn": Rule(0, _POOL),
    "cbam.LightSpatialAttn": Rule(0, _POOL),
    "coord_attn.CoordAttn": Rule(
        lambda m: int(m.has_skip), "x + x times a gate of convolutions, where the skip is asked for"
    ),
    "coord_attn.SimpleCoordAttn": Rule(
        lambda m: int(m.has_skip), "x + x times a gate of linear layers; row and column terms equally deep"
    ),
    "coord_attn.EfficientLocalAttn": Rule(
        lambda m: int(m.has_skip), "x + x times a gate of convolutions, where the skip is asked for"
    ),
    "coord_attn.StripAttn": Rule(
        lambda m: int(m.has_skip and m.use_conv), "x + x times a gate; weighted only with convolutions in the gate"
    ),
    "diff_attention.DiffAttention": Rule(0, "difference of two attention maps, equally deep; mask; parameter lambda"),
    "drop.DropBlock2d": Rule(0, "noise in training only, identity in eval mode"),
    "evo_norm.EvoNorm2dB0": Rule(0, _NORM),
    "evo_norm.EvoNorm2dB1": Rule(0, _NORM),
    "evo_norm.EvoNorm2dB2": Rule(0, _NORM),
    "evo_norm.EvoNorm2dS0": Rule(0, _NORM),
    "evo_norm.EvoNorm2dS0a": Rule(0, _NORM),
    "evo_norm.EvoNorm2dS1": Rule(0, _NORM),
    "evo_norm.EvoNorm2dS1a": Rule(0, _NORM),
    "evo_norm.EvoNorm2dS2": Rule(0, _NORM),
    "evo_norm.EvoNorm2dS2a": Rule(0, _NORM),
    "filter_response_norm.FilterResponseNormTlu2d": Rule(0, _NORM),
    "filter_response_norm.FilterResponseNormAct2d": Rule(0, _NORM),
    "gather_excite.GatherExcite": Rule(0, _POOL),
    "global_context.GlobalContext": Rule(
        lambda m: int(m.mlp_add is not None and m.mlp_scale is None),
        "x + mlp of the pooled context; after a gate the sum's skip is no longer a cheap map of x",
    ),
    "grn.GlobalResponseNorm": Rule(0, "global response normalisation: neither term weighted"),
    "halo_attn.PosEmbedRel": Rule(0, "row and column bias of the scores, both q times a parameter"),
    "halo_attn.HaloAttn": Rule(0, "relative position bias of the scores"),
    "lambda_layer.LambdaLayer": Rule(0, "content and position lambda both applied to q, equally deep"),
    "ml_decoder.TransformerDecoderLayerOptimal": Rule(1, "x + mlp; the sums before add to queries that are parameters"),
    "ml_decoder.MLDecoder": Rule(0, "bias of the grouped head"),
    "non_local_attn.NonLocalAttn": Rule(1, "x + non-local attention"),
    "non_local_attn.BilinearAttnTransform": Rule(0, "row sums that normalise the gates"),
    "non_local_attn.BatNonLocalAttn": Rule(1, "x + bilinear attention"),
    "norm.LayerNormExp2d": Rule(0, _NORM),
    "norm.RmsNorm": Rule(0, _EPS),
    "norm.RmsNormFp32": Rule(0, _EPS),
    "norm.RmsNorm2d": Rule(0, _EPS),
    "norm.RmsNorm2dFp32": Rule(0, _EPS),
    "norm.SimpleNorm": Rule(0, _EPS),
    "norm.SimpleNormFp32": Rule(0, _EPS),
    "norm.SimpleNorm2d": Rule(0, _EPS),
    "norm.SimpleNorm2dFp32": Rule(0, _EPS),
    "norm_act.BatchNormAct2d": Rule(0, _EPS),
    "norm_act.FrozenBatchNormAct2d": Rule(0, "stored scale and shift"),
    "norm_act.RmsNormAct": Rule(0, _EPS),
    "norm_act.RmsNormActFp32": Rule(0, _EPS),
    "norm_act.RmsNormAct2d": Rule(0, _EPS),
    "norm_act.RmsNormAct2dFp32": Rule(0, _EPS),
    "other_pool.LsePlus2d": Rule(0, "log-sum-exp shifted by the maximum, no weights"),
    "other_pool.LsePlus1d": Rule(0, "log-sum-exp shifted by the maximum, no weights"),
    "other_pool.SimPool2d": Rule(0, "values shifted by their minimum"),
    "other_pool.SimPool1d": Rule(0, "values shifted by their minimum"),
    "pos_embed_rel.RelPosBias": Rule(0, _MASK),
    "pos_embed_rel.RelPosMlp": Rule(0, "attention bias from constant coordinates"),
    "pos_embed_rel.RelPosBiasTf": Rule(0, _MASK),
    "pos_embed_sincos.RotaryEmbedding": Rule(0, _ROPE),
    "pos_embed_sincos.RotaryEmbeddingCat": Rule(0, _ROPE),
    "pos_embed_sincos.RotaryEmbeddingMixed": Rule(0, _ROPE),
    "pos_embed_sincos.RotaryEmbeddingDinoV3": Rule(0, _ROPE),
    "selective_kernel.SelectiveKernelAttn": Rule(0, "paths summed for the gate, equally deep and after ReLU"),
    "selective_kernel.SelectiveKernel": Rule(0, "paths weighted by gates of the input, equally deep"),
    "split_attn.SplitAttn": Rule(0, "channel splits weighted by gates of the input: slices of one tensor"),
    "squeeze_excite.SEModule": Rule(0, _POOL),
    "squeeze_excite.EffectiveSEModule": Rule(0, _POOL),
}

RULES: dict[str, Rule] = {
    **{f"timm.models._efficientnet_blocks.{name}": rule for name, rule in _EFFICIENTNET.items()},
    **{f"timm.models.{name}": rule for name, rule in _MODELS.items()},
    **{f"timm.layers.{name}": rule for name, rule in _LAYERS.items()},
}

NOTES: dict[str, str] = {
    "coat": "One position convolution per scale serves all blocks of that scale: the model's own rule counts its runs. "
    "The parallel blocks share one mlp among scales, and their sums are counted in the block.",
    "cait": "Only the first class attention adds to a parameter; its sum is left out at the model.",
    "crossvit": "The streams' own blocks are vision_transformer.Block, whose rule is elsewhere.",
    "deit": "Plain models are vision_transformer.VisionTransformer throughout.",
    "densenet": "Concatenations only: no block.",
    "efficientnet": "The model class adds nothing; the shared blocks do, also in MobileNetV3 and relatives.",
    "byobnet": "GE-Net, RepVGG, MobileOne, RegNetZ, CLIP ResNets and byoanet all use the block classes here. "
    "Without a downsampling shortcut (RegNetZ) a block that changes resolution or width adds nothing.",
    "cspnet": "Stages join by concatenation; only the blocks inside them add.",
    "dpn": "The residual part leads the concatenation that every block returns, so the next block's leading slice is "
    "exactly the last sum. Counting the four projecting blocks too would add four to every model.",
    "dla": "Residual roots exist in dla102, dla102x, dla102x2 and dla169 only.",
    "reparameterised": "After fusing, RepVGG, MobileOne, FastViT mixers and EfficientViM's depthwise sums are gone; "
    "the functions read that off the instance.",
}
