"""Language models of transformers: losses, perplexities and skipped layers against the models' own."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

TOKENS, LENGTH = 40, 10
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = {"vocab_size": TOKENS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3}


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, n_positions=LENGTH, **NAMES, attn_implementation="eager"
    )
    return transformers.GPT2LMHeadModel(config).eval(), "next_token"


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **NAMES)).eval(), "next_token"


def bert():
    config = transformers.BertConfig(**SIZES, **NAMES, max_position_embeddings=LENGTH)
    return transformers.BertForMaskedLM(config).eval(), "masked_tokens"


def t5():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=TOKENS, decoder_start_token_id=0,
        initializer_factor=3.0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval(), "sequence_to_sequence"


def texts(model, task, right=True):
    """Return texts of unequal length with labels for what counts."""
    ids = torch.randint(3, TOKENS, (5, LENGTH))
    mask = torch.ones_like(ids)
    for row, length in enumerate((LENGTH, 7, 4, LENGTH, 5)):
        padding = slice(length, None) if right else slice(None, LENGTH - length)
        mask[row, padding] = 0
    labels = ids.masked_fill(mask == 0, -100)
    if task == "masked_tokens":
        hidden = torch.rand(ids.shape) < 0.4
        hidden[:, :2] |= ~hidden[:, :2].any(1, keepdim=True)
        ids, labels = ids.masked_fill(hidden, 3), labels.masked_fill(~hidden, -100)
    given = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    if task == "sequence_to_sequence":
        given["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    return given, labels


def batch_of(given, labels, rows):
    return {name: value[rows] for name, value in {**given, "labels": labels}.items()}


@pytest.mark.parametrize("make", [gpt2, llama, bert, t5])
def test_losses_and_perplexity_are_the_models_own(make):
    torch.manual_seed(0)
    model, task = make()
    given, labels = texts(model, task)
    net = rpp.unravel(model, {**given, "use_cache": False} if task != "masked_tokens" else given, task=task)
    samples = [{name: value[at] for name, value in {**given, "labels": labels}.items()} for at in range(5)]
    found = rpp.BlockLesion(net).attribute(DataLoader(samples, batch_size=2), target="labels")
    with torch.no_grad():
        own = [model(**batch_of(given, labels, slice(at, at + 1)), use_cache=False).loss.item() for at in range(5)]
        whole = model(**given, labels=labels, use_cache=False).loss.item()
    np.testing.assert_allclose(found.intact_loss, own, rtol=1e-5)
    assert float(found.intact_perplexity) == pytest.approx(np.exp(whole), rel=1e-5)


@pytest.mark.parametrize("right", [True, False], ids=["right", "left"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_skipped_layer_is_a_model_without_it(make, right):
    torch.manual_seed(0)
    model, task = make()
    given, labels = texts(model, task, right=right)
    net = rpp.unravel(model, {**given, "use_cache": False}, task=task)
    groups = list(dict.fromkeys(block.group for block in net.blocks))
    found = rpp.BlockLesion(net).attribute(given, labels, lesions=groups)
    for at, group in enumerate(groups):
        shorter = copy.deepcopy(model)
        parent, _, index = group.rpartition(".")
        layers = shorter.get_submodule(parent)
        assert isinstance(layers, nn.ModuleList)
        del layers[int(index)]
        with torch.no_grad():
            scores = shorter(**given, use_cache=False).logits
        expected = [
            functional.cross_entropy(scores[row, :-1], labels[row, 1:], ignore_index=-100).item() for row in range(5)
        ]
        np.testing.assert_allclose(found.loss[at], expected, rtol=1e-5)


def test_block_influence_is_that_of_hidden_states():
    """ShortGPT (Men et al. 2024): 1 minus the mean cosine of a value before and after, here of attention and MLP."""
    torch.manual_seed(0)
    model, task = llama()
    given, labels = texts(model, task)
    net = rpp.unravel(model, {**given, "use_cache": False}, task=task)
    found = rpp.BlockInfluence(net).attribute(given, labels, objective="cross_entropy", vector_dim=-1)
    kept = []
    parts = [part for layer in model.model.layers for part in (layer.input_layernorm, layer.post_attention_layernorm)]
    handles = [
        part.register_forward_hook(lambda _, args, out: kept.append(args[0])) for part in (*parts, model.model.norm)
    ]
    with torch.no_grad():
        model(**given, use_cache=False)
    for handle in handles:
        handle.remove()
    expected = [1 - functional.cosine_similarity(before, after, dim=-1).mean(1) for before, after in pairwise(kept)]
    np.testing.assert_allclose(found.block_influence, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_paths_of_a_language_model_are_complete_and_contributions_add_up():
    torch.manual_seed(0)
    model, task = gpt2()
    given, labels = texts(model, task)
    net = rpp.unravel(model, {**given, "use_cache": False}, task=task)
    paths = rpp.PathLengthGradient(net).attribute(given, labels, objective="cross_entropy", tap="stem")
    assert float(paths.completeness_error.max()) < 1e-5
    direct = rpp.BlockContribution(net).attribute(given, labels, freeze_norms=True)
    whole = direct.stem + direct.direct.sum("block") + direct.remainder
    with torch.no_grad():
        scores = model(**given, use_cache=False).logits
    picked = scores[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    counted = labels[:, 1:] != -100
    expected = (picked * counted).sum(1) / counted.sum(1)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    # The head has no bias and the final norm's scale is held constant: what is left is the norm's own bias.
    assert float(abs(direct.remainder).max()) < 1e-4
