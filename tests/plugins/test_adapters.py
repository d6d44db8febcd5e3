"""Claims about the plugins for timm and torchvision, held against the libraries' own transforms and files."""

import socket
from math import floor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor

import resnet_paths_timm
import resnet_paths_torchvision
from resnet_paths_plugin.errors import ModelNotFoundError
from resnet_paths_plugin.plugins import manager as plugins

pytestmark = pytest.mark.slow

GOLDEN_RETRIEVER = 207


@pytest.fixture(scope="module")
def manager():
    made = plugins.create_plugin_manager(entry_points=False)
    made.register(resnet_paths_timm, name="timm")
    made.register(resnet_paths_torchvision, name="torchvision")
    return made


@pytest.fixture
def describe(manager):
    return lambda model: plugins.describe(model, manager)


@pytest.fixture
def load(manager):
    return lambda spec, **options: plugins.load_model(spec, plugin_manager=manager, **options)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Fail on any attempt to reach the network, and hide what an earlier one may have left."""

    def refuse(*arguments, **_):
        pytest.fail(f"reached for the network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((560, 400), Image.Resampling.BICUBIC)


def on_meta(build, *arguments, **options):
    with torch.device("meta"):
        return build(*arguments, **options)


def preprocessed(image, facts):
    """Follow a `Preprocessing` to the letter."""
    smaller_side = floor(min(facts.size) / facts.crop_fraction + 1e-6)
    image = resize(image, smaller_side, InterpolationMode(facts.interpolation))
    return normalize(to_tensor(center_crop(image, facts.size)), facts.mean, facts.std)


TIMM = [
    "resnet18",
    "resnet50",
    "convnext_atto",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "regnety_002",
    "mixer_s32_224",
    "inception_resnet_v2",
    "test_resnet",
]
TORCHVISION = [
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "efficientnet_b1",
    "vit_b_32",
    "swin_v2_t",
    "regnet_y_400mf",
    "mobilenet_v3_large",
    "maxvit_t",
]


# What an image becomes


@pytest.mark.parametrize("name", TIMM)
def test_timms_preprocessing_is_that_of_its_own_transforms(name, describe, photo):
    model = on_meta(timm.create_model, name)
    facts = describe(model)
    theirs = create_transform(**resolve_model_data_config(model))(photo)
    assert theirs.shape == facts.input_shape
    torch.testing.assert_close(preprocessed(photo, facts.preprocessing), theirs)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_preprocessing_is_that_of_its_default_weights(name, describe, photo):
    facts = describe(models.get_model(name))
    theirs = models.get_model_weights(name).DEFAULT.transforms()(photo)
    assert theirs.shape == facts.input_shape
    torch.testing.assert_close(preprocessed(photo, facts.preprocessing), theirs)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("vit_tiny_patch16_224", {"img_size": 96}, (3, 96, 96)),
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}, (3, 64, 96)),
        ("mixer_s32_224", {"img_size": 64}, (3, 64, 64)),
        ("resnet10t", {"in_chans": 1}, (1, 176, 176)),
        ("test_vit", {}, (3, 160, 160)),
    ],
)
def test_a_timm_model_takes_the_input_described(name, options, shape, describe):
    model = timm.create_model(name, **options).eval()
    facts = describe(model)
    assert facts.input_shape == shape
    with torch.no_grad():
        assert model(torch.zeros(2, *facts.input_shape)).shape == (2, 1000)
    if shape[0] == 3:
        assert facts.preprocessing.size == shape[1:]
    else:
        assert facts.preprocessing is None


@pytest.mark.parametrize("name", ["r3d_18", "mvit_v2_s"])
def test_a_torchvision_network_for_videos_takes_the_clip_described(name, describe):
    model = models.get_model(name).eval()
    facts = describe(model)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    clip = torch.zeros(1, 16, 3, 200, 300, dtype=torch.uint8)
    assert preset(clip).shape[1:] == facts.input_shape
    with torch.no_grad():
        assert model(preset(clip)).shape == (1, len(facts.class_names))
    assert facts.class_names[0] == "abseiling"


@pytest.mark.parametrize("size", [96, 384])
def test_torchvisions_vision_transformer_takes_the_size_it_was_built_for(size, describe):
    model = on_meta(models.vit_b_16, image_size=size)
    facts = describe(model)
    assert facts.architecture == "vit_b_16"
    assert facts.input_shape == (3, size, size)
    assert facts.preprocessing.size == (size, size)
    swag = models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms()
    assert (facts.preprocessing.interpolation == swag.interpolation.value) == (size == 384)


def test_a_torchvision_model_with_another_stem_is_described_as_it_is(describe):
    model = on_meta(models.resnet18)
    model.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    facts = describe(model)
    assert facts.input_shape == (4, 224, 224)
    assert facts.preprocessing is None


def test_segmentation_has_images_and_detection_has_none(describe):
    facts = describe(on_meta(models.segmentation.lraspp_mobilenet_v3_large, weights_backbone=None))
    assert facts.input_shape == (3, 520, 520)
    assert len(facts.class_names) == 21
    facts = describe(on_meta(models.detection.maskrcnn_resnet50_fpn, weights_backbone=None))
    assert (facts.input_shape, facts.preprocessing, facts.class_names) == (None, None, None)


# What a model is called and tells apart


@pytest.mark.parametrize(
    "name",
    [
        "resnet34",
        "wide_resnet50_2",
        "resnext50_32x4d",
        "regnet_x_400mf",
        "vgg11_bn",
        "mobilenet_v3_small",
        "efficientnet_b1",
        "efficientnet_v2_s",
        "swin_t",
        "swin_v2_s",
        "vit_l_32",
        "maxvit_t",
        "r2plus1d_18",
        "fcn_resnet50",
        "quantized_resnet18",
    ],
)
@pytest.mark.parametrize("classes", [None, 7])
def test_torchvisions_builder_is_recognised_also_with_other_classes(name, classes, describe):
    options = {"weights_backbone": None} if name.startswith("fcn") else {}
    if classes:
        options["num_classes"] = classes
    with torch.device("cpu" if "regnet" in name else "meta"):  # torchvision computes a RegNet's layout
        facts = describe(models.get_model(name, **options))
    assert facts.architecture == name
    expected = models.get_model_weights(name).DEFAULT.meta["categories"]
    assert facts.class_names == (None if classes else tuple(expected))


def test_another_classifier_leaves_the_architecture_and_takes_the_class_names(describe):
    ours, theirs = on_meta(models.resnet18), on_meta(timm.create_model, "resnet18")
    for model in (ours, theirs):
        model.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 2))
        facts = describe(model)
        assert (facts.architecture, facts.class_names) == ("resnet18", None)
    theirs.fc = nn.Linear(512, 2)  # timm's own record of the number of classes is stale now
    assert describe(theirs).class_names is None


def test_a_network_that_no_builder_makes_is_called_by_its_class(describe):
    facts = describe(models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]))
    assert (facts.library, facts.architecture) == ("torchvision", "ResNet")
    assert (facts.input_shape, facts.preprocessing, facts.class_names) == (None, None, None)
    assert facts.stages == {"layer1": 0, "layer2": 1, "layer3": 2, "layer4": 3}
    facts = describe(timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1]))
    assert (facts.library, facts.architecture, facts.input_shape) == ("timm", "ResNet", None)
    assert facts.stages == {"layer1": 0, "layer2": 1, "layer3": 2, "layer4": 3}


def test_twins_among_torchvisions_builders_are_told_apart_only_if_loaded_here(describe, load):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    assert describe(load(f"torchvision/{name}")).architecture == name
    unknown = on_meta(models.get_model, name, weights_backbone=None)
    assert describe(unknown).architecture == "FasterRCNN"


def test_describing_draws_no_random_numbers_and_builds_no_weights(describe):
    model = on_meta(models.video.mvit_v1_b)
    resnet_paths_torchvision.builders._built_trunk.cache_clear()
    before = torch.random.get_rng_state()
    assert describe(model).architecture == "mvit_v1_b"
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 8, 3))])
def test_models_of_no_library_are_left_to_others(model, describe):
    assert describe(model) is None


def test_versions_are_the_libraries_own(describe):
    from importlib.metadata import version

    facts = describe(on_meta(timm.create_model, "test_resnet"))
    assert (facts.library, facts.library_version) == ("timm", version("timm"))
    facts = describe(on_meta(models.resnet18))
    assert facts.library == "torchvision"
    assert facts.library_version.split("+")[0] == version("torchvision").split("+")[0]


def test_class_names_are_in_the_order_of_the_outputs(describe):
    timms = describe(on_meta(timm.create_model, "resnet18")).class_names
    assert (len(timms), timms[GOLDEN_RETRIEVER]) == (1000, "golden retriever")
    many = describe(on_meta(timm.create_model, "tiny_vit_5m_224.dist_in22k")).class_names
    assert (len(many), len(set(many)) > 20000) == (21841, True)
    assert describe(on_meta(timm.create_model, "resnet18", num_classes=10)).class_names is None
    assert describe(on_meta(timm.create_model, "resnet18", num_classes=0)).class_names is None


def test_class_names_that_come_with_the_weights_go_first(describe):
    model = timm.create_model("test_resnet", num_classes=2, pretrained_cfg_overlay={"label_names": ["cat", "dog"]})
    assert describe(model).class_names == ("cat", "dog")


# Models by name


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("timm/test_resnet", timm.models.ResNet),
        ("timm/resnet18.a1_in1k", timm.models.ResNet),
        ("torchvision/resnet18", models.ResNet),
        ("torchvision/fcn_resnet50", models.segmentation.FCN),
        ("torchvision/ssdlite320_mobilenet_v3_large", models.detection.ssd.SSD),
        ("torchvision/googlenet", models.GoogLeNet),  # these two warn of a default that is left out
        ("torchvision/inception_v3", models.Inception3),
    ],
)
def test_a_model_without_pretrained_weights_is_built_without_the_network(spec, kind, load, offline):
    model = load(spec)
    assert type(model) is kind
    assert model.training
    assert list(offline.iterdir()) == []


def test_torchvisions_pretrained_weights_are_those_of_its_file(load, offline):
    weights = models.ResNet18_Weights.DEFAULT
    state = models.resnet18().state_dict()
    cache = offline / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / weights.url.rpartition("/")[2])
    loaded = load("torchvision/resnet18", pretrained=True).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_timms_pretrained_weights_are_those_of_its_folder(load, describe, offline):
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    save_file(state, offline / "model.safetensors")
    (offline / "config.json").write_text(
        '{"architecture": "test_resnet", "num_classes": 2, "label_names": ["cat", "dog"],'
        ' "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1],'
        ' "num_classes": 2, "classifier": "fc", "first_conv": "conv1.0"}}'
    )
    model = load(f"timm/local-dir:{offline}", pretrained=True)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    facts = describe(model)
    assert (facts.input_shape, facts.class_names) == ((3, 32, 32), ("cat", "dog"))
    assert facts.preprocessing.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm/resnet51", "timm .* has no model 'resnet51'; the nearest names are .*resnet50"),
        ("timm/zzzzzzzz", "has no model 'zzzzzzzz'; timm.list_models"),
        ("timm/test_resnet.nope", "has no weights 'nope' for 'test_resnet'; it has test_resnet.r160_in1k"),
        ("torchvision/resnet51", "torchvision .* has no model 'resnet51'; the nearest names are .*resnet50"),
        ("torchvision/ResNet50", "has no model 'ResNet50'; the nearest names are resnet50"),
        ("torchvision/zzzzzzzz", r"has no model 'zzzzzzzz'; list_models\(\)"),
        ("torchvison/resnet50", "Did you mean 'torchvision/resnet50'.*here: timm, torchvision"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(spec, message, load):
    with pytest.raises(ModelNotFoundError, match=message):
        load(spec)


def test_timm_models_without_pretrained_weights_say_so(load):
    without = next(name for name in timm.list_models("vit_*") if not timm.is_model_pretrained(name))
    with pytest.raises(ModelNotFoundError, match=f"has no pretrained weights for '{without}'"):
        load(f"timm/{without}", pretrained=True)


def test_older_versions_of_timm_are_described_from_the_model_itself(describe, monkeypatch):
    monkeypatch.delattr(timm.models, "get_model_input_config")
    assert describe(on_meta(timm.create_model, "vit_tiny_patch16_224", img_size=96)).input_shape == (
        3,
        96,
        96,
    )
    assert describe(on_meta(timm.create_model, "resnet18", in_chans=1)).input_shape == (1, 224, 224)
    assert describe(on_meta(timm.create_model, "maxvit_tiny_tf_224", img_size=128)).input_shape == (
        3,
        128,
        128,
    )
