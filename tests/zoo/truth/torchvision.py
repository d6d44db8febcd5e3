"""Residual blocks by class for torchvision's models (image, video, segmentation, detection, optical flow) and ops."""

from typing import Any

from . import Rule

_MIXING_NORMS = ("GroupNorm", "LayerNorm", "InstanceNorm")


def _unit(shortcut: Any) -> int:
    """One block if a shortcut is missing (identity) or an affine map; none if it normalises by its own statistics."""
    if shortcut is None:
        return 1
    return int(not any(norm in type(part).__name__ for part in shortcut.modules() for norm in _MIXING_NORMS))


_UPDATES = 12  # the default number of flow updates of a RAFT model

_POSITION = "position embedding is a parameter: no skip"
_BIAS = "relative position bias and mask are parameters or constants, added to scores: no block"
_SHORTCUT = "act(branch + shortcut), shortcut identity or 1x1 convolution with (frozen) batch norm"
_IF_SHAPES_AGREE = "branch + input, only where stride is 1 and widths agree"
_TWO = "x + attention(x) and x + mlp(x)"
_BOXES = "shifts of boxes and anchors, made from slices of coordinates or constants: no block"

RULES: dict[str, Rule] = {
    # image
    "torchvision.models.convnext.CNBlock": Rule(1, "x + scaled(depthwise convolution, two linear layers)"),
    "torchvision.models.efficientnet.MBConv": Rule(lambda m: int(m.use_res_connect), _IF_SHAPES_AGREE),
    "torchvision.models.efficientnet.FusedMBConv": Rule(
        lambda m: int(m.use_res_connect), _IF_SHAPES_AGREE + "; one convolution is enough for a branch"
    ),
    "torchvision.models.googlenet.GoogLeNet": Rule(0, "input channels scaled and shifted by constants"),
    "torchvision.models.inception.Inception3": Rule(0, "input channels scaled and shifted by constants"),
    "torchvision.models.maxvit.MBConv": Rule(
        lambda m: _unit(m.proj), "inverted bottleneck + identity or (average pooling and) 1x1 convolution"
    ),
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": Rule(0, _BIAS),
    "torchvision.models.maxvit.PartitionAttentionLayer": Rule(2, _TWO + ", on windows or grids"),
    "torchvision.models.mnasnet._InvertedResidual": Rule(lambda m: int(m.apply_residual), _IF_SHAPES_AGREE),
    "torchvision.models.mobilenetv2.InvertedResidual": Rule(lambda m: int(m.use_res_connect), _IF_SHAPES_AGREE),
    "torchvision.models.mobilenetv3.InvertedResidual": Rule(lambda m: int(m.use_res_connect), _IF_SHAPES_AGREE),
    "torchvision.models.regnet.ResBottleneckBlock": Rule(lambda m: _unit(m.proj), _SHORTCUT),
    "torchvision.models.resnet.BasicBlock": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "torchvision.models.resnet.Bottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "torchvision.models.swin_transformer.ShiftedWindowAttention": Rule(0, _BIAS),
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": Rule(0, _BIAS),
    "torchvision.models.swin_transformer.SwinTransformerBlock": Rule(2, _TWO),
    "torchvision.models.swin_transformer.SwinTransformerBlockV2": Rule(2, _TWO + ", layer norms end the branches"),
    "torchvision.models.vision_transformer.EncoderBlock": Rule(2, _TWO),
    "torchvision.models.vision_transformer.Encoder": Rule(0, _POSITION),
    # video
    "torchvision.models.video.mvit.MultiscaleAttention": Rule(
        lambda m: int(m.residual_pool),
        "hard: attention + pooled query: identity skip of the query, two products in the branch; where the class token"
        " is left out (mvit_v2_s) the skip is the query without it, from which the position bias is computed too (at"
        " first it had been taken for a part of a tensor). Position bias: none, its products with the query are as"
        " deep as the scores",
    ),
    "torchvision.models.video.mvit.MultiscaleBlock": Rule(
        2,
        "hard: (max-pooled) input + attention, sum + mlp; where widths change, the skip is a linear layer of the normed"
        " tensor (the source then), 1 weighted against more. Pooling splits off the class token and puts"
        " it back, so the skip keeps all parts",
    ),
    "torchvision.models.video.mvit.PositionalEncoding": Rule(0, _POSITION),
    "torchvision.models.video.resnet.BasicBlock": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "torchvision.models.video.resnet.Bottleneck": Rule(lambda m: _unit(m.downsample), _SHORTCUT),
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": Rule(0, _BIAS),
    # segmentation
    "torchvision.models.segmentation.lraspp.LRASPPHead": Rule(
        1,
        "hard: 1x1 classifier of the low features + classifier of the high ones: weighted skip of depth 1, the high"
        " features come from the low ones through the rest of the backbone, and nothing in between is read elsewhere",
    ),
    # detection
    "torchvision.models.detection.anchor_utils.AnchorGenerator": Rule(0, _BOXES),
    "torchvision.models.detection.anchor_utils.DefaultBoxGenerator": Rule(0, _BOXES),
    "torchvision.models.detection.fcos.FCOS": Rule(0, _BOXES),
    "torchvision.models.detection.retinanet.RetinaNet": Rule(0, _BOXES),
    "torchvision.models.detection.roi_heads.RoIHeads": Rule(
        0, _BOXES + ". hard: box centres + predicted shifts read the proposals, but by single columns"
    ),
    "torchvision.models.detection.rpn.RegionProposalNetwork": Rule(0, _BOXES),
    "torchvision.models.detection.ssd.SSD": Rule(0, _BOXES),
    "torchvision.models.detection.transform.GeneralizedRCNNTransform": Rule(
        0, "images shifted and scaled by constants"
    ),
    "torchvision.ops.feature_pyramid_network.FeaturePyramidNetwork": Rule(
        0, "lateral sums: weighted skips whose branch is read outside (the levels above are outputs)"
    ),
    "torchvision.ops.misc.FrozenBatchNorm2d": Rule(0, "scale and shift by constants"),
    # optical flow
    "torchvision.models.optical_flow.raft.ResidualBlock": Rule(
        lambda m: _unit(m.downsample),
        "act(x + two convolutions); hard: a projection through instance norm (feature encoder) is not affine, so none",
    ),
    "torchvision.models.optical_flow.raft.BottleneckBlock": Rule(
        lambda m: _unit(m.downsample),
        "act(x + three convolutions); hard: a projection through instance norm (feature encoder) is not affine: none;"
        " a bare convolution (context encoder of raft_small) is",
    ),
    "torchvision.models.optical_flow.raft.ConvGRU": Rule(
        _UPDATES, "gated: (1 - z) h + z q, once per flow update of one forward pass (12 by default)"
    ),
    "torchvision.models.optical_flow.raft.CorrBlock": Rule(0, "sampling coordinates + constant neighbourhood"),
    "torchvision.models.optical_flow.raft.RAFT": Rule(
        _UPDATES - 1,
        "hard: coordinates + predicted shift per update: identity skip (detached, same values), the shift is computed"
        " from these coordinates; the first update adds to a constant grid: none. Differences to that grid: none",
    ),
}

NOTES: dict[str, str] = {
    "alexnet, vgg, squeezenet, densenet, googlenet, inception, shufflenet, s3d": "no sums but constants: 0 blocks.",
    "shufflenet": "skips are concatenated and shuffled, never added.",
    "raft_large": "feature encoder 4 (6 less 2 projections by instance norm), context encoder 6, 2 x 12 gated, 11.",
    "raft_small": "feature encoder 4 (6 less 2 projections by instance norm), context encoder 6, 12 gated, 11.",
    "segmentation": "backbone blocks only, but for lraspp's head; auxiliary heads have no sums.",
    "detection": "backbone blocks only. ssdlite takes one strided block of its backbone apart; that block has no sum.",
    "quantization": "not covered.",
}
