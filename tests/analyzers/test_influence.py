"""Influence of blocks without lesions: against hooks on the models, finite differences, and scipy."""

import copy
import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
import xarray as xr
from networks import (
    CASES,
    PostActivationBlock,
    PreActivation,
    Shortcut,
    Transformer,
    Vectors,
    assert_same_state,
    mlp,
    randomised,
    state_of,
)
from scipy import stats
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence
from resnet_paths_plugin.engine.activations import ActivationEngine
from resnet_paths_plugin.errors import InputError, NonFiniteInputWarning, NoResidualBlocksError, PluginError

FREE = {"branch_to_source_norm", "source_sum_cosine", "block_influence", "angular_distance"}
GRADIENT = {"branch_descent_cosine", "lesion_estimate"}
PROXIES = [
    "branch_to_source_norm", "block_influence", "angular_distance", "branch_descent_cosine", "lesion_estimate",
]  # fmt: skip
LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])


def doubled(case, batch=7):
    """Return a model and its inputs in float64."""
    return case.model().double(), case.inputs(batch, torch.float64)


@functools.cache
def network():
    model, (x,) = doubled(CASES["pre-activation"])
    return rpp.unravel(model, x), model, x


@functools.cache
def lesions():
    net, _, x = network()
    return rpp.BlockLesion(net).attribute(x, LABELS)


def study(target=LABELS, **options):
    net, _, x = network()
    return BlockInfluence(net).attribute(x, target, **options)


def assert_same_values(one, other, rtol=1e-10):
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-13, err_msg=name)


def by_hand(source, branch, total, gradient=None, dims=None):
    """Return the variables of one block from their definitions, sample by sample and vector by vector.

    Args:
        source: `x`, `[B, *]`; branch, total and gradient alike.
        dims: where None each sample is one vector, else each vector lies along this dimension of a sample.
    """

    def vectors(values):
        values = values.detach()
        return [[sample.flatten()] if dims is None else list(rows_of(sample, dims)) for sample in values]

    def rows_of(sample, dim):
        return sample.movedim(dim, -1).flatten(0, -2)

    def cosine(a, b):
        return float(functional.cosine_similarity(a, b, 0, eps=0))

    found = {name: [] for name in FREE | (GRADIENT if gradient is not None else set())}
    everything = zip(*map(vectors, [source, branch, total, branch if gradient is None else gradient]), strict=True)
    for at, (xs, fs, ys, gs) in enumerate(everything):
        cosines = [cosine(x, y) for x, y in zip(xs, ys, strict=True)]
        mean = sum(cosines) / len(cosines)
        found["source_sum_cosine"].append(mean)
        found["block_influence"].append(1 - mean)
        found["angular_distance"].append(sum(math.acos(one) for one in cosines) / len(cosines) / math.pi)
        ratios = [float(f.norm() / x.norm()) for x, f in zip(xs, fs, strict=True)]
        found["branch_to_source_norm"].append(sum(ratios) / len(ratios))
        if gradient is not None:
            found["branch_descent_cosine"].append(sum(cosine(f, -g) for f, g in zip(fs, gs, strict=True)) / len(fs))
            found["lesion_estimate"].append(-float((branch[at].detach() * gradient[at]).sum()))
    return found


class Seen:
    """What modules got and returned in one run of the model, the gradients of what they returned included."""

    def __init__(self, model, inputs, objective, paths):
        self.got, self.returned = {}, {}
        handles = [model.get_submodule(path).register_forward_hook(self._hook(path)) for path in paths]
        objective(model(*inputs)).sum().backward()
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)

    def _hook(self, path):
        def see(_, args, output):
            output.retain_grad()
            self.got[path], self.returned[path] = args[0], output

        return see

    def gradient(self, path):
        return self.returned[path].grad


def cross_entropy(labels):
    return lambda outputs: functional.cross_entropy(outputs, labels, reduction="none")


def assert_block(result, name, expected):
    for variable, values in expected.items():
        np.testing.assert_allclose(
            result[variable].sel(block=name), values, rtol=1e-9, atol=1e-12, err_msg=f"{name}: {variable}"
        )


# The definitions


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("pre-activation", 1),
        ("parallel, from the left", 1),
        ("parallel, from the right", 1),
        ("parallel, stacked", 1),
        ("nested", 1),
        ("alpha", 0.2),
        ("minus", -1),
        ("scaled skip", 1),
        ("rezero", "alpha"),
    ],
)
def test_every_variable_is_its_definition_on_what_hooks_see(name, factor):
    model, inputs = doubled(CASES[name])
    result = BlockInfluence(model).attribute(inputs, LABELS)
    owners = {known.path: known.path.rpartition(".")[0] for known in CASES[name].blocks}
    seen = Seen(model, inputs, cross_entropy(LABELS), {*owners, *owners.values()})
    assert len(result.block) == len(owners)
    for known in CASES[name].blocks:
        owner = owners[known.path]
        scale = model.get_submodule(owner).alpha if factor == "alpha" else factor
        branch = seen.returned[known.path] * scale
        expected = by_hand(seen.got[owner], branch, seen.returned[owner], seen.gradient(owner))
        assert_block(result, known.name, expected)


