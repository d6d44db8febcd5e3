"""BlockContribution against every path one by one, frozen norms written by hand, and the first-order estimate."""

from collections import defaultdict
from functools import cache

import cifar
import numpy as np
import pytest
import torch
from networks import assert_same_state, state_of
from path_enumeration import TWINS, twin
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

TARGET = 2
ONE_OUTPUT = sorted(name for name, made in TWINS.items() if len(made) == 2)


@cache
def network(name):
    return rpp.unravel(twin(name).model, twin(name).inputs)


def attribute(name, **options):
    known = twin(name)
    inputs = known.inputs if len(known.inputs) > 1 else known.inputs[0]
    return rpp.BlockContribution(network(name)).attribute(inputs, TARGET, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_contributions_equal_the_enumeration(name):
    known = twin(name)
    values = dict(zip(known.wiring.inputs, known.inputs, strict=True))
    expected = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    for node, terms in known.wiring.sums.items():
        each = [term.function(*(values[read] for read in term.reads)).detach() for term in terms]
        values[node] = sum(each)
        for path in known.at(node).paths:
            for term, value in zip(terms, each, strict=True):
                if term.block is not None:
                    product = (path.gradients[0] * value.expand_as(path.gradients[0])).flatten(1).sum(1)
                    expected[term.block, path.length] = expected[term.block, path.length] + product
    ds = attribute(name)
    assert ds.contribution.dims == ("block", "path_length", "sample")
    for block in ds.block.values:
        for length in ds.path_length.values:
            ours = ds.contribution.sel(block=block, path_length=length)
            np.testing.assert_allclose(ours, expected[block, int(length)], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ds.direct, ds.contribution.sel(path_length=0), rtol=0)
    np.testing.assert_allclose(ds.indirect, ds.contribution.sel(path_length=slice(1, None)).sum("path_length"))


@pytest.mark.parametrize("name", ["pre-activation", "nested", "two streams"])
def test_all_contributions_of_a_block_are_minus_the_first_order_estimate(name):
    known = twin(name)
    inputs = known.inputs if len(known.inputs) > 1 else known.inputs[0]
    influence = rpp.BlockInfluence(network(name)).attribute(inputs, TARGET, objective="score")
    ds = attribute(name)
    np.testing.assert_allclose(ds.direct + ds.indirect, -influence.lesion_estimate, rtol=1e-10, atol=1e-12)


def test_contributions_to_a_difference_of_scores_are_differences():
    ds, other = attribute("post-activation", versus=4), rpp.BlockContribution(network("post-activation"))
    whole = attribute("post-activation"), other.attribute(twin("post-activation").inputs[0], 4)
    for variable in ("contribution", "stem", "remainder"):
        np.testing.assert_allclose(ds[variable], whole[0][variable] - whole[1][variable], rtol=1e-10, atol=1e-12)


def test_kept_lengths_and_the_rest_are_the_same_whole():
    ds, whole = attribute("transformer", max_length=1), attribute("transformer")
    assert ds.sizes["path_length"] == 2
    np.testing.assert_allclose(ds.contribution, whole.contribution[:, :2], rtol=1e-12)
    np.testing.assert_allclose(ds.indirect, whole.indirect, rtol=1e-10, atol=1e-13)


def test_samples_do_not_depend_on_those_beside_them():
    whole, single = attribute("pre-activation"), attribute("pre-activation", internal_batch_size=1)
    np.testing.assert_allclose(whole.contribution, single.contribution, rtol=1e-10, atol=1e-14)


# Parts that add up to the score


def test_between_fixed_masks_the_parts_add_up_to_the_score():
    """In a post-activation network all that is left are biases, the same for samples with the same masks."""
    images, labels = cifar.images_and_labels()
    model = cifar.trained(20).double()
    net = rpp.unravel(model, images[:2].double())
    ds = rpp.BlockContribution(net).attribute(images[:4].double(), labels[:4])
    scores = model(images[:4].double()).gather(1, labels[:4, None])[:, 0].detach()
    parts = ds.stem + ds.direct.sum("block") + ds.remainder
    np.testing.assert_allclose(parts, scores, rtol=1e-12)
    # Option A's skips have no parameters: the classifier's bias is all that is added beside the blocks.
    bias = next(m for m in model.modules() if isinstance(m, nn.Linear)).bias.detach()[labels[:4]]
    np.testing.assert_allclose(ds.remainder, bias, atol=1e-10)


class RootMeanSquare(nn.Module):
    """An RMS norm as language models write it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class BuiltInRootMeanSquare(nn.RMSNorm):
    def __init__(self, width):
        super().__init__(width, eps=1e-6)
        nn.init.uniform_(self.weight, 0.5, 1.5)


class LayerNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        nn.init.uniform_(self.weight, 0.5, 1.5)
        nn.init.normal_(self.bias)


class WrittenLayerNorm(nn.Module):
    """A layer norm by its definition."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * self.weight + self.bias


class TinyLanguageModel(nn.Module):
    """Token ids, blocks behind norms, a final norm and an unembedding."""

    def __init__(self, norm, width=6, n_blocks=3):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.norms = nn.ModuleList(norm(width) for _ in range(n_blocks))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 9), nn.Tanh(), nn.Linear(9, width)) for _ in range(n_blocks)
        )
        self.norm = norm(width)
        self.unembedding = nn.Linear(width, 5)

    def stream(self, tokens):
        x = self.embedding(tokens)
        parts = [x]
        for norm, branch in zip(self.norms, self.branches, strict=True):
            parts.append(branch(norm(x)))
            x = x + parts[-1]
        return x, parts

    def forward(self, tokens):
        return self.unembedding(self.norm(self.stream(tokens)[0])[:, -1])


