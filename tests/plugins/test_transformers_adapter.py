"""Claims about the plugin for transformers: small models of 60 architectures, against their modeling code and autograd.

The numbers of blocks are read off each `modeling_*.py`, and those of `tests/wild/truth`; outputs and gradients are
compared with the models' own.
"""

import json
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import resnet_paths_plugin as rpp
import resnet_paths_transformers
from resnet_paths_plugin.errors import CaptureError, ModelNotFoundError
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.model_description import ModelInput

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
    # Two samples at a time: torch's own backward pass of a batch norm is wrong for one image of Cvt, laid out as it is.
    study = rpp.PathLengthGradient(net).attribute(batch, objective=first_score, tap="stem", internal_batch_size=2)
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


def test_describing_says_what_the_class_and_its_configuration_say(load, manager):
    gpt = plugins.describe(load("gpt2"), manager)
    assert (gpt.library, gpt.library_version) == ("transformers", transformers.__version__)
    assert (gpt.architecture, gpt.task, gpt.input_shape) == ("GPT2LMHeadModel", "next_token", None)
    assert gpt.inputs == {"input_ids": ModelInput(shape=(32,), n_values=256)}
    assert gpt.arguments == {"use_cache": False}
    assert gpt.class_names is None

    vit = plugins.describe(load("vit"), manager)
    assert (vit.task, vit.input_shape, vit.inputs) == ("classification", (3, 64, 64), {})
    assert vit.preprocessing == rpp.Preprocessing(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)

    whisper = plugins.describe(load("whisper"), manager)
    assert whisper.task == "sequence_to_sequence"
    assert {name: one.shape for name, one in whisper.inputs.items()} == {
        "input_features": (80, 128),
        "decoder_input_ids": (32,),
    }


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForMaskedLM", "masked_tokens"),
        ("BertForSequenceClassification", "classification"),
        ("BertForTokenClassification", "token_classification"),
        ("BertForQuestionAnswering", None),
        ("BertModel", "embedding"),
        ("GPT2LMHeadModel", "next_token"),
        ("LlamaForCausalLM", "next_token"),
        ("SegformerForSemanticSegmentation", "segmentation"),
        ("T5ForConditionalGeneration", "sequence_to_sequence"),
        ("ViTForImageClassification", "classification"),
        ("WhisperForConditionalGeneration", "sequence_to_sequence"),
    ],
)
def test_a_class_has_the_task_of_its_head(name, task, load, manager):
    model = load(name)
    assert type(model).__name__ == name
    assert plugins.describe(model, manager).task == task
    own = type("Mine", (type(model),), {})(model.config)  # a user's class
    assert plugins.describe(own, manager).task == task


def test_a_single_label_is_a_value(load, manager):
    model = load("BertForSequenceClassification")
    config = transformers.BertConfig(**{**model.config.to_dict(), "num_labels": 1})
    assert plugins.describe(type(model)(config), manager).task == "regression"


def test_names_of_classes_come_from_the_configuration(load, manager):
    config = load("vit").config
    config.id2label = {0: "cat", 1: "dog"}
    model = transformers.ViTForImageClassification(config)
    assert plugins.describe(model, manager).class_names == ("cat", "dog")


@pytest.mark.parametrize(("name", "stages"), [("t5", (0, 0, 1, 1)), ("swin", (0, 1, 1)), ("gpt2", (0, 0))])
def test_towers_and_resolutions_are_stages(name, stages, load, manager):
    net = rpp.unravel(load(name), plugin_manager=manager)
    by_group = {block.group: block.stage for block in net.blocks}
    assert tuple(by_group.values()) == stages


def test_a_model_of_several_runs_numbers_them_last(load, manager):
    names = [block.name.rpartition(".")[2] for block in rpp.unravel(load("albert"), plugin_manager=manager).blocks]
    assert names == ["attention:1", "mlp:1", "attention:2", "mlp:2"]


def test_blocks_of_one_role_in_a_layer_are_numbered(load, manager):
    net = rpp.unravel(load("wav2vec2-conformer"), plugin_manager=manager)
    roles = [role_in(block) for block in net.blocks][:4]
    assert roles == ["mlp_1", "attention", "convolution", "mlp_2"]


def test_a_group_deletes_a_layer_as_taking_it_out_of_its_list_does(load, manager):
    model = randomised(load("gpt2"))
    net = rpp.unravel(model, plugin_manager=manager)
    tokens = batch_for(net.description)
    skipped = net.lesioned([block for block in net.blocks if block.group == "transformer.h.1"])
    with torch.no_grad():
        found = skipped(**tokens).logits
        del model.transformer.h[1]
        expected = model(**tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_folder_gives_the_model_that_was_saved_in_it(load, manager, tmp_path):
    saved = randomised(load("gpt2"))
    saved.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "generation_config.json").unlink(missing_ok=True)
    for name in (tmp_path / "mine", tmp_path / "mine" / "model.safetensors"):
        model = load(str(name), pretrained=True)
        assert type(model) is type(saved)
        for (path, one), other in zip(model.state_dict().items(), saved.state_dict().values(), strict=True):
            assert torch.equal(one, other), path
    random = load(str(tmp_path / "mine"))
    assert type(random) is type(saved)
    assert not torch.equal(random.transformer.wte.weight, saved.transformer.wte.weight)


