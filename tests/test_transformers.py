"""Models that no plugin knows: five of Hugging Face transformers, wrapped to take tensors by position.

The oracles are their modeling code (which modules run between which sums), the models themselves with modules that
return zeros, and every path one by one: the 2^n gradients of a model some of whose branches are detached.
"""

import copy
import itertools
import math
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from networks import randomised, without
from torch.overrides import TorchFunctionMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

transformers = pytest.importorskip("transformers", reason="the models are those of transformers, extra 'test'")
from wrapped_transformers import Logits, build  # noqa: E402 - imports transformers

pytestmark = pytest.mark.slow

ATTENTIONS = ("sdpa", "eager")
CASES = [(name, attention) for name in ("vit", "bert", "gpt2", "llama") for attention in ATTENTIONS]
CASES.append(("resnet", "sdpa"))  # it has no attention to choose an implementation of
TEXTS = [case for case in CASES if case[0] in {"bert", "gpt2", "llama"}]


def halves(layers, one, other):
    """Two sums in a layer's own forward: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""
    for i in range(2):
        layer = f"{layers}.{i}"
        yield f"{layer}.{one}", layer, "identity", "attention", f"{layer}.{one}"
        yield f"{layer}.{other}", layer, "identity", "mlp", f"{layer}.{other}"


def post_norm(layers):
    """Two modules that end in `LayerNorm(dense(x) + source)`: the norm lies behind the sum, on the trunk."""
    for i in range(2):
        for sum_in, kind in (("attention.output", "attention"), ("output", "mlp")):
            owner = f"{layers}.{i}.{sum_in}"
            yield owner, owner, "identity", kind, f"{owner}.dense"


def convolutions(layers, *projections):
    """One sum in each layer, `layer(x) + shortcut(x)`; the shortcut convolves where stride or width change."""
    for stage, i in itertools.product(range(2), range(2)):
        layer = f"{layers}.{stage}.layers.{i}"
        skip = "projection" if (stage, i) in projections else "identity"
        yield layer, layer, skip, "convolution", f"{layer}.layer"


KNOWN = {
    "vit": tuple(halves("model.vit.layers", "attention", "mlp")),
    "resnet": tuple(convolutions("model.resnet.encoder.stages", (1, 0))),  # stage 0: 16 channels to 16, stride 1
    "bert": tuple(post_norm("model.bert.encoder.layer")),
    "gpt2": tuple(halves("model.transformer.h", "attn", "mlp")),
    "llama": tuple(halves("model.model.layers", "self_attn", "mlp")),
}
"""Of each block: name, group, skip, branch, and the module whose output is the branch."""

STEMS = {
    "vit": "model.vit.embeddings",
    "resnet": "model.resnet.embedder",
    "bert": "model.bert.embeddings",
    "gpt2": "model.transformer.drop",
    "llama": "model.model.embed_tokens",
}
"""The module whose output is the source of the first block."""


class InFloat64(TorchFunctionMode):
    """Lets a model compute in float64 where it asks for float32: some norms and softmaxes do, whatever its dtype."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(argument):
            return torch.float64 if argument is torch.float32 else argument

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


@cache
def subject(name, attention):
    """Return a model and batch, in float64, eval mode and with no parameter at its initial value."""
    found = build(name, 3, attention)
    randomised(found.module).double().eval()
    inputs = found.inputs.double() if found.inputs.is_floating_point() else found.inputs
    return found._replace(inputs=inputs)


@cache
def network(name, attention):
    found = subject(name, attention)
    return rpp.unravel(found.module, (found.inputs, *found.extra))


@cache
def network_in_float64(name, attention):
    example = network(name, attention).graph.example_inputs()  # captured as it is, whichever test comes first
    with InFloat64():
        return rpp.unravel(subject(name, attention).module, example)


def embedded(name, attention):
    """Return the subject with embeddings instead of token ids, through another keyword; one of images as it is."""
    found = subject(name, attention)
    if (name, attention) not in TEXTS:
        return found
    module = type(found.module)(found.module.model, "inputs_embeds", *found.module.names[1:])
    inputs = found.module.model.get_input_embeddings()(found.inputs).detach()
    return found._replace(module=module, inputs=inputs, tap="input")


def score(module, args, labels):
    return module(*args).gather(1, labels[:, None]).sum()