class Normalised(RootMeanSquare):
    def forward(self, x):
        return self.weight * torch.nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5


class DividedByItsNorm(RootMeanSquare):
    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5 * self.weight


class SummedSquares(RootMeanSquare):
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + 1e-6))


class Floored(RootMeanSquare):
    def forward(self, x):
        square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(torch.maximum(square, torch.full_like(square, 1e-6))))


NORMS = [
    RootMeanSquare, BuiltInRootMeanSquare, LayerNorm, WrittenLayerNorm, Normalised, DividedByItsNorm, SummedSquares,
    Floored,
]  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_behind_norms_with_constant_scales_direct_parts_are_direct_logit_attribution(norm):
    torch.manual_seed(0)
    model = TinyLanguageModel(norm).double()
    tokens = torch.randint(0, 11, (4, 7))
    before = state_of(model)
    ds = rpp.BlockContribution(model).attribute(tokens, 3)
    assert_same_state(before, state_of(model))
    assert ds.attrs["norms"] == "scales of 4 held constant"
    with torch.no_grad():
        x, parts = model.stream(tokens)
        last, centres = x[:, -1], "Layer" in norm.__name__
        mean = last.mean(-1, keepdim=True) if centres else 0
        epsilon = 1e-5 if centres else 0 if norm in {Normalised, DividedByItsNorm, Floored} else 1e-6
        scale = ((last - mean).square().mean(-1, keepdim=True) + epsilon).rsqrt()
        row = model.unembedding.weight[3] * model.norm.weight

        def logit(part):
            part = part[:, -1] - (part[:, -1].mean(-1, keepdim=True) if centres else 0)
            return (part * scale) @ row

        np.testing.assert_allclose(ds.stem, logit(parts[0]), rtol=1e-10)
        for block, part in enumerate(parts[1:]):
            np.testing.assert_allclose(ds.direct[block], logit(part), rtol=1e-10)
        bias = model.unembedding.bias[3]
        if centres:
            bias = bias + model.unembedding.weight[3] @ model.norm.bias
        np.testing.assert_allclose(ds.remainder, bias.expand(4), rtol=1e-9)


def test_with_differentiated_norms_the_parts_behind_a_final_norm_cancel():
    torch.manual_seed(0)
    model = TinyLanguageModel(RootMeanSquare).double()
    ds = rpp.BlockContribution(model).attribute(torch.randint(0, 11, (4, 7)), 3, freeze_norms=False)
    frozen = rpp.BlockContribution(model).attribute(torch.randint(0, 11, (4, 7)), 3)
    assert abs(ds.stem + ds.direct.sum("block")).max() < 1e-5
    assert abs(frozen.stem + frozen.direct.sum("block")).max() > 1e-2


def test_a_spread_that_is_a_feature_is_no_norm():
    """Statistics pooling: mean and standard deviation of the tokens, side by side."""

    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(8, 3)
            self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2))

        def forward(self, tokens):
            x = self.embedding(tokens)
            for branch in self.branches:
                x = x + branch(x)
            return self.head(torch.cat([x.mean(1), x.std(1)], 1))

    torch.manual_seed(0)
    model, tokens = Pooling().double(), torch.randint(0, 9, (4, 6))
    frozen, plain = (rpp.BlockContribution(model).attribute(tokens, 1, freeze_norms=flag) for flag in (True, False))
    assert frozen.attrs["norms"] == "scales of 0 held constant"
    np.testing.assert_allclose(frozen.direct, plain.direct)


# Maps


def test_maps_sum_to_the_direct_contribution():
    ds = attribute("post-activation", keep_maps=True)
    assert ds.contribution_map.dims == ("block", "sample", "height", "width")
    np.testing.assert_allclose(ds.contribution_map.sum(("height", "width")), ds.direct, rtol=1e-5, atol=1e-6)
    tokens = attribute("transformer", keep_maps=True)
    assert tokens.contribution_map.dims == ("block", "sample", "position_0")
    np.testing.assert_allclose(tokens.contribution_map.sum("position_0"), tokens.direct, rtol=1e-5, atol=1e-6)


def test_a_map_is_the_product_of_gradient_and_branch_at_each_position():
    """Of the last block, behind which the trunk is the pooling and the head."""
    known = twin("pre-activation")
    ds = attribute("pre-activation", keep_maps=True)
    model = known.model
    with torch.enable_grad():
        y = model.stem(known.inputs[0])
        for block in model.blocks[:-1]:
            y = y + block.branch(y)
        branch = model.blocks[-1].branch(y).detach()
        total = (y + branch).detach().requires_grad_()
        score = model.head(total.relu().mean((2, 3)))[:, TARGET].sum()
        (gradient,) = torch.autograd.grad(score, total)
    np.testing.assert_allclose(ds.contribution_map[-1], (gradient * branch).sum(1), rtol=1e-5, atol=1e-7)


def test_blocks_without_positions_have_no_maps():
    with pytest.raises(InputError, match="no positions that all blocks share"):
        attribute("parallel", keep_maps=True)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"versus": 1.5}, "an index or a tuple"),
        ({"versus": 1, "objective": "cross_entropy"}, "goes with objective='score'"),
        ({"versus": 5}, "target 5 is out of range"),
        ({"max_length": -1}, "max_length must be a whole number from 0"),
        ({"max_length": True}, "max_length must be a whole number from 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        attribute("pre-activation", **options)
