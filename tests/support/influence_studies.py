"""Studies of influence of one small network, and what hooks on a model see of its blocks."""

import functools
import math

import numpy as np
import torch
from known_networks import CASES
from networks import randomised
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence

FREE = {"branch_to_source_norm", "source_sum_cosine", "block_influence", "angular_distance"}
GRADIENT = {"branch_descent_cosine", "lesion_estimate"}
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