def path_gradients(module, known, args, labels, leaf=None):
    """Return the gradient along every path of a chain of blocks, by the set of blocks whose branches it takes.

    With the branches of all blocks but a set T detached, autograd's gradient is the sum over the paths that take
    branches of T only. Differences of these sums are the single paths. `leaf` is a module whose output the gradient is
    taken at; None takes it at the first argument.
    """
    modules = [module.get_submodule(path) for *_, path in known]
    taken = []

    def start(_, __, output):
        taken.append(output.detach().requires_grad_())
        return taken[-1]

    def stop(_, __, output):
        return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()

    sums = {}
    for chosen in subsets(range(len(modules))):
        hooks = [m.register_forward_hook(stop) for i, m in enumerate(modules) if i not in chosen]
        if leaf is None:
            taken.append(args[0].detach().requires_grad_())
            args = (taken[-1], *args[1:])
        else:
            hooks.append(module.get_submodule(leaf).register_forward_hook(start))
        value = score(module, args, labels)
        sums[chosen] = torch.autograd.grad(value, taken[-1], materialize_grads=True)[0]
        for hook in hooks:
            hook.remove()
    return {path: sum((-1) ** (len(path) - len(part)) * sums[part] for part in subsets(sorted(path))) for path in sums}


def subsets(items):
    items = list(items)
    return [frozenset(part) for size in range(len(items) + 1) for part in itertools.combinations(items, size)]


def norms(gradients):
    """Return the norm of each sample of some gradients, shape `[len(gradients), B]`."""
    return torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])


def by_length(paths):
    found = Counter()
    for path, gradient in paths.items():
        found[len(path)] = found[len(path)] + gradient
    return [found[length] for length in sorted(found)]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_outputs_are_the_models_bit_for_bit(name, attention):
    found, net = subject(name, attention), network(name, attention)
    for size in (3, 1, 2):
        args = [argument[:size] for argument in (found.inputs, *found.extra)]
        assert torch.equal(net(*args), found.module(*args))
        with torch.no_grad():
            assert torch.equal(net(*args), found.module(*args))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_attention_mask_is_an_argument_like_any_other(attention):
    found, net = subject("bert", attention), network("bert", attention)
    (mask,) = found.extra
    outputs = []
    for other in (mask, mask.flip(1), torch.ones_like(mask)):
        outputs.append(net(found.inputs, other))
        assert torch.equal(outputs[-1], found.module(found.inputs, other))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    with pytest.raises(InputError, match="such as a mask, goes into additional_forward_args"):
        rpp.PathLengthGradient(net).attribute((found.inputs.double(), mask), found.labels)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_blocks_are_those_of_the_modeling_code(name, attention):
    blocks = network(name, attention).blocks
    assert [(b.name, b.group, b.skip_kind, b.branch_type) for b in blocks] == [known[:4] for known in KNOWN[name]]


