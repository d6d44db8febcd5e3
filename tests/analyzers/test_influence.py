"""What each block does to its stream, by its definition: against hooks on the models."""

import numpy as np
import pytest
import torch
from influence_studies import FREE, LABELS, Seen, assert_block, by_hand, cross_entropy, doubled, network, study
from known_networks import CASES
from networks import randomised
from torch import nn
from torch.nn import functional

from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence


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
