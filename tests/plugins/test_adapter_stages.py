"""Claims about stages, held against the numbers of blocks in the tables of the papers."""

from collections import Counter

import pytest
import timm
import torch
from torchvision import models

import resnet_paths_timm
import resnet_paths_torchvision
from resnet_paths_plugin.plugins import manager as plugins

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def manager():
    made = plugins.create_plugin_manager(entry_points=False)
    made.register(resnet_paths_timm, name="timm")
    made.register(resnet_paths_torchvision, name="torchvision")
    return made


@pytest.mark.parametrize(
    ("spec", "kind", "numbers"),
    [
        ("timm/resnet50", "Bottleneck", (3, 4, 6, 3)),
        ("timm/convnext_tiny", "ConvNeXtBlock", (3, 3, 9, 3)),
        ("timm/swin_tiny_patch4_window7_224", "SwinTransformerBlock", (2, 2, 6, 2)),
        ("timm/mobilenetv2_100", "InvertedResidual|DepthwiseSeparableConv", (1, 2, 3, 4, 3, 3, 1)),
        ("timm/efficientnet_b0", "InvertedResidual|DepthwiseSeparableConv", (1, 2, 2, 3, 3, 4, 1)),
        ("timm/vit_tiny_patch16_224", "Block", (12,)),
        ("timm/convmixer_768_32", "Residual", (32,)),
        ("timm/regnety_004", "Bottleneck", (1, 3, 6, 6)),
        ("timm/twins_svt_small", "Block", (2, 2, 10, 4)),
        ("timm/hiera_tiny_224", "HieraBlock", (1, 2, 7, 2)),
        ("timm/cait_xxs24_224", "LayerScaleBlock|LayerScaleBlockClassAttn", (24, 2)),
        ("timm/pit_ti_224", "Block", (2, 6, 4)),
        ("timm/dpn68", "DualPathBlock", (3, 4, 12, 3)),
        ("timm/inception_resnet_v2", "Block35|Block17|Block8", (10, 20, 10)),
        ("timm/legacy_xception", "Block", (3, 8, 1)),
        ("timm/tresnet_m", "BasicBlock|Bottleneck", (3, 4, 11, 3)),
        ("timm/legacy_seresnet18", "SEResNetBlock", (2, 2, 2, 2)),
        ("torchvision/resnet50", "Bottleneck", (3, 4, 6, 3)),
        ("torchvision/convnext_tiny", "CNBlock", (3, 3, 9, 3)),
        ("torchvision/swin_t", "SwinTransformerBlock", (2, 2, 6, 2)),
        ("torchvision/mobilenet_v2", "InvertedResidual", (1, 2, 3, 4, 3, 3, 1)),
        ("torchvision/mobilenet_v3_large", "InvertedResidual", (1, 2, 3, 4, 2, 3)),
        ("torchvision/efficientnet_b0", "MBConv", (1, 2, 2, 3, 3, 4, 1)),
        ("torchvision/mnasnet1_0", "_InvertedResidual", (3, 3, 3, 2, 4, 1)),
        ("torchvision/regnet_y_400mf", "ResBottleneckBlock", (1, 3, 6, 6)),
        ("torchvision/vit_b_32", "EncoderBlock", (12,)),
        ("torchvision/maxvit_t", "MaxVitLayer", (2, 2, 5, 2)),
        ("torchvision/r3d_18", "BasicBlock", (2, 2, 2, 2)),
        ("torchvision/mvit_v2_s", "MultiscaleBlock", (1, 2, 11, 2)),
        ("torchvision/fcn_resnet50", "Bottleneck", (3, 4, 6, 3)),
        ("torchvision/deeplabv3_mobilenet_v3_large", "InvertedResidual", (1, 2, 3, 4, 2, 3)),
    ],
)
def test_each_stage_has_the_number_of_blocks_in_the_paper(spec, kind, numbers, manager):
    with torch.device("cpu" if "regnet" in spec else "meta"):  # torchvision computes a RegNet's layout
        model = plugins.load_model(spec, plugin_manager=manager)
    facts = plugins.describe(model, manager)
    blocks = [path for path, module in model.named_modules() if type(module).__name__ in kind.split("|")]
    counts = Counter(facts.stage_of(path) for path in blocks)
    assert counts == dict(enumerate(numbers))


def test_a_downsampling_layer_belongs_to_the_stage_that_it_leads_to(manager):
    facts = plugins.describe(models.convnext_tiny(), manager)
    assert [facts.stage_of(f"features.{place}") for place in range(8)] == [None, 0, 1, 1, 2, 2, 3, 3]
    facts = plugins.describe(timm.create_model("volo_d1_224"), manager)
    assert [facts.stage_of(f"network.{place}") for place in range(5)] == [0, 1, 1, 2, 3]


def test_a_feature_extractor_of_timm_has_the_stages_of_its_model(manager):
    facts = plugins.describe(timm.create_model("convnext_atto", features_only=True), manager)
    assert facts.architecture == "convnext_atto"
    assert [facts.stage_of(f"stages_{stage}.blocks.0") for stage in range(4)] == [0, 1, 2, 3]
