"""The residual blocks of networks that are written out here, and of published architectures.

The oracles are the definitions in `networks` and the numbers of blocks that the architectures' papers state.
"""

import pytest
import timm
import torch
import torchvision
from known_networks import CASES, unraveled
from networks import Highway, Residual, Vectors, mlp
from torch import nn

import resnet_paths_plugin as rpp


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_ones_that_were_written(name):
    net, _, _ = unraveled(name)
    found = [(block.name, block.skip_kind, block.branch_type) for block in net.blocks]
    assert found == [(known.name, known.skip_kind, known.branch_type) for known in CASES[name].blocks]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_blocks_do_not_depend_on_training_flags(name):
    case = CASES[name]
    in_eval = unraveled(name)[0].blocks
    in_training = rpp.unravel(case.model().train(), case.inputs()).blocks
    assert in_eval == in_training


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_blocks_are_found_without_memory(name):
    case = CASES[name]
    with torch.device("meta"):
        model, inputs = case.build(), tuple(torch.empty(3, *shape) for shape in case.shapes)
    found = [(b.name, b.skip_kind) for b in rpp.unravel(model, inputs).blocks]
    assert found == [(known.name, known.skip_kind) for known in case.blocks]


def test_facts_of_projection_blocks():
    case = CASES["post-activation"]
    plain, padded, projected, pooled = rpp.unravel(case.model(), case.inputs()).blocks
    assert [b.index for b in (plain, padded, projected, pooled)] == [0, 1, 2, 3]
    assert (padded.source_shape, padded.sum_shape) == ((4, 8, 8), (8, 4, 4))
    assert (projected.source_shape, projected.sum_shape) == ((8, 4, 4), (6, 2, 2))
    assert [b.depth for b in (plain, padded, projected, pooled)] == [2, 2, 2, 2]
    assert [b.movable for b in (plain, padded, projected, pooled)] == [True, False, False, False]
    assert [b.stage for b in (plain, padded, projected, pooled)] == [0, 1, 2, 2]


def test_depth_is_the_longest_chain_of_weighted_operations():
    case = CASES["transformer"]
    attention, mixing, *_ = rpp.unravel(case.model(), case.inputs()).blocks
    assert attention.depth == 3  # query-key-value, attention, projection
    assert mixing.depth == 2


def test_depth_of_an_outer_block_counts_the_blocks_inside_its_branch():
    case = CASES["nested"]
    *inner, outer = rpp.unravel(case.model(), case.inputs()).blocks
    assert [block.depth for block in inner] == [2, 2]
    assert outer.depth == 2 + 2 + 1


def test_blocks_of_one_layer_form_a_group():
    case = CASES["transformer"]
    groups = [block.group for block in rpp.unravel(case.model(), case.inputs()).blocks]
    assert groups == ["layers.0", "layers.0", "layers.1", "layers.1"]


def test_a_branch_without_weights_is_no_block():
    class Swish(nn.Module):
        def forward(self, x):
            return x + x.sigmoid() * x

    assert not rpp.unravel(Vectors(Swish()), torch.randn(3, 7)).blocks


def test_a_skip_through_an_activation_is_no_block():
    class Activated(Residual):
        def forward(self, x):
            return x.tanh() + self.branch(x)

    # The activation's value is what both read in the pre-activation form; here only the skip reads it.
    assert not rpp.unravel(Vectors(Activated(mlp())), torch.randn(3, 7)).blocks


def test_a_pre_activation_that_both_read_is_the_source():
    class PreActivated(Residual):
        def forward(self, x):
            y = x.tanh()
            return y + self.branch(y)

    (block,) = rpp.unravel(Vectors(PreActivated(mlp())), torch.randn(3, 7)).blocks
    assert block.skip_kind == "identity"
    assert block.source.startswith("tanh")


def test_a_permuted_and_reshaped_skip_is_an_identity():
    class Shuffled(Residual):
        def forward(self, x):
            y = self.branch(x).view(-1, 2, 3).transpose(1, 2)
            return (x.view(-1, 2, 3).transpose(1, 2) + y).reshape(-1, 6)

    (block,) = rpp.unravel(Vectors(Shuffled(mlp())), torch.randn(3, 7)).blocks
    assert block.skip_kind == "identity"


def test_one_slice_of_a_tensor_is_no_identity():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6, 3)

        def forward(self, x):
            return torch.cat([x[:, :3] + self.f(x), x[:, 3:]], 1)

    assert not rpp.unravel(Vectors(Sliced()), torch.randn(3, 7)).blocks