def test_every_bottleneck_that_widens_has_a_projection():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck", num_labels=3
    )
    module = Logits(transformers.ResNetForImageClassification(config), "pixel_values")
    blocks = rpp.unravel(module, torch.randn(2, 3, 32, 32)).blocks
    known = convolutions("model.resnet.encoder.stages", (0, 0), (1, 0))  # 8 channels to 16, and 16 to 32
    assert [(b.name, b.group, b.skip_kind, b.branch_type) for b in blocks] == [block[:4] for block in known]
    assert [block.depth for block in blocks] == [3, 3, 3, 3]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_deleting_blocks_equals_zeroing_the_modules_of_their_branches(name, attention):
    found, net = subject(name, attention), network(name, attention)
    args = (found.inputs, *found.extra)
    sets = [[at] for at in range(4)] + [[0, 3], [1, 2], range(4)]
    expected = [without(found.module, *(KNOWN[name][at][-1] for at in chosen))(*args) for chosen in sets]
    intact = found.module(*args)
    for chosen, patched in zip(sets, expected, strict=True):
        torch.testing.assert_close(net.lesioned(chosen)(*args), patched, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(patched, intact, rtol=1e-3)
    # Several lesions side by side in one batch, and samples in pieces: masks and positions go along.
    study = rpp.BlockLesion(net).attribute(
        found.inputs, found.labels, found.extra, lesions=[list(chosen) for chosen in sets],
        perturbations_per_eval=3, internal_batch_size=2,
    )  # fmt: skip
    scores = torch.stack([patched.gather(1, found.labels[:, None])[:, 0] for patched in expected])
    np.testing.assert_allclose(study.target_score, scores.detach(), rtol=1e-5, atol=1e-6)  # kept in float32


@pytest.mark.parametrize("name", list(KNOWN))
def test_path_gradients_are_those_of_the_paths_one_by_one(name):
    found = embedded(name, "sdpa")
    args, labels = (found.inputs, *found.extra), found.labels
    with InFloat64():
        expected = by_length(path_gradients(found.module, KNOWN[name], args, labels))
        is_text = (name, "sdpa") in TEXTS
        net = rpp.unravel(found.module, args) if is_text else network_in_float64(name, "sdpa")
        x = found.inputs.clone().requires_grad_()
        (ordinary,) = torch.autograd.grad(score(found.module, (x, *found.extra), labels), x)
        scale = ordinary.norm().item()
        assert scale > 1e-3
        for lengths in ([0], [1], [2], [3], [4], range(5)):
            value = score(net.restricted(lengths), (x, *found.extra), labels)
            (ours,) = torch.autograd.grad(value, x)
            theirs = ordinary if len(lengths) > 1 else expected[lengths[0]]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * scale)
        study = rpp.PathLengthGradient(net).attribute(found.inputs, labels, found.extra)
    assert study.completeness_error.max() < 1e-10
    np.testing.assert_allclose(study.gradient_norm, norms(expected), rtol=1e-8, atol=1e-10 * scale)
    assert study.path_count.values.tolist() == [math.comb(4, length) for length in range(5)]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_path_gradients_at_the_stem_are_those_of_the_paths_one_by_one(name, attention):
    found, net = subject(name, attention), network_in_float64(name, attention)
    with InFloat64():
        args = (found.inputs, *found.extra)
        paths = path_gradients(found.module, KNOWN[name], args, found.labels, leaf=STEMS[name])
        study = rpp.PathLengthGradient(net).attribute(found.inputs, found.labels, found.extra, tap="stem")
    expected = norms(by_length(paths))
    np.testing.assert_allclose(study.gradient_norm, expected, rtol=1e-8, atol=1e-10 * expected.max())
    assert study.completeness_error.max() < 1e-10
    assert study.path_count.values.tolist() == [math.comb(4, length) for length in range(5)]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_what_a_model_computes_in_float32_bounds_completeness(name, attention):
    found = subject(name, attention)
    study = rpp.PathLengthGradient(network(name, attention)).attribute(
        found.inputs, found.labels, found.extra, tap="stem"
    )
    # Llama's norms compute in float32, and so does the softmax of eager attention in some models.
    narrow = name == "llama" or (name, attention) == ("vit", "eager")
    assert study.completeness_error.max() < 1e-5
    assert (study.completeness_error.max() > 1e-10) == narrow


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_at_the_stem_of_a_language_model_gradients_are_those_of_its_embeddings(name):
    found, other = subject(name, "sdpa"), embedded(name, "sdpa")
    with InFloat64():
        paths = path_gradients(other.module, KNOWN[name], (other.inputs,), other.labels)
        net = network_in_float64(name, "sdpa")
        study = rpp.PathLengthGradient(net).attribute(found.inputs, found.labels, tap="stem")
    np.testing.assert_allclose(study.gradient_norm, norms(by_length(paths)), rtol=1e-8)  # positions are constants


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_cache_of_keys_and_values_changes_nothing(name):
    found = subject(name, "sdpa")
    module = copy.deepcopy(found.module)
    module.model.config.use_cache = True
    net = rpp.unravel(module, found.inputs)
    assert [block.name for block in net.blocks] == [known[0] for known in KNOWN[name]]
    assert torch.equal(net(found.inputs), found.module(found.inputs))
    assert torch.equal(net.lesioned([1, 2])(found.inputs), network(name, "sdpa").lesioned([1, 2])(found.inputs))
    with_cache, without_cache = (
        rpp.PathLengthGradient(one).attribute(found.inputs, found.labels, tap="stem").gradient_norm
        for one in (net, network(name, "sdpa"))
    )
    np.testing.assert_allclose(with_cache, without_cache, rtol=1e-12 if name == "gpt2" else 1e-5)


def state(module):
    """Return all that a study could leave behind on a model."""
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [(parameter.requires_grad, parameter.grad) for parameter in module.parameters()],
        [
            (name, m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._buffers))
            for name, m in module.named_modules()
        ],
        module.model.config.to_dict(),
        module.model.config._attn_implementation,
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global generator is part of the state
        random.getstate(),
    )


@pytest.mark.parametrize("name", list(KNOWN))
def test_the_model_is_as_it_was(name):
    found = build(name, 2, "eager")
    found.module.train()
    list(found.module.parameters())[1].requires_grad_(False)
    before = state(found.module)
    net = rpp.unravel(found.module, (found.inputs, *found.extra))
    rpp.BlockLesion(net).attribute(found.inputs, found.labels, found.extra)
    rpp.PathLengthGradient(net).attribute(found.inputs, found.labels, found.extra, tap="stem")
    with pytest.raises(InputError, match="out of range"):
        rpp.PathLengthGradient(net).attribute(found.inputs, 1000, found.extra, tap="stem")
    after = state(found.module)
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1:5] == after[1:5]
    assert torch.equal(before[5], after[5])
    assert before[6:] == after[6:]


def test_a_name_too_few_is_told():
    found = subject("bert", "sdpa")
    with pytest.raises(rpp.ResnetPathsError, match=r"zip\(\) argument 2 is longer"):
        rpp.unravel(Logits(found.module.model, "input_ids"), (found.inputs, *found.extra))
