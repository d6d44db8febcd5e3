"""Blocks of every adding class in timm's model files whose names begin with g to p."""

from typing import Any

from . import Rule


def _metaformer_blocks(block: Any) -> int:
    """The MLP's sum, and the mixer's unless it only pools beside a scaled skip."""
    pools = type(block.token_mixer).__name__ == "Pooling"
    identity_skip = type(block.res_scale1).__name__ == "Identity"
    return 1 + int(identity_skip or not pools)


def _repeated_convs(block: Any) -> int:
    """Runs of the convolution block beyond the first of each instance (one instance stands several times in a list)."""
    if not hasattr(block.conv, "__len__"):
        return 0
    return len(block.conv) - len(set(block.conv))


RULES: dict[str, Rule] = {
    # gcvit
    "timm.models.gcvit.MbConvBlock": Rule(1, "depthwise, gate and 1x1 added to the input"),
    "timm.models.gcvit.GlobalContextVitBlock": Rule(2, "window attention, then MLP, each added to its input"),
    # gemma4_vit
    "timm.models.gemma4_vit.Gemma4PatchEmbed": Rule(0, "table of positions; the pixels are shifted by a constant"),
    "timm.models.gemma4_vit.Gemma4Attention": Rule(0, "rotary embedding of q and k; mask on the attention scores"),
    "timm.models.gemma4_vit.Gemma4Block": Rule(
        2, "attention, then gated MLP; norms before and after stay in the branch"
    ),
    "timm.models.gemma4_vit.Gemma4VisionPooler": Rule(0, "adds grid indices only"),
    "timm.models.gemma4_vit.Gemma4VitEncoder": Rule(0, "shift by a buffer; mean over tokens"),
    "timm.models.gemma4_vit.Gemma4VitClassifier": Rule(0, "mean over tokens"),
    # ghostnet
    "timm.models.ghostnet.GhostBottleneck": Rule(
        1, "two ghost modules beside identity or depthwise + 1x1 (two weighted operations; the branch has four or more)"
    ),
    "timm.models.ghostnet.GhostBottleneckV3": Rule(
        1,
        "hard: outer sum as in version 1; the strided depthwise layers summed inside have one operation each, the 1x1 "
        "too: none is deeper than another",
    ),
    "timm.models.ghostnet.GhostModuleV3": Rule(
        lambda m: 0 if m.infer_mode else 1 + len(m.cheap_rpr_conv),
        "hard: cheap operation = batch norm of x (scaled skip) + 1x1 + three 3x3 depthwise: a branch each; the primary "
        "convolutions run side by side without skip",
    ),
    # hgnet
    "timm.models.hgnet.LearnableAffineBlock": Rule(0, "scale and shift by parameters"),
    "timm.models.hgnet.HighPerfGpuBlock": Rule(
        lambda m: int(m.residual), "aggregated chain of convolutions + input, in all but a stage's first block"
    ),
    # hiera
    "timm.models.hiera.HieraBlock": Rule(
        2,
        "hard: attention and MLP; where the width grows the skip is linear + window maximum of the normed input (which "
        "attention reads too), or maximum and mean of the windows concatenated: both read as projections",
    ),
    "timm.models.hiera.Hiera": Rule(0, "position embeddings"),
    # hieradet_sam2
    "timm.models.hieradet_sam2.MultiScaleBlock": Rule(
        2, "attention and MLP; where the width grows: linear and max pooling of the normed input that attention reads"
    ),
    "timm.models.hieradet_sam2.HieraDet": Rule(0, "position embeddings"),
    # hrnet
    "timm.models.hrnet.HighResolutionModule": Rule(
        0,
        "hard: exchange of resolutions; each stream ends in a ReLU, and what comes from the others is not computed "
        "from the stream's own last value",
    ),
    "timm.models.hrnet.HighResolutionNet": Rule(0, "head adds a downsampled map to the next stream's: fusion of two"),
    # iformer
    "timm.models.iformer.RepVitClassifier": Rule(0, "mean of two linear heads of equal depth"),
    "timm.models.iformer.Residual": Rule(1, "x + module(x): attention, MLP, convolutions or position convolution"),
    # inception_next
    "timm.models.inception_next.MetaNeXtBlock": Rule(1, "token mixer and MLP added to the input"),
    # inception_resnet_v2
    "timm.models.inception_resnet_v2.Block35": Rule(1, "scaled inception branch + input"),
    "timm.models.inception_resnet_v2.Block17": Rule(1, "scaled inception branch + input"),
    "timm.models.inception_resnet_v2.Block8": Rule(1, "scaled inception branch + input; the last one without ReLU"),
    # lcnetv2
    "timm.models.lcnetv2.RepDepthwiseSeparable": Rule(
        lambda m: int(m.use_shortcut),
        "hard: outer shortcut only; the parallel depthwise convolutions (1x1 among them) have one operation each and "
        "no identity beside them",
    ),
    # levit
    "timm.models.levit.Attention": Rule(0, "bias of the attention scores"),
    "timm.models.levit.AttentionDownsample": Rule(0, "bias of the attention scores; not residual"),
    "timm.models.levit.LevitDownsample": Rule(1, "MLP after the (not residual) downsampling attention"),
    "timm.models.levit.LevitBlock": Rule(2, "attention, then MLP"),
    "timm.models.levit.LevitDistilled": Rule(0, "mean of two linear heads of equal depth"),
    # lowformer
    "timm.models.lowformer.ResidualBlock": Rule(
        lambda m: int(m.shortcut is not None), "main(x) + identity; without a shortcut it only runs main"
    ),
    # mambaout
    "timm.models.mambaout.GatedConvBlock": Rule(1, "gated convolution + input"),
    # maxxvit
    "timm.models.maxxvit.Attention2d": Rule(0, "bias of the attention scores"),
    "timm.models.maxxvit.AttentionCl": Rule(0, "bias of the attention scores"),
    "timm.models.maxxvit.TransformerBlock2d": Rule(
        2, "attention and MLP; with stride the first skip is pooling (+ 1x1), attention has three operations or more"
    ),
    "timm.models.maxxvit.MbConvBlock": Rule(1, "inverted bottleneck beside identity or pooling (+ 1x1)"),
    "timm.models.maxxvit.ConvNeXtBlock": Rule(1, "depthwise and MLP beside identity, 1x1 or pooling (+ 1x1)"),
    "timm.models.maxxvit.PartitionAttentionCl": Rule(2, "window or grid attention, then MLP"),
    "timm.models.maxxvit.ParallelPartitionAttention": Rule(
        2, "window and grid attention are concatenated, one sum; then MLP"
    ),
    "timm.models.maxxvit.PartitionAttention2d": Rule(2, "window or grid attention, then MLP"),
    "timm.models.maxxvit.ParallelMaxxVitBlock": Rule(
        _repeated_convs, "adds nothing itself; counts further runs of a convolution block listed more than once"
    ),
    # metaformer
    "timm.models.metaformer.StarReLU": Rule(0, "shift by a parameter"),
    "timm.models.metaformer.Pooling": Rule(
        0,
        "hard: pool(x) - x has no weighted operation, and the operand x enters times -1: pooling counts against an "
        "identity only",
    ),
    "timm.models.metaformer.MetaFormerBlock": Rule(
        _metaformer_blocks,
        "hard: mixer and MLP; a pooling mixer closes a block against an identity only, so not where the skip is scaled "
        "by a parameter (last two stages of PoolFormerV2)",
    ),
    # mlp_mixer
    "timm.models.mlp_mixer.MixerBlock": Rule(2, "MLP over tokens, then over channels"),
    "timm.models.mlp_mixer.Affine": Rule(0, "scale and shift by parameters"),
    "timm.models.mlp_mixer.ResBlock": Rule(2, "linear over tokens, then MLP over channels"),
    "timm.models.mlp_mixer.SpatialGatingBlock": Rule(1, "one MLP with a spatial gate inside"),
    # mobilevit
    "timm.models.mobilevit.LinearSelfAttention": Rule(0, "sum over positions of one tensor"),
    "timm.models.mobilevit.LinearTransformerBlock": Rule(2, "linear attention, then MLP"),
    # mvitv2
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": Rule(
        lambda m: int(m.residual_pooling),
        "hard: attention's value + query; relative positions on the scores close none",
    ),
    "timm.models.mvitv2.MultiScaleAttention": Rule(
        lambda m: int(m.residual_pooling),
        "hard: query + attention(query, ...): identity of the pooled, normed query, which the branch reads through "
        "both matrix products; relative positions on the scores close none",
    ),
    "timm.models.mvitv2.MultiScaleBlock": Rule(
        2,
        "hard: attention and MLP; skip identity, max pooling (a class token goes round it and is put back), or linear "
        "of the normed input that the branch reads too",
    ),
    "timm.models.mvitv2.MultiScaleVit": Rule(0, "position embedding"),
    # naflexvit
    "timm.models.naflexvit.NaFlexEmbeds": Rule(0, "position embeddings, some added in place"),
    "timm.models.naflexvit.NaFlexVit": Rule(0, "pooling of tokens (mean of mean and maximum)"),
    # nasnet
    "timm.models.nasnet.CellStem0": Rule(
        3,
        "hard: of five sums the last, max pooling of the 1x1's output beside a separable chain on a sum that holds it, "
        "and the two whose poolings of the 1x1 of ReLU(x) stand beside a separable chain from ReLU(x). Corrected after "
        "the first run, which counted those as none: as in dual path nets, a projection may have a pre-activation of "
        "its own, and this one is even the value that the branch begins with",
    ),
    "timm.models.nasnet.CellStem1": Rule(
        1, "hard: as the first stem cell: only max pooling of the left input beside a separable chain from it"
    ),
    "timm.models.nasnet.FirstCell": Rule(
        1,
        "hard: only the last sum adds a value to its own separable branch; the others mix left and right, or poolings",
    ),
    "timm.models.nasnet.NormalCell": Rule(
        1,
        "hard: only the last sum adds a value to its own separable branch; the others mix left and right, or poolings",
    ),
    "timm.models.nasnet.ReductionCell0": Rule(
        1, "hard: only max pooling of the right input beside a separable chain on a sum computed from it"
    ),
    "timm.models.nasnet.ReductionCell1": Rule(
        1, "hard: only max pooling of the right input beside a separable chain on a sum computed from it"
    ),
    # nest
    "timm.models.nest.TransformerLayer": Rule(2, "attention, then MLP"),
    "timm.models.nest.NestLevel": Rule(0, "position embedding"),
    # nextvit
    "timm.models.nextvit.NextConvBlock": Rule(2, "convolutional attention, then MLP, after the patch embedding"),
    "timm.models.nextvit.NextTransformerBlock": Rule(
        3, "attention; convolutional attention on its projection; MLP on both concatenated"
    ),
    # nfnet
    "timm.models.nfnet.NormFreeBlock": Rule(
        1, "branch times alpha beside identity, or pooling + 1x1 of the activated input that the branch reads too"
    ),
    # pit
    "timm.models.pit.PoolingVisionTransformer": Rule(0, "position embedding; mean of two linear heads of equal depth"),
    # pnasnet
    "timm.models.pnasnet.CellStem0": Rule(
        3,
        "hard: separable branch beside pooling + 1x1, beside pooling, and on a sum beside pooling; two separables, and "
        "left beside a 1x1 of right, are none",
    ),
    "timm.models.pnasnet.Cell": Rule(
        3,
        "hard: three sums of max pooling of left or right and separables from it; two separables, and separable of "
        "left beside right, are none",
    ),
    # pvt_v2
    "timm.models.pvt_v2.Block": Rule(2, "attention, then MLP with a depthwise convolution inside"),
}

NOTES: dict[str, str] = {
    "ghostnetv3": "as trained, with parallel branches; once merged (reparameterize) the ghost modules have no blocks",
    "gemma4_vit": "rotary angles come from a matrix product of positions, not of features",
    "hardcorenas, mobilenetv3, mobilenetv5": "no adding class here: blocks are those of the efficientnet builder; the "
    "multi-scale adapter of mobilenetv5 concatenates",
    "hrnet": "its residual blocks are resnet's; features_only builds another class with the same streams, whose "
    "increase modules run for every stream, read or not",
    "iformer, nextvit": "as trained; merged position convolutions and norms leave other sums",
    "inception_v3, inception_v4": "no sums; the auxiliary head runs in training only",
    "mobilevit": "outer blocks are byobnet's; the first version's transformer blocks are vision_transformer's",
    "naflexvit, pit": "blocks are vision_transformer's or eva's",
    "nasnetalarge": "3 + 1 stem, 3 first, 15 normal, 2 reduction cells, of the last three kinds one each: 24",
    "pnasnet5large": "13 cells and a stem cell: three each, 42",
    "poolformerv2": "the mixers of stages 3 and 4 pool beside a scaled skip and are not counted; if such a skip were "
    "allowed, every MetaFormer block would have two",
}