@pytest.mark.parametrize("vector_dim", [None, -1, 1, 0])
def test_tokens_of_a_transformer_are_compared_one_by_one(vector_dim):
    model, inputs = doubled(CASES["transformer"])
    result = BlockInfluence(model).attribute(inputs, LABELS, vector_dim=vector_dim)
    layers = [f"layers.{i}" for i in range(2)]
    paths = [f"{layer}{part}" for layer in layers for part in ("", ".norm1", ".norm2", ".attn", ".mlp")]
    seen = Seen(model, inputs, cross_entropy(LABELS), paths)
    for layer in layers:
        middle = seen.got[f"{layer}.norm2"]
        # The middle sum continues as the second norm's input and as the second skip.
        gradient = (
            seen.gradient(layer)
            + torch.autograd.grad(
                model.get_submodule(layer).mlp(
                    model.get_submodule(layer).norm2(leaf := middle.detach().requires_grad_())
                ),
                leaf,
                seen.gradient(layer),
            )[0]
        )
        first = (seen.got[f"{layer}.norm1"], seen.returned[f"{layer}.attn"], middle, gradient)
        second = (middle, seen.returned[f"{layer}.mlp"], seen.returned[layer], seen.gradient(layer))
        assert_block(result, f"{layer}.attn", by_hand(*first, dims=vector_dim))
        assert_block(result, f"{layer}.mlp", by_hand(*second, dims=vector_dim))


@pytest.mark.parametrize("vector_dim", [0, -3, 1])
def test_channels_are_compared_pixel_by_pixel(vector_dim):
    _, model, x = network()
    paths = [f"blocks.{i}{part}" for i in range(3) for part in ("", ".branch")]
    seen = Seen(model, (x,), cross_entropy(LABELS), paths)
    result = study(vector_dim=vector_dim)
    for name in ("blocks.0", "blocks.1", "blocks.2"):
        values = (seen.got[name], seen.returned[f"{name}.branch"], seen.returned[name], seen.gradient(name))
        assert_block(result, name, by_hand(*values, dims=vector_dim))


def test_positions_without_a_direction_are_left_out_of_the_mean():
    class Rectified(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Linear(4, 4)

        def forward(self, x):
            x = x.relu()
            return (x + self.branch(x))[:, 0].sum(-1, keepdim=True)

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    x[0, 1] = -1  # this token's source is zero
    model = randomised(Rectified()).double()
    result = BlockInfluence(model).attribute(x, objective=lambda outputs, _: outputs[:, 0], vector_dim=-1)
    source = x.relu()
    branch = model.branch(source)
    expected = by_hand(source[:1, [0, 2]], branch[:1, [0, 2]], (source + branch)[:1, [0, 2]], dims=-1)
    assert_block(result.isel(sample=[0]), "branch", {name: expected[name] for name in FREE})
    # Only the first token is read by the output, so only there the gradient has a direction.
    ones = torch.ones(2, 4, dtype=torch.float64)
    descent = functional.cosine_similarity(branch[:, 0].detach(), -ones, 1)
    np.testing.assert_allclose(result["branch_descent_cosine"][0], descent, rtol=1e-12)
    whole = BlockInfluence(model).attribute(x * 0, vector_dim=-1)
    for name in FREE:
        assert whole[name].isnull().all()


def test_a_branch_of_zeros_turns_nothing():
    model, _ = doubled(CASES["rezero"])
    with torch.no_grad():
        model.middle[0].alpha.zero_()
    # So many samples that rounding takes some cosines beyond 1.
    result = BlockInfluence(model).attribute(torch.randn(200, 7, dtype=torch.float64), 1)
    assert (result["branch_to_source_norm"] == 0).all()
    assert (abs(result["block_influence"]) < 1e-15).all()
    assert (result["source_sum_cosine"] <= 1).all()
    assert (result["angular_distance"] < 1e-7).all()
    assert (result["lesion_estimate"] == 0).all()
    assert result["branch_descent_cosine"].isnull().all()


def test_sources_of_another_shape_are_not_compared_but_their_norm_is():
    model, (x,) = doubled(CASES["post-activation"])
    result = BlockInfluence(model).attribute(x, LABELS)
    with torch.no_grad():
        source = model.plain(model.stem(x))
        branch = model.padded.branch(source)
        padded = model.padded(source)
    ratio = branch.flatten(1).norm(dim=1) / source.flatten(1).norm(dim=1)
    np.testing.assert_allclose(result["branch_to_source_norm"].sel(block="padded"), ratio, rtol=1e-10)
    for name in ("padded", "projected"):
        for variable in ("source_sum_cosine", "block_influence", "angular_distance"):
            assert result[variable].sel(block=name).isnull().all()
        assert np.isfinite(result["lesion_estimate"].sel(block=name)).all()
    # A projection that keeps the shape is compared like any block.
    with torch.no_grad():
        source = model.projected(padded)
        total = model.pooled.shortcut(source) + model.pooled.branch(source)
    cosine = functional.cosine_similarity(source.flatten(1), total.flatten(1))
    np.testing.assert_allclose(result["source_sum_cosine"].sel(block="pooled"), cosine, rtol=1e-10)
    pixels = BlockInfluence(model).attribute(x, LABELS, vector_dim=0)
    assert pixels["branch_to_source_norm"].sel(block="padded").isnull().all()
    assert np.isfinite(pixels["branch_to_source_norm"].sel(block="pooled")).all()


def test_a_source_is_compared_in_the_layout_of_the_sum():
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x.permute(0, 2, 3, 1) + self.branch(x).tanh().permute(0, 2, 3, 1)).mean((1, 2)))

    model = randomised(ChannelsLast()).double()
    x = torch.randn(7, 3, 4, 4, dtype=torch.float64)  # so that permuted values have the shape of others
    for dims in (None, -1):
        result = BlockInfluence(model).attribute(x, vector_dim=dims)
        with torch.no_grad():
            source = model.stem(x)
            branch = model.branch(source).tanh()
            source, branch = source.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)
        assert_block(result, str(result.block.values[0]), by_hand(source, branch, source + branch, dims=dims))