def test_dropout_on_the_skip_is_an_identity_in_eval_mode():
    class Dropped(Residual):
        def __init__(self, branch):
            super().__init__(branch)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x) + self.branch(x)

    (block,) = rpp.unravel(Vectors(Dropped(mlp())).train(), torch.randn(3, 7)).blocks
    assert block.skip_kind == "identity"


def test_two_gates_that_do_not_complement_each_other_are_no_highway():
    class TwoGates(Highway):
        def forward(self, x):
            gate = self.gate(x)
            return gate * self.transform(x) + (2 - gate) * x

    assert not rpp.unravel(Vectors(TwoGates()), torch.randn(3, 7)).blocks


def test_names_of_torchvision_resnet18():
    with torch.device("meta"):
        net = rpp.unravel(torchvision.models.resnet18())
    assert [b.name for b in net.blocks] == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [b.stage for b in net.blocks] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [b.skip_kind for b in net.blocks] == ["identity"] * 2 + ["projection", "identity"] * 3
    assert {b.branch_type for b in net.blocks} == {"convolution"}
    assert net.blocks[2].source_shape == (64, 56, 56)
    assert net.blocks[2].sum_shape == (128, 28, 28)


def test_names_of_torchvision_vit():
    with torch.device("meta"):
        net = rpp.unravel(torchvision.models.vit_b_16())
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    expected = [(f"{layer}.{part}", kind) for layer in layers
                for part, kind in (("self_attention", "attention"), ("mlp", "mlp"))]  # fmt: skip
    assert [(b.name, b.branch_type) for b in net.blocks] == expected
    assert [b.group for b in net.blocks] == [layer for layer in layers for _ in range(2)]


def test_a_table_lists_every_block_in_text_and_html():
    case = CASES["post-activation"]
    net = rpp.unravel(case.model(), case.inputs())
    text, markup = repr(net), net._repr_html_()
    for known in case.blocks:
        assert known.name in text
        assert f"<td>{known.name}</td>" in markup
    assert "4 residual blocks" in text
    assert list(net.table()["block"]) == [known.name for known in case.blocks]


def test_the_table_of_a_network_without_blocks_says_so():
    case = CASES["plain"]
    net = rpp.unravel(case.model(), case.inputs())
    assert "no residual blocks" in repr(net)
    assert "no residual blocks" in net._repr_html_()


# Numbers of blocks as the papers state them; HRNet's 18 basic and 5 bottleneck blocks are counted from its modules.
COUNTS = {
    "torchvision": {
        "resnet18": 8, "resnet50": 16, "resnet152": 50, "wide_resnet101_2": 33, "resnext50_32x4d": 16,
        "mobilenet_v2": 10, "mobilenet_v3_large": 10, "efficientnet_b0": 9, "regnet_y_400mf": 16,
        "convnext_tiny": 18, "vit_b_16": 24, "swin_t": 24, "maxvit_t": 55, "r3d_18": 8, "vgg16": 0,
        "densenet121": 0, "inception_v3": 0, "googlenet": 0,
    },
    "timm": {
        "inception_resnet_v2": 40, "convmixer_768_32": 32, "mixer_b16_224": 24, "resmlp_12_224": 24, "nfnet_f0": 12,
        "res2net50_26w_4s": 16, "seresnet50": 16, "resnetv2_50": 16, "dpn68": 22, "legacy_xception": 12,
        "beit_base_patch16_224": 24, "pit_ti_224": 24, "vit_small_patch16_18x2_224": 72, "repvgg_a0": 34,
        "hrnet_w18_small": 18 + 5,
    },
}  # fmt: skip
QUICK = {"resnet50", "mobilenet_v3_large", "regnet_y_400mf", "vgg16", "repvgg_a0"}
NOT_ON_META = {"regnet_y_400mf"}
"""Models whose constructors read the values of tensors that they have just made."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name"),
    [
        pytest.param(library, name, marks=() if name in QUICK else pytest.mark.zoo)
        for library, counts in COUNTS.items()
        for name in counts
    ],
)
def test_published_architectures_have_the_blocks_of_their_papers(library, name):
    builder = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}[library]
    options = {"init_weights": False} if name in {"inception_v3", "googlenet"} else {}  # their default warns
    with torch.device("cpu" if name in NOT_ON_META else "meta"):
        net = rpp.unravel(builder(name, **options))
    assert len(net.blocks) == COUNTS[library][name]


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["hrnet_w18_small"])
def test_fusion_sums_are_no_blocks(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        net = rpp.unravel(model)
    kinds = {"BasicBlock", "Bottleneck"}
    written = [path for path, module in model.named_modules() if type(module).__name__ in kinds]
    assert {block.module for block in net.blocks} == set(written)