def test_a_head_without_weights_is_reported(load, tmp_path):
    load("BertModel").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"lack classifier.*random in this BertForSequenceClassification"):
        load(str(tmp_path), pretrained=True)


def test_pickled_weights_are_not_read(load, tmp_path):
    model = load("gpt2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(str(tmp_path), pretrained=True)


def test_code_of_a_repository_is_not_run(load, tmp_path):
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ValueError, match=r"trust_remote_code|strange"):
        load(str(tmp_path), pretrained=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gpt3", r"no architecture and no class of models 'gpt3'; the nearest names are .*gpt2"),
        ("GPT2LMHead", r"the nearest names are .*GPT2LMHeadModel"),
        ("GPT2Config", "no class of models 'GPT2Config'"),
        ("PreTrainedModel", "no class of models 'PreTrainedModel'"),
        ("qqqqqqqq", r"list_models\('transformers/\*'\) lists architectures"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, text, load):
    with pytest.raises(ModelNotFoundError, match=text):
        load(name)


def test_a_path_to_nothing_is_refused(load, tmp_path):
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        load(str(tmp_path / "none"), pretrained=True)
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        load(str(tmp_path / "model.safetensors"), pretrained=True)
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        load(str(tmp_path), pretrained=True)


def test_a_small_model_says_that_it_is_one(manager):
    with pytest.warns(UserWarning, match=r"transformers/gpt2 is a small GPT2LMHeadModel with random weights"):
        plugins.load_model("transformers/gpt2", plugin_manager=manager)


def test_architectures_are_listed(manager):
    found = plugins.list_models("transformers/gpt*", plugin_manager=manager)
    assert {"transformers/gpt2", "transformers/gpt_neox"} <= set(found)
    assert plugins.list_models("timm/*", plugin_manager=manager) == ()


def test_a_model_that_writes_to_its_weights_is_refused_by_name(load, manager):
    config = load("rwkv").config
    config.rescale_every = 1
    with pytest.raises(CaptureError, match="rescale"):
        rpp.unravel(transformers.RwkvForCausalLM(config).eval(), plugin_manager=manager)


def test_models_of_others_import_nothing():
    code = (
        "import sys, torch\n"
        "import resnet_paths_transformers as plugin\n"
        "assert plugin.resnet_paths_describe_model(torch.nn.Linear(2, 2)) is None\n"
        "assert plugin.resnet_paths_review_blocks(torch.nn.Linear(2, 2), ()) is None\n"
        "assert plugin.resnet_paths_load_model('timm/resnet18', False) is None\n"
        "assert plugin.resnet_paths_list_models('timm/*', False) is None\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - written here


def test_where_the_library_is_missing_a_name_says_what_installs_it(monkeypatch, manager):
    monkeypatch.setattr(resnet_paths_transformers, "is_installed", lambda: False)
    with pytest.raises(ModelNotFoundError, match=r"pip install 'resnet-paths-plugin\[transformers\]'"):
        plugins.load_model("transformers/gpt2", plugin_manager=manager)
    assert plugins.list_models("*/gpt2", plugin_manager=manager) == ()


def test_images_are_prepared_as_the_file_beside_the_weights_says(load, manager, tmp_path):
    load("vit").save_pretrained(tmp_path)
    settings = {
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, "do_center_crop": True,
        "size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    known = plugins.describe(load(str(tmp_path), pretrained=True), manager).preprocessing
    assert known == rpp.Preprocessing(
        size=(64, 64), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bicubic", crop_fraction=0.8
    )


def test_lesions_of_a_small_language_model_are_a_study(load, manager):
    net = rpp.unravel(load("gpt2"), plugin_manager=manager)
    tokens = torch.randint(3, 256, (4, 32))
    study = rpp.BlockLesion(net).attribute({"input_ids": tokens, "labels": tokens}, target="labels")
    assert study.block_group.values.tolist() == ["transformer.h.0"] * 2 + ["transformer.h.1"] * 2
    assert np.isfinite(study.loss).all()


def test_texts_are_read_by_the_tokenizer_beside_the_weights(load, tmp_path, manager):
    tokenizers = pytest.importorskip("tokenizers", reason="transformers brings it")
    unknown = {"unk_token": "?"}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "cat": 2, "sat": 3}, **unknown))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model = load("gpt2")
    model.save_pretrained(tmp_path)
    assert plugins.describe(load(str(tmp_path), pretrained=True), manager).tokenize is None
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **unknown).save_pretrained(tmp_path)
    tokenize = plugins.describe(load(str(tmp_path), pretrained=True), manager).tokenize
    assert list(tokenize("a cat sat down")) == [1, 2, 3, 0]
    assert plugins.describe(model, manager).tokenize is None