def test_a_branch_that_is_broadcast_is_compared_as_it_is_added():
    class Context(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.branch(x.mean((2, 3), keepdim=True)).tanh()
            return self.head(x.relu().mean((2, 3)))

    model = randomised(Context()).double()
    x = torch.randn(7, 3, 6, 6, dtype=torch.float64)
    for dims in (None, 0):
        result = BlockInfluence(model).attribute(x, LABELS, vector_dim=dims)
        source = model.stem(x).detach()
        branch = model.branch(source.mean((2, 3), keepdim=True)).tanh().expand_as(source).detach()
        total = (source + branch).requires_grad_()
        cross_entropy(LABELS)(model.head(total.relu().mean((2, 3)))).sum().backward()
        assert_block(result, str(result.block.values[0]), by_hand(source, branch, total, total.grad, dims=dims))


# First order


def resnet18():
    model = randomised(torchvision.models.resnet18(num_classes=5)).eval().double()
    return model, (torch.randn(3, 3, 40, 40, dtype=torch.float64),)


def vit():
    model = randomised(timm.create_model("test_vit", num_classes=5, img_size=32)).eval().double()
    return model, (torch.randn(3, 3, 32, 32, dtype=torch.float64),)


class Tokens(nn.Module):
    """A transformer over token ids."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def tokens():
    return randomised(Tokens()).eval().double(), (torch.randint(0, 11, (3, 6)),)


def of_case(name):
    return lambda: doubled(CASES[name], 3)


CHANGED = {
    "resnet18": resnet18,
    "vit": vit,
    "tokens": tokens,
    **{
        name: of_case(name)
        for name in (
            "pre-activation", "post-activation", "transformer", "nested", "parallel, from the left",
            "parallel, stacked", "alpha", "minus", "highway", "scaled skip", "rezero", "repeated", "two inputs",
            "dual path", "gated",
        )
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_the_estimate_is_the_slope_in_the_scale_of_the_branch(name):
    model, inputs = CHANGED[name]()
    net = rpp.unravel(model, inputs)
    labels = torch.tensor([1, 0, 4])
    result = BlockInfluence(net).attribute(inputs, labels)
    step = 1e-5

    def loss(scale, block):
        with torch.no_grad():
            return cross_entropy(labels)(net.scheduled(rpp.Schedule.scaled(net, scale, [block]))(*inputs))

    assert net.blocks
    for block in net.blocks:
        slope = (loss(1 + step, block) - loss(1 - step, block)) / (2 * step)
        estimate = result["lesion_estimate"].sel(block=block.name).values
        # From scale 1 to scale 0 the objective rises by minus the slope.
        np.testing.assert_allclose(estimate, -slope, rtol=1e-6, atol=1e-9, err_msg=block.name)
        assert np.abs(estimate).max() > 1e-5


def test_a_score_or_a_function_of_the_outputs_may_be_the_objective():
    _, model, x = network()
    paths = [f"blocks.1{part}" for part in ("", ".branch")]

    def spread(outputs, target):
        return outputs.square().sum(1) * target

    objectives = {"score": lambda outputs: outputs[range(7), LABELS], spread: lambda outputs: spread(outputs, LABELS)}
    for objective, plain in objectives.items():
        seen = Seen(model, (x,), plain, paths)
        values = (seen.got["blocks.1"], seen.returned["blocks.1.branch"])
        expected = by_hand(*values, seen.returned["blocks.1"], seen.gradient("blocks.1"))
        assert_block(study(objective=objective), "blocks.1", expected)


def test_without_a_target_what_needs_a_gradient_is_absent():
    result = study(None)
    assert set(result.data_vars) == FREE
    assert_same_values(result, study()[list(FREE)])
    assert set(study().data_vars) == FREE | GRADIENT


def test_a_function_without_a_target_has_a_gradient_too():
    def spread(outputs, _):
        return outputs.square().sum(1)

    assert_same_values(study(None, objective=spread), study(LABELS, objective=spread))


def test_a_block_that_the_objective_does_not_read_has_no_effect():
    model, inputs = doubled(CASES["feature pyramid"])
    result = BlockInfluence(model).attribute(inputs, objective=lambda outputs, _: outputs["coarse"].sum((1, 2, 3)))
    assert (result["lesion_estimate"] != 0).all()

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(7, 6)
            self.first, self.second = mlp(), mlp()

        def forward(self, x):
            x = self.stem(x)
            return x + self.first(x), x + self.second(x)

    model = randomised(TwoHeads()).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    result = BlockInfluence(model).attribute(x, objective=lambda outputs, _: outputs[0].sum(1))
    assert (result["lesion_estimate"].sel(block="second") == 0).all()
    assert result["branch_descent_cosine"].sel(block="second").isnull().all()
    # The first sum is itself an output, and its gradient is 1 everywhere.
    branch = model.first(model.stem(x)).detach()
    np.testing.assert_allclose(result["lesion_estimate"].sel(block="first"), -branch.sum(1), rtol=1e-10)
    result = BlockInfluence(model).attribute(x, objective=lambda outputs, _: outputs[1].sum(1))
    assert (result["lesion_estimate"].sel(block="first") == 0).all()


def test_an_objective_that_reads_no_block_says_that_none_matters():
    model, inputs = doubled(CASES["several outputs"])
    result = BlockInfluence(model).attribute(inputs, objective=lambda outputs, _: outputs[1]["stem"][0].sum(1))
    assert (result["lesion_estimate"] == 0).all()
    assert np.isfinite(result["block_influence"]).all()


# How the samples are laid out


class PerToken(nn.Module):
    """Blocks that work token by token, so that the layout of batch and tokens is free."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.stem = nn.Linear(4, 6)
        self.branches = nn.ModuleList(mlp() for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branches[0](x)
        if self.layout == "tokens first":
            x = x.transpose(0, 1)
        if self.layout == "mixed":
            x = x.flatten(0, 1)
        x = 0.5 * x + self.branches[1](x)
        if self.layout == "tokens first":
            x = x.transpose(0, 1)
        if self.layout == "mixed":
            x = x.unflatten(0, (-1, 3))
        return self.head((x + self.branches[2](x)).mean(1))


def per_token(layout, dim=None):
    torch.manual_seed(0)
    model = randomised(PerToken(layout)).double()
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    return BlockInfluence(model).attribute(x, LABELS, vector_dim=dim)


@pytest.mark.parametrize("dim", [None, -1, 0])
def test_the_batch_may_lie_behind_the_tokens(dim):
    assert_same_values(per_token("tokens first", dim), per_token("batch first", dim))


def test_blocks_that_mix_the_batch_with_tokens_are_not_known():
    mixed, plain = per_token("mixed"), per_token("batch first")
    for name in FREE | GRADIENT:
        np.testing.assert_allclose(mixed[name][[0, 2]], plain[name][[0, 2]], rtol=1e-10)
        assert mixed[name][1].isnull().all()


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_loader_is_streamed_as_one_batch(batch_size):
    net, model, x = network()
    loader = DataLoader(TensorDataset(x, LABELS), batch_size=batch_size)
    assert_same_values(BlockInfluence(net).attribute(loader), study())
    assert_same_values(BlockInfluence(model).attribute(loader), study())


@pytest.fixture
def sizes(monkeypatch):
    """Collect the number of samples of every pass."""
    found = []
    run = ActivationEngine.run

    def spy(self, inputs, *args, **options):
        found.append(len(next(iter(inputs.values()))))
        return run(self, inputs, *args, **options)

    monkeypatch.setattr(ActivationEngine, "run", spy)
    return found


@pytest.mark.parametrize(("size", "expected"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (7, [7]), (100, [7])])
def test_results_do_not_depend_on_the_internal_batch_size(size, expected, sizes):
    result, free = study(internal_batch_size=size), study(None, internal_batch_size=size)
    assert sizes == expected * 2
    assert_same_values(result, study())
    assert_same_values(free, study(None))


def test_little_memory_makes_smaller_chunks(monkeypatch, sizes):
    with monkeypatch.context() as patched:
        patched.setattr("resnet_paths_plugin.analyzers.gradients.influence.GRAPH_BYTES", 100_000)
        result = study()
    assert 1 < len(sizes) <= 7
    assert sum(sizes) == 7
    assert_same_values(result, study())


def test_several_inputs_and_further_arguments_are_passed_on():
    model, (left, right) = doubled(CASES["two inputs"], 3)
    labels = torch.tensor([0, 1, 2])
    result = BlockInfluence(model).attribute((left, right), labels)
    assert_same_values(BlockInfluence(model).attribute(left, labels, right), result)
    assert_same_values(BlockInfluence(model).attribute([((left, right), labels)]), result)


def test_token_ids_are_inputs_like_any_other():
    model, (ids,) = tokens()
    result = BlockInfluence(model).attribute(ids, torch.tensor([1, 0, 4]), vector_dim=-1)
    norms = [f"layers.{i}.norm{j}" for i in range(2) for j in (1, 2)]
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        with torch.enable_grad():
            seen = Seen(model, (ids,), cross_entropy(torch.tensor([1, 0, 4])), ["embedding", *norms])
    finally:
        torch.backends.mha.set_fastpath_enabled(value=True)
    sources = [seen.returned[path] for path in ["embedding", *norms[:-1]]]
    assert list(result.block_index) == [0, 1, 2, 3]
    for block, source, norm in zip(result.block.values, sources, norms, strict=True):
        total = seen.got[norm]  # these layers normalise the sum
        (gradient,) = torch.autograd.grad(
            model.get_submodule(norm)(leaf := total.detach().requires_grad_()), leaf, seen.gradient(norm)
        )
        assert_block(result, str(block), by_hand(source, total - source, total, gradient, dims=-1))


def test_a_bfloat16_model_is_measured_in_double():
    model = randomised(PreActivation()).eval().to(torch.bfloat16)
    result = BlockInfluence(model).attribute(torch.randn(4, 3, 6, 6).to(torch.bfloat16), 1)
    for name in FREE | GRADIENT:
        assert result[name].dtype == np.float64
        assert np.isfinite(result[name]).all()
    cosine = result["source_sum_cosine"]
    np.testing.assert_allclose(result["angular_distance"], np.arccos(cosine) / np.pi, rtol=1e-12)


def test_values_are_gone_once_nobody_reads_them():
    case = CASES["pre-activation"]
    torch.manual_seed(0)
    model, x = randomised(PreActivation(blocks=6)).eval(), case.inputs(2)[0]
    net = rpp.unravel(model, x)
    seen = []

    def visit(state):
        alive.append(sum(not one.expired() for one in seen))
        seen.append(StorageWeakRef(state.sum.untyped_storage()))

    alive = []
    ActivationEngine(net.program).run(net.inputs((x,)), net.program.parameters(), visit)
    assert alive == [0, 1, 1, 1, 1, 1]  # the source is the sum before


# Gates


def test_the_gate_of_a_highway_layer_is_its_transform_gate():
    model, inputs = doubled(CASES["highway"])
    net = rpp.unravel(model, inputs)
    result = BlockInfluence(net).attribute(inputs, LABELS)
    paths = [f"middle.{i}{part}" for i in range(2) for part in ("", ".gate", ".transform")]
    seen = Seen(model, inputs, cross_entropy(LABELS), paths)
    gates = {}
    ActivationEngine(net.program).run(
        net.inputs(inputs), net.program.parameters(), lambda state: gates.update({state.block.name: state.gate})
    )
    for block in net.blocks:
        gate = seen.returned[f"{block.name}.gate"]
        assert block.skip_kind == "gated"
        torch.testing.assert_close(gates[block.name], gate.detach(), rtol=1e-12, atol=0)
        np.testing.assert_allclose(
            result["gate_openness"].sel(block=block.name), gate.detach().mean(1), rtol=1e-12, atol=0
        )
        branch = gate * seen.returned[f"{block.name}.transform"]
        expected = by_hand(seen.got[block.name], branch, seen.returned[block.name], seen.gradient(block.name))
        assert_block(result, block.name, expected)


class Coupled(nn.Module):
    """Highway layers of other forms: of the carry gate, with one gate for all channels; and a plain block."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.transform = nn.Conv2d(4, 4, 3, padding=1)
        self.gate = nn.Conv2d(4, 4 if form in {"full", "carry", "negated"} else 1, 1)
        self.branch = nn.Conv2d(4, 4, 1)

    def opened(self, x):
        """Return what multiplies the branch."""
        gate = self.gate(x)
        if self.form == "one per sample":
            gate = gate.mean((2, 3), keepdim=True)
        return 1 - gate.sigmoid() if self.form == "carry" else gate.sigmoid()

    def forward(self, x):
        gate = self.gate(x)
        if self.form == "one per sample":
            gate = gate.mean((2, 3), keepdim=True)
        gate = gate.sigmoid()
        if self.form == "carry":
            x = gate * x + (1 - gate) * self.transform(x).tanh()
        elif self.form == "negated":
            x = self.transform(x).tanh() * gate + x * (-gate + 1)
        else:
            x = (1 - gate) * x + gate * self.transform(x).tanh()
        x = x + self.branch(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("form", ["full", "carry", "negated", "one per position", "one per sample"])
def test_openness_is_that_of_what_multiplies_the_branch(form):
    model = randomised(Coupled(form)).double()
    x = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert [block.skip_kind for block in net.blocks] == ["gated", "identity"]
    assert net.blocks[0].gate is not None
    assert net.blocks[1].gate is None
    result = BlockInfluence(net).attribute(x)
    with torch.no_grad():
        expected = model.opened(x).expand(5, 4, 6, 6).mean((1, 2, 3))
    np.testing.assert_allclose(result["gate_openness"][0], expected, rtol=1e-12)
    assert result["gate_openness"][1].isnull().all()


def test_networks_without_gates_have_no_openness():
    for name in ("transformer", "gated"):  # squeeze gates are no highway
        model, inputs = doubled(CASES[name])
        net = rpp.unravel(model, inputs)
        assert all(block.gate is None for block in net.blocks)
        assert "gate_openness" not in BlockInfluence(net).attribute(inputs)


def test_a_gate_that_the_graph_does_not_have_is_an_error_of_the_plugin():
    class Misnamed:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            return [replace(block, gate="nowhere") for block in blocks]

    model, inputs = doubled(CASES["highway"])
    manager = rpp.create_plugin_manager()
    manager.register(Misnamed())
    net = rpp.unravel(model, inputs, plugin_manager=manager)
    with pytest.raises(PluginError, match=r"block 'middle\.0' names a gate .* 'nowhere'"):
        BlockInfluence(net).attribute(inputs)


# Against the true effects of lesions


def test_the_true_effect_is_the_mean_rise_of_the_measure():
    result = study(lesions=lesions())
    for at, block in enumerate(result.block.values):
        rise = lesions()["loss"].sel(lesion=block) - lesions()["intact_loss"]
        assert float(result["lesion_effect"][at]) == pytest.approx(float(rise.mean()), rel=1e-6)
    assert result["lesion_effect"].attrs["measure"] == "loss"
    assert result["lesion_effect"].attrs["units"] == "nat"
    assert list(result.proxy.values) == PROXIES
    truth = ["lesion_effect", "lesion_effect_by_sample", "rank_correlation"]
    assert_same_values(result.drop_vars(truth), study())


@pytest.mark.parametrize("effect", ["error", "target_score", "target_score_drop", "kl_divergence", "correct"])
def test_any_measure_may_be_the_effect(effect):
    result = study(lesions=lesions(), effect=effect)
    expected = lesions()[effect].values.astype(float)
    if f"intact_{effect}" in lesions():
        expected = expected - lesions()[f"intact_{effect}"].values
    expected = expected.mean(1) if expected.ndim == 2 else expected
    np.testing.assert_allclose(result["lesion_effect"], expected, rtol=1e-6, atol=1e-7)
    assert result["lesion_effect"].attrs["measure"] == effect
    each = result["lesion_effect_by_sample"]
    assert each.dims == ("block", "lesion_sample")
    assert each.attrs["measure"] == effect
    np.testing.assert_allclose(each.mean("lesion_sample"), result["lesion_effect"], rtol=1e-6, atol=1e-7)
    if effect in {"kl_divergence", "target_score_drop"}:
        np.testing.assert_allclose(each, lesions()[effect].transpose("lesion", "sample"))
    if effect == "error":
        rise = lesions().intact_correct.astype(float) - lesions().correct
        np.testing.assert_array_equal(each, rise.transpose("lesion", "sample"))


def test_the_effect_on_a_sample_is_one_where_the_deletion_alone_makes_it_wrong():
    truth = lesions().copy(deep=True)
    for name in ("correct", "intact_correct"):
        truth[name][:] = True
    wrong = {"lesion": 1, "sample": 2}
    truth["correct"][wrong] = False
    result = study(lesions=truth, effect="error")
    expected = np.zeros((3, 7))
    expected[1, 2] = 1
    np.testing.assert_array_equal(result["lesion_effect_by_sample"], expected)
    np.testing.assert_allclose(result["lesion_effect"], expected.mean(axis=1))


def longer():
    """A network of six blocks, its images and the lesions of single blocks with made-up losses."""
    torch.manual_seed(0)
    model = randomised(PreActivation(blocks=6)).eval().double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    net = rpp.unravel(model, x)
    made = rpp.BlockLesion(net).attribute(x, LABELS[:5])
    rises = np.array([0.3, -0.2, 0.9, 0.1, 0.5, 0.4])
    losses = made["intact_loss"].values + rises[:, None] + np.linspace(-0.01, 0.01, 5)
    return net, x, made.assign(loss=(("lesion", "sample"), losses.astype(np.float32), made["loss"].attrs)), rises


def test_rank_correlations_are_scipys():
    net, x, made, rises = longer()
    result = BlockInfluence(net).attribute(x, LABELS[:5], lesions=made)
    np.testing.assert_allclose(result["lesion_effect"], rises, rtol=1e-5)
    for proxy in PROXIES:
        expected = stats.spearmanr(result[proxy].mean("sample"), rises).statistic
        assert float(result["rank_correlation"].sel(proxy=proxy)) == pytest.approx(expected, rel=1e-12)
        assert abs(expected) < 1


def test_blocks_that_are_not_deleted_alone_are_left_out():
    net, x, made, rises = longer()
    some = made.isel(lesion=[0, 2, 3, 5])
    result = BlockInfluence(net).attribute(x, LABELS[:5], lesions=some)
    np.testing.assert_array_equal(result["lesion_effect"].isnull(), [False, True, False, False, True, False])
    kept = [0, 2, 3, 5]
    for proxy in PROXIES:
        expected = stats.spearmanr(result[proxy].mean("sample")[kept], rises[kept]).statistic
        assert float(result["rank_correlation"].sel(proxy=proxy)) == pytest.approx(expected, rel=1e-12)
    few = BlockInfluence(net).attribute(x, LABELS[:5], lesions=made.isel(lesion=[1, 4]))
    assert few["rank_correlation"].isnull().all()


def test_lesions_of_several_blocks_are_passed_over_and_repeated_ones_averaged():
    net, _, x = network()
    both = rpp.BlockLesion(net).attribute(
        x, LABELS, lesions=[["blocks.0", "blocks.1"], "blocks.1", [], "blocks.1", "blocks.2"]
    )
    both["loss"][3] += 1.0
    result = study(lesions=both)
    np.testing.assert_array_equal(result["lesion_effect"].isnull(), [True, False, False])
    alone = study(lesions=lesions())["lesion_effect"]
    np.testing.assert_allclose(result["lesion_effect"][1:], [alone[1] + 0.5, alone[2]], rtol=1e-5)


def test_a_measure_that_is_not_a_number_gives_no_effect():
    broken = lesions().copy(deep=True)
    broken["loss"][1, 3] = np.nan
    result = study(lesions=broken)
    np.testing.assert_array_equal(result["lesion_effect"].isnull(), [False, True, False])


def test_equal_effects_have_no_ranks():
    net, x, made, _ = longer()
    equal = made.assign(loss=made["intact_loss"].expand_dims(lesion=made.lesion))
    result = BlockInfluence(net).attribute(x, LABELS[:5], lesions=equal)
    assert (result["lesion_effect"] == 0).all()
    assert result["rank_correlation"].isnull().all()


def test_blocks_without_a_proxy_are_left_out_of_its_correlation():
    def blocks():
        yield nn.Conv2d(3, 4, 3, padding=1)
        yield PostActivationBlock(4, 8, 2, Shortcut())
        yield from (PostActivationBlock(8, 8, 1, nn.Identity()) for _ in range(4))
        yield from (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    torch.manual_seed(0)
    model, x = randomised(nn.Sequential(*blocks())).eval().double(), torch.randn(7, 3, 8, 8, dtype=torch.float64)
    net = rpp.unravel(model, x)
    result = BlockInfluence(net).attribute(x, LABELS, lesions=rpp.BlockLesion(net).attribute(x, LABELS))
    assert result["block_influence"][0].isnull().all()
    for proxy, kept in (("block_influence", slice(1, None)), ("lesion_estimate", slice(None))):
        expected = stats.spearmanr(result[proxy].mean("sample")[kept], result["lesion_effect"][kept]).statistic
        assert float(result["rank_correlation"].sel(proxy=proxy)) == pytest.approx(expected)


def test_without_a_target_the_other_proxies_are_ranked():
    result = study(None, lesions=lesions())
    assert list(result.proxy.values) == PROXIES[:3]


def test_samples_without_a_value_are_left_out_of_a_proxys_mean():
    net, x, made, rises = longer()
    x = x.clone()
    x[2] = math.inf
    with pytest.warns(NonFiniteInputWarning):
        result = BlockInfluence(net).attribute(x, lesions=made)
    assert result["block_influence"][:, 2].isnull().all()
    known = result["block_influence"][:, [0, 1, 3, 4]].mean("sample")
    expected = stats.spearmanr(known, rises).statistic
    assert float(result["rank_correlation"].sel(proxy="block_influence")) == pytest.approx(expected)


def test_lesions_of_a_file_serve_as_well(tmp_path):
    stored = rpp.load(rpp.save(lesions(), tmp_path / "lesions.nc"))
    xr.testing.assert_equal(study(lesions=stored), study(lesions=lesions()))


def test_lesions_of_another_network_are_refused():
    _, model, x = network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(InputError, match=r"other weights .* weights_digest is sha256:\w+ there and sha256:\w+ here"):
        BlockInfluence(other).attribute(x, LABELS, lesions=lesions())
    with pytest.raises(InputError, match="they have 3 blocks, it has 4"):
        BlockInfluence(randomised(PreActivation(blocks=4)).double()).attribute(x, LABELS, lesions=lesions())
    renamed = lesions().assign_coords(block=["blocks.0", "middle", "blocks.2"])
    with pytest.raises(InputError, match=r"their block 1 is 'middle', its is 'blocks\.1'"):
        study(lesions=renamed)


def test_what_is_no_lesion_study_is_refused():
    for wrong in (study(), 3, xr.DataTree.from_dict({"lesions": lesions()})):
        with pytest.raises(InputError, match="lesions must be a Dataset that BlockLesion returned"):
            study(lesions=wrong)
    net, _, x = network()
    pairs = rpp.BlockLesion(net).attribute(x, LABELS, n_deleted=2)
    with pytest.raises(InputError, match="no block alone"):
        study(lesions=pairs)
    for effect in ("prediction", "deleted", "n_deleted", "intact_loss", "margin"):
        with pytest.raises(InputError, match=rf"no measure '{effect}' .* one of \['"):
            study(lesions=lesions(), effect=effect)


def test_lesions_are_judged_before_anything_is_run():
    net, _, x = network()

    def batches():
        yield x, LABELS
        raise AssertionError

    with pytest.raises(InputError, match="no measure"):
        BlockInfluence(net).attribute(batches(), lesions=lesions(), effect="?")


# The result


@pytest.mark.parametrize(
    "options", [{}, {"target": None}, {"vector_dim": 0}, {"lesions": "given"}, {"lesions": "given", "effect": "error"}]
)
def test_a_saved_result_is_loaded_identical(options, tmp_path):
    options = {**options, "lesions": lesions()} if "lesions" in options else options
    result = study(**options)
    assert rpp.load(rpp.save(result, tmp_path / "influence.nc")).identical(result)


def test_a_saved_result_with_gates_and_nothing_known_is_loaded_identical(tmp_path):
    for name in ("highway", "post-activation"):
        model, inputs = doubled(CASES[name])
        result = BlockInfluence(model).attribute(inputs, LABELS)
        assert rpp.load(rpp.save(result, tmp_path / "influence.nc")).identical(result)


def test_the_result_has_the_schemas_dims_and_tells_where_it_comes_from():
    net, _, _ = network()
    result = study(lesions=lesions(), vector_dim=0)
    assert dict(result.sizes) == {"block": 3, "sample": 7, "lesion_sample": 7, "proxy": 5}
    for name in FREE | GRADIENT:
        assert result[name].dims == ("block", "sample")
        assert result[name].dtype == np.float64
        assert "measure '" not in result[name].attrs["long_name"]
    assert result["lesion_effect"].dims == ("block",)
    assert result["rank_correlation"].dims == ("proxy",)
    assert result.attrs["weights_digest"] == net.weights_digest()
    assert result.attrs["argument_vector_dim"] == 0
    assert "2403.03853" in result.attrs["references"]
    assert "2403.17887" in result.attrs["references"]
    for block in net.blocks:
        assert result["block_skip_kind"].sel(block=block.name) == block.skip_kind


def test_the_figures_draw_it():
    assert rpp.plotting.plot_influence(study(lesions=lesions())) is not None
    model, inputs = doubled(CASES["highway"])
    assert rpp.plotting.plot_gates(BlockInfluence(model).attribute(inputs)) is not None
    import matplotlib.pyplot as plt

    plt.close("all")


def test_progress_is_shown_where_asked(capsys):
    study()
    assert capsys.readouterr().err == ""
    study(show_progress=True)
    assert "influence" in capsys.readouterr().err


# Nothing of the user's is changed


class Unhappy(Exception):
    pass


def unhappy(outputs, target):
    raise Unhappy


def test_the_model_is_as_it_was_also_after_an_error():
    model = randomised(Transformer()).train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.layers[0].norm1.weight.requires_grad_(requires_grad=False)
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3])
    analyzer = BlockInfluence(model)
    before = state_of(model)
    analyzer.attribute(x, target)
    assert_same_state(before, state_of(model))
    for options, error in (
        ({"objective": unhappy}, Unhappy),
        ({"objective": lambda outputs, _: outputs}, InputError),
        ({"objective": "?"}, InputError),
        ({"target": torch.tensor([0, 1, 2, 77])}, InputError),
        ({"vector_dim": 9}, InputError),
    ):
        with pytest.raises(error):
            analyzer.attribute(x, **{"target": target, **options})
        assert_same_state(before, state_of(model))
    assert x.grad is None
    with torch.no_grad():
        inside = analyzer.attribute(x, target)
        assert not torch.is_grad_enabled()
    assert_same_values(inside, analyzer.attribute(x, target))


# Bad input, each with its own error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector_dim": 3}, r"vector_dim=3 is no dimension of the sum of 'blocks.0', which has shape \(4, 6, 6\)"),
        ({"vector_dim": -4}, "vector_dim=-4 is no dimension"),
        ({"vector_dim": 1.0}, "vector_dim must be a dimension"),
        ({"vector_dim": True}, "vector_dim must be a dimension"),
        ({"internal_batch_size": 0}, "internal_batch_size must be a positive integer"),
        ({"target": 5}, "target 5 is out of range"),
        ({"objective": "loss"}, "objective must be"),
        ({"target": None, "objective": "score"}, "needs a target"),
        ({"target": (1, 0)}, "must be one index"),
        ({"objective": lambda outputs, _: outputs.detach().sum(1)}, "does not depend on the outputs"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        study(**options)


def test_batches_with_and_without_targets_are_not_mixed():
    net, _, x = network()
    with pytest.raises(InputError, match="give all batches targets, or none"):
        BlockInfluence(net).attribute([(x, LABELS), (x, None)])


def test_a_network_without_skips_is_refused():
    model, inputs = doubled(CASES["plain"])
    with pytest.raises(NoResidualBlocksError):
        BlockInfluence(model).attribute(inputs)
    layers = rpp.unravel(Vectors(mlp(), nn.Linear(6, 6)).double(), torch.randn(3, 7).double(), units="layers")
    assert layers.blocks
    with pytest.raises(InputError, match="units='blocks'"):
        BlockInfluence(layers).attribute(torch.randn(3, 7).double())


def test_the_effect_is_the_objectives_own_unless_another_is_named():
    found = study(objective="score", lesions=lesions())
    named = study(objective="score", lesions=lesions(), effect="target_score")
    assert found.lesion_effect.attrs["measure"] == "target_score"
    np.testing.assert_array_equal(found.lesion_effect, named.lesion_effect)
    assert study(lesions=lesions()).lesion_effect.attrs["measure"] == "loss"
    with pytest.raises(InputError, match="effect="):
        study(objective=lambda outputs, _: outputs[:, 0], lesions=lesions())


def test_how_the_lesions_were_made_stands_beside_their_effect():
    net, _, x = network()
    mean = rpp.BlockLesion(net).attribute(x, LABELS, ablation="mean")
    attrs = study(lesions=mean).lesion_effect.attrs
    assert (attrs["lesions_ablation"], attrs["lesions_batch_norm"]) == ("mean", "frozen")
