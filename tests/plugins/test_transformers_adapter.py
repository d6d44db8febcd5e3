"""Claims about the plugin for transformers: small models of 60 architectures, against their modeling code and autograd.

The numbers of blocks are read off each `modeling_*.py`, and those of `tests/wild/truth`; outputs and gradients are
compared with the models' own.
"""

import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import resnet_paths_plugin as rpp
import resnet_paths_transformers
from resnet_paths_plugin.plugins import manager as plugins

transformers = pytest.importorskip("transformers", reason="the plugin's library, extra 'transformers'")

pytestmark = pytest.mark.slow

BOTH = {"attention": 1, "mlp": 1}
DECODER = {"attention": 1, "cross_attention": 1, "mlp": 1}
CONVOLUTION = {"": 1}
SCANNED = {"mixer": 1, "mixer.scan": 1}

TEXTS = (
    "albert", "bert", "biogpt", "bloom", "codegen", "cohere", "convbert", "deberta-v2", "distilbert", "electra",
    "gemma2", "gemma3_text", "glm", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite", "llama", "mistral", "mixtral",
    "modernbert", "mpt", "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "roberta",
    "squeezebert", "stablelm", "starcoder2", "xlnet",
)  # fmt: skip
TRANSFORMERS = (
    "audio-spectrogram-transformer", "beit", "clip", "dinov2", "dinov2_with_registers", "ijepa", "patchtst",
    "timesformer", "videomae", "vit", "yolos",
)  # fmt: skip
TWO_TOWERS = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "whisper")

LAYERS = {
    **dict.fromkeys((*TEXTS, *TRANSFORMERS), [BOTH] * 2),
    **dict.fromkeys(TWO_TOWERS, [BOTH] * 2 + [DECODER] * 2),
    **dict.fromkeys(("mamba", "falcon_mamba"), [SCANNED] * 2),
    **dict.fromkeys(("convnext", "regnet", "resnet", "bit"), [CONVOLUTION] * 5),
    **dict.fromkeys(("swin", "swinv2"), [BOTH] * 3),
    **dict.fromkeys(("segformer", "pvt_v2"), [BOTH] * 5),
    "cvt": [BOTH] * 6,
    "falcon": [{"": 1}] * 2,  # attention and MLP are one branch: its dropout takes their sum
    "fnet": [{"mlp": 1}] * 2,  # a Fourier transform has no weights
    "focalnet": [{"modulation": 1, "mlp": 1}] * 5,
    "jamba": [{"mamba": 1, "mamba.scan": 1, "mlp": 1}] * 2,
    "levit": [{"attention": 1}, {"mlp": 1}, {"mlp": 1}] * 2 + [{"attention": 1}, {"mlp": 1}],
    "mobilenet_v2": [CONVOLUTION] * 10,
    "patchtsmixer": [{"patch_mixer": 1, "feature_mixer": 1}] * 2,
    "poolformer": [{"pooling": 1, "mlp": 1}] * 5,
    "wav2vec2": [{"encoder": 1}, *[BOTH] * 2],  # a convolution of positions before the layers
    "hubert": [{"encoder": 1}, *[BOTH] * 2],
}
"""By architecture, for each of its layers in execution order, what its branches are."""

FEW = ("bert", "falcon", "gpt2", "jamba", "mixtral", "swin", "t5", "vit", "wav2vec2", "whisper")
"""Looked at in every run: one for each way in which the others differ."""

NO_LAYER = "encoder"
"""What has a block and is no layer."""


@pytest.fixture(scope="module")
def manager():
    made = plugins.create_plugin_manager(entry_points=False)
    made.register(resnet_paths_transformers, name="transformers")
    return made


@pytest.fixture
def load(manager):
    def loaded(name, **options):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "transformers/.* is a small", UserWarning)
            torch.manual_seed(0)
            return plugins.load_model(f"transformers/{name}", plugin_manager=manager, **options).eval()

    return loaded


def randomised(model):
    """Draw what initialisation sets to zeros and ones, so that no branch is empty."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return model


def batch_for(description):
    """Return a random batch of what a description says that the model takes."""
    if not description.inputs:
        return torch.randn(2, *description.input_shape)
    return {
        name: torch.randn(2, *one.shape) if one.n_values is None else torch.randint(3, one.n_values, (2, *one.shape))
        for name, one in description.inputs.items()
    }


def run(module, batch):
    return module(**batch) if isinstance(batch, dict) else module(batch)


def leaves(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def first_score(outputs, _):
    """Return the sum of squares of each sample's first output."""
    return leaves(outputs)[0].float().square().flatten(1).sum(1)


def role_in(block):
    group, _, run_of = block.group.partition(":")
    name = block.name.removesuffix(f":{run_of}")
    return name.removeprefix(group).removeprefix(".") or ("encoder" if group.endswith(NO_LAYER) else "")


def by_layer(blocks):
    found = {}
    for block in blocks:
        found.setdefault(block.group, Counter())[role_in(block)] += 1
    return [dict(roles) for roles in found.values()]


def look(name, model, manager):
    net = rpp.unravel(model, plugin_manager=manager)
    assert by_layer(net.blocks) == LAYERS[name]
    assert len({block.name for block in net.blocks}) == len(net.blocks)
    assert all(model.get_submodule(block.group.partition(":")[0]) is not None for block in net.blocks)

    torch.manual_seed(1)
    batch = batch_for(net.description)
    with torch.no_grad():
        intact = leaves(run(model, {**batch, **net.description.arguments} if isinstance(batch, dict) else batch))
        for ours, theirs in zip(leaves(run(net, batch)), intact, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        for block in net.blocks:
            without = leaves(run(net.lesioned(block), batch))
            assert all(bool(leaf.isfinite().all()) for leaf in without)
            assert any(not torch.equal(one, other) for one, other in zip(without, intact, strict=True)), block.name
    return net, batch


def complete(net, batch):
    study = rpp.PathLengthGradient(net).attribute(batch, objective=first_score, tap="stem")
    assert float(study.gradient_norm.sum()) > 0
    return float(study.completeness_error.max())


def examine(name, load, manager):
    model = randomised(load(name))
    net, batch = look(name, model, manager)
    assert complete(net, batch) < 1e-5


def test_there_are_sixty_architectures():
    assert len(LAYERS) >= 60


@pytest.mark.parametrize("name", FEW)
def test_a_small_model_has_the_blocks_of_its_code_by_layer(name, load, manager):
    examine(name, load, manager)


@pytest.mark.wild
@pytest.mark.parametrize("name", sorted(LAYERS.keys() - set(FEW)))
def test_every_small_model_has_the_blocks_of_its_code_by_layer(name, load, manager):
    examine(name, load, manager)
