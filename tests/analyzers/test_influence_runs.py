"""Influence in batches, files and dtypes; the model stays as it was, and bad input is refused."""

import numpy as np
import pytest
import torch
from influence_studies import (
    FREE,
    GRADIENT,
    LABELS,
    Seen,
    assert_block,
    assert_same_values,
    by_hand,
    cross_entropy,
    doubled,
    lesions,
    network,
    study,
    tokens,
)
from known_networks import CASES
from networks import PreActivation, Transformer, Vectors, assert_same_state, mlp, randomised, state_of
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence
from resnet_paths_plugin.engine.activations import ActivationEngine
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError

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
