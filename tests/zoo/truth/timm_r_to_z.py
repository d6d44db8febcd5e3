"""Residual blocks by class for timm's model files from `rdnet` to `xcit`, read off their code."""

from typing import Any

from . import Rule

_MIXING_NORMS = ("GroupNorm", "LayerNorm", "InstanceNorm", "RmsNorm", "EvoNorm", "FilterResponse", "SimpleNorm")


def _unit(shortcut: Any) -> int:
    """One block if a shortcut is missing (identity) or an affine map; none if it normalises by its own statistics."""
    if shortcut is None:
        return 1
    return int(not any(norm in type(part).__name__ for part in shortcut.modules() for norm in _MIXING_NORMS))


_POSITION = "position embedding is a parameter or a constant grid: no skip"
_BIAS = "attention bias or mask from parameters, added to scores: no block"
_SHORTCUT = "act(branch + shortcut), shortcut identity or affine (1x1 or k x k convolution, pooling, batch norm)"
_TWO = "x + attention(x) and x + mlp(x)"

RULES: dict[str, Rule] = {
    # regnet
    "timm.models.regnet.Bottleneck": Rule(
        lambda m: 0 if m.downsample is None else _unit(m.downsample),
        "branch + downsample(shortcut), no sum where downsample is None; hard: with group norm in the projection"
        " (regnety_040_sgn) the skip is not affine, so no block",
    ),
    "timm.models.regnet.PreBottleneck": Rule(
        lambda m: 0 if m.downsample is None else _unit(m.downsample),
        "branch + shortcut, both from the pre-activation, which is the source; no sum where downsample is None",
    ),
    # repghost
    "timm.models.repghost.RepGhostModule": Rule(
        lambda m: len(m.fusion_conv),
        "depthwise convolution + batch norm of the same tensor (scaled skip), one per fusion path; none once fused."
        " hard: without an activation (second module of a bottleneck) it is one tree with the bottleneck's sum:"
        " shortcut + two branches, the same two blocks",
    ),
    "timm.models.repghost.RepGhostBottleneck": Rule(
        1, "two ghost modules + shortcut (identity or separable convolution, 2 weighted against 4 or more)"
    ),
    # repvit
    "timm.models.repvit.RepVggDw": Rule(
        2, "k x k and 1x1 depthwise convolutions + identity in one sum: two branches; a batch norm after it is trunk"
    ),
    "timm.models.repvit.RepViTBlock": Rule(1, "token mixer's output + channel mixer (mlp)"),
    "timm.models.repvit.RepVitDownsample": Rule(1, "downsampled tensor + mlp"),
    "timm.models.repvit.RepVitClassifier": Rule(0, "mean of two classifiers of equal depth: fusion"),
    # res2net, resnest, resnet, sknet
    "timm.models.res2net.Bottle2neck": Rule(
        lambda m: _unit(m.downsample), _SHORTCUT + "; the inner sums over splits of one tensor are none"
    ),
    "timm.models.resnest.ResNestBottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "timm.models.resnet.BasicBlock": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "timm.models.resnet.Bottleneck": Rule(
        lambda m: _unit(m.downsample),
        _SHORTCUT + "; hard: with group norm in the projection (resnet50_gn, 4 of 16) the skip is not affine: no block",
    ),
    "timm.models.sknet.SelectiveKernelBasic": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "timm.models.sknet.SelectiveKernelBottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    # resnetv2
    "timm.models.resnetv2.PreActBasic": Rule(
        lambda m: _unit(m.downsample), "branch + x, or + bare 1x1 convolution of the pre-activation (then the source)"
    ),
    "timm.models.resnetv2.PreActBottleneck": Rule(
        lambda m: _unit(m.downsample), "branch + x, or + bare 1x1 convolution of the pre-activation (then the source)"
    ),
    "timm.models.resnetv2.Bottleneck": Rule(
        lambda m: _unit(m.downsample),
        "act(branch + shortcut); hard: the hybrids' projection ends in group norm, not affine, so the first block of"
        " each stage is none",
    ),
    # rexnet
    "timm.models.rexnet.LinearBottleneck": Rule(
        lambda m: int(m.use_shortcut),
        "input added to the first channels of the branch, the rest concatenated: partial residual with a whole skip",
    ),
    # senet
    "timm.models.senet.SEBottleneck": Rule(
        lambda m: _unit(m.downsample), _SHORTCUT + "; senet154 projects by 3x3: affine too, 1 weighted against 3"
    ),
    "timm.models.senet.SEResNetBottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "timm.models.senet.SEResNeXtBottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "timm.models.senet.SEResNetBlock": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    # sequencer
    "timm.models.sequencer.LSTM2d": Rule(0, "vertical + horizontal recurrence (or their concatenation): fusion"),
    "timm.models.sequencer.RNN2dBase": Rule(0, "base class; sum of two recurrences: fusion"),
    "timm.models.sequencer.Sequencer2dBlock": Rule(2, "x + recurrence over rows and columns, x + mlp"),
    # shvit, starnet
    "timm.models.shvit.Residual": Rule(1, "x + m(x), m a depthwise convolution, attention or mlp"),
    "timm.models.starnet.Block": Rule(1, "x + depthwise convolution, product of two expansions, projection"),
    # swiftformer
    "timm.models.swiftformer.ConvEncoder": Rule(1, "x + scaled(depthwise, two pointwise convolutions)"),
    "timm.models.swiftformer.LocalRepresentation": Rule(1, "x + scaled(depthwise, two pointwise convolutions)"),
    "timm.models.swiftformer.EfficientAdditiveAttention": Rule(
        1,
        "hard: proj(global query * key) + query: identity skip of the normalised query, from which the other term is"
        " computed by a matrix product and a linear layer",
    ),
    "timm.models.swiftformer.Block": Rule(2, _TWO),
    "timm.models.swiftformer.SwiftFormer": Rule(0, "mean of two classifiers of equal depth: fusion"),
    # swin
    "timm.models.swin_transformer.WindowAttention": Rule(0, _BIAS),
    "timm.models.swin_transformer.SwinTransformerBlock": Rule(2, _TWO),
    "timm.models.swin_transformer_v2.WindowAttention": Rule(0, _BIAS + " (an mlp of constants), bias of qkv"),
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": Rule(2, _TWO + ", layer norms end the branches"),
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": Rule(0, _BIAS + " (an mlp of constants)"),
    "timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock": Rule(
        2, _TWO + ", layer norms end the branches; the extra norm after the second sum is trunk"
    ),
    # tiny_vit
    "timm.models.tiny_vit.MBConv": Rule(1, "act(x + inverted bottleneck)"),
    "timm.models.tiny_vit.Attention": Rule(0, _BIAS),
    "timm.models.tiny_vit.TinyVitBlock": Rule(2, _TWO + "; the convolution between them has no sum"),
    # tnt
    "timm.models.tnt.Block": Rule(
        4,
        "attention and mlp on pixels, attention and mlp on patches; hard: patches + projection of pixels is none, the"
        " pixel stream is not computed from the patch stream and the patches' part is a slice",
    ),
    "timm.models.tnt.PixelEmbed": Rule(0, _POSITION),
    "timm.models.tnt.TNT": Rule(0, _POSITION),
    # tresnet
    "timm.models.tresnet.BasicBlock": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "timm.models.tresnet.Bottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    # twins
    "timm.models.twins.Block": Rule(2, _TWO),
    "timm.models.twins.PosConv": Rule(
        lambda m: int(m.stride == 1), "x + depthwise convolution of x: identity skip, a branch of one weighted op"
    ),
    # visformer
    "timm.models.visformer.Block": Rule(
        lambda m: 1 + int(m.attn is not None), "x + mlp(x), and x + attention(x) in stages that have attention"
    ),
    "timm.models.visformer.Visformer": Rule(0, _POSITION),
    # vision_transformer
    "timm.models.vision_transformer.Block": Rule(2, _TWO),
    "timm.models.vision_transformer.ResPostBlock": Rule(2, _TWO + ", layer norms end the branches"),
    "timm.models.vision_transformer.ParallelScalingBlock": Rule(
        lambda m: 2 if m.out_proj is None and type(m.ls).__name__ == "Identity" else 1,
        "hard: x + attention + mlp is one tree with two branches; with layer scale on their sum, or one output"
        " projection for both, the sum is a single branch (attention + mlp: two weighted terms, fusion)",
    ),
    "timm.models.vision_transformer.DiffParallelScalingBlock": Rule(
        1, "x + one output projection of attention and mlp; the difference of two attentions of equal depth is fusion"
    ),
    "timm.models.vision_transformer.ParallelThingsBlock": Rule(
        lambda m: 2 * m.num_parallel, "x + sum of parallel attentions, x + sum of parallel mlps: each its own branch"
    ),
    "timm.models.vision_transformer.VisionTransformer": Rule(
        0, _POSITION + "; mean + maximum pooling of the tokens has no weights"
    ),
    # vision_transformer_relpos, vision_transformer_sam
    "timm.models.vision_transformer_relpos.RelPosAttention": Rule(0, _BIAS),
    "timm.models.vision_transformer_relpos.RelPosBlock": Rule(2, _TWO),
    "timm.models.vision_transformer_relpos.ResPostRelPosBlock": Rule(2, _TWO + ", layer norms end the branches"),
    "timm.models.vision_transformer_sam.Attention": Rule(
        0,
        "hard: bias by height + bias by width, each a product of the query and a parameter, added to query times key:"
        " all one product deep, fusion",
    ),
    "timm.models.vision_transformer_sam.Block": Rule(2, _TWO),
    "timm.models.vision_transformer_sam.VisionTransformerSAM": Rule(0, _POSITION),
    # vitamin
    "timm.models.vitamin.MbConvLNBlock": Rule(
        lambda m: _unit(m.shortcut), "inverted bottleneck + identity, 1x1 convolution or average pooling and 1x1"
    ),
    # volo
    "timm.models.volo.OutlookAttention": Rule(0, "folding adds overlapping windows of one product: no skip"),
    "timm.models.volo.Outlooker": Rule(2, "x + outlook attention(x), x + mlp(x)"),
    "timm.models.volo.Transformer": Rule(2, _TWO),
    "timm.models.volo.ClassBlock": Rule(
        1,
        "class token + mlp(class token); the sum with the attention is counted by the owner",
    ),
    "timm.models.volo.VOLO": Rule(
        lambda m: max(len(m.post_network) - 1, 0) if m.post_network is not None else 0,
        "hard: class token + class attention in all class blocks but the first, whose token is a parameter; cutting the"
        " token out of its concatenation gives back the earlier sum. Position embedding, and class logits + half the"
        " maximum of token logits (equal depth): none",
    ),
    # vovnet
    "timm.models.vovnet.OsaBlock": Rule(lambda m: int(m.residual), "x + aggregated convolutions, where residual"),
    # xception
    "timm.models.xception.Block": Rule(1, "separable convolutions + identity or 1x1 convolution with batch norm"),
    "timm.models.xception_aligned.XceptionModule": Rule(
        lambda m: 0 if m.no_skip else 1, "three separable convolutions + identity or 1x1 convolution with batch norm"
    ),
    "timm.models.xception_aligned.PreXceptionModule": Rule(
        lambda m: 0 if m.no_skip else 1, "three separable convolutions + shortcut, both from the pre-activation"
    ),
    # xcit
    "timm.models.xcit.PositionalEncodingFourier": Rule(0, "grid of constants"),
    "timm.models.xcit.ClassAttentionBlock": Rule(
        2,
        "hard: all tokens + (attention for the class token, norm for the others), then normed tokens + (mlp for the"
        " class token, identity for the others): the skip is the whole tensor, so it counts in the first block too",
    ),
    "timm.models.xcit.XCABlock": Rule(3, "x + cross-covariance attention, x + local convolutions, x + mlp"),
    "timm.models.xcit.Xcit": Rule(0, _POSITION),
}

NOTES: dict[str, str] = {
    "rdnet, selecsls, vgg": "no sums: concatenation, or plain chains.",
    "timm.layers": "attention pools, channel attention, selective kernels, position bias modules have rules elsewhere.",
    "timm.models.volo": "whether a class attention sum is a block depends on its place, so the model counts them.",
    "timm.models.vision_transformer_hybrid": "no sums of its own: backbone (resnet or resnetv2) and vit blocks.",
    "vit_*_xp_*": "parallel scaling blocks without layer scale, two per layer; vit_pwee_* has it, one per layer.",
    "group norm in projections": (
        "resnet50_gn, regnety_040_sgn and the hybrids on resnetv2 without pre-activation: a group norm's statistics"
        " depend on the input, so a projection through it is no allowed skip and its sum closes no block."
    ),
}
